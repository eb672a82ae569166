"""Validation: does a prediction hold above the budgets that the laws were fitted to?

Reads the prediction that `eqscale predict` wrote for the budget (it must be committed) and trains each arm at sizes
around its predicted optimum with Ray Tune. Logs every run to MLflow, and writes the run table and the report of the
study, which shows prediction and outcome side by side.

    eqscale predict results/cpu --compute 3e13 && git commit -m "A prediction" results/cpu/prediction.json
    eqscale run validate --preset cpu --dry-run    # print the plan only
    eqscale run validate --preset cpu              # two hours; stop with Ctrl-C, the same command continues

A run with a record in the study's ledger is not trained again.
"""

from __future__ import annotations

from eqscale.report.prediction import predicted_optima
from eqscale.report.study import write_report
from eqscale.study.grid import validation_grid
from eqscale.study.job import run_study
from eqscale.study.options import JobOptions
from eqscale.study.presets import Validation


def main(options: JobOptions[Validation]) -> int:
    """Plan, train what is missing, report."""
    preset = options.preset
    optima = predicted_optima(options.results.parent / "prediction.json", preset.budget, preset.arms)
    return run_study(validation_grid(preset, optima), options, publish=lambda _: write_report(options.results))
