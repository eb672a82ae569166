"""The text of a report: the answer first, then the evidence, then what could make it wrong."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Mapping

import pandas as pd

from eqscale.laws.axes import AXES
from eqscale.laws.render import markdown_table
from eqscale.report import answer as answers
from eqscale.report import data_tables, part_tables, tables
from eqscale.report.analysis import Analysis
from eqscale.report.answer import verdict
from eqscale.report.caveats import caveats
from eqscale.report.checks import NO_VOTE, SEEN
from eqscale.report.conclusions import EXHIBITS, STATEMENTS, Conclusion
from eqscale.report.controls import control_table
from eqscale.report.data_grid import DataGrid
from eqscale.report.exhibits import (
    UNSEEN,
    FigureGroup,
    Table,
    anchor,
    figure_block,
    numbered,
    only_own_tags,
    paragraphs,
)
from eqscale.report.parts import Study
from eqscale.report.split import split_table


@dataclasses.dataclass(frozen=True)
class Content:
    """What a report is written from."""

    study: Study
    analysis: Analysis
    grid: DataGrid | None
    split: pd.DataFrame
    """Parts of the lead, as ``split_lead``."""
    conclusions: list[Conclusion]
    figures: list[FigureGroup]


def render(content: Content) -> str:
    """The report as Markdown, with marks for the numbers of exhibits and for the images of figures."""
    drawn = defaultdict(str, {g.key: figure_block(g.key, g.title, g.images, g.caption) for g in content.figures})
    tables_of = {
        table.key: table.markdown()
        for table in (
            data_tables.data_table(content.grid, content.study.roles) if content.grid else None,
            part_tables.validation_table(content.study),
            control_table(content.study, content.analysis.noise),
            split_table(content.split),
            tables.lead_table(content.analysis, content.study.roles),
            tables.minima_table(content.analysis),
            tables.allocation_table(content.analysis),
        )
        if table
    }
    shown = defaultdict(str, tables_of)
    study, analysis, roles = content.study, content.analysis, content.study.roles
    missing = f"- The study has {roles.missing}: the paper's conclusions, which compare the two, stay open."
    sections = {
        "Which arm, by how much, on which axis?": (
            answers.which_arm(analysis, roles.built_in), missing if roles.missing else "", drawn["ratio"],
        ),
        "Is it the symmetry?": (
            answers.symmetry(study, content.split, analysis.noise), drawn["split"], shown["split"], shown["controls"],
        ),
        "Does more data replace it?": (
            answers.data(content.grid, roles), drawn["data"], shown["data"], drawn["epochs"],
        ),
        "Does it last?": (
            shown["lead"], answers.validation(study, analysis.noise), drawn["validation"], shown["validation"],
        ),
        "What should I train?": (answers.what_to_train(analysis), drawn["size"], shown["allocation"]),
    }  # fmt: skip
    answered = "".join(
        paragraphs((f"## {question}", text)) + "\n"
        for question, parts in sections.items()
        if (text := paragraphs(parts)).strip()
    )
    lead = answers.answer(study, analysis, drawn["loss"])
    evidence = _evidence(content, drawn, shown["minima"])
    parts = [
        "# Does building the symmetry in pay at this scale?",
        lead,
        answered,
        "## The paper's three conclusions",
        _conclusions(content, lead + answered + evidence),
        "## The evidence",
        evidence,
        "## What could make it wrong",
        _doubts(content, drawn),
        "## How it was run",
        _provenance(study),
        f"{anchor('runs')}**{numbered('runs')}. Every run.** `run_table.csv` has all {len(study.runs)} runs of all "
        "parts, with observed over fitted loss and what became of each.",
    ]
    return only_own_tags(paragraphs(parts))


def _conclusions(content: Content, shown: str) -> str:
    """Statement, verdict and the table of checks of each conclusion; ``shown`` holds the report's exhibits."""
    built_in = content.study.roles.built_in
    several = len(built_in) > 1
    parts = [
        "The statements are those of the abstract and captions of arXiv 2410.23179. A check *holds* or *fails* only if "
        "its whole 95 % interval does, by measured optima and laws alike; a law that misses structure has no vote, nor "
        "has one with E = 0 on power laws. A conclusion is reproduced if all its checks hold, not reproduced if one "
        "fails, otherwise not decidable at this scale. "
        f"*What it can tell*: the factor that {100 * SEEN:.0f} % of such studies would see, or how many would hold. "
        "Measured on executed FLOPs; `conclusions.json` has every axis, and what the laws give."
    ]
    for n, statement in STATEMENTS.items():
        own = [c for c in content.conclusions if c.number == n]
        claims = list(dict.fromkeys((check.claim, check.criterion) for c in own for check in c.checks))
        others = [axis for axis in AXES if axis != "executed" and any(c.axis == axis for c in own)]
        rows = []
        for k, arm in itertools.product(range(len(claims)), built_in or (None,)):
            by_axis = {c.axis: c.checks[k] for c in own if c.arm == arm}
            check = by_axis.get("executed") or by_axis[""]
            law = f"; by the laws {check.by_law}" if check.by_law and NO_VOTE not in check.by_law else ""
            cells = [f"**{check.outcome}**", check.measured + law, check.power or UNSEEN]
            outcomes = [by_axis[axis].outcome for axis in others]
            rows.append([str(k + 1), *([f"`{arm}`"] if several else []), *cells, *outcomes])
        alike: dict[str, list[str]] = {}
        for arm in built_in or (None,):
            alike.setdefault(verdict([c for c in own if c.arm == arm]), []).append(f"`{arm}`")
        verdicts = [f"{', '.join(arms)}: " * several + said for said, arms in alike.items()]
        links = [mark for mark in EXHIBITS[n] if mark.replace("link", "anchor", 1) in shown]
        where = f"Shown by {', '.join(links)}." if links else "Nothing was run for it."
        parts += [f'<a id="conclusion{n}"></a>**{n}. {statement}**', f"{'; '.join(verdicts)}. {where}"]
        if not links:
            continue
        header = ["outcome", "measured", "what it can tell", *(f"on {AXES[axis].short}" for axis in others)]
        parts += [
            "\n".join(f"{k}. {claim}: {criterion}" for k, (claim, criterion) in enumerate(claims, start=1)),
            markdown_table(["check", *(["arm"] if several else []), *header], rows),
        ]
    return paragraphs(parts)


def _evidence(content: Content, drawn: Mapping[str, str], minima: str) -> str:
    study, grid = content.study, content.grid
    parts: list[str | Table] = [minima, drawn["isoflop"], drawn["surface"], tables.coefficient_table(content.analysis)]
    parts.append(drawn["tokens"])
    if grid is not None:
        parts += [data_tables.repetition_table(grid), data_tables.repetition_law_table(grid)]
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
        f"{len(runs)} runs: {counts}; {finished['seconds'].sum() / 3600:.2g} core-hours of training"
        f"{', by step times' * (study.untimed == 0)}.",
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
    timed = "steps × the time of a step, all timed in one sitting (`step_times.csv`)"
    meanings = {axis.label: axis.meaning for axis in AXES.values()}
    meanings |= {AXES["seconds"].label: timed} if study.untimed == 0 else {}
    lines += [f"{label}: {meaning}." for label, meaning in meanings.items()]
    lines.append(
        "The run table is `runs.csv`, its columns are explained in `columns.md`; `records.jsonl` holds the runs "
        "without loss. `eqscale report` on this folder rebuilds everything else from them, byte for byte: `fits.json`, "
        "`conclusions.json`, and the CSV files that are named above."
    )
    return "\n".join(f"- {line}" for line in lines)
