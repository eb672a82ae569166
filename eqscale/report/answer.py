"""The answer in a few sentences, each with a link to what shows it."""

from __future__ import annotations

import math

import numpy as np

from eqscale.laws.axes import AXES
from eqscale.laws.compare import Comparison
from eqscale.laws.plan import advise
from eqscale.laws.render import interval_text, number
from eqscale.report.analysis import Analysis
from eqscale.report.conclusions import NOT_REPRODUCED, STATEMENTS, Conclusion
from eqscale.report.content import Content
from eqscale.report.controls import control_lines
from eqscale.report.data_tables import data_lines
from eqscale.report.exhibits import link
from eqscale.report.overview import headline, overview
from eqscale.report.part_tables import averaging_lines
from eqscale.report.parts import Study
from eqscale.report.prediction import outcomes


def answer(content: Content) -> str:
    """Who is ahead on each axis, then a few bullets."""
    study, analysis, roles = content.study, content.analysis, content.study.roles
    lines = [*_measured(content), *_crossings(analysis)]
    if roles.missing:
        lines.append(f"The study has {roles.missing}: the paper's conclusions, which compare the two, stay open.")
    for n in STATEMENTS:
        for arm in roles.built_in or (None,):
            own = [c for c in content.conclusions if (c.number, c.arm) == (n, arm)]
            lines.append(_verdict_line(n, own, f" for `{arm}`" if len(roles.built_in) > 1 else ""))
    lines += data_lines(content.grid, roles) if content.grid else []
    lines += control_lines(study, analysis.noise)
    lines += averaging_lines(study.evaluations, study.wording.variant)
    if study.prediction is not None:
        lines.append(_prediction_line(study))
    bullets = "\n".join(f"- {line}" for line in lines)
    return "\n\n".join(filter(None, (headline(analysis), overview(analysis, roles.built_in), bullets)))


def _verdict_line(n: int, own: list[Conclusion], arm: str) -> str:
    """Verdict on one conclusion by axis, and the checks that stand in its way."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for c in own:
        blocking = "fails" if c.verdict == NOT_REPRODUCED else "open"
        claims = [f"“{check.claim}”" for check in c.checks if check.outcome == blocking]
        why = f"{' and '.join(claims)}: {blocking}" if claims else ""
        reasons.setdefault((c.verdict, why), []).append(AXES[c.axis].label if c.axis else "")
    said = [
        f"**{verdict}**" + f" on {' and '.join(axes)}" * (len(reasons) > 1) + f" ({why})" * bool(why)
        for (verdict, why), axes in reasons.items()
    ]
    return f"Conclusion {n} of the paper{arm}: {'; '.join(said)} ([criteria and figures](#conclusion{n}))."


def _measured(content: Content) -> list[str]:
    """Who has the best run at each budget, law or no law, and where the laws say otherwise."""
    finished = content.study.part("compute")
    if finished["arm"].nunique() < 2:
        return []
    means = finished.groupby(["budget", "arm", "N"])["loss"].mean()
    best = means.groupby(["budget", "arm"]).min().unstack()
    best = best[best.notna().sum(axis=1) > 1]
    if best.empty:
        return []
    winners = best.idxmin(axis=1)
    ratio = best.apply(lambda row: row.nsmallest(2).iloc[1] / row.min(), axis=1)
    counts = winners.value_counts()
    if len(counts) == 1:
        said = f"`{counts.index[0]}` has the best run at every budget"
    else:
        said = "the best run is " + "; ".join(
            f"`{arm}`'s at {', '.join(f'{b:.2g}' for b in winners.index[winners == arm])}" for arm in counts.index
        )
    line = (
        f"Measured, at equal executed FLOPs: {said}; the next arm's best run has {ratio.min():.2f} to "
        f"{ratio.max():.2f} times its loss ({link('best_runs')})."
    )
    laws = content.analysis.arms.get("executed", {})
    surprises = []
    for budget, winner in winners.items():
        predicted = {a.arm: a.loss for a in advise(laws, float(budget)) if math.isfinite(a.loss)}  # type: ignore[arg-type]
        if winner in predicted and min(predicted, key=lambda name: predicted[name]) != winner:
            surprises.append(f"{budget:.2g}")
    if surprises:
        line += f" The laws say otherwise at {', '.join(surprises)}: there they miss the best runs."
    return [line]


def _crossings(analysis: Analysis) -> list[str]:
    """Where lines are predicted to cross, on every axis."""
    parts = []
    for axis, pairs in analysis.comparisons.items():
        found, none = [], 0
        for pair in (p for p in pairs if isinstance(p, Comparison)):
            if pair.crossing.C is None:
                none += 1
                continue
            limits = interval_text(pair.crossing.interval, 2)
            found.append(
                f"`{pair.crossing.better_below}` and `{pair.crossing.better_above}` at {pair.crossing.C:.2g} "
                f"{limits} {AXES[axis].unit} (in {100 * pair.crossing.probability:.0f} % of the resamples; "
                f"`{pair.crossing.better_above}` ahead above)"
            )
        if found or none:
            said = ", ".join(found) or "none in range"
            more = f", none in range for {none} other pair{'s' if none > 1 else ''}" if found and none else ""
            parts.append(f"on {AXES[axis].label}: {said}{more}")
    return [f"Where lines are predicted to cross: {'; '.join(parts)} ({link('comparisons')})."] * bool(parts)


def _prediction_line(study: Study) -> str:
    prediction = study.prediction or {}
    found = outcomes(prediction, study.part("validation"))
    unit = AXES[prediction["axis"]].unit
    what = f"the loss at {prediction['compute']:.3g} {unit}, predicted from budgets up to "
    what += f"{prediction['largest_budget_seen']:.3g}"
    if not found:
        return f"Validation: {what}, has not been run yet ({link('validation')})."
    inside = sum(o.inside for o in found)
    error = float(np.median([abs(o.predicted / o.observed - 1) for o in found]))
    line = (
        f"Validation: {what}, came out within the 95 % limits for {inside} of {len(found)} runs, with a median "
        f"error of {100 * error:.1f} %"
    )
    best = {o.arm: o.observed for o in sorted(found, key=lambda o: -o.observed)}
    ahead, *rest = sorted(best, key=lambda arm: best[arm])
    said = (f"`{arm}` {number(best[arm], 3)} (× {best[arm] / best[ahead]:.3g})" for arm in rest)
    measured = f". Best runs there: `{ahead}` {number(best[ahead], 3)}, {', '.join(said)}" if rest else ""
    trends = {arm: p["trend"] for arm, p in prediction["arms"].items() if arm in best and p.get("trend")}
    if trends:
        errors = [abs(t["loss"] / best[arm] - 1) for arm, t in trends.items()]
        limits = {arm: t["new_run"]["model"] for arm, t in trends.items()}
        hits = sum(low <= best[arm] <= high for arm, (low, high) in limits.items())
        line += (
            f"; without a law the best run came out within them for {hits} of {len(trends)} arms, with a median error "
            f"of {100 * float(np.median(errors)):.1f} %"
        )
    return f"{line}{measured} ({link('validation')}, {link('validation', 'figure')})."
