"""Compute grid: which arm wins at a given training compute, and how large should it be?

Makes the data and trains every arm at several sizes for each compute budget with Ray Tune. Logs every run to MLflow,
fits a scaling law to each arm, and writes the run table, figures and report.

    eqscale run grid                    # preset first: a few minutes on two cores
    eqscale run grid --dry-run          # print the plan only, and how well it can tell the laws
    eqscale run grid --preset quick     # four to eight minutes: twice the range of compute
    eqscale run grid --preset cpu       # eight hours on two cores; stop with Ctrl-C, the same command continues
    eqscale run grid --next 12          # then: choose the 12 best next runs, train them, refit

A run with a record in the study's ledger is not trained again.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from eqscale.arms import get_arm
from eqscale.console import doing, make_console
from eqscale.errors import InputError
from eqscale.laws.design import resolution
from eqscale.laws.plan import Candidates
from eqscale.numbers import number
from eqscale.report.analysis import Analysis, NoLaw
from eqscale.report.answer import card_of
from eqscale.report.card import CHANCE, Card
from eqscale.report.next_runs import choose_next
from eqscale.report.parts import read_study
from eqscale.report.study import write_study_report
from eqscale.storage import check_writable
from eqscale.study.further import add_further, read_further, unfinished
from eqscale.study.grid import MIN_POINTS, compute_grid, expected_tokens, further_grid, possible_runs
from eqscale.study.job import adoptable, run_study
from eqscale.study.lease import only_driver
from eqscale.study.options import JobOptions
from eqscale.study.presets import ComputeGrid
from eqscale.tasks import get_task
from eqscale.training.spec import RunSpec


def main(options: JobOptions[ComputeGrid]) -> int:
    """Plan, choose further runs if asked to, train what is missing, report."""
    count, console = options.own["next"], make_console()
    if count is not None and count < 1:
        raise InputError(f"--next {count}: choose at least 1 run")
    if count and options.export is not None:
        raise InputError("--next trains what it chooses; start it without --export")
    with _alone(options) if count and not options.dry_run else contextlib.nullcontext():
        specs = compute_grid(options.preset)
        specs += further_grid(options.preset, read_further(options.results))
        if count and (waiting := unfinished(options)):
            console.print(
                f"{len(waiting)} runs that were chosen earlier haven't ended: they go on, no others are chosen"
            )
        elif count:
            adoptable(options)  # refuses records of another study before anything is chosen
            chosen = _choose(options, specs, count, console)
            specs += chosen
            if not options.dry_run:
                add_further(options.results, chosen)
    specs = list(dict.fromkeys(specs))
    for line in _expected(specs, options.preset, options.dry_run):
        console.print(line, markup=False)
    card: Card | None = None

    def publish(table: pd.DataFrame) -> None:
        nonlocal card
        if (table["status"] == "finished").any():
            card = card_of(read_study(options.results), _report(options, console))

    code = run_study(specs, options, publish=publish)
    if card is not None:
        _print_card(card, options, console)
    return code


def _alone(options: JobOptions[ComputeGrid]) -> contextlib.AbstractContextManager[object]:
    """What keeps other drivers away while runs are chosen, so that the study's list of them has one writer."""
    check_writable(options.results, "results folder")
    check_writable(options.storage.study, "study folder")
    return only_driver(options.storage.study)


def _expected(specs: Sequence[RunSpec], preset: ComputeGrid, dry_run: bool) -> list[str]:
    """How well the runs of each arm can tell its law, before they are made."""
    lines = []
    for name in preset.arms:
        N, D = _points([spec for spec in specs if spec.arm == name], preset)
        if (points := len(set(zip(N, D, strict=True)))) < MIN_POINTS:
            lines.append(f"{name}: no law can be fitted to {points} points, which takes {MIN_POINTS}")
        elif dry_run:
            lines.append(f"{name}: {resolution(N, D, CHANCE).describe()}")
    return lines


def _print_card(card: Card, options: JobOptions[ComputeGrid], console: Console) -> None:
    """Who is ahead, and how to see more of it."""
    finished = read_study(options.results).part("compute")
    table = Table(*(Column(heading, justify="right") for heading in card.header))
    for row in card.rows:
        table.add_row(*row)
    report = options.results / "report.html"
    best = finished.loc[finished["loss"].idxmin(), "run_id"]
    steps = {f"open {report}": "the report: figures, laws, what they support and what not"} if report.is_file() else {}
    steps["eqscale ui"] = "the runs side by side"
    if (weights := options.storage.weights(best)).exists():
        steps[f"eqscale evaluate {weights}"] = "every metric of the best run"
    console.print(
        Panel(Group(*card.sentences, table, _columns(steps)), title=options.study, title_align="left", expand=False)
    )


def _columns(steps: Mapping[str, str]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for command, shows in steps.items():
        grid.add_row(Text(command, style="bold", overflow="fold"), Text(shows))
    return grid


def _report(options: JobOptions[ComputeGrid], console: Console) -> Analysis | None:
    try:
        with doing(console, "fitting laws, drawing figures, writing the report"):
            return write_study_report(options.results).analysis
    except NoLaw as error:
        console.print(f"no law can be fitted, and no report written: {error}", markup=False)
        return None


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
        f"{len(chosen)} further runs, {number(plan.cost, 3)} FLOPs: the standard error of the {plan.question} is "
        f"expected to fall from {100 * plan.se_now:.2g} % to {100 * after:.2g} %",
        markup=False,
    )
    for spec in chosen:
        console.print(f"  {spec.name}", markup=False)
    return chosen
