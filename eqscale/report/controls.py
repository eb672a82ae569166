"""Controls: arms whose symmetry is broken, and the same arm on another variant of the task."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy import stats

from eqscale.laws.render import with_interval
from eqscale.numbers import number
from eqscale.report.analysis import pooled_noise
from eqscale.report.exhibits import UNSEEN, Table, link
from eqscale.report.means import Mean, best_of_sizes
from eqscale.report.parts import VARIANT, Study

_POINT = ["arm", VARIANT, "budget", "N"]


def control_table(study: Study, noise: pd.DataFrame) -> Table:
    """Control runs beside the compute grid's at the same budget."""
    controls, grid = study.part("controls"), study.part("compute")
    roles, variant = study.roles, study.wording.variant
    bases = [roles.baseline] if roles.baseline else []
    rows = []
    sizes = controls.groupby(_POINT, sort=False, dropna=False)["loss"].mean()
    for point in sizes.groupby(_POINT[:3], sort=False, dropna=False).idxmin():
        arm, version, budget, N = point
        runs = controls[(controls[_POINT] == point).all(axis=1)]
        at = grid[np.isclose(grid["budget"], budget, rtol=1e-6)]
        best = at.groupby(["arm", "N"])["loss"].mean().groupby("arm").min()
        mean, seeds = float(runs["loss"].mean()), f" ({len(runs)} seeds)" if len(runs) > 1 else ""
        cells = [number(budget, 3), f"{N:.0f}", f"{mean:.4f}{seeds}"]
        if variant:
            cells = [str(version), *cells, _compared(runs, _twins(grid, point), noise)]
        of = roles.control_of.get(arm)
        alike = controls[controls[VARIANT] == version]
        own = _over_its_arm(alike, grid, arm, of).get(budget, UNSEEN) if of else _over(mean, best.get(arm))
        rows.append([f"`{arm}`", *cells, own, *(_over(mean, best.get(base)) for base in bases)])
    header = ["budget", "N", "loss"]
    note = "Means over seeds at the best size."
    if variant:
        header = [variant.one, *header, f"over the same size in the grid's {variant.one}"]
        note += (
            f" A control of the same arm and size in another {variant.one} is compared with its twin: their ratio with "
            "the 95 % interval that seed noise alone would give it."
        )
    header = ["arm", *header, "over the best of its arm", *(f"over the best `{base}`" for base in bases)]
    return Table("controls", "Controls", header, rows, note)


def control_lines(study: Study, noise: pd.DataFrame) -> list[str]:
    """What the controls show, one sentence each."""
    controls, grid = study.part("controls"), study.part("compute")
    lines = []
    if variant := study.wording.variant:
        same: dict[str, str] = {}
        for point, runs in controls.groupby(_POINT):  # ascending budgets: the largest stays
            if len(twin := _twins(grid, point)):
                who = f"`{point[0]}` in {point[1]} {variant.many}"
                same[who] = f"{_compared(runs, twin, noise)} at {number(point[2], 3)}"
        lines += [
            f"{who} has this many times the loss of the same size in the grid's {variant.one}: {said} executed FLOPs, "
            f"the largest budget of these runs ({link('controls')})."
            for who, said in same.items()
        ]
    compared = []
    for arm, of in study.roles.control_of.items():
        if over := _over_its_arm(controls, grid, arm, of):
            compared.append(f"`{arm}` over `{of}` {over[max(over)]} at {number(max(over), 3)}")
    if compared:
        lines.append(
            "Loss over that of the arm whose control it is, each at the best size that was run, at the largest budget: "
            f"{', '.join(compared)} executed FLOPs ({link('controls')})."
        )
    return lines


def _over_its_arm(controls: pd.DataFrame, grid: pd.DataFrame, arm: str, of: str) -> dict[float, str]:
    """Loss of a control over that of its arm by budget, each at its best size, with its interval."""
    own = controls[controls["arm"] == arm]
    mean, twin = _best(own), _best(grid[grid["arm"] == of])
    return {b: f"{(mean[b] - twin[b]).ratio()}{_edge(own, b)}" for b in sorted(mean.keys() & twin.keys())}


def _over(loss: float, other: float | None) -> str:
    return UNSEEN if other is None else f"{loss / other:.2f}"


def _best(runs: pd.DataFrame) -> dict[float, Mean]:
    """Log loss at the best size by budget."""
    return best_of_sizes(runs.assign(value=np.log(runs["loss"].astype(float))))


def _edge(runs: pd.DataFrame, budget: float) -> str:
    """That the best size at a budget is the smallest or largest of several that were run."""
    losses = runs[runs["budget"] == budget].groupby("N")["loss"].mean()
    edges = {losses.index.min(): " (its smallest size)", losses.index.max(): " (its largest size)"}
    return edges.get(losses.idxmin(), "") if len(losses) > 1 else ""


def _twins(grid: pd.DataFrame, point: tuple) -> pd.DataFrame:
    """The compute grid's runs of the same arm, budget and size in another variant of the task."""
    arm, version, budget, N = point
    same = (grid["arm"] == arm) & (grid["N"] == N) & np.isclose(grid["budget"], budget, rtol=1e-6)
    return grid[same & (grid[VARIANT] != version)]


def _compared(runs: pd.DataFrame, twin: pd.DataFrame, noise: pd.DataFrame) -> str:
    """Ratio to the same size in another variant, and whether seed noise explains it."""
    if twin.empty:
        return UNSEEN
    ratio = float(np.log(runs["loss"].astype(float)).mean() - np.log(twin["loss"].astype(float)).mean())
    sd, df = pooled_noise(noise, str(runs["arm"].iloc[0]))
    if not df:
        return f"{number(math.exp(ratio), 3)} (no seeds to tell the noise)"
    half = float(stats.t.ppf(0.975, df)) * sd * math.sqrt(1 / len(runs) + 1 / len(twin))
    verdict = "equal within noise" if abs(ratio) <= half else "**differs**"
    return f"{with_interval(*np.exp([ratio, ratio - half, ratio + half]))} ({verdict})"
