"""The answer to each question of a report, in sentences with links to their evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from eqscale.laws.axes import AXES
from eqscale.laws.compare import Comparison
from eqscale.laws.minima import best_size
from eqscale.laws.render import markdown_table, with_interval
from eqscale.numbers import number
from eqscale.report.analysis import Analysis
from eqscale.report.card import Card, answer_card, measured_card
from eqscale.report.checks import cannot_tell
from eqscale.report.conclusions import Conclusion
from eqscale.report.controls import control_lines
from eqscale.report.data_grid import DataGrid
from eqscale.report.data_tables import data_lines
from eqscale.report.exhibits import link, paragraphs, wide
from eqscale.report.leads import best_run_ratios
from eqscale.report.overview import headline, overview
from eqscale.report.part_tables import averaging_lines
from eqscale.report.parts import Study
from eqscale.report.prediction import Outcome, best_runs, outcomes
from eqscale.report.roles import Roles
from eqscale.report.split import split_lines


def answer(study: Study, analysis: Analysis, figure: str) -> str:
    """The card of the compute grid, with the figure of losses against compute beside its table; empty without runs."""
    if study.part("compute").empty:
        return ""
    measured, said = _measured_card(study, analysis), headline(analysis)
    card = measured or answer_card(study.part("compute"))
    first, *others = card.sentences
    sure = [*others, said] if measured else [said or " ".join(others)]
    beside = f'<div class="lead">\n\n{figure}\n\n{markdown_table(card.header, card.rows)}\n</div>'
    return "\n\n".join([" ".join([f"**{first}**", *sure]).strip(), beside])


def card_of(study: Study, analysis: Analysis | None) -> Card:
    """The card by measured optima, or else, without an analysis too, by the best runs."""
    return (_measured_card(study, analysis) if analysis else None) or answer_card(study.part("compute"))


def _measured_card(study: Study, analysis: Analysis) -> Card | None:
    minima = analysis.minima.get("executed", {})
    every = set(study.part("compute")["arm"]) == minima.keys()
    return measured_card(minima, study.roles.baseline) if every else None


def which_arm(analysis: Analysis, built_in: Sequence[str]) -> str:
    """Who is ahead on each axis, by how much, and where lines cross."""
    return paragraphs((overview(analysis, built_in), *_crossings(analysis)))


def data(grid: DataGrid | None, roles: Roles) -> str:
    """What scarce data cost each arm."""
    return _bullets(data_lines(grid, roles) if grid else [])


def symmetry(study: Study, split: pd.DataFrame, noise: pd.DataFrame) -> str:
    """What the parts of the lead, the controls and test-time averaging say."""
    averaging = averaging_lines(study.evaluations, study.wording.variant)
    return _bullets(split_lines(split) + control_lines(study, noise) + averaging)


def validation(study: Study, noise: pd.DataFrame) -> str:
    """Whether the answer held above the budgets that it was taken from."""
    runs = study.part("validation")
    found = [(prediction, outcomes(prediction, runs)) for prediction in study.predictions]
    costs = " and ".join(f"{number(p['compute'], 3)} {AXES[p['axis']].unit}" for p, seen in found if not seen)
    waiting = f"Validation: the loss at {costs} has been predicted, and not been run yet ({link('validation')})."
    return paragraphs([*(_prediction_line(*one, noise) for one in found if one[1]), waiting * bool(costs)])


def what_to_train(analysis: Analysis) -> str:
    """The best size of each arm at the highest executed cost at which it has a measured one."""
    minima = analysis.minima.get("executed", {})
    if not minima:
        return ""
    sizes = []
    for name, m in minima.items():
        for cost in m.cost[np.isfinite(m.N.value)][-1:]:
            e = best_size(m, cost).exp()
            said = wide(e) if np.isfinite(e.high) else f"{number(e.value, 3)} (uncertain)"
            sizes.append(f"`{name}` {said} at {number(cost, 3)}")
    said = (
        f"Measured best sizes, in parameters at executed FLOPs: {'; '.join(sizes)} ({link('minima')})." if sizes else ""
    )
    return f"{said} For a compute of your own, run `eqscale plan --from` this folder `--compute FLOPS`."


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def verdict(own: Sequence[Conclusion]) -> str:
    """Verdicts on one conclusion for one arm by axis."""
    axes: dict[str, list[str]] = {}
    for c in own:
        axes.setdefault(c.verdict, []).append(AXES[c.axis].short if c.axis else "")
    return "; ".join(f"**{said}**" + f" on {' and '.join(on)}" * (len(axes) > 1) for said, on in axes.items())


def _crossings(analysis: Analysis) -> list[str]:
    """Where lines are shown to cross, on every axis, among the laws that can tell."""
    parts = []
    for axis, pairs in analysis.comparisons.items():
        able = {name for name, arm in analysis.arms[axis].items() if not cannot_tell(arm)}
        crossings = [p.crossing for p in pairs if isinstance(p, Comparison) and {p.arm, p.reference} <= able]
        found = [
            f"`{c.better_below}` and `{c.better_above}` at {with_interval(c.C, *c.interval, 2)} "
            f"{AXES[axis].unit} (`{c.better_above}` ahead above)"
            for c in crossings
            if c.C is not None and c.interval is not None
        ]
        if crossings:
            none = len(crossings) - len(found)
            said = ", ".join(found) or "none shown"
            more = f", none shown for {none} other pair{'s' if none > 1 else ''}" if found and none else ""
            parts.append(f"on {AXES[axis].label}: {said}{more}")
    laws = analysis.arms.get("executed", {})
    mute = [f"`{name}`" for name, arm in laws.items() if cannot_tell(arm)]
    unsaid = f" The laws of {', '.join(mute)} can't tell: the runs don't determine them, or they miss structure."
    where = f"Where lines of the laws are shown to cross: {'; '.join(parts)} (`comparisons.csv`)." if parts else ""
    return [f"{where}{unsaid * bool(mute)}".strip()] if len(laws) > 1 else []


def _prediction_line(prediction: Mapping[str, Any], found: Sequence[Outcome], noise: pd.DataFrame) -> str:
    unit = AXES[prediction["axis"]].unit
    seen = f"predicted from budgets up to {number(prediction['largest_budget_seen'], 3)}"
    what = f"the loss at {number(prediction['compute'], 3)} {unit}, {seen}"
    inside = sum(o.inside for o in found)
    error = float(np.median([abs(o.predicted / o.observed - 1) for o in found]))
    line = (
        f"Validation: {what}, came out within the 95 % limits for {inside} of {len(found)} runs, with a median "
        f"error of {100 * error:.1f} %"
    )
    best = best_runs(found)
    ahead, *rest = best
    ratios = best_run_ratios(best, noise)
    trends = {arm: p["trend"] for arm, p in prediction["arms"].items() if arm in best and p.get("trend")}
    said = []
    for arm in rest:
        lead = f"× {ratios[arm].ratio()}"
        if {arm, ahead} <= trends.keys():
            told = [number(p[arm]["loss"] / p[ahead]["loss"], 3, "#g") for p in (trends, prediction["arms"])]
            lead += f"; predicted {told[0]} without a law, {told[1]} by it"
        said.append(f"`{arm}` {number(best[arm], 3, '#g')} ({lead})")
    measured = f". Best runs there: `{ahead}` {number(best[ahead], 3, '#g')}, {', '.join(said)}" if rest else ""
    if trends:
        without, by_law = (
            100 * np.median([abs(p[arm]["loss"] / best[arm] - 1) for arm in trends])
            for p in (trends, prediction["arms"])
        )
        hits = sum(
            trend["new_run"]["model"][0] <= best[arm] <= trend["new_run"]["model"][1] for arm, trend in trends.items()
        )
        line += (
            f"; without a law the best run came out within them for {hits} of {len(trends)} arms. The predicted lowest "
            f"loss is off that of the best run by {without:.1f} % without a law, {by_law:.1f} % by the law (medians)"
        )
    return f"{line}{measured} ({link('validation')}, {link('validation', 'figure')})."
