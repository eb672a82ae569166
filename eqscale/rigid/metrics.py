"""Errors of a predictor on the benchmark, in units a physicist reads, with standard errors by scene."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from eqscale.errors import InputError
from eqscale.rigid.batch import Batch
from eqscale.rigid.motion import Objects, ballistic, kabsch, place, rotation_angle
from eqscale.rigid.symmetry import ELEMENTS, augment, frame_elements, transform
from eqscale.rigid.windows import Windows

CONTACTS = ("free", "floor", "object")

Predictor = Callable[[Batch], Tensor]
"""From a batch to the residual to ballistic motion in units of sigma, (B, T, 3), like ``Batch.target``."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Errors over a set of windows: vertices, then objects, then windows have equal weight."""

    nmse: float
    """Sum of w |error|^2 over sum of w |target|^2; ballistic motion has 1."""
    nmse_se: float
    """Its standard error, scenes being what is independent (ratio estimator; nan for a single scene)."""
    vertex_rmse_m: float
    center_rmse_m: float
    """Of the centre of mass after a Kabsch fit of the predicted vertices."""
    rotation_error_deg: float
    """Root mean squared angle between predicted and true rotation, after the same fit."""
    rigidity_error_m: float
    """Rms distance of the predicted vertices from that fit."""
    nmse_by_contact: dict[str, float]
    """Mean w |error|^2 of objects in free flight, touching the floor only, or touching an object, over the
    mean w |target|^2 of *all* objects; the average by share is ``nmse``.
    (Free flight has next to no target of its own to compare with.)"""
    contact_share: dict[str, float]
    """Weight of each class, sums to 1."""
    n_windows: int
    n_scenes: int


@torch.no_grad()
def evaluate(
    predict: Predictor,
    windows: Windows,
    indices: np.ndarray,
    batch_size: int = 256,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Evaluation:
    """Evaluate a predictor on the windows of those indices; the geometry is computed in float64."""
    error, scale = np.zeros(windows.n_scenes), np.zeros(windows.n_scenes)
    by_class, share = np.zeros(3), np.zeros(3)
    centers = angles = rigidity = 0.0
    for start in range(0, len(indices), batch_size):
        batch = windows.batch(indices[start : start + batch_size], device, dtype)
        residual = predict(batch).double()
        batch = _double(batch)
        square = batch.weight * (residual - batch.target).square().sum(-1)
        scenes = batch.scene.cpu().numpy()
        np.add.at(error, scenes, square.sum(1).cpu().numpy())
        np.add.at(scale, scenes, (batch.weight * batch.target.square().sum(-1)).sum(1).cpu().numpy())
        for k in range(len(CONTACTS)):
            chosen = batch.contact == k
            by_class[k] += float((square * chosen).sum())
            share[k] += float((batch.weight * chosen).sum())

        objects = Objects(batch)
        free = ballistic(batch, objects, windows.time, windows.time_step).position
        predicted = free + windows.sigma * residual * batch.mask[..., None]
        rotation, center = kabsch(batch, objects, predicted)
        true_rotation, true_center = kabsch(batch, objects, free + windows.sigma * batch.target)
        fit = (predicted - place(batch, objects, rotation, center)).square().sum(-1)
        rigidity += float((batch.weight * fit).sum())
        per_object = objects.exists / objects.exists.sum(1, keepdim=True)
        centers += float((per_object * (center - true_center).square().sum(-1)).sum())
        angles += float(
            (per_object * rotation_angle(rotation @ true_rotation.transpose(-1, -2)).square()).sum()
        )

    n = len(indices)
    nmse = error.sum() / scale.sum()
    seen = np.unique(np.asarray(indices) // windows.windows_per_scene)
    k = len(seen)
    spread = math.sqrt(k / (k - 1) * np.square(error - nmse * scale)[seen].sum()) if k > 1 else math.nan
    mean_scale = scale.sum() / n
    return Evaluation(
        nmse=float(nmse),
        nmse_se=float(spread / scale.sum()),
        vertex_rmse_m=windows.sigma * math.sqrt(error.sum() / n),
        center_rmse_m=math.sqrt(centers / n),
        rotation_error_deg=math.degrees(math.sqrt(angles / n)),
        rigidity_error_m=math.sqrt(rigidity / n),
        nmse_by_contact={
            name: float(by_class[c] / share[c] / mean_scale) if share[c] else math.nan
            for c, name in enumerate(CONTACTS)
        },
        contact_share={name: float(share[c] / share.sum()) for c, name in enumerate(CONTACTS)},
        n_windows=n,
        n_scenes=k,
    )


@torch.no_grad()
def equivariance(
    predict: Predictor, windows: Windows, indices: np.ndarray, batch_size: int = 256
) -> dict[str, float]:
    """How far a predictor f is from equivariant: f(g x) against g f(x) on the windows of those indices.

    For each class of ``ELEMENTS``, ``equivariance_<class>``: the relative error
    sqrt(sum w |f(g x) - g f(x)|^2 / sum w |f(x)|^2), summed over tokens and windows with the weights w of the loss
    and one random g per window, the same in every call. Exactly equivariant predictors have round-off, about 1e-6
    in float32; 1.4 is what two unrelated predictions of one size would give. Translations move the input of the
    network without centring it again, which all windows of the benchmark are.

    ``equivariance_loss_share``: the share of these windows' squared error that averaging predictions over the
    frame protocol's own symmetry group (O(3), or turns about the vertical and mirror) would remove. For g drawn
    from that group, which leaves the law of x unchanged, the mean of |f(g x) - g f(x)|^2 is twice the mean squared
    distance of f from its group average, and that average is closer to the target by exactly this distance
    squared (Elesedy and Zaidi, arXiv 2102.10333).
    """
    actions = ELEMENTS | {"loss_share": lambda batch, generator: augment(batch, windows.frame, generator)}
    gap = dict.fromkeys(actions, 0.0)
    size = error = 0.0
    generator = torch.Generator().manual_seed(0)
    for start in range(0, len(indices), batch_size):
        batch = windows.batch(indices[start : start + batch_size])
        plain = predict(batch)
        size += float((batch.weight * plain.square().sum(-1)).sum())
        error += float((batch.weight * (plain - batch.target).square().sum(-1)).sum())
        predicted = dataclasses.replace(batch, target=plain)  # predictions transform as targets do
        for name, act in actions.items():
            moved = act(predicted, generator)
            gap[name] += float((moved.weight * (predict(moved) - moved.target).square().sum(-1)).sum())
    share = 0.5 * gap.pop("loss_share") / error if error else math.nan
    relative = {
        f"equivariance_{name}": math.sqrt(value / size) if size else math.nan for name, value in gap.items()
    }
    return relative | {"equivariance_loss_share": share}


def averaged(predict: Predictor, frame: str, k: int, seed: int = 0) -> Predictor:
    """Test-time averaging: the mean of g^-1 f(g x) over k elements g of the frame protocol's symmetry group.

    The first g is the identity, so k = 1 is the predictor itself; the others are random, and differ between the windows
    of a batch but not between calls. Raises InputError if k is less than 1.
    """
    if k < 1:
        raise InputError(f"averaging over {k} group elements: at least 1 is needed (1: no averaging)")

    def mean(batch: Batch) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        total = predict(batch)
        for _ in range(k - 1):
            matrix = frame_elements(frame, len(batch.gravity), generator, batch.position.dtype)
            matrix = matrix.to(batch.position.device)
            total = total + predict(transform(batch, matrix)) @ matrix.to(total)
        return total / k

    return mean


def _double(batch: Batch) -> Batch:
    wide = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return Batch(**{k: v.double() if v.is_floating_point() else v for k, v in wide.items()})
