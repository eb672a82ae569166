"""Run tables drawn from known laws, so that a report has a known answer."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eqscale.laws import plots
from eqscale.report.study import write_report
from eqscale.tasks import get_task

TASK = dataclasses.asdict(get_task("rigid").words)
ROLES = {
    "transformer": "learn",
    "transformer_aug": "augment",
    "gatr": "build_in",
    "gatr_turned": "control",
    "egnn": "build_in",
}
"""egnn: another arm that builds the symmetry in, planted where a test needs a second."""
BUDGETS = (1e10, 1e11, 1e12, 1e13)

# E, A, B, alpha, beta; FLOPs per parameter and token; nominal over executed FLOPs; FLOPs a second
LIKE_THE_PAPER = {
    # equal loss exponents αβ/(α+β) = 1/4, optimal sizes C^0.5 and C^0.6
    "transformer": ((0.0, 60.0, 90.0, 0.5, 0.5), 6.0, 1.0, 1e9),
    "gatr": ((0.0, 10.0, 150.0, 0.25 / 0.6, 0.25 / 0.4), 20.0, 1.5, 1e9),
}
UNLIKE_THE_PAPER = {
    # the plain arm falls faster: ahead at the top, behind at the bottom
    "transformer": ((0.0, 30.0, 100.0, 0.5, 0.5), 6.0, 1.0, 1e9),
    "gatr": ((0.0, 6.0, 12.0, 0.35, 0.35), 6.0, 1.0, 1e9),
}


def loss(law, N, D):
    E, A, B, alpha, beta = law
    return E + A / N**alpha + B / D**beta


def optimal_size(law, kappa, C):
    """N_opt under C = κND (Hoffmann et al. 2022, eq. 4)."""
    _, A, B, alpha, beta = law
    return (alpha * A / (beta * B)) ** (1 / (alpha + beta)) * (C / kappa) ** (beta / (alpha + beta))


def optimal_loss(law, kappa, C):
    N = optimal_size(law, kappa, C)
    return loss(law, N, C / (kappa * N))


def crossing(arms, low, high):
    """Cost at which the optimal losses of two arms meet."""
    C = np.geomspace(low, high, 20001)
    one, two = (optimal_loss(law, kappa, C) for law, kappa, *_ in arms.values())
    return float(C[np.argmin(np.abs(np.log(one / two)))])


def row(arm, spec, budget, N, seed, value, **extra):
    _, kappa, nominal, speed = spec
    D = extra.pop("D", budget / (kappa * N))
    return dict(
        run_id=f"{arm}-{budget}-{N}-{seed}-{extra}", name=f"{arm}-{budget:.0e}-{N:.0f}-s{seed}", arm=arm,
        budget=budget, seed=seed, status="finished", N=round(N), D=D, loss=value, loss_se=0.01,
        flops_executed=budget, flops_nominal=nominal * budget, seconds=budget / speed, width=8, depth=1,
        steps=round(D / 5000), batch_size=32, epochs=0.5, hardware="cpu, 1 thread", code="test", task="rigid",
        data="digest", frame="random", role=ROLES[arm], control_of="gatr" if arm == "gatr_turned" else None,
        unique_scenes=10**6, unique_tokens=D,
    ) | extra  # fmt: skip


def compute_grid(arms, budgets=BUDGETS, sizes=6, seeds=(0, 1, 2), noise=0.004, spread=8.0, rng=0):
    """Every arm at sizes around its planted optimum, with lognormal noise."""
    rng = np.random.default_rng(rng)
    rows = []
    for arm, spec in arms.items():
        law, kappa, *_ = spec
        for budget in budgets:
            for N in np.geomspace(1 / spread, spread, sizes) * optimal_size(law, kappa, budget):
                N = round(N)
                for seed in seeds:
                    # another data order has slightly other token counts
                    D = budget / (kappa * N) * (1 + 1e-4 * seed)
                    value = loss(law, N, D) * np.exp(noise * rng.normal())
                    rows.append(row(arm, spec, budget, N, seed, value, D=D))
    return pd.DataFrame(rows)


def data_grid(arms, budget=1e12, noise=0.004, left=0.1):
    """Plain arm hurt by repetition; augmentation leaves a share of the gap in log loss."""
    rng = np.random.default_rng(1)
    law, kappa, *_ = arms["gatr"]
    best = optimal_loss(law, kappa, budget)
    rows = []
    for scenes, epochs in ((30, 300.0), (300, 30.0), (3000, 3.0), (30000, 0.3)):
        gap = 0.2 + 0.1 * np.log10(max(epochs, 1.0))
        equivariant = best * (1 + 0.2 * np.log10(max(epochs, 1.0)))
        for arm, share in (("transformer", 1.0), ("transformer_aug", left), ("gatr", 0.0)):
            spec = arms["transformer" if arm != "gatr" else "gatr"]
            N = optimal_size(spec[0], spec[1], budget)
            D = budget / (spec[1] * N)
            for seed in (0, 1, 2):
                value = equivariant * np.exp(share * gap + noise * rng.normal())
                extra = dict(D=D, unique_scenes=scenes, epochs=epochs, unique_tokens=D / max(epochs, 1.0))
                rows.append(row(arm, spec, budget, N, seed, value, **extra))
    return pd.DataFrame(rows)


def controls(arms):
    """GATr on upright data at one point of the grid: the same loss; its symmetry off: worse."""
    spec = arms["gatr"]
    grid = compute_grid(arms)
    at = grid[(grid["arm"] == "gatr") & (grid["budget"] == 1e11)]
    point = at[at["N"] == at.groupby("N")["loss"].mean().idxmin()]
    upright = point.iloc[:1].assign(frame="upright", run_id="upright", name="gatr-upright")
    best = float(point["loss"].mean())
    off = [row("gatr_turned", spec, 1e11, 5000, seed, factor * best) for seed, factor in enumerate((1.29, 1.31))]
    return pd.concat([upright, pd.DataFrame(off)])


def validation(arms, compute, noise=0.004):
    rng = np.random.default_rng(2)
    rows = []
    for arm, spec in arms.items():
        law, kappa, *_ = spec
        for factor in (0.5, 1.0, 2.0):
            N = round(factor * optimal_size(law, kappa, compute))
            value = loss(law, N, compute / (kappa * N)) * np.exp(noise * rng.normal())
            rows.append(row(arm, spec, compute, N, 0, value, D=compute / (kappa * N)))
    return pd.DataFrame(rows)


def evaluation(arm):
    """What ``eqscale evaluate --json`` writes, in outline."""
    rollout = dict(time_s=[0.1, 0.2, 0.3], translation_rmse_m=[0.01, 0.02, 0.04], rotation_rmse_deg=[1.0, 2.0, 4.0])
    result = dict(frame="random", errors=dict(nmse=0.2, nmse_se=0.01), rollout=rollout)
    results = [
        dict(result, predictor="model", average=1),
        dict(result, predictor="model, mean of 8", average=8, errors=dict(nmse=0.19, nmse_se=0.01), rollout=None),
    ]
    return dict(spec=dict(arm=arm, budget=1e13), results=results)


@contextlib.contextmanager
def undrawn_figures():
    """Figures are made, but not drawn, which is most of a report's work: for tests of what it says."""

    def leave_out(figure, path):
        path.with_suffix(".png").touch()
        path.with_suffix(".svg").write_text('<svg viewBox="0 0 331 240"></svg>')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", leave_out)
        yield


def write_text(folder: Path) -> None:
    """``write_report`` without drawings."""
    with undrawn_figures():
        write_report(folder)


def write_part(table: pd.DataFrame, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "runs.csv", index=False)
    (folder / "task.json").write_text(json.dumps(TASK))


def write_evaluation(folder: Path, arm: str) -> None:
    (folder / "evaluation").mkdir(exist_ok=True)
    (folder / "evaluation" / f"{arm}.json").write_text(json.dumps(evaluation(arm)))
    (folder / "evaluation" / f"{arm}.gif").write_bytes(b"GIF89a, in outline")
