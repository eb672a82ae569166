"""Data grid: at fixed compute, what is more unique data worth to each arm?

Trains one size of every arm at one budget with Ray Tune, on different numbers of unique systems, for as many epochs as
the budget allows. Logs every run to MLflow, and writes the run table, figure and report.

    python tune_jobs/data_grid.py                    # preset quick: some minutes on two cores
    python tune_jobs/data_grid.py --dry-run          # print the plan only
    python tune_jobs/data_grid.py --preset cpu       # 2.5 hours; stop with Ctrl-C, the same command continues

A run with a record in the study's ledger is not trained again.
"""

from __future__ import annotations

import sys

from eqscale.cli import run_or_exit
from eqscale.report.study import write_report
from eqscale.study.grid import data_grid
from eqscale.study.job import run_study
from eqscale.study.options import parse_options
from eqscale.study.presets import DATA_GRIDS


def main() -> int:
    """Plan, train what is missing, report."""
    options = parse_options(__doc__, DATA_GRIDS, job="data_grid")
    return run_study(data_grid(options.preset), options, publish=lambda _: write_report(options.results))


if __name__ == "__main__":
    sys.exit(run_or_exit(main))
