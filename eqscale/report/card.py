"""The answer of a compute grid in a few sentences and one small table, as measured: no law is needed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from eqscale.laws.minima import Minima, loss_ratio
from eqscale.numbers import number
from eqscale.report.analysis import pooled_noise, seed_noise
from eqscale.report.exhibits import UNSEEN, ratio_text, wide
from eqscale.report.leads import best_arms, leads
from eqscale.report.tables import change_of_lead

CHANCE = 0.05
"""Standard deviation of a run's log loss between seeds, about, where no run has several (pooled over all arms of
``results/cpu``: 0.047)."""
_SURE = 1.96  # standard errors of a 95 % interval


@dataclasses.dataclass(frozen=True)
class Card:
    """Who is ahead at equal executed FLOPs."""

    sentences: tuple[str, ...]
    """Who is ahead where and by how much, and how sure that is."""
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """A budget and what each arm ends at there."""


def measured_card(minima: Mapping[str, Minima], baseline: str | None) -> Card | None:
    """Compare measured optima with intervals; None if no budget has one of every arm, or there is one arm.

    Args:
        minima: of every arm of the study, on executed FLOPs.
        baseline: the arm that learns the symmetry.
    """
    table = leads(minima)
    ratios = table.pivot(index="budget", columns="arm", values="ratio")
    common = ratios.dropna()
    if common.empty or len(minima) < 2:
        return None
    top = common.iloc[-1].sort_values()
    said = {(row["budget"], row["arm"]): ratio_text(row) for _, row in table.iterrows()}
    best = best_arms(table)
    first, second, *others = top.index
    behind = f"the loss of {second} is {said[top.name, second]} times that of {first}"
    behind += "".join(f", that of {arm} {said[top.name, arm]} times" for arm in others)
    winners = pd.Series({at: best[at][0] for at in common.index})
    where = "Where all arms were measured: at" if len(common) < len(ratios) else "At"
    sentences = [f"{where} equal compute, {_who(winners)}; at {number(top.name, 3)} FLOPs {behind}."]
    if baseline and baseline in minima and baseline != first:
        sentences += _how_it_changes(minima[first], minima[baseline])
    sure = [at for at in common.index if best[at][1]]
    sentences.append(f"All others are behind by their 95 % intervals {_where(sure, common.index)}.")
    rows = []
    for budget, row in ratios[top.index].iterrows():
        losses = table[(table["budget"] == budget)].set_index("arm")["loss"]
        ahead = best[float(budget)][0]
        cells = (UNSEEN if np.isnan(row[arm]) else f"× {said[budget, arm]}" for arm in top.index)
        shown = dict(zip(top.index, cells, strict=True)) | {
            ahead: number(losses[ahead], 3) + ", best" * (len(losses) > 1)
        }
        rows.append((number(budget, 3), *shown.values()))
    return Card(tuple(sentences), ("executed FLOPs", *top.index), tuple(rows))


def _how_it_changes(arm: Minima, base: Minima) -> list[str]:
    """Whether the lead over the baseline grows from the lowest cost that both have, and what it is there."""
    common = np.intersect1d(arm.cost, base.cost)
    if len(common) < 2:
        return []
    found = change_of_lead(arm, base)[1]
    said = (
        f"Whether the lead over {base.name} lasts is open" if found == "open" else f"The lead over {base.name} {found}"
    )
    return [f"{said}: {wide(loss_ratio(arm, base, float(common[0])).exp())} at {number(common[0], 3)} FLOPs."]


def answer_card(finished: pd.DataFrame) -> Card:
    """Compare the best runs of each arm at each budget, means over seeds.

    Args:
        finished: finished runs of a compute grid, see ``eqscale.report.parts.Study.part``.
    """
    points = finished.groupby(["budget", "arm", "N"])["loss"].agg(["mean", "size"])
    lowest = points.loc[points.groupby(["budget", "arm"])["mean"].idxmin()].droplevel("N")
    best, seeds = lowest["mean"].unstack(), lowest["size"].unstack()
    best = best[best.iloc[-1].sort_values().index]
    rows = []
    for budget, losses in best.iterrows():
        cells = [UNSEEN if pd.isna(loss) else number(loss, 3) for loss in losses]
        ratio = losses.nsmallest(2).iloc[-1] / losses.min()
        rows.append((number(budget, 3), *cells, number(ratio, 3, "#g") if losses.count() > 1 else UNSEEN))
    compared = best.dropna()
    if compared.empty or best.shape[1] < 2:
        compared = best[best.count(axis=1) > 1]
    if compared.empty:
        said: tuple[str, ...] = ("No budget has finished runs of two arms: there is nothing to compare.",)
    else:
        where = "Where all arms have runs: at" if len(compared) < (best.count(axis=1) > 1).sum() else "At"
        who = f"{where} equal compute, {_who(compared.idxmin(axis=1))}"
        said = (f"{who}; {_by_how_much(compared)}.", _how_sure(compared, seeds, seed_noise(finished)))
    return Card(said, ("executed FLOPs", *best.columns, "second ÷ best"), tuple(rows))


def _who(winners: pd.Series) -> str:
    """Which arm has the lowest loss at which budget, from the arm of each."""
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
        said += f" (at {number(lowest.name, 3)} FLOPs {_listed(f'{ratio:.2f}' for ratio in lowest)} times)"
    return f"at {number(top.name, 3)} FLOPs {said}"


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
    return f"{said}: the lead over the second is more than chance {_where(beyond, best.index)}."


def _where(found: Sequence[float], budgets: Iterable[float]) -> str:
    others = [budget for budget in budgets if budget not in found]
    if not others or not found:
        return "at every budget" if found else "at no budget"
    if len(others) < len(found):
        return f"at every budget but {_budgets(others)}"
    return f"at {_budgets(found)} FLOPs only"


def _range(values: pd.Series) -> str:
    low, high = f"{100 * values.min():.2g}", f"{100 * values.max():.2g}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def _budgets(budgets: Sequence[float]) -> str:
    return _listed(number(budget, 3) for budget in budgets)


def _listed(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last
