"""``write_study_report``: from the run tables of a results folder to fits, figures and both reports."""

from __future__ import annotations

from pathlib import Path

from eqscale.errors import InputError
from eqscale.laws.render import fit_record, write_json
from eqscale.laws.table import load_table
from eqscale.report.analysis import analyse
from eqscale.report.conclusions import conclude
from eqscale.report.data_grid import read_data_grid
from eqscale.report.exhibits import FigureGroup, number_exhibits, numbered
from eqscale.report.figures import draw_figures
from eqscale.report.optimizers import write_optimizers
from eqscale.report.page import write_page
from eqscale.report.parts import UNIQUE, read_study, study_folder
from eqscale.report.prediction import outcome_frame
from eqscale.report.render import Content, render
from eqscale.report.split import split_lead
from eqscale.report.tables import (
    allocation_frame,
    coefficients_frame,
    comparison_frame,
    minima_frame,
    ranking_frame,
    run_frame,
    run_table,
)
from eqscale.storage import write_text

_NOT_HERE = {"shapes.csv": "shapes", "trials.csv": "search"}
"""Jobs whose report needs their plan: their table -> their name."""


def write_report(folder: Path) -> Path:
    """Write the report of a results folder; returns the folder that it lies in.

    That of a comparison of optimisers has a table and ``report.md``; any other is that of ``write_study_report``.

    Raises:
        InputError: as ``write_study_report``, or the folder of a job that needs its plan. Then nothing is written.
    """
    for table, job in _NOT_HERE.items():
        if (folder / table).exists():
            raise InputError(f"{folder} has the report of `eqscale run {job}`: the same command writes it again")
    if (folder / "optimizers.csv").exists():
        write_optimizers(load_table(folder / "runs.csv"), folder)
        return folder
    return write_study_report(folder).study.folder


def write_study_report(folder: Path) -> Content:
    """Write fits, tables, figures (PNG and SVG), ``report.md`` and ``report.html`` of a study; returns their content.

    Files of an earlier report are overwritten. Equal run tables give equal files, byte for byte.

    Args:
        folder: results folder of a study, see ``eqscale.report.parts``; or that of one of its parts, such as
            ``data_grid``, for the whole study.

    Raises:
        InputError: no run table, a bad value in one, or no arm with enough finished runs for a law. Then nothing is
            written.
    """
    folder = study_folder(folder)
    study = read_study(folder)
    analysis = analyse(study)
    grid = read_data_grid(study.part("data_grid"), study.part("compute"), study.wording.unit.many)
    conclusions = conclude(study.roles, analysis.arms, analysis.minima, grid)
    split = split_lead(analysis.minima.get("executed", {}), study.evaluations)
    figures = draw_figures(study, analysis, grid, split, folder)
    if analysis.arms:
        laws = analysis.arms["executed"].items()
        fits = {name: fit_record(arm.fit, analysis.intervals[name], arm.boot) for name, arm in laws}
        write_json(folder / "fits.json", fits)
        write_text(folder / "coefficients.csv", coefficients_frame(analysis).to_csv(index=False))
        write_text(folder / "allocation.csv", allocation_frame(analysis).to_csv(index=False))
        write_text(folder / "ranking.csv", ranking_frame(analysis).to_csv(index=False))
        write_text(folder / "comparisons.csv", comparison_frame(analysis).to_csv(index=False))
        write_text(folder / "minima.csv", minima_frame(analysis).to_csv(index=False))
        noise = analysis.noise.rename(columns={UNIQUE: f"unique_{study.wording.unit.many}"})
        write_text(folder / "seed_noise.csv", noise.to_csv(index=False))
    if len(split):
        write_text(folder / "split.csv", split.to_csv(index=False))
    else:  # an earlier one isn't this report's
        (folder / "split.csv").unlink(missing_ok=True)
    if study.predictions:
        write_text(folder / "validation.csv", outcome_frame(study).to_csv(index=False))
    record = [
        {"conclusion": c.number, "arm": c.arm, "baseline": study.roles.baseline, "axis": c.axis,
         "verdict": c.verdict, "checks": c.checks}
        for c in conclusions
    ]  # fmt: skip
    write_json(folder / "conclusions.json", record)
    content = Content(study, analysis, grid, split, conclusions, figures)
    text = render(content)
    runs = run_frame(study, analysis)
    write_text(folder / "run_table.csv", runs.to_csv(index=False))
    write_page(text, content, folder, run_table(runs))
    for group in figures:
        text = text.replace(group.images, _images(group))
    write_text(folder / "report.md", number_exhibits(text))
    return content


def _images(group: FigureGroup) -> str:
    """The images for executed FLOPs, and links to those for the other axes."""
    name = numbered(group.key, "figure")
    shown = [(file, axis) for file, axis in group.panels if axis in ("", group.panels[0][1])]
    images = [f"![{name}, {axis or 'all axes'}]({file}.png)" for file, axis in shown]
    others = [f"[{axis}]({file}.png)" for file, axis in group.panels if (file, axis) not in shown]
    return "\n\n".join([*images, *([f"The same on {', '.join(others)}."] if others else [])])
