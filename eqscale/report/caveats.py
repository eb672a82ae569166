"""What could make a report's answer wrong, from the runs themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eqscale.laws import disagreement
from eqscale.laws.axes import AXES
from eqscale.laws.minima import line_to_top
from eqscale.numbers import number
from eqscale.report.analysis import Analysis
from eqscale.report.checks import doubt_about
from eqscale.report.exhibits import link
from eqscale.report.parts import PARTS, Study
from eqscale.report.prediction import Outcome, outcomes, seen_the_same_runs
from eqscale.report.step_times import read_step_times
from eqscale.report.tables import fate


def caveats(study: Study, analysis: Analysis) -> list[str]:
    """What a referee would hold against the answer."""
    grid = study.part("compute")
    notes: list[str] = []
    note = notes.append
    if study.to_come:
        to_come = ", ".join(f"{PARTS[part]} {count}" for part, count in study.to_come.items())
        note(f"Unfinished (planned runs that haven't ended): {to_come}.")
    if not grid.empty:
        budgets = sorted(grid["budget"].unique())
        note(
            f"Scale: {len(budgets)} budgets from {number(budgets[0], 3)} to {number(budgets[-1], 3)} executed FLOPs, "
            f"models of {grid['N'].min():.0f} to {grid['N'].max():.0f} parameters. Dashed lines extrapolate "
            f"({link('loss', 'figure')}); nothing here says what happens at a thousand times the compute."
        )
        seeds = grid.groupby("budget")["seed"].nunique()
        single = ", ".join(number(budget, 3) for budget in seeds.index[seeds == 1])
        if not len(analysis.noise):
            note("One seed: differences of the size of the seed noise mean nothing, and lack of fit can't be tested.")
        elif single:
            taken = f"the noise there is taken from the other budgets ({link('seed_noise')})"
            note(f"One seed at {single} executed FLOPs: {taken}.")
    notes += _law_doubts(analysis)
    if not grid.empty and grid.groupby(["arm", "budget"])["N"].nunique().max() > 1:
        note(
            "Where the best of several sizes counts (data, controls, validation), intervals don't "
            "hold that choice, which flatters noisy arms."
        )
    if analysis.edges:
        edges = sorted({(AXES[e.axis].label, e.arm) for e in analysis.edges})
        shown = ", ".join(f"`{arm}` on {label}" for label, arm in edges)
        note(f"Optima that the sizes don't bracket at some budget: {shown} ({link('edges')}).")
    for arm, why in analysis.unfitted.items():
        note(f"`{arm}` has no law: {why}.")
    if not grid.empty and grid["epochs"].max() > 1:
        note(
            f"Some runs of the compute grid see their data more than once (up to {grid['epochs'].max():.2g} epochs), "
            f"which their law ignores ({link('runs')})."
        )
    kinds = sorted(grid["hardware"].dropna().unique()) if "hardware" in grid else []
    if len(kinds) > 1:
        mixed = f", and the axis of seconds mixes it ({link('loss', 'figure')})" if study.untimed != 0 else ""
        note(
            f"The runs of the compute grid were made on different hardware ({'; '.join(kinds)}){mixed}. Rounding "
            "differs, and with it a run's loss: between the instruction sets of CPUs by up to 0.9 % in eight runs, far "
            "less than between seeds (docs/training.md)."
        )
    if study.untimed:
        note(
            f"`step_times.csv` doesn't cover {study.untimed} of the runs, so seconds are those that each run recorded; "
            "`eqscale time` times the shapes of all runs."
        )
    times = read_step_times(study.folder) if study.untimed == 0 else None
    if times is not None and "spread" in times:
        note(
            f"The rounds in which a shape's steps were timed span {100 * times['spread'].median():.2g} % (median), "
            "which intervals on seconds leave out (`step_times.csv`)."
        )
    changed = []
    for prediction in study.predictions:
        what = f"{number(prediction['compute'], 3)} {AXES[prediction['axis']].unit}"
        notes += _validation_edges(outcomes(prediction, study.part("validation")), what)
        if not seen_the_same_runs(prediction, study):
            changed.append(what)
    if changed:
        note(
            f"The compute grid has changed since the prediction for {' and '.join(changed)}: it and the laws here "
            f"differ ({link('validation')})."
        )
    note(
        f"Intervals are for one statement at a time; all arms are tested on the same {study.wording.unit.many}, whose "
        "sampling error moves them together and is not in the intervals."
    )
    lost = study.runs[study.runs["status"] != "finished"]
    if len(lost):
        counts = ", ".join(f"{n} {status}" for status, n in lost["status"].value_counts().items())
        # there can be many of an earlier design, and nothing is wrong with them
        wrong = lost[~lost["status"].isin(["unplanned", "outdated"])]
        named = [*(f"`{run['name']}` {fate(run)}" for _, run in wrong.iterrows()), link("runs")]
        note(f"Runs that are in no fit: {counts} ({'; '.join(named)}).")
    else:
        note(f"No run was lost or left out of the fits ({link('runs')}).")
    return notes


def _validation_edges(found: Sequence[Outcome], what: str) -> list[str]:
    """Arms whose best size above the laws' budgets is not bracketed by the sizes that were run."""
    edges = []
    for name in dict.fromkeys(o.arm for o in found):
        own = [o for o in found if o.arm == name]
        sizes, best = sorted({o.N for o in own}), min(own, key=lambda o: o.observed).N
        if len(sizes) > 1 and best in (sizes[0], sizes[-1]):
            edges.append(f"the {'smallest' if best == sizes[0] else 'largest'} of `{name}`")
    said = f"Of the validation's sizes at {what} the best is {', '.join(edges)}"
    return [f"{said}: another may be better ({link('validation')})."] if edges else []


def _law_doubts(analysis: Analysis) -> list[str]:
    """What is doubtful about the laws, each doubt once for all arms."""
    laws = analysis.arms.get("executed", {})
    coefficients, residuals = link("coefficients"), link("residuals", "figure")
    bad = [name for name, arm in laws.items() if doubt_about(arm)]
    notes = []
    if bad:
        notes.append(
            f"Laws that miss structure, by seeds or residuals: {_names(bad)}. They have no vote above, and beyond the "
            f"runs they may be further off than their intervals ({coefficients}, {residuals})."
        )
    lines = {name: line_to_top(m) for name, m in analysis.minima.get("executed", {}).items()}
    by_line = [f"`{name}` {100 * math.expm1(error):+.1f} %" for name, error in lines.items() if error is not None]
    held = [
        f"`{name}` {100 * found.median_error:.1f} % ({100 * found.covered:.0f} %)"
        for name in laws
        if (found := analysis.hold_out[name]) is not None
    ]
    if held:
        notes.append(
            "Median error of the laws when they predict the largest budget from the others (runs within their 95 % "
            f"limits): {', '.join(held)}."
            + f" Lines through the measured optima below it miss its lowest loss by {', '.join(by_line)}."
            * bool(by_line)
        )
    if unlike := [name for name in laws if disagreement(analysis.intervals[name])]:
        notes.append(
            f"Model-based and robust intervals differ by more than 1.5 times for {_names(unlike)}: noise is unequal or "
            f"clustered, a few runs carry the fit, or it lies on a boundary ({coefficients})."
        )
    odd = {name: len(analysis.outliers[name]) for name in laws if analysis.outliers[name]}
    if odd:
        said = ", ".join(f"`{name}` {count}" for name, count in odd.items())
        notes.append(f"Runs that their law does not explain: {said} ({link('runs')}).")
    return notes


def _names(arms: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in arms)
