"""Compute grid: which arm wins at a given training compute, and how large should it be?

Makes the data and trains every arm at several sizes for each compute budget with Ray Tune. Logs every run to MLflow,
fits a scaling law to each arm, and writes the run table, figures and report.

    python tune_jobs/compute_grid.py                    # preset quick: four to eight minutes on two cores
    python tune_jobs/compute_grid.py --dry-run          # print the plan only
    python tune_jobs/compute_grid.py --preset cpu       # six hours; stop with Ctrl-C, the same command continues

A run with a record in the study's ledger is not trained again.
"""

from __future__ import annotations

import sys

from eqscale.cli import run_or_exit
from eqscale.report.study import write_report
from eqscale.study.grid import compute_grid
from eqscale.study.job import run_study
from eqscale.study.options import parse_options
from eqscale.study.presets import COMPUTE_GRIDS


def main() -> int:
    """Plan, train what is missing, report."""
    options = parse_options(__doc__, COMPUTE_GRIDS, job="")

    return run_study(compute_grid(options.preset), options, publish=lambda _: write_report(options.results))


if __name__ == "__main__":
    sys.exit(run_or_exit(main))
