"""Search of recipes: which learning rate, batch size, warm-up, momentum and weight decay suit an arm?

Optuna searches them in small proxy runs (TPE with a median pruner, the same number of trials for every arm and
optimiser). A recipe for every size and budget is fitted to all trials of an arm and optimiser. Larger runs then check
that the recipe's learning rate is as good as its neighbours; if not, it is fitted again, with the check runs, and
checked again. Of all these and the recipe so far, the one with the lowest losses in the checks is kept. Logs every
trial to MLflow, and writes trials, recipes, a figure and a report.

    eqscale run search                  # preset quick: a new arm in the right range
    eqscale run search --preset cpu     # all built-in arms: hours; --dry-run estimates them
    eqscale run search --arm-file my_arm.py --arms my_arm

Stop it with Ctrl-C; the same command continues. To give the built-in arms the recipes found, merge the entries of the
results' recipes.json into eqscale/arms/recipes.json, by arm and optimiser; a rate_on that is there stays.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from pathlib import Path

import pandas as pd

from eqscale.arms import get_arm
from eqscale.console import make_console
from eqscale.errors import InputError
from eqscale.report.search import write_search_report
from eqscale.study.estimate import Estimator
from eqscale.study.grid import recipe_of
from eqscale.study.job import OpenStudy, open_study
from eqscale.study.options import JobOptions
from eqscale.study.presets import LearningRateSearch
from eqscale.study.progress import human_time
from eqscale.study.search import (
    CHECK_ROUNDS,
    GOAL,
    Recipes,
    Search,
    best_checked,
    check_specs,
    check_table,
    fit_recipe,
    found_wanting,
    search_cells,
    with_optimizer,
)
from eqscale.study.table import run_table
from eqscale.tasks import get_task
from eqscale.training.spec import RunSpec


def plan(options: JobOptions[LearningRateSearch]) -> str:
    """What the search will train, in words."""
    preset = options.preset
    cells = search_cells(preset)
    guesses = first_guesses(preset)
    checks = check_specs(preset, guesses, {}, guesses)
    estimate = Estimator(ended=options.storage.ledger.records())
    per_trial = [estimate(spec) for spec in checks]
    lines = [
        f"{len(cells)} cells (arm, optimiser, budget, size) x {preset.trials} trials, then {len(checks)} or more checks"
    ]
    task = get_task(preset.task)
    lines += [f"  {cell.name}: {get_arm(cell.arm).parameters(cell.size, task):,} parameters" for cell in cells]
    lines.append(f"check runs take about {human_time(sum(per_trial))} of one worker")
    return "\n".join(lines)


def first_guesses(preset: LearningRateSearch) -> Recipes:
    """The recipes so far, where there are some."""
    return {
        (name, optimizer): recipe_of(get_arm(name), with_optimizer(preset, optimizer))
        for name in preset.arms
        for optimizer in preset.optimizers
    }


def train_checks(
    study: OpenStudy, preset: LearningRateSearch, recipes: Recipes, usual: Recipes
) -> list[RunSpec] | None:
    """Train the check runs of recipes until the best rate is bracketed; None if stopped before."""
    specs: list[RunSpec] = []
    while True:
        read, ledger = study.ledger.read, study.ledger
        losses = {spec.run_id: read(spec.run_id).loss if spec.run_id in ledger else math.inf for spec in specs}
        wanted = check_specs(preset, recipes, losses, usual)
        if wanted == specs:
            return specs
        specs = wanted
        if todo := study.missing(specs):
            study.train(todo, "check")
        if study.missing(specs):
            return None


def _of(runs: pd.DataFrame, arm: str, optimizer: str) -> pd.DataFrame:
    return runs[(runs["arm"] == arm) & (runs["optimizer"] == optimizer)]


def main(options: JobOptions[LearningRateSearch]) -> int:
    """Search, fit, check, report."""
    preset = options.preset
    folder = options.storage.study
    if not isinstance(folder, Path):
        raise InputError(f"--storage {folder}: a search keeps Optuna's journal in a file and needs a local folder")
    console = make_console()
    console.print(plan(options), highlight=False)
    if options.export is not None:
        raise InputError("--export: a search chooses runs as others end; it has no list of them")
    if options.dry_run:
        return 0
    with open_study(options, console) as study:
        ledger = study.ledger
        journal = folder / "optuna.journal"
        search = Search(preset, journal)
        if search.dropped:
            console.print(f"the search's journal ended in {search.dropped} bytes that can't be read: they are dropped")
        study.train(search, "search")
        specs = search.ended_specs()
        study.tracker.draw(run_table(specs, ledger))
        if left := len(search) + len(study.missing(search.running_specs())):
            console.print(f"[yellow]stopped with {left} trials to go[/yellow]: the same command continues")
            return 130
        trials = run_table(specs, ledger, pruned={s.run_id for s in specs if s.run_id not in ledger})
        finished = trials[trials["status"] == "finished"]
        usual = first_guesses(preset)
        fits = {key: fit_recipe(_of(finished, *key), usual=usual[key]) for key in usual}
        tried = {key: [dataclasses.replace(fit, recipe=usual[key], as_before=True), fit] for key, fit in fits.items()}
        checks: dict[str, RunSpec] = {}
        wanting = list(fits)
        for round_ in range(1, CHECK_ROUNDS + 1):
            ended = train_checks(study, preset, {key: fits[key].recipe for key in wanting}, usual)
            if ended is None:
                console.print("[yellow]stopped in the check runs[/yellow]: the same command continues")
                return 130
            checks |= {spec.run_id: spec for spec in ended}
            runs = run_table(list(checks.values()), ledger)
            table = check_table(preset, {key: fit.recipe for key, fit in fits.items()}, runs)
            wanting = found_wanting(table)
            if not wanting or round_ == CHECK_ROUNDS:
                break
            console.print(f"fitted again, check runs included: {', '.join(' '.join(key) for key in wanting)}")
            checked = runs[runs["status"] == "finished"]
            for key in wanting:
                fits[key] = fit_recipe(_of(finished, *key), _of(checked, *key), usual[key])
                tried[key].append(fits[key])
        fits = best_checked(preset, tried, runs)
        table = check_table(preset, {key: fit.recipe for key, fit in fits.items()}, runs)
        write_search_report(trials, runs, table, fits, options.results, GOAL, CHECK_ROUNDS)
        study.describe([*specs, *checks.values()])
        study.tracker.draw(run_table([*specs, *checks.values()], ledger))
        study.track([*specs, *checks.values()])
        study.complete = True
        console.print("to look at the trials: pip install optuna-dashboard, then")
        console.print(f"optuna-dashboard {shlex.quote(str(journal))}", soft_wrap=True, markup=False, highlight=False)
    return 0
