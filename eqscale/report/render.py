"""The text of a report: the answer first, then the evidence, then what could make it wrong."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping

from eqscale.laws.axes import AXES
from eqscale.laws.render import markdown_table
from eqscale.report import data_tables, part_tables, tables
from eqscale.report.analysis import Analysis
from eqscale.report.answer import answer, details, verdict
from eqscale.report.caveats import caveats
from eqscale.report.conclusions import EXHIBITS, STATEMENTS, Conclusion
from eqscale.report.controls import control_table
from eqscale.report.data_grid import DataGrid
from eqscale.report.exhibits import UNSEEN, FigureGroup, Table, figure_block, link, only_own_tags, paragraphs
from eqscale.report.parts import Study


@dataclasses.dataclass(frozen=True)
class Content:
    """What a report is written from."""

    study: Study
    analysis: Analysis
    grid: DataGrid | None
    conclusions: list[Conclusion]
    figures: list[FigureGroup]


def render(content: Content) -> str:
    """The report as Markdown, with marks for the numbers of exhibits and for the images of figures."""
    drawn = defaultdict(str, {g.key: figure_block(g.key, g.title, g.images, g.caption) for g in content.figures})
    lead, evidence = answer(content.study, drawn["loss"]), _evidence(content, drawn)
    parts = [
        "# Does building the symmetry in pay at this scale?",
        lead,
        "## The answer in detail",
        details(content.study, content.analysis, content.grid),
        "## The paper's three conclusions",
        _conclusions(content, lead + evidence),
        "## The evidence",
        evidence,
        "## What could make it wrong",
        _doubts(content, drawn),
        "## How it was run",
        _provenance(content.study),
        f"<details><summary>Every run: {len(content.study.runs)}</summary>\n\n"
        f"{tables.run_table(content.study, content.analysis).markdown()}\n</details>",
    ]
    return only_own_tags(paragraphs(parts))


def _conclusions(content: Content, shown: str) -> str:
    """Statement, verdict and the table of checks of each conclusion; ``shown`` holds the report's exhibits."""
    built_in = content.study.roles.built_in
    several = len(built_in) > 1
    budgets = f" ({link('minima')})" if any(content.analysis.minima.values()) else ""
    parts = [
        "The statements are those of the abstract and captions of arXiv 2410.23179; none of its numbers is used. A "
        "check *holds* or *fails* only if its whole 95 % interval does: the wider of the model-based one [first "
        "brackets] and the robust one [second]. A check that is made with the measured optima of single "
        f"budgets{budgets} and with the laws holds or fails only if both do. A law that misses structure (lack of fit "
        "at p < 0.05, or a misfit by its residuals) has no vote, and one with E = 0 has none on whether it is a power "
        "law. What a check can tell is reckoned from the width of its intervals; one that could not hold whatever the "
        "truth does not fail either. A conclusion is reproduced if all its checks hold, not reproduced if one fails, "
        "and otherwise not decidable at this scale."
    ]
    for n, statement in STATEMENTS.items():
        own = [c for c in content.conclusions if c.number == n]
        checks = [(check, c) for c in own for check in c.checks]
        claims = list(dict.fromkeys((check.claim, check.criterion) for check, _ in checks))
        rows = [
            [f"{k}", *([f"`{c.arm}`"] if several else []), AXES[c.axis].short if c.axis else "one budget",
             f"**{check.outcome}**", check.measured, check.by_law or UNSEEN, check.power or UNSEEN]
            for k, claim in enumerate(claims, start=1)
            for check, c in checks
            if (check.claim, check.criterion) == claim
        ]  # fmt: skip
        verdicts = [f"`{arm}`: " * several + verdict([c for c in own if c.arm == arm]) for arm in built_in or (None,)]
        links = [mark for mark in EXHIBITS[n] if mark.replace("link", "anchor", 1) in shown]
        where = f"Shown by {', '.join(links)}." if links else "Nothing was run for it."
        header = ["axis", "outcome", "measured", "by the laws", "what it can tell"]
        parts += [
            f'<a id="conclusion{n}"></a>**{n}. {statement}**',
            f"{'; '.join(verdicts)}. {where}",
            "\n".join(f"{k}. {claim}: {criterion}" for k, (claim, criterion) in enumerate(claims, start=1)),
            markdown_table(["check", *(["arm"] if several else []), *header], rows),
        ]
    return paragraphs(parts)


def _evidence(content: Content, drawn: Mapping[str, str]) -> str:
    study, analysis, grid, roles = content.study, content.analysis, content.grid, content.study.roles
    parts: list[str | Table] = [
        drawn["ratio"],
        tables.minima_table(analysis, roles.built_in),
        tables.ranking_table(analysis),
        tables.comparison_table(analysis),
        tables.best_runs_table(study.part("compute"), analysis.noise, study.wording.unit.many),
    ]
    if grid is not None:
        parts += [drawn["data"], data_tables.data_table(grid, roles), drawn["epochs"]]
        parts += [data_tables.repetition_table(grid), data_tables.repetition_law_table(grid)]
    parts += [drawn["surface"], drawn["isoflop"], tables.coefficient_table(analysis)]
    parts += [drawn["size"], drawn["tokens"], tables.allocation_table(analysis)]
    parts += [drawn["validation"], part_tables.validation_table(study) or "", control_table(study, analysis.noise)]
    parts += [part_tables.metric_table(study), part_tables.equivariance_table(study)]
    parts += part_tables.measured_tables(study)
    if study.animations:
        images = [f"![a prediction of {path.stem}](evaluation/{path.name})" for path in study.animations]
        caption = study.wording.animation
        parts.append(figure_block("animation", "Predictions beside the truth", "\n\n".join(images), caption))
    return paragraphs(part.markdown() if isinstance(part, Table) else part for part in parts)


def _doubts(content: Content, drawn: Mapping[str, str]) -> str:
    analysis = content.analysis
    parts = ["\n".join(f"- {note}" for note in caveats(content.study, analysis)), drawn["residuals"], drawn["curves"]]
    if not content.study.part("compute").empty:
        parts.append(tables.noise_table(analysis.noise).markdown())
    return paragraphs([*parts, tables.edge_table(analysis).markdown()])


def _provenance(study: Study) -> str:
    runs = study.runs
    finished = runs[runs["status"] == "finished"]
    counts = ", ".join(f"{count} {status}" for status, count in runs["status"].value_counts().items())
    task = study.wording
    lines = [
        f"Task `{task.name}`: {task.sentence}. A loss of 1 is that of {task.trivial}.",
        f"{len(runs)} runs: {counts}; {finished['seconds'].sum() / 3600:.2g} core-hours of training.",
    ]
    if "hardware" in finished:
        kinds = sorted(finished["hardware"].dropna().unique())
        gpu = any("NVIDIA" in kind for kind in kinds)
        lines.append(f"Hardware: {'; '.join(kinds)} per run." + ("" if gpu else " No GPU figure is in this report."))
    if "optimizer" in finished:
        lines.append(f"Optimiser: {', '.join(sorted(finished['optimizer'].dropna().unique()))}.")
    if "code" in finished:
        lines.append(f"Code: {'; '.join(sorted(finished['code'].dropna().unique()))}.")
    if "data" in runs:
        lines.append(f"Data: definition {', '.join(sorted(set(runs['data'].astype(str).str[:12])))}.")
    lines += [f"Wall time, {name}, when it last ran: {seconds:.0f} s." for name, seconds in study.stage_seconds.items()]
    lines += [f"{axis.label}: {axis.meaning}." for axis in AXES.values()]
    if study.untimed == 0:
        lines.append("Seconds come from step times taken in one sitting, `step_times.csv`.")
    lines.append(
        "The run table is `runs.csv`, its columns are explained in `columns.md`; the fits are `fits.json`, "
        "`coefficients.csv` and `allocation.csv`, measured optima `minima.csv`, the seed noise `seed_noise.csv`, the "
        "verdicts `conclusions.json`. `records.jsonl` holds the runs without loss. `eqscale report` on this folder "
        "rebuilds everything from the run tables."
    )
    return "\n".join(f"- {line}" for line in lines)
