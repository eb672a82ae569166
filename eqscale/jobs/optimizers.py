"""Does the answer depend on the optimiser? The arms by their recipes with several, at equal compute.

Trains each arm at several sizes with each optimiser with Ray Tune. Logs every run to MLflow and writes the run table
and a table of losses and leads.

    eqscale run optimizers                    # preset quick: some minutes on two cores
    eqscale run optimizers --dry-run          # print the plan only
    eqscale run optimizers --preset cpu       # three budgets, three seeds: an hour; stop with Ctrl-C, the same command
                                              # continues

A run with a record in the study's ledger is not trained again.
"""

from __future__ import annotations

from eqscale.report.optimizers import write_optimizers
from eqscale.study.grid import optimizer_grid
from eqscale.study.job import run_study
from eqscale.study.options import JobOptions
from eqscale.study.presets import OptimizerControl


def main(options: JobOptions[OptimizerControl]) -> int:
    """Plan, train what is missing, report."""
    specs = optimizer_grid(options.preset)
    return run_study(specs, options, publish=lambda runs: write_optimizers(runs, options.results))
