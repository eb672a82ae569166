"""Controls: is it the symmetry?

Trains with Ray Tune, at sizes and budgets of the compute grid, arms whose symmetry is broken and nothing else, and gatr
on the task's variant. For the rigid task the variant is upright frames, where gatr must reach the same loss as in
random frames. Logs every run to MLflow, and writes the run table and the report of the study.

    eqscale run controls                    # preset quick: some minutes on two cores
    eqscale run controls --dry-run          # print the plan only
    eqscale run controls --preset cpu       # 117 runs, an hour; stop with Ctrl-C, the same command continues

A run with a record in the study's ledger is not trained again.
"""

from __future__ import annotations

import pandas as pd

from eqscale.report.parts import study_folder
from eqscale.report.study import write_report
from eqscale.study.grid import controls_grid
from eqscale.study.job import run_study
from eqscale.study.options import JobOptions
from eqscale.study.presets import Controls


def main(options: JobOptions[Controls]) -> int:
    """Plan, train what is missing, report."""

    def publish(table: pd.DataFrame) -> None:
        if study_folder(options.results) == options.results:
            print(f"no report: there is no compute grid in {options.results.parent} to compare with")
        else:
            write_report(options.results)

    return run_study(controls_grid(options.preset), options, publish=publish)
