"""What is the lead of GATr over the plain transformer made of: symmetry, vectors, multivectors?

Trains the plain transformer, the same backbone in learnt frames, slim GATr, GATr, and controls with a broken symmetry,
at equal compute with Ray Tune. Logs every run to MLflow and writes the run table, a table and a figure that split the
lead.

    eqscale run split                    # preset quick: some minutes on two cores
    eqscale run split --dry-run          # print the plan only
    eqscale run split --preset cpu       # 288 runs up to 3e12 FLOPs, three hours; stop with Ctrl-C, the same
                                         # command continues

A run with a record in the study's ledger is not trained again.
"""

from __future__ import annotations

from eqscale.report.split import write_split
from eqscale.study.grid import compute_grid
from eqscale.study.job import run_study
from eqscale.study.options import JobOptions
from eqscale.study.presets import ComputeGrid


def main(options: JobOptions[ComputeGrid]) -> int:
    """Plan, train what is missing, report."""
    return run_study(compute_grid(options.preset), options, publish=lambda runs: write_split(runs, options.results))
