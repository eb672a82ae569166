"""What could make a report's answer wrong, from the runs themselves."""

from __future__ import annotations

from collections.abc import Sequence

from eqscale.laws import disagreement
from eqscale.laws.axes import AXES
from eqscale.report.analysis import Analysis
from eqscale.report.exhibits import link
from eqscale.report.parts import Study
from eqscale.report.prediction import Outcome, outcomes, seen_the_same_runs
from eqscale.report.tables import fate


def caveats(study: Study, analysis: Analysis) -> list[str]:
    """What a referee would hold against the answer."""
    grid = study.part("compute")
    notes: list[str] = []
    note = notes.append
    if not grid.empty:
        budgets = sorted(grid["budget"].unique())
        note(
            f"Scale: {len(budgets)} budgets from {budgets[0]:.3g} to {budgets[-1]:.3g} executed FLOPs, models of "
            f"{grid['N'].min():.0f} to {grid['N'].max():.0f} parameters. Dashed lines extrapolate "
            f"({link('loss', 'figure')}); nothing here says what happens at a thousand times the compute."
        )
        seeds = grid.groupby("budget")["seed"].nunique()
        single = ", ".join(f"{budget:.3g}" for budget in seeds.index[seeds == 1])
        if not len(analysis.noise):
            note("One seed: differences of the size of the seed noise mean nothing, and lack of fit can't be tested.")
        elif single:
            taken = f"the noise there is taken from the other budgets ({link('seed_noise')})"
            note(f"One seed at {single} executed FLOPs: {taken}.")
    notes += [note for name in analysis.arms.get("executed", {}) for note in _law_doubts(analysis, name)]
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
            "differs, and with it a run's loss: between the instruction sets of CPUs by up to 0.9 % in eight runs, an "
            "order of magnitude less than between seeds (docs/training.md)."
        )
    if study.untimed:
        note(
            f"`step_times.csv` doesn't cover {study.untimed} of the runs, so seconds are those that each run recorded; "
            "`eqscale time` times the shapes of all runs."
        )
    if study.prediction is not None:
        notes += _validation_edges(outcomes(study.prediction, study.part("validation")))
        if not seen_the_same_runs(study.prediction, study):
            note(
                "The compute grid has changed since the prediction was made: it and the laws here differ "
                f"({link('validation')})."
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


def _validation_edges(found: Sequence[Outcome]) -> list[str]:
    """Arms whose best size above the laws' budgets is not bracketed by the sizes that were run."""
    edges = []
    for name in dict.fromkeys(o.arm for o in found):
        own = [o for o in found if o.arm == name]
        sizes, best = sorted({o.N for o in own}), min(own, key=lambda o: o.observed).N
        if len(sizes) > 1 and best in (sizes[0], sizes[-1]):
            edges.append(f"the {'smallest' if best == sizes[0] else 'largest'} of `{name}`")
    said = f"Of the validation's sizes the best is {', '.join(edges)}"
    return [f"{said}: another could be better still ({link('validation')})."] if edges else []


def _law_doubts(analysis: Analysis, name: str) -> list[str]:
    """What is doubtful about one arm's law."""
    fit = analysis.arms["executed"][name].fit
    coefficients, residuals = link("coefficients"), link("residuals", "figure")
    found = []
    if fit.verdict.state == "on boundary":
        found.append(f"{fit.verdict}: the intervals of what lies there are one-sided ({coefficients}).")
    elif fit.verdict.state == "misfit":
        found.append(
            f"{fit.verdict}: what it says beyond the runs may be further off than its intervals ({residuals})."
        )
    elif not fit.verdict.good:
        found.append(f"{fit.verdict}: its coefficients must not be read one by one ({coefficients}).")
    if warning := disagreement(analysis.intervals[name]):
        found.append(f"{warning} ({coefficients}).")
    test = analysis.lack_of_fit[name]
    if test is not None and test.rejects:
        found.append(f"{test.describe()} ({coefficients}, {residuals}).")
    held = analysis.hold_out[name]
    if held is not None:
        found.append(
            "its law without the largest budget predicts that budget's runs with a median error of "
            f"{100 * held.median_error:.1f} %, {100 * held.covered:.0f} % of them within 95 % limits "
            f"({residuals} shows the residuals of the full fit)."
        )
    if odd := len(analysis.outliers[name]):
        found.append(f"{odd} run{'s' if odd > 1 else ''} that the law does not explain ({link('runs')}).")
    return [f"`{name}`: {doubt}" for doubt in found]
