"""Controls: does the symmetry make the difference, and does an equivariant arm ignore the frame?

Trains GATr's backbone without the symmetry (gatr_off) at budgets of the compute grid, and gatr on the task's variant at
two points of the grid, with Ray Tune. For the rigid task the variant is upright frames, where gatr must reach the same
loss as in random frames. Logs every run to MLflow, and writes the run table and the report of the study.

    python tune_jobs/controls.py                    # preset quick: some minutes on two cores
    python tune_jobs/controls.py --dry-run          # print the plan only
    python tune_jobs/controls.py --preset cpu       # half an hour; stop with Ctrl-C, the same command continues

A run with a record in the study's ledger is not trained again.
"""

from __future__ import annotations

import sys

import pandas as pd

from eqscale.cli import run_or_exit
from eqscale.report.parts import study_folder
from eqscale.report.study import write_report
from eqscale.study.grid import controls_grid
from eqscale.study.job import run_study
from eqscale.study.options import parse_options
from eqscale.study.presets import CONTROLS


def main() -> int:
    """Plan, train what is missing, report."""
    options = parse_options(__doc__, CONTROLS, job="controls")

    def publish(table: pd.DataFrame) -> None:
        if study_folder(options.results) == options.results:
            print(f"no report: there is no compute grid in {options.results.parent} to compare with")
        else:
            write_report(options.results)

    return run_study(controls_grid(options.preset), options, publish=publish)


if __name__ == "__main__":
    sys.exit(run_or_exit(main))
