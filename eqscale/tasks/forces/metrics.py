"""Errors of predicted forces, in units a chemist reads."""

from __future__ import annotations

import collections
import math

import numpy as np
import torch
from torch import Tensor

from eqscale.tasks.base import Metric
from eqscale.tasks.fields import Batch
from eqscale.tasks.forces.families import ELEMENTS
from eqscale.tasks.forces.samples import Geometries
from eqscale.tasks.metrics import Predictor
from eqscale.tasks.metrics import evaluate as evaluate_errors

_SINGLED_OUT = ("H", "C", "N", "O")
"""Elements with a metric of their own."""

METRICS = (
    Metric("nmse_unseen", "NMSE of molecules that were never trained on"),
    Metric("nmse_unseen_se", "standard error of nmse_unseen"),
    Metric("force_mae_mev", "mean absolute error of a force component, meV/Å"),
    Metric("cosine", "mean cosine between predicted and true force"),
    *(Metric(f"nmse_{e.lower()}", f"squared error on {e} atoms over their mean squared force") for e in _SINGLED_OUT),
    Metric("nmse_other", "the same for all other elements"),
    Metric("nmse_weak", "squared error where the force is below its root mean square, over the mean square there"),
    Metric("nmse_strong", "the same where the force is above"),
    Metric("nmse_diatomic", "squared error on molecules of two atoms over their mean squared force"),
    Metric("nmse_polyatomic", "the same for larger molecules"),
    Metric("net_force_mev", "root mean square of the sum of predicted forces, which is 0 in truth, meV/Å"),
    Metric("net_torque_mev", "root mean square of the net torque of predictions, which is 0 in truth, meV"),
)


def evaluate(predict: Predictor, samples: Geometries, indices: np.ndarray) -> dict[str, float]:
    """Evaluate a predictor on the geometries of those indices.

    Returns:
        ``nmse`` and ``nmse_se`` of the molecules that are trained on, as all else but ``nmse_unseen`` and
        ``nmse_unseen_se``, which are NaN if the indices hold no other molecule; ``METRICS`` has the rest. Atoms whose
        force is below 1e-3 of the unit are left out of the cosine.
    """
    unseen = samples.unseen[indices // samples.samples_per_system]
    sums: dict[str, float] = collections.defaultdict(float)

    def add(name: str, value: Tensor) -> None:
        sums[name] += float(value.sum())

    def observe(batch: Batch, force: Tensor, square: Tensor) -> None:
        weight, scale = batch.weight, batch.weight * batch.target.square().sum(-1)
        add("absolute", weight[..., None] * (force - batch.target).abs() / 3)
        size = batch.target.norm(dim=-1)
        real = weight * (size > 1e-3)
        add("cosine", real * torch.nn.functional.cosine_similarity(force, batch.target, dim=-1))
        add("directed", real)
        kind = batch["element"]
        chosen = {e.lower(): kind[..., k] > 0 for k, e in enumerate(ELEMENTS) if e in _SINGLED_OUT}
        chosen["other"] = batch.mask & ~torch.stack(list(chosen.values())).any(0)
        chosen |= {"weak": size < 1, "strong": size >= 1}
        atoms_of = batch.mask.sum(1, keepdim=True)
        chosen |= {"diatomic": atoms_of == 2, "polyatomic": atoms_of > 2}
        for name, atoms in chosen.items():
            add(f"error_{name}", square * atoms)
            add(f"scale_{name}", scale * atoms)
        acting = force * batch.mask[..., None]
        add("net_force", acting.sum(1).square())
        add("net_torque", torch.linalg.cross(batch["position"], acting).sum(1).square())

    seen = indices[~unseen]
    errors = evaluate_errors(predict, samples, seen, observe=observe)
    mev, n = 1e3 * samples.force_rms, len(seen)
    found = {
        "nmse": errors.nmse,
        "nmse_se": errors.nmse_se,
        "nmse_unseen": math.nan,
        "nmse_unseen_se": math.nan,
        "force_mae_mev": mev * sums["absolute"] / n,
        "cosine": sums["cosine"] / sums["directed"],
        "net_force_mev": mev * math.sqrt(sums["net_force"] / n),
        "net_torque_mev": mev * math.sqrt(sums["net_torque"] / n),
    }
    for name in (*(e.lower() for e in _SINGLED_OUT), "other", "weak", "strong", "diatomic", "polyatomic"):
        scale = sums[f"scale_{name}"]
        found[f"nmse_{name}"] = sums[f"error_{name}"] / scale if scale else math.nan
    if unseen.any():
        others = evaluate_errors(predict, samples, indices[unseen])
        found |= {"nmse_unseen": others.nmse, "nmse_unseen_se": others.nmse_se}
    return found
