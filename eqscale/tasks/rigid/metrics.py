"""Errors of a predictor on the benchmark, in units a physicist reads, with standard errors by scene."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from eqscale.tasks.fields import Batch
from eqscale.tasks.metrics import Predictor
from eqscale.tasks.metrics import evaluate as evaluate_errors
from eqscale.tasks.rigid.motion import Objects, ballistic, kabsch, place, squared_errors
from eqscale.tasks.rigid.windows import Windows

CONTACTS = ("free", "floor", "object")


def evaluate(predict: Predictor, windows: Windows, indices: np.ndarray, batch_size: int = 256) -> dict[str, float]:
    """Evaluate a predictor on the windows of those indices; the geometry is computed in float64.

    Vertices, then objects, then windows have equal weight. Centres of mass and rotations are those of a Kabsch fit of
    the predicted vertices; the rigidity error is their distance from it. All of these are root mean squares.

    Returns:
        nmse and nmse_se as of every task (ballistic motion has an nmse of 1), vertex_rmse_m, center_rmse_m,
        rotation_error_deg, rigidity_error_m, n_windows and n_scenes; nmse_free, nmse_floor and nmse_object: mean
        w |error|^2 of objects in free flight, touching the floor only, or touching an object, over the mean
        w |target|^2 of *all* objects, since free flight has next to no target of its own; share_free, share_floor and
        share_object: weights of these classes, with which their average is nmse.
    """
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
        fit = (predicted - place(batch, objects, rotation, center)).square().sum(-1)
        rigidity += float((batch.weight * fit).sum())
        truth = free + windows.sigma * batch.target
        center_error, rotation_error = squared_errors(batch, objects, rotation, center, truth)
        centers += float(center_error)
        angles += float(rotation_error)

    errors = evaluate_errors(predict, windows, indices, batch_size, observe=observe)
    n = len(indices)
    found = {
        "nmse": errors.nmse,
        "nmse_se": errors.nmse_se,
        "vertex_rmse_m": windows.sigma * math.sqrt(errors.mse),
        "center_rmse_m": math.sqrt(centers / n),
        "rotation_error_deg": math.degrees(math.sqrt(angles / n)),
        "rigidity_error_m": math.sqrt(rigidity / n),
        "n_windows": n,
        "n_scenes": errors.n_systems,
    }
    for c, name in enumerate(CONTACTS):
        found[f"nmse_{name}"] = float(by_class[c] / share[c] / errors.scale) if share[c] else math.nan
    return found | {f"share_{name}": float(share[c] / share.sum()) for c, name in enumerate(CONTACTS)}
