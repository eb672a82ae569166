"""What is the lead of GATr over the plain transformer made of: symmetry, vectors, multivectors?

Trains the plain transformer, the same backbone in learnt frames, slim GATr, GATr, and controls with a broken symmetry,
at equal compute with Ray Tune. Logs every run to MLflow and writes the run table, a table and a figure that split the
lead.

    python tune_jobs/split.py                    # preset quick: some minutes on two cores
    python tune_jobs/split.py --dry-run          # print the plan only
    python tune_jobs/split.py --preset cpu       # 288 runs up to 3e12 FLOPs, about nine hours by the plan; stop with
                                                 # Ctrl-C, the same command continues

A run with a record in the study's ledger is not trained again.
"""

from __future__ import annotations

import sys

from eqscale.cli import run_or_exit
from eqscale.report.split import write_split
from eqscale.study.grid import compute_grid
from eqscale.study.job import run_study
from eqscale.study.options import parse_options
from eqscale.study.presets import SPLITS


def main() -> int:
    """Plan, train what is missing, report."""
    options = parse_options(__doc__, SPLITS, job="split")
    return run_study(compute_grid(options.preset), options, publish=lambda runs: write_split(runs, options.results))


if __name__ == "__main__":
    sys.exit(run_or_exit(main))
