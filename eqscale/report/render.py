"""The text of a report: the answer first, then the evidence, then what could make it wrong."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from eqscale.laws import disagreement
from eqscale.laws.axes import AXES
from eqscale.laws.compare import Comparison
from eqscale.laws.plan import advise
from eqscale.laws.render import interval_text, markdown_table, number
from eqscale.report import part_tables, tables
from eqscale.report.analysis import Analysis
from eqscale.report.conclusions import NOT_REPRODUCED, STATEMENTS, Conclusion
from eqscale.report.data_grid import DataGrid
from eqscale.report.figures import FigureGroup
from eqscale.report.overview import headline, overview
from eqscale.report.parts import Study
from eqscale.report.prediction import Outcome, outcomes, seen_the_same_runs
from eqscale.report.tables import Table, link


@dataclasses.dataclass(frozen=True)
class Content:
    """Everything a report says, computed."""

    study: Study
    analysis: Analysis
    grid: DataGrid | None
    conclusions: list[Conclusion]
    figures: list[FigureGroup]

    def figure(self, number: int) -> FigureGroup | None:
        """A figure by its number, if it was drawn."""
        return next((f for f in self.figures if f.number == number), None)


def render(content: Content, show: Callable[[FigureGroup], str]) -> str:
    """The report as Markdown.

    Args:
        content: what it says.
        show: how a figure's images are embedded.
    """
    parts = [
        "# Does building the symmetry in pay at this scale?",
        "## The answer",
        answer(content),
        "## The paper's three conclusions",
        _conclusions(content),
        "## The evidence",
        *_evidence(content, show),
        "## What could make it wrong",
        *_doubts(content, show),
        "## How it was run",
        _provenance(content.study),
        f"<details><summary>Every run: {len(content.study.runs)}</summary>\n\n"
        f"{tables.run_table(content.study, content.analysis).markdown()}\n</details>",
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def answer(content: Content) -> str:
    """Who is ahead, and a few bullets, each pointing at its figure or table."""
    lines = _measured(content)
    lines += _crossings(content.analysis)
    lines += [_verdict_line(n, [c for c in content.conclusions if c.number == n]) for n in STATEMENTS]
    lines += part_tables.data_lines(content.grid) if content.grid else []
    lines += part_tables.control_lines(content.study, content.analysis.noise)
    if content.study.prediction is not None:
        lines.append(_prediction_line(content.study))
    bullets = "\n".join(f"- {line}" for line in lines)
    return "\n\n".join(filter(None, (headline(content.analysis), overview(content.analysis), bullets)))


def _verdict_line(n: int, own: list[Conclusion]) -> str:
    """Verdict on one conclusion by axis, and the checks that stand in its way."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for c in own:
        blocking = "fails" if c.verdict == NOT_REPRODUCED else "open"
        claims = [f"“{check.claim}”" for check in c.checks if check.outcome == blocking]
        why = f"{' and '.join(claims)}: {blocking}" if claims else ""
        reasons.setdefault((c.verdict, why), []).append(AXES[c.axis].label if c.axis else "")
    said = [
        f"**{verdict}**"
        + (f" on {' and '.join(axes)}" if len(reasons) > 1 else "")
        + (f" ({why})" if why else "")
        for (verdict, why), axes in reasons.items()
    ]
    return f"Conclusion {n} of the paper: {'; '.join(said)} ([criteria and figures](#conclusion{n}))."


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
            f"`{arm}`'s at {', '.join(f'{b:.2g}' for b in winners.index[winners == arm])}"
            for arm in counts.index
        )
    line = (
        f"Measured, at equal executed FLOPs: {said}; the next arm's best run has {ratio.min():.2f} to "
        f"{ratio.max():.2f} times its loss ({link(6)})."
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
    return [f"Where lines are predicted to cross: {'; '.join(parts)} ({link(4)})."] if parts else []


def _prediction_line(study: Study) -> str:
    prediction = study.prediction or {}
    found = outcomes(prediction, study.part("validation"))
    unit = AXES[prediction["axis"]].unit
    what = f"the loss at {prediction['compute']:.3g} {unit}, predicted from budgets up to "
    what += f"{prediction['largest_budget_seen']:.3g}"
    if not found:
        return f"Validation: {what}, has not been run yet ({link(9)})."
    inside = sum(o.inside for o in found)
    error = float(np.median([abs(o.predicted / o.observed - 1) for o in found]))
    line = (
        f"Validation: {what}, came out within the 95 % limits for {inside} of {len(found)} runs, with a median "
        f"error of {100 * error:.1f} %"
    )
    best = {o.arm: o.observed for o in sorted(found, key=lambda o: -o.observed)}
    ahead, *rest = sorted(best, key=lambda arm: best[arm])
    if rest:
        said = (f"`{arm}` {number(best[arm], 3)} (× {best[arm] / best[ahead]:.3g})" for arm in rest)
        measured = f". Best runs there: `{ahead}` {number(best[ahead], 3)}, {', '.join(said)}"
    else:
        measured = ""
    trends = {arm: p["trend"] for arm, p in prediction["arms"].items() if arm in best and p.get("trend")}
    if trends:
        errors = [abs(t["loss"] / best[arm] - 1) for arm, t in trends.items()]
        hits = sum(
            t["new_run"]["model"][0] <= best[arm] <= t["new_run"]["model"][1] for arm, t in trends.items()
        )
        line += (
            f"; without a law the best run came out within them for {hits} of {len(trends)} arms, with a median error "
            f"of {100 * float(np.median(errors)):.1f} %"
        )
    return f"{line}{measured} ({link(9)}, {link(8, 'figure')})."


def _conclusions(content: Content) -> str:
    """Statement, verdict and the table of checks of each conclusion."""
    budgets = f" ({link(17)})" if any(content.analysis.minima.values()) else ""
    parts = [
        "Stated as in the abstract and captions of arXiv 2410.23179; none of its numbers enters. A check *holds* or "
        "*fails* only if its whole 95 % interval does, the wider of the model-based [first brackets] and the robust "
        "one [second], and, where it is made twice, if the measured optima of single budgets"
        f"{budgets} and the laws agree; all hold: reproduced; one fails: not reproduced; else not decidable at "
        "this scale."
    ]
    for n, statement in STATEMENTS.items():
        own = [c for c in content.conclusions if c.number == n]
        rows = [
            [AXES[c.axis].label if c.axis else "one budget", check.claim, check.criterion, f"**{check.outcome}**",
             check.measured, check.by_law or "–"]
            for c in own
            for check in c.checks
        ]  # fmt: skip
        verdicts = "; ".join(
            f"**{c.verdict}**" + (f" on {AXES[c.axis].label}" if c.axis else "") for c in own
        )
        links = [link(int(s.split()[1]), s.split()[0].lower()) for s in own[0].sources]
        shown = f"Shown by {', '.join(links)}." if links else "Nothing was run for it."
        parts += [
            f'<a id="conclusion{n}"></a>**{n}. {statement}**',
            f"{verdicts}. {shown}",
            markdown_table(["axis", "check", "criterion", "outcome", "measured", "by the laws"], rows),
        ]
    return "\n\n".join(part.strip() for part in parts)


def figure_block(group: FigureGroup, show: Callable[[FigureGroup], str]) -> str:
    """Anchor, title, images and caption."""
    return (
        f'<a id="{group.anchor}"></a>\n\n### Figure {group.number}. {group.title}\n\n{show(group)}\n\n'
        f"*{group.caption}*"
    )


def _evidence(content: Content, show: Callable[[FigureGroup], str]) -> list[str]:
    study, analysis = content.study, content.analysis

    def figure(n: int) -> list[str]:
        group = content.figure(n)
        return [figure_block(group, show)] if group else []

    def with_table(table: Table | None) -> list[str]:
        return [table.markdown()] if table and table.rows else []

    parts: list[str] = []
    if analysis.arms:
        parts += [*figure(1), *figure(10)]
        parts += with_table(tables.minima_table(analysis))
        parts += with_table(tables.ranking_table(analysis))
        parts += with_table(tables.comparison_table(analysis))
        parts += with_table(tables.best_runs_table(study.part("compute"), analysis.noise))
    if content.grid is not None:
        parts += figure(2)
        for table in part_tables.data_tables(content.grid):
            parts += with_table(table)
    if analysis.arms:
        parts += [*figure(3), *figure(4), *with_table(tables.coefficient_table(analysis))]
        parts += [*figure(5), *figure(6), *with_table(tables.allocation_table(analysis))]
    parts += [*figure(8), *with_table(part_tables.validation_table(study))]
    parts += with_table(part_tables.control_table(study, analysis))
    parts += with_table(part_tables.contact_table(study))
    parts += with_table(part_tables.equivariance_table(study))
    for table in part_tables.measured_tables(study.evaluations):
        parts += with_table(table)
    if study.animations:
        parts.append(_animations(study))
    return parts


def _animations(study: Study) -> str:
    images = [f"![a prediction of {path.stem}](evaluation/{path.name})" for path in study.animations]
    caption = (
        "*One test scene: the truth, predictions one horizon ahead of each true state, and a rollout, which holds each "
        "of its states until its next step. Shapes are those of the truth at the start; a prediction moves each "
        "vertex by itself.*"
    )
    return "\n\n".join(['<a id="fig9"></a>\n\n### Figure 9. Predictions beside the truth', *images, caption])


def _doubts(content: Content, show: Callable[[FigureGroup], str]) -> list[str]:
    study, analysis = content.study, content.analysis
    parts = ["\n".join(f"- {note}" for note in caveats(content))]
    residuals = content.figure(7)
    if residuals:
        parts.append(figure_block(residuals, show))
    if len(analysis.noise_at_sizes) and not study.part("compute").empty:
        parts.append(tables.noise_table(analysis.noise_at_sizes, analysis.noise).markdown())
    if analysis.edges:
        parts.append(tables.edge_table(analysis).markdown())
    return parts


def caveats(content: Content) -> list[str]:
    """What a referee would hold against the answer, from the runs themselves."""
    study, analysis = content.study, content.analysis
    grid = study.part("compute")
    notes = []
    if not grid.empty:
        budgets = sorted(grid["budget"].unique())
        notes.append(
            f"Scale: {len(budgets)} budgets from {budgets[0]:.3g} to {budgets[-1]:.3g} executed FLOPs, models of "
            f"{grid['N'].min():.0f} to {grid['N'].max():.0f} parameters. Dashed lines extrapolate "
            f"({link(1, 'figure')}); nothing here says what happens at a thousand times the compute."
        )
        if not len(analysis.noise):
            notes.append(
                "One seed: differences of the size of the seed noise mean nothing, and lack of fit can't be tested."
            )
        else:
            seeds = grid.groupby("budget")["seed"].nunique()
            if single := [f"{budget:.3g}" for budget in seeds.index[seeds == 1]]:
                notes.append(
                    f"One seed at {', '.join(single)} executed FLOPs: the noise there is taken from the other budgets "
                    f"({link(7)})."
                )
    notes += [note for name in analysis.arms.get("executed", {}) for note in _law_doubts(analysis, name)]
    if analysis.edges:
        edges = {(AXES[e.axis].label, e.arm) for e in analysis.edges}
        shown = ", ".join(f"`{arm}` on {label}" for label, arm in sorted(edges))
        notes.append(f"Optima that the sizes don't bracket at some budget: {shown} ({link(8)}).")
    for arm, why in analysis.unfitted.items():
        notes.append(f"`{arm}` has no law: {why}.")
    if not grid.empty and grid["epochs"].max() > 1:
        notes.append(
            f"Some runs of the compute grid see their data more than once (up to {grid['epochs'].max():.2g} epochs), "
            f"which their law ignores ({link(12)})."
        )
    kinds = sorted(grid["hardware"].dropna().unique()) if "hardware" in grid else []
    if len(kinds) > 1 and study.untimed != 0:
        notes.append(
            f"The runs of the compute grid were made on different hardware ({'; '.join(kinds)}), and the axis of "
            f"seconds mixes it ({link(1, 'figure')})."
        )
    if study.untimed:
        notes.append(
            f"`step_times.csv` doesn't cover {study.untimed} of the runs, so seconds are those that each run recorded; "
            "`eqscale time` times the shapes of all runs."
        )
    if study.prediction is not None:
        notes += _validation_edges(outcomes(study.prediction, study.part("validation")))
        if not seen_the_same_runs(study.prediction, study):
            notes.append(
                f"The compute grid has changed since the prediction was made: it and the laws here differ ({link(9)})."
            )
    notes.append(
        "Intervals are for one statement at a time; all arms are tested on the same scenes, whose sampling error "
        "moves them together and is not in the intervals."
    )
    lost = study.lost
    if len(lost):
        counts = ", ".join(f"{n} {status}" for status, n in lost["status"].value_counts().items())
        # of an earlier design there can be many, and nothing is wrong with them
        wrong = lost[~lost["status"].isin(["unplanned", "outdated"])]
        named = [*(f"`{run['name']}` {tables.fate(run)}" for _, run in wrong.iterrows()), link(12)]
        notes.append(f"Runs that are in no fit: {counts} ({'; '.join(named)}).")
    else:
        notes.append(f"No run was lost or left out of the fits ({link(12)}).")
    return notes


def _validation_edges(found: Sequence[Outcome]) -> list[str]:
    """Arms whose best size above the laws' budgets is not bracketed by the sizes that were run."""
    edges = {}
    for name in dict.fromkeys(o.arm for o in found):
        own = [o for o in found if o.arm == name]
        sizes, best = sorted({o.N for o in own}), min(own, key=lambda o: o.observed).N
        if len(sizes) > 1 and best in (sizes[0], sizes[-1]):
            edges[name] = "smallest" if best == sizes[0] else "largest"
    if not edges:
        return []
    said = ", ".join(f"the {which} of `{name}`" for name, which in edges.items())
    return [f"Of the validation's sizes the best is {said}: another could be better still ({link(9)})."]


def _law_doubts(analysis: Analysis, name: str) -> list[str]:
    """What is doubtful about one arm's law."""
    fit, notes = analysis.arms["executed"][name].fit, []
    if fit.verdict.startswith("on boundary"):
        notes.append(f"`{name}`: {fit.verdict}: the intervals of what lies there are one-sided ({link(1)}).")
    elif fit.verdict != "converged":
        notes.append(f"`{name}`: {fit.verdict}: its coefficients must not be read one by one ({link(1)}).")
    if warning := disagreement(analysis.intervals[name]):
        notes.append(f"`{name}`: {warning} ({link(1)}).")
    test = analysis.lack_of_fit[name]
    if test is not None and test.rejects:
        notes.append(f"`{name}`: {test.describe()} ({link(1)}, {link(7, 'figure')}).")
    held = analysis.hold_out[name]
    if held is not None:
        notes.append(
            f"`{name}`: its law without the largest budget predicts that budget's runs with a median error of "
            f"{100 * held.median_error:.1f} %, {100 * held.covered:.0f} % of them within 95 % limits "
            f"({link(7, 'figure')} shows the residuals of the full fit)."
        )
    odd = analysis.outliers[name]
    if odd:
        notes.append(
            f"`{name}`: {len(odd)} run{'s' if len(odd) > 1 else ''} that the law does not explain ({link(12)})."
        )
    return notes


def _provenance(study: Study) -> str:
    runs = study.runs
    finished = runs[runs["status"] == "finished"]
    counts = ", ".join(f"{count} {status}" for status, count in runs["status"].value_counts().items())
    lines = [f"{len(runs)} runs: {counts}; {finished['seconds'].sum() / 3600:.2g} core-hours of training."]
    if "hardware" in finished:
        kinds = sorted(finished["hardware"].dropna().unique())
        gpu = any("NVIDIA" in kind for kind in kinds)
        lines.append(
            f"Hardware: {'; '.join(kinds)} per run." + ("" if gpu else " No GPU figure is in this report.")
        )
    if "code" in finished:
        lines.append(f"Code: {'; '.join(sorted(finished['code'].dropna().unique()))}.")
    if "data" in runs:
        lines.append(f"Data: definition {', '.join(sorted(set(runs['data'].astype(str).str[:12])))}.")
    lines += [
        f"Wall time, {name}, when it last ran: {seconds:.0f} s."
        for name, seconds in study.stage_seconds.items()
    ]
    lines += [f"{axis.label}: {axis.meaning}." for axis in AXES.values()]
    if study.untimed == 0:
        lines.append("Seconds come from step times taken in one sitting, `step_times.csv`.")
    lines.append(
        "The run table is `runs.csv` (and `.parquet`), its columns are explained in `columns.md`, the fits are "
        "`fits.json`, `coefficients.csv` and `allocation.csv`, the seed noise `seed_noise.csv`, the verdicts "
        "`conclusions.json`. `records.jsonl` holds the runs without loss. `eqscale report` on this folder rebuilds "
        "everything from the run tables."
    )
    return "\n".join(f"- {line}" for line in lines)
