"""The lead of GATr over the plain transformer, split into what the symmetry does and what else does.

The parts are ratios of losses between neighbours on a path from one arm to the other, so that they add up to the lead
in logarithms. An arm's loss at a budget is its measured optimum.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eqscale.laws.minima import Minima, loss_ratio
from eqscale.laws.plots import PALETTE, WIDTH, finish, style
from eqscale.numbers import number
from eqscale.report.exhibits import UNSEEN, Table, link, ratio_text

PLAIN, LOCAL, SLIM, GATR = "transformer", "transformer_local", "gatr_slim", "gatr"
LEAD, ASYMMETRY = "lead", "asymmetry"
PARTS = {
    "frames": f"`{PLAIN}` over `{LOCAL}`: one backbone, with learnt frames of tokens, which make it exact",
    "features": f"`{LOCAL}` over `{SLIM}`: vectors, their products, and all that else differs",
    "multivectors": f"`{SLIM}` over `{GATR}`",
    LEAD: f"`{PLAIN}` over `{GATR}`: the product of the parts",
}
"""Parts of the lead, in the order of the path, and what each is measured by."""
MEASURED = PARTS | {ASYMMETRY: f"of frames: one trained `{PLAIN}` over its mean over the group"}
"""The rows of the split: the parts, the lead, and what averaging over the group alone would give."""
_SHOWN = 3
_SIDE = 1.96  # standard errors of a 95 % interval


def split_lead(minima: Mapping[str, Minima], evaluations: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The parts of the lead at each budget at which all four arms have measured optima; empty if there is none.

    Args:
        minima: of the arms, on executed FLOPs.
        evaluations: as ``eqscale.report.parts.Study.evaluations``; a plain network's asymmetry is a row of its budget,
            with the interval of the test systems.

    Returns:
        One row per budget and part with the columns budget, part, ratio (of losses), low and high (the wider 95 %
        interval).
    """
    rows = []
    path = (PLAIN, LOCAL, SLIM, GATR)
    if minima.keys() >= set(path):
        ends = (*itertools.pairwise(path), (PLAIN, GATR))
        for budget in functools.reduce(np.intersect1d, [minima[arm].cost for arm in path]).tolist():
            for part, (one, other) in zip(PARTS, ends, strict=True):
                found = loss_ratio(minima[other], minima[one], budget).exp()
                rows.append((budget, part, found.value, found.low, found.high))
            if measured := _asymmetry(evaluations, budget):
                share, half = measured["share"], _SIDE * measured["share_se"]
                limits = (1 / (1 - s) if s < 1 else math.inf for s in (share, share - half, share + half))
                rows.append((budget, ASYMMETRY, *limits))
    return pd.DataFrame(rows, columns=["budget", "part", "ratio", "low", "high"])


def _asymmetry(evaluations: Sequence[Mapping[str, Any]], budget: float) -> Mapping[str, float]:
    """Of the plain network that was measured at a budget; empty if none was."""
    for content in evaluations:
        spec = content.get("spec", {})
        if spec.get("arm") == PLAIN and math.isclose(spec.get("budget", math.nan), budget, rel_tol=1e-6):
            found = (result.get("asymmetry") or {} for result in content.get("results", []))
            return next((a for a in found if None not in (a.get("share"), a.get("share_se"))), {})
    return {}


def split_lines(split: pd.DataFrame) -> list[str]:
    """The parts at the largest budget, as one sentence."""
    if split.empty:
        return []
    top = split[split["budget"] == split["budget"].max()].set_index("part")
    said = {part: ratio_text(row) for part, row in top.iterrows()}
    parts = ", ".join(f"{part} {said[part]}" for part in PARTS if part != LEAD)
    asymmetric = f"; averaging over the group alone would give {said[ASYMMETRY]}" if ASYMMETRY in said else ""
    return [
        f"At {number(top['budget'].iloc[0], 3)} executed FLOPs the loss of `{PLAIN}` over that of `{GATR}`, "
        f"{said[LEAD]}, is the product of {parts}{asymmetric} ({link('split')}, {link('split', 'figure')})."
    ]


def split_table(split: pd.DataFrame) -> Table:
    """The parts at the lowest, a middle and the highest budget."""
    budgets = sorted(split["budget"].unique())
    shown = budgets if len(budgets) <= _SHOWN else [budgets[0], budgets[len(budgets) // 2], budgets[-1]]
    said = {(row["part"], row["budget"]): ratio_text(row) for _, row in split.iterrows()}
    rows = [[part, MEASURED[part], *(said.get((part, budget), UNSEEN) for budget in shown)] for part in _parts(split)]
    return Table(
        "split", f"What the lead of {GATR} over {PLAIN} is made of",
        ["part", "measured by", *(f"{number(budget, 3)} FLOPs" for budget in shown)], rows,
        f"Ratios of lowest losses ({link('minima')}) with 95 % intervals. The parts multiply to the lead. "
        "`split.csv` has all budgets.",
    )  # fmt: skip


def split_figure(split: pd.DataFrame) -> Figure:
    """Every part at every budget, a dot with its interval on a logarithmic axis."""
    with style():
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        axes = figure.subplots()
        budgets, parts = sorted(split["budget"].unique()), _parts(split)
        for i, (budget, colour) in enumerate(zip(budgets, itertools.cycle(PALETTE), strict=False)):
            own = split[split["budget"] == budget].set_index("part").reindex(parts)
            y = np.arange(len(own)) + 0.6 * ((i + 0.5) / len(budgets) - 0.5)
            bars = np.abs(own[["low", "high"]].sub(own["ratio"], axis=0).fillna(0.0)).to_numpy().T
            said = f"{number(budget, 1)} FLOPs"
            axes.errorbar(own["ratio"], y, xerr=bars, fmt="o", ms=4, lw=1.2, color=colour, label=said)
        axes.axvline(1.0, color="0.6", lw=0.8, zorder=0)
        axes.set_yticks(range(len(parts)), parts)
        axes.set(xscale="log", xlabel="ratio of losses (parts multiply to the lead)")
        axes.invert_yaxis()
        axes.legend()
        return finish(figure)


def _parts(split: pd.DataFrame) -> list[str]:
    known = set(split["part"])
    return [part for part in MEASURED if part in known]
