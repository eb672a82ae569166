"""The answer in one table: which arm is ahead on which compute axis, by how much in loss and by how much in compute."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from eqscale.laws.axes import AXES
from eqscale.laws.compare import Comparison
from eqscale.laws.contrast import Estimate, loss_gap
from eqscale.laws.minima import compute_multiplier, loss_ratio
from eqscale.laws.plan import Advice
from eqscale.laws.render import factor_text, markdown_table
from eqscale.numbers import number
from eqscale.report.analysis import Analysis
from eqscale.report.exhibits import UNSEEN, link, ratio_text, wide
from eqscale.report.leads import best_arms, leads

SURE = 0.975
"""Least probability at which an arm is called ahead."""

_BY_LAW = "by law"


@dataclasses.dataclass(frozen=True)
class _Leader:
    """The arm of lowest loss at a cost."""

    cost: float
    arm: str
    rival: str
    """Who could be ahead instead, and how likely that is; empty if the arm is ahead for sure."""
    alone: bool = False
    """No other arm has an optimum there."""


def headline(analysis: Analysis) -> str:
    """Who is ahead at the largest compute, in one sentence."""
    ahead: dict[str, list[str]] = {}
    for axis in analysis.arms:
        leaders = _leaders(analysis, axis)
        if leaders and not (top := leaders[-1]).alone:
            who = "no arm is ahead for sure" if top.rival else f"`{top.arm}` is ahead"
            ahead.setdefault(who, []).append(axis)
    if not ahead:
        return ""
    said = ", ".join(
        f"{who} on {'all three axes' if len(axes) == len(AXES) else ' and '.join(axes)}" for who, axes in ahead.items()
    )
    return f"At the largest compute that all arms were given, {said} ({link('minima')})."


def overview(analysis: Analysis, built_in: Sequence[str]) -> str:
    """One row per axis, with ratios to the best built-in arm (or else to the first arm); empty without laws."""
    if not analysis.ranking:
        return ""
    names = list(analysis.arms["executed"])
    reference = next((name for name in built_in if name in names), names[0])
    header = ["axis", "ahead at the lowest, middle and highest common cost"]
    over = f"over that of `{reference}`"
    header += [f"loss {over}, lowest → highest cost of both", f"compute {over}, same loss"]
    rows = []
    for axis in analysis.ranking:
        row = [f"**{AXES[axis].label}**", _who(_leaders(analysis, axis), axis)]
        for factor in (_losses, _compute):
            others = (name for name in names if name != reference)
            row.append("<br>".join(f"`{name}` {factor(analysis, axis, reference, name)}" for name in others) or UNSEEN)
        rows.append(row)
    note = ""
    if any(analysis.minima.values()):
        note = (
            "On executed FLOPs no law is used; on the other axes runs are moved to equal cost along their laws, on "
            f"whose slopes ratios rest ({link('minima')}). An arm is ahead if the interval of every other "
            "arm's loss over its own lies above 1. "
        )
    if any(_BY_LAW in cell for row in rows for cell in row):
        note += (
            f"Where too few sizes were run for a measured optimum, ratios are *{_BY_LAW}* "
            f"(`comparisons.csv`), and an arm is ahead if {100 * SURE:.3g} % of the resamples of its law say so "
            "(`ranking.csv`). "
        )
    return (
        f"{markdown_table(header, rows)}\n{note}Compute is compared at the loss that the other arm has at its highest "
        "cost. Brackets are 95 % intervals."
    )


def _known(analysis: Analysis, axis: str) -> list[list[Advice]]:
    """The levels of the ranking at which some law has an optimum, with the arms that have one."""
    levels = ([a for a in level if math.isfinite(a.loss)] for level in analysis.ranking[axis])
    return [level for level in levels if level]


def _leaders(analysis: Analysis, axis: str) -> list[_Leader]:
    """Who is ahead at the lowest, middle and highest cost that all arms have in common: measured, or else by law."""
    costs = _common_costs(analysis, axis)
    if not costs:
        return [_by_law(level) for level in _known(analysis, axis)]
    table = leads(analysis.minima[axis])
    best, out = best_arms(table), []
    for cost in dict.fromkeys((costs[0], costs[len(costs) // 2], costs[-1])):
        arm, here = best[cost][0], table[table["budget"] == cost].sort_values("ratio")
        close = here[(here["arm"] != arm) & ~(here["low"] > 1)]
        rivals = ", ".join(f"`{row['arm']}` {ratio_text(row)}" for _, row in close.iterrows())
        out.append(_Leader(cost, arm, rivals, alone=len(here) == 1))
    return out


def _by_law(level: list[Advice]) -> _Leader:
    top = level[0]
    sure = top.probability_best is None or top.probability_best >= SURE
    rival = "" if sure else f"{100 * (top.probability_best or 0):.0f} %, {_BY_LAW}"
    return _Leader(top.C, top.arm, rival, alone=len(level) == 1)


def _common_costs(analysis: Analysis, axis: str) -> list[float]:
    """Costs at which every arm with a law has a measured optimum, ascending."""
    minima, names = analysis.minima[axis], analysis.arms[axis]
    if not names or not set(names) <= minima.keys():
        return []
    return functools.reduce(np.intersect1d, [minima[name].cost for name in names]).tolist()


def _who(leaders: list[_Leader], axis: str) -> str:
    if not leaders:
        return "no cost in common, or no law has an optimum"
    if leaders[-1].alone:
        return f"only `{leaders[-1].arm}` has a law"
    return "<br>".join(
        f"{number(leader.cost, 3)} {AXES[axis].unit}: "
        + (f"open (`{leader.arm}`; {leader.rival})" if leader.rival else f"`{leader.arm}`")
        for leader in leaders
    )


def _losses(analysis: Analysis, axis: str, reference: str, name: str) -> str:
    """Ratio of compute-optimal losses at the lowest and at the highest cost of both."""
    minima = analysis.minima[axis]
    if reference in minima and name in minima:
        common = np.intersect1d(minima[reference].cost, minima[name].cost)
        ends = common[[0, -1][: len(common)]]
        found = [loss_ratio(minima[reference], minima[name], float(c)) for c in ends]
        return " → ".join(_estimate(e.exp()) for e in found) or "no cost in common"
    arms, levels = analysis.arms[axis], analysis.ranking[axis]
    outer = levels[:: max(len(levels) - 1, 1)]
    found = [loss_gap(arms[reference], arms[name], level[0].C) for level in outer]
    return " → ".join(_estimate(e.exp()) for e in found) + f", {_BY_LAW}" if found else UNSEEN


def _compute(analysis: Analysis, axis: str, reference: str, name: str) -> str:
    """How many times the reference's compute another arm takes for the same loss."""
    minima = analysis.minima[axis]
    if reference in minima and name in minima:
        top = float(minima[name].cost[-1])
        return _estimate(compute_multiplier(minima[reference], minima[name], top).exp())
    for pair in analysis.comparisons[axis]:
        if isinstance(pair, Comparison) and (pair.arm, pair.reference) == (reference, name):
            return f"{factor_text(pair.multipliers[-1].compute)}, {_BY_LAW}"
    return UNSEEN


def _estimate(e: Estimate) -> str:
    """A factor with the wider of its intervals, or as a bound if they are one-sided."""
    if math.isnan(e.value):
        return "unknown"
    sign = ">" if math.isinf(e.model[1]) else "<" if e.model[0] == 0 else ""
    return f"{sign} {number(e.value, 3)}" if sign else wide(e)
