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


def _add(sums: np.ndarray, batch: Batch, square: Tensor) -> None:
    """Add what is of targets, (B, T) or (B,), to the sums of their systems."""
    np.add.at(sums, batch.system.numpy(), square.reshape(len(square), -1).sum(1).numpy())


def _ratio(samples: Samples, indices: np.ndarray, over: np.ndarray, under: np.ndarray) -> tuple[float, float, int]:
    """A ratio of sums by system, its standard error, systems being what is independent, and their number.

    Both are nan where there is nothing to divide by; the error (ratio estimator) is so for a single system, too.
    """
    k, total = len(np.unique(np.asarray(indices) // samples.samples_per_system)), float(under.sum())
    if not total:
        return math.nan, math.nan, k
    ratio = float(over.sum()) / total
    spread = math.sqrt(k / (k - 1) * float(np.square(over - ratio * under).sum())) if k > 1 else math.nan
    return ratio, spread / total, k


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
    observe: Callable[[Batch, Tensor, Tensor], None] = lambda batch, prediction, square: None,
) -> Errors:
    """Evaluate a predictor on the samples of those indices; sums are taken in float64.

    ``observe`` is called with every batch, its prediction and the weighted squared errors (B, T) or (B,), all in
    float64, for what a task measures beside the NMSE.
    """
    error, scale = np.zeros(samples.n_systems), np.zeros(samples.n_systems)
    for start in range(0, len(indices), batch_size):
        batch = samples.batch(indices[start : start + batch_size])
        prediction = predict(batch).double()
        batch = batch.double()
        square = squared_error(prediction, batch)
        _add(error, batch, square)
        _add(scale, batch, batch.weight * batch.target.square().sum(-1))
        observe(batch, prediction, square)
    (nmse, spread, k), n = _ratio(samples, indices, error, scale), len(indices)
    return Errors(nmse, spread, float(error.sum() / n), float(scale.sum() / n), k)


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
    found = asymmetry(predict, samples, indices, elements, classes, batch_size)
    return {f"equivariance_{name}": found[name] for name in classes} | {"equivariance_loss_share": found["share"]}


@torch.no_grad()
def asymmetry(
    predict: Predictor,
    samples: Samples,
    indices: np.ndarray,
    elements: Elements,
    classes: Mapping[str, Callable[[Batch, torch.Generator], Batch]] = {},
    batch_size: int = 256,
) -> dict[str, float]:
    """As ``equivariance``, by class; ``share`` is the loss share, with ``share_se``, its standard error by system."""
    actions = (*classes.values(), lambda batch, generator: augment(batch, elements, generator))
    error, size, *gaps = np.zeros((2 + len(actions), samples.n_systems))
    generator = torch.Generator().manual_seed(0)
    for start in range(0, len(indices), batch_size):
        batch = samples.batch(indices[start : start + batch_size])
        plain = predict(batch)
        predicted = batch.replace(plain)  # predictions transform as targets do
        _add(error, batch, squared_error(plain, batch))
        _add(size, batch, batch.weight * plain.square().sum(-1))
        for gap, act in zip(gaps, actions, strict=True):
            moved = act(predicted, generator)
            _add(gap, batch, squared_error(predict(moved), moved))
    relative = (math.sqrt(gap.sum() / size.sum()) if size.any() else math.nan for gap in gaps)
    share, spread, _ = _ratio(samples, indices, 0.5 * gaps[-1], error)
    return dict(zip(classes, relative, strict=False)) | {"share": share, "share_se": spread}


def augment(batch: Batch, elements: Elements, generator: torch.Generator | None = None) -> Batch:
    """Act with a fresh element per sample; the law of the data is invariant under it, so the task never changes."""
    matrix = elements(len(batch), generator, batch.target.dtype)
    return transform(batch, matrix.to(batch.target.device))


def averaged(predict: Predictor, elements: Elements, k: int) -> Predictor:
    """Test-time averaging: the mean of g^-1 f(g x) over k elements g of a group.

    The first g is the identity, so k = 1 is the predictor itself; the others are random, and differ between the samples
    of a batch but not between calls. Raises InputError if k is less than 1.
    """
    if k < 1:
        raise InputError(f"averaging over {k} group elements: at least 1 is needed (1: no averaging)")

    def mean(batch: Batch) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        total = predict(batch)
        for _ in range(k - 1):
            matrix = elements(len(batch), generator, batch.target.dtype).to(batch.target.device)
            moved = predict(transform(batch, matrix))
            total = total + turn(moved, batch.schema.target.kind, matrix.transpose(1, 2).to(moved))
        return total / k

    return mean
