"""The answer of a compute grid in two sentences and one small table, as measured: no law is needed."""

from __future__ import annotations

import dataclasses

import pandas as pd

from eqscale.laws.render import number
from eqscale.report.analysis import seed_noise

CHANCE = 0.03
"""Standard deviation of a run's log loss between seeds, about, where no run has several."""


@dataclasses.dataclass(frozen=True)
class Card:
    """Who is ahead at equal executed FLOPs."""

    sentences: tuple[str, ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """A budget, each arm's best loss there, and the ratio of the second best to the best."""


def answer_card(finished: pd.DataFrame) -> Card:
    """Compare the best runs of each arm at each budget, means over seeds.

    Args:
        finished: finished runs of a compute grid, see ``eqscale.report.parts.Study.part``.
    """
    means = finished.groupby(["budget", "arm", "N"])["loss"].mean()
    best = means.groupby(["budget", "arm"]).min().unstack()
    header = ("executed FLOPs", *best.columns, "second ÷ best")
    rows = []
    for budget, losses in best.iterrows():
        cells = ["–" if pd.isna(loss) else number(loss, 3) for loss in losses]
        rows.append((f"{budget:.3g}", *cells, number(_lead(losses), 3) if losses.count() > 1 else "–"))
    compared = best[best.count(axis=1) > 1]
    return Card(_sentences(finished, compared), header, tuple(rows))


def _lead(losses: pd.Series) -> float:
    first, second = losses.nsmallest(2)
    return second / first


def _sentences(finished: pd.DataFrame, best: pd.DataFrame) -> tuple[str, ...]:
    if best.empty:
        return ("No budget has finished runs of two arms: there is nothing to compare.",)
    winners, top = best.idxmin(axis=1), best.iloc[-1]
    ahead, second = top.nsmallest(2).index
    if winners.nunique() == 1:
        who = f"At equal compute, {ahead} has the lowest loss at every budget"
    else:
        who = "At equal compute, the lowest loss is " + ", ".join(
            f"{arm}'s at {' and '.join(f'{budget:.3g}' for budget in winners.index[winners == arm])}"
            for arm in winners.unique()
        )
    by = f"{who}; at {best.index[-1]:.3g} FLOPs that of {second} is {_lead(top):.2f} times that of {ahead}"
    if len(best) > 1:
        by += f", and at {best.index[0]:.3g} FLOPs {best.iloc[0][second] / best.iloc[0][ahead]:.2f} times"
    noise = seed_noise(finished)
    if len(noise):
        chance = f"Between seeds, losses scatter by {noise['sd'].median():.1%}."
    else:
        chance = "Each run has one seed, and other seeds change a loss by 2 to 7 %: take such differences for chance."
    return f"{by}.", chance
