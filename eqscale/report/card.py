"""The answer of a compute grid in two sentences and one small table, as measured: no law is needed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import pandas as pd

from eqscale.laws.render import number
from eqscale.report.analysis import pooled_noise, seed_noise

CHANCE = 0.05
"""Standard deviation of a run's log loss between seeds, about, where no run has several (pooled over all arms of
``results/cpu``: 0.047)."""
_SURE = 1.96  # standard errors of a 95 % interval


@dataclasses.dataclass(frozen=True)
class Card:
    """Who is ahead at equal executed FLOPs."""

    sentences: tuple[str, ...]
    """Who is ahead where and by how much, and whether that is more than chance."""
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """A budget, each arm's best loss there, and the ratio of the second best to the best."""


def answer_card(finished: pd.DataFrame) -> Card:
    """Compare the best runs of each arm at each budget, means over seeds.

    Args:
        finished: finished runs of a compute grid, see ``eqscale.report.parts.Study.part``.
    """
    points = finished.groupby(["budget", "arm", "N"])["loss"].agg(["mean", "size"])
    lowest = points.loc[points.groupby(["budget", "arm"])["mean"].idxmin()].droplevel("N")
    best, seeds = lowest["mean"].unstack(), lowest["size"].unstack()
    rows = []
    for budget, losses in best.iterrows():
        cells = ["–" if pd.isna(loss) else number(loss, 3) for loss in losses]
        ratio = losses.nsmallest(2).iloc[-1] / losses.min()
        rows.append((f"{budget:.3g}", *cells, number(ratio, 3) if losses.count() > 1 else "–"))
    compared = best.dropna()
    if compared.empty or best.shape[1] < 2:
        compared = best[best.count(axis=1) > 1]
    if compared.empty:
        said: tuple[str, ...] = ("No budget has finished runs of two arms: there is nothing to compare.",)
    else:
        where = "Where all arms have runs: at" if len(compared) < (best.count(axis=1) > 1).sum() else "At"
        who = f"{where} equal compute, {_who(compared)}"
        said = (f"{who}; {_by_how_much(compared)}.", _how_sure(compared, seeds, seed_noise(finished)))
    return Card(said, ("executed FLOPs", *best.columns, "second ÷ best"), tuple(rows))


def _who(best: pd.DataFrame) -> str:
    winners = best.idxmin(axis=1)
    if winners.nunique() == 1:
        return f"{winners.iloc[0]} has the lowest loss at every budget"
    where = (f"{arm}'s at {_budgets(winners.index[winners == arm])}" for arm in winners.unique())
    return f"the lowest loss is {', '.join(where)} FLOPs"


def _by_how_much(best: pd.DataFrame) -> str:
    """Losses over that of the arm that is ahead at the top: there, and at the lowest budget that all of them have."""
    ahead, *others = best.iloc[-1].dropna().sort_values().index
    ratios = best[others].div(best[ahead], axis=0).dropna()
    lowest, top = ratios.iloc[0], ratios.iloc[-1]
    said = f"the loss of {others[0]} is {top.iloc[0]:.2f} times that of {ahead}"
    said += "".join(f", that of {arm} {top[arm]:.2f} times" for arm in others[1:])
    if len(ratios) > 1:
        said += f" (at {lowest.name:.3g} FLOPs {_listed(f'{ratio:.2f}' for ratio in lowest)} times)"
    return f"at {top.name:.3g} FLOPs {said}"


def _how_sure(best: pd.DataFrame, seeds: pd.DataFrame, noise: pd.DataFrame) -> str:
    """At which budgets the lead over the second is more than seeds explain, at 95 %."""
    measured = pd.Series({arm: pooled_noise(noise, arm)[0] for arm in best})
    sd = measured.fillna(measured.max()).fillna(CHANCE)
    if measured.notna().any():
        said = f"Between seeds, losses scatter by {_range(measured.dropna())}"
    else:
        said = f"Each run has one seed, and other seeds change a loss by about {100 * CHANCE:g} %"
    beyond = []
    for budget, losses in best.iterrows():
        pair = losses.nsmallest(2)
        variance = sum(sd[arm] ** 2 / seeds.at[budget, arm] for arm in pair.index)
        if math.log(pair.iloc[1] / pair.iloc[0]) > _SURE * math.sqrt(variance):
            beyond.append(budget)
    others = [budget for budget in best.index if budget not in beyond]
    if not others or not beyond:
        where = "at every budget" if beyond else "at no budget"
    elif len(others) < len(beyond):
        where = f"at every budget but {_budgets(others)}"
    else:
        where = f"at {_budgets(beyond)} FLOPs only"
    return f"{said}: the lead over the second is more than chance {where}."


def _range(values: pd.Series) -> str:
    low, high = f"{100 * values.min():.2g}", f"{100 * values.max():.2g}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def _budgets(budgets: Sequence[float]) -> str:
    return _listed(f"{budget:.3g}" for budget in budgets)


def _listed(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last
