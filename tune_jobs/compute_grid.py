"""Compute grid: which arm wins at a given training compute, and how large should it be?

Makes the data and trains every arm at several sizes for each compute budget with Ray Tune. Logs every run to MLflow,
fits a scaling law to each arm, and writes the run table, figures and report.

    python tune_jobs/compute_grid.py                    # preset quick: four to eight minutes on two cores
    python tune_jobs/compute_grid.py --dry-run          # print the plan only, and how well it can tell the laws
    python tune_jobs/compute_grid.py --preset cpu       # six hours; stop with Ctrl-C, the same command continues
    python tune_jobs/compute_grid.py --next 12          # then: choose the 12 best next runs, train them, refit

A run with a record in the study's ledger is not trained again.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np
from rich.console import Console

from eqscale.arms import get_arm
from eqscale.cli import run_or_exit
from eqscale.console import make_console
from eqscale.errors import InputError
from eqscale.laws.design import resolution
from eqscale.laws.plan import Candidates
from eqscale.report.next_runs import choose_next
from eqscale.report.parts import read_study
from eqscale.report.study import write_report
from eqscale.study.further import add_further, read_further, unfinished
from eqscale.study.grid import compute_grid, expected_tokens, further_grid, possible_runs
from eqscale.study.job import run_study
from eqscale.study.options import JobOptions, parse_options
from eqscale.study.presets import COMPUTE_GRIDS, ComputeGrid
from eqscale.tasks import get_task
from eqscale.training.spec import RunSpec

SEED_NOISE = 0.03
"""Of a run's log loss, about, for what a plan can tell before it is run."""


def main() -> int:
    """Plan, choose further runs if asked to, train what is missing, report."""
    own = argparse.ArgumentParser(add_help=False)
    help_text = (
        "choose the K runs that would make the arms' laws most certain just beyond the largest budget, from the "
        "ladders, at no more than the cost of K average runs; they become part of the study. If runs chosen earlier "
        "haven't ended, these go on instead"
    )
    own.add_argument("--next", type=int, metavar="K", help=help_text)
    options = parse_options(__doc__, COMPUTE_GRIDS, job="", job_options=own)
    count, console = options.own["next"], make_console()
    if count is not None and count < 1:
        raise InputError(f"--next {count}: choose at least 1 run")
    specs = compute_grid(options.preset)
    specs += further_grid(options.preset, read_further(options.results))
    if count and (waiting := unfinished(options)):
        console.print(f"{len(waiting)} runs that were chosen earlier haven't ended: they go on, no others are chosen")
    elif count:
        chosen = _choose(options, specs, count, console)
        specs += chosen
        if not options.dry_run:
            add_further(options.results, chosen)
    specs = list(dict.fromkeys(specs))
    code = run_study(specs, options, publish=lambda _: write_report(options.results))
    if options.dry_run:
        for name in options.preset.arms:
            N, D = _points([spec for spec in specs if spec.arm == name], options.preset)
            console.print(f"{name}: {resolution(N, D, SEED_NOISE).describe()}", markup=False)
    return code


def _points(specs: Sequence[RunSpec], preset: ComputeGrid) -> tuple[np.ndarray, np.ndarray]:
    """Parameters and tokens of runs, each (n,)."""
    N = [get_arm(spec.arm).parameters(spec.size, get_task(spec.task)) for spec in specs]
    return np.array(N, float), np.array([expected_tokens(spec, preset) for spec in specs])


def _choose(options: JobOptions[ComputeGrid], specs: list[RunSpec], count: int, console: Console) -> list[RunSpec]:
    """The best next runs, each with a seed that its point doesn't have yet."""
    preset = options.preset
    every = possible_runs(preset, specs)
    possible = {name: [spec for spec in every if spec.arm == name] for name in preset.arms}
    candidates = {
        name: Candidates(*_points(own, preset), np.array([spec.budget for spec in own]))
        for name, own in possible.items()
    }
    plan, arms = choose_next(read_study(options.results).part("compute"), candidates, count)
    for name, arm in arms.items():
        console.print(f"{name}: {arm.fit.n} runs, verdict: {arm.fit.verdict}", markup=False)
    seeds = Counter({(s.arm, s.budget, s.size): 0 for s in specs})
    for spec in specs:
        point = (spec.arm, spec.budget, spec.size)
        seeds[point] = max(seeds[point], spec.seed + 1)
    chosen = []
    for run in plan.runs:
        k = np.flatnonzero((candidates[run.arm].N == run.N) & (candidates[run.arm].D == run.D))[0]
        spec = possible[run.arm][k]
        point = (spec.arm, spec.budget, spec.size)
        chosen.append(dataclasses.replace(spec, seed=seeds[point]))
        seeds[point] += 1
    after = plan.runs[-1].expected_se if plan.runs else plan.se_now
    console.print(
        f"{len(chosen)} further runs, {plan.cost:.3g} FLOPs: the standard error of the {plan.question} is expected to "
        f"fall from {100 * plan.se_now:.2g} % to {100 * after:.2g} %",
        markup=False,
    )
    for spec in chosen:
        console.print(f"  {spec.name}", markup=False)
    return chosen


if __name__ == "__main__":
    sys.exit(run_or_exit(main))
