"""Validation: does a prediction hold above the budgets that the laws were fitted to?

Reads the predictions that `eqscale predict` wrote (they must be committed) and trains each arm at their budgets, at
sizes around its predicted optimum, with Ray Tune. Logs every run to MLflow, and writes the run table and the report of
the study, which shows predictions and outcomes side by side.

    eqscale predict results/cpu --compute 3e13
    git add results/cpu/prediction_3e13.json && git commit -m "A prediction"
    eqscale run validate --preset cpu --dry-run    # print the plan only
    eqscale run validate --preset cpu              # two hours; stop with Ctrl-C, the same command continues

A run with a record in the study's ledger is not trained again.
"""

from __future__ import annotations

import dataclasses

from eqscale.report.prediction import predicted_optima
from eqscale.report.study import write_report
from eqscale.study.grid import validation_grid
from eqscale.study.job import run_study
from eqscale.study.options import JobOptions
from eqscale.study.presets import VALIDATIONS, Validation, kept_sizes


def main(options: JobOptions[Validation]) -> int:
    """Plan, train what is missing, report."""
    preset = options.preset
    optima = predicted_optima(options.results.parent, preset.arms)
    if set(preset.extra_sizes) <= set(VALIDATIONS[options.preset_name].extra_sizes):  # not asked for
        preset = dataclasses.replace(preset, extra_sizes=kept_sizes(preset, optima))
        options = dataclasses.replace(options, preset=preset)
    return run_study(validation_grid(preset, optima), options, publish=lambda _: write_report(options.results))
