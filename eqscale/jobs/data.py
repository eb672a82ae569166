"""Data grid: at fixed compute, what is more unique data worth to each arm?

Trains every arm with Ray Tune on different numbers of unique systems, for as many epochs as the budget allows. More
budgets vary the epochs at the same systems; of several sizes the best one counts. Logs every run to MLflow, and writes
the run table, figure and report.

    eqscale run data                    # preset quick: some minutes on two cores
    eqscale run data --dry-run          # print the plan only
    eqscale run data --preset cpu       # two to three hours on two cores; stop with Ctrl-C, the same command continues
    eqscale run data --budgets 1e10 5e10 --sizes-per-cell 3

A run with a record in the study's ledger is not trained again.
"""

from __future__ import annotations

from eqscale.report.study import write_report
from eqscale.study.grid import data_grid
from eqscale.study.job import run_study
from eqscale.study.options import JobOptions
from eqscale.study.presets import DataGrid


def main(options: JobOptions[DataGrid]) -> int:
    """Plan, train what is missing, report."""
    return run_study(data_grid(options.preset), options, publish=lambda _: write_report(options.results))
