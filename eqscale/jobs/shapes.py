"""Aspect ratio: does it matter whether an arm is wide or deep, and is its ladder close to the best?

For rungs of every arm's ladder, trains other depths, with the widths that cost as much per token, at equal compute
with Ray Tune. Logs every run to MLflow and writes the run table, a table of shapes, a figure and a report.

    eqscale run shapes                    # preset quick: some minutes on two cores
    eqscale run shapes --dry-run          # print the plan only
    eqscale run shapes --preset cpu       # one seed, four budgets: four hours

A run with a record in the study's ledger is not trained again.
"""

from __future__ import annotations

from eqscale.report.shapes import write_shape_report
from eqscale.study.grid import aspect_ratio_grid, shape_groups
from eqscale.study.job import run_study
from eqscale.study.options import JobOptions
from eqscale.study.presets import AspectRatio


def main(options: JobOptions[AspectRatio]) -> int:
    """Plan, train what is missing, report."""
    groups = shape_groups(options.preset)
    return run_study(
        aspect_ratio_grid(options.preset),
        options,
        publish=lambda runs: write_shape_report(runs, groups, options.results),
    )
