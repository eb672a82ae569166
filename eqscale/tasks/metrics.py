"""Errors that every task has: NMSE with its standard error by system, and how far a predictor is from equivariant."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from eqscale.errors import InputError
from eqscale.tasks.fields import Batch
from eqscale.tasks.samples import Samples
from eqscale.tasks.symmetry import ELEMENTS, Elements, transform, turn

Predictor = Callable[[Batch], Tensor]
"""From a batch to what its target holds, in the frame of the batch."""


def squared_error(prediction: Tensor, batch: Batch) -> Tensor:
    """Weighted squared errors, (B, T) or (B,); their sum over a sample is its loss."""
    return batch.weight * (prediction - batch.target).square().sum(-1)


def per_sample(square: Tensor) -> np.ndarray:
    """Sums over each sample's targets: (B, T) or (B,) -> (B,)."""
    return square.reshape(len(square), -1).sum(1).cpu().numpy()


@dataclasses.dataclass(frozen=True)
class Errors:
    """Errors over a set of samples, which have equal weight."""

    nmse: float
    """Sum of w |error|^2 over sum of w |target|^2: predicting zero has 1."""
    nmse_se: float
    """Its standard error, systems being what is independent (ratio estimator; nan for a single system)."""
    mse: float
    """Mean of w |error|^2 over samples, in the unit of the targets squared."""
    scale: float
    """Mean of w |target|^2 over samples."""
    n_systems: int


@torch.no_grad()
def evaluate(
    predict: Predictor,
    samples: Samples,
    indices: np.ndarray,
    batch_size: int = 256,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    observe: Callable[[Batch, Tensor, Tensor], None] = lambda batch, prediction, square: None,
) -> Errors:
    """Evaluate a predictor on the samples of those indices; sums are taken in float64.

    ``observe`` is called with every batch, its prediction and the weighted squared errors (B, T) or (B,), all in
    float64, for what a task measures beside the NMSE.
    """
    error, scale = np.zeros(samples.n_systems), np.zeros(samples.n_systems)
    for start in range(0, len(indices), batch_size):
        batch = samples.batch(indices[start : start + batch_size], device, dtype)
        prediction = predict(batch).double()
        batch = batch.double()
        square = squared_error(prediction, batch)
        systems = batch.system.cpu().numpy()
        np.add.at(error, systems, per_sample(square))
        np.add.at(scale, systems, per_sample(batch.weight * batch.target.square().sum(-1)))
        observe(batch, prediction, square)
    nmse = error.sum() / scale.sum()
    seen = np.unique(np.asarray(indices) // samples.samples_per_system)
    k = len(seen)
    spread = math.sqrt(k / (k - 1) * np.square(error - nmse * scale)[seen].sum()) if k > 1 else math.nan
    n = len(indices)
    return Errors(float(nmse), float(spread / scale.sum()), float(error.sum() / n), float(scale.sum() / n), k)


@torch.no_grad()
def equivariance(
    predict: Predictor,
    samples: Samples,
    indices: np.ndarray,
    elements: Elements,
    classes: Mapping[str, Callable[[Batch, torch.Generator], Batch]] = ELEMENTS,
    batch_size: int = 256,
) -> dict[str, float]:
    """How far a predictor f is from equivariant: f(g x) against g f(x) on the samples of those indices.

    For each of ``classes``, ``equivariance_<class>``: the relative error
    sqrt(sum w |f(g x) - g f(x)|^2 / sum w |f(x)|^2), summed over targets and samples with the weights w of the loss
    and one random g per sample, the same in every call. Exactly equivariant predictors have round-off, about 1e-6
    in float32; 1.4 is what two unrelated predictions of one size would give. Translations move the input of the
    network without centring it again.

    ``equivariance_loss_share``: the share of these samples' squared error that averaging predictions over the group of
    ``elements`` would remove. For g drawn from that group, which leaves the law of x unchanged, the mean of
    |f(g x) - g f(x)|^2 is twice the mean squared distance of f from its group average, and that average is closer to
    the target by exactly this distance squared (Elesedy and Zaidi, arXiv 2102.10333).
    """
    actions = dict(classes) | {"loss_share": lambda batch, generator: augment(batch, elements, generator)}
    gap = dict.fromkeys(actions, 0.0)
    size = error = 0.0
    generator = torch.Generator().manual_seed(0)
    for start in range(0, len(indices), batch_size):
        batch = samples.batch(indices[start : start + batch_size])
        plain = predict(batch)
        error += float(squared_error(plain, batch).sum())
        predicted = batch.replace(plain)  # predictions transform as targets do
        size += float((batch.weight * plain.square().sum(-1)).sum())
        for name, act in actions.items():
            moved = act(predicted, generator)
            gap[name] += float(squared_error(predict(moved), moved).sum())
    share = 0.5 * gap.pop("loss_share") / error if error else math.nan
    relative = {f"equivariance_{name}": math.sqrt(value / size) if size else math.nan for name, value in gap.items()}
    return relative | {"equivariance_loss_share": share}


@torch.no_grad()
def asymmetry(
    predict: Predictor, samples: Samples, indices: np.ndarray, elements: Elements, batch_size: int = 256
) -> dict[str, float]:
    """``share`` as ``equivariance_loss_share`` of those samples, with ``share_se``, its standard error by system."""
    gap, error = np.zeros(samples.n_systems), np.zeros(samples.n_systems)
    generator = torch.Generator().manual_seed(0)
    for start in range(0, len(indices), batch_size):
        batch = samples.batch(indices[start : start + batch_size])
        plain, systems = predict(batch), batch.system.cpu().numpy()
        np.add.at(error, systems, per_sample(squared_error(plain, batch)))
        moved = augment(batch.replace(plain), elements, generator)
        np.add.at(gap, systems, 0.5 * per_sample(squared_error(predict(moved), moved)))
    share = gap.sum() / error.sum() if error.any() else math.nan
    k = int((error > 0).sum())
    spread = math.sqrt(k / (k - 1) * np.square(gap - share * error).sum()) if k > 1 else math.nan
    return {"share": float(share), "share_se": float(spread / error.sum()) if k else math.nan}


def augment(batch: Batch, elements: Elements, generator: torch.Generator | None = None) -> Batch:
    """Act with a fresh element per sample; the law of the data is invariant under it, so the task never changes."""
    matrix = elements(len(batch), generator, batch.target.dtype)
    return transform(batch, matrix.to(batch.target.device))


def averaged(predict: Predictor, elements: Elements, k: int, seed: int = 0) -> Predictor:
    """Test-time averaging: the mean of g^-1 f(g x) over k elements g of a group.

    The first g is the identity, so k = 1 is the predictor itself; the others are random, and differ between the samples
    of a batch but not between calls. Raises InputError if k is less than 1.
    """
    if k < 1:
        raise InputError(f"averaging over {k} group elements: at least 1 is needed (1: no averaging)")

    def mean(batch: Batch) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        total = predict(batch)
        for _ in range(k - 1):
            matrix = elements(len(batch), generator, batch.target.dtype).to(batch.target.device)
            moved = predict(transform(batch, matrix))
            total = total + turn(moved, batch.schema.target.kind, matrix.transpose(1, 2).to(moved))
        return total / k

    return mean
