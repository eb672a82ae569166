"""Errors of a predictor on the benchmark, in units a physicist reads, with standard errors by scene."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from eqscale.tasks.fields import Batch
from eqscale.tasks.metrics import Predictor
from eqscale.tasks.metrics import evaluate as evaluate_errors
from eqscale.tasks.rigid.motion import Objects, ballistic, kabsch, place, rotation_angle
from eqscale.tasks.rigid.windows import Windows

CONTACTS = ("free", "floor", "object")


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
    by_class, share = np.zeros(len(CONTACTS)), np.zeros(len(CONTACTS))
    centers = angles = rigidity = 0.0

    def observe(batch: Batch, residual: Tensor, square: Tensor) -> None:
        nonlocal centers, angles, rigidity
        for k in range(len(CONTACTS)):
            chosen = batch["contact"] == k
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
        turned = rotation_angle(rotation @ true_rotation.transpose(-1, -2))
        angles += float((per_object * turned.square()).sum())

    errors = evaluate_errors(predict, windows, indices, batch_size, device=device, dtype=dtype, observe=observe)
    n = len(indices)
    return Evaluation(
        nmse=errors.nmse,
        nmse_se=errors.nmse_se,
        vertex_rmse_m=windows.sigma * math.sqrt(errors.mse),
        center_rmse_m=math.sqrt(centers / n),
        rotation_error_deg=math.degrees(math.sqrt(angles / n)),
        rigidity_error_m=math.sqrt(rigidity / n),
        nmse_by_contact={
            name: float(by_class[c] / share[c] / errors.scale) if share[c] else math.nan
            for c, name in enumerate(CONTACTS)
        },
        contact_share={name: float(share[c] / share.sum()) for c, name in enumerate(CONTACTS)},
        n_windows=n,
        n_scenes=errors.n_systems,
    )
