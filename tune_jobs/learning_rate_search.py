"""Learning-rate search: which learning rate and batch size suit an arm at every size and budget?

Optuna searches both in small proxy runs (TPE with a median pruner, the same number of trials for every arm), a
recipe is fitted to all of an arm's trials, and larger runs check that the recipe's learning rate is as good as
its neighbours. Writes trials, recipes, a figure and a report, and logs every trial to MLflow.

    python tune_jobs/learning_rate_search.py                  # preset quick: about ten minutes on two cores
    python tune_jobs/learning_rate_search.py --preset cpu     # all built-in arms: about two hours
    python tune_jobs/learning_rate_search.py --arm-file my_arm.py --arms my_arm

Stop it with Ctrl-C; the same command continues. recipes.json of the results has the form of
eqscale/training/arms/recipes.json: copy it there to make its recipes those of the built-in arms.
"""

from __future__ import annotations

import sys
from pathlib import Path

from eqscale.cli import run_or_exit
from eqscale.console import make_console
from eqscale.errors import InputError
from eqscale.report import write_search_report
from eqscale.study.estimate import Estimator
from eqscale.study.job import JobOptions, open_study, parse_options
from eqscale.study.presets import SEARCHES, LearningRateSearch
from eqscale.study.progress import human_time
from eqscale.study.search import Search, check_specs, check_table, finished_losses, fit_recipe, search_cells
from eqscale.study.table import run_table
from eqscale.training.arms import get_arm


def plan(options: JobOptions[LearningRateSearch]) -> str:
    """What the search will train, in words."""
    preset = options.preset
    cells = search_cells(preset)
    recipes = {name: get_arm(name).recipe for name in preset.arms}
    checks = check_specs(preset, recipes, {})
    estimate = Estimator(ended=options.storage.ledger.records())
    per_trial = [estimate(spec) for spec in checks]
    lines = [
        f"{len(cells)} cells (arm, budget, size) x {preset.trials} trials, then {len(checks)} check runs or more"
    ]
    lines += [f"  {cell.name}: {get_arm(cell.arm).parameters(cell.size):,} parameters" for cell in cells]
    lines.append(f"check runs take about {human_time(sum(per_trial))} of one worker")
    return "\n".join(lines)


def main() -> int:
    """Search, fit, check, report."""
    options = parse_options(__doc__, SEARCHES, job="learning_rate")
    preset = options.preset
    folder = options.storage.study
    if not isinstance(folder, Path):
        raise InputError(
            f"--storage {folder}: a search keeps Optuna's journal in a file and needs a local folder"
        )
    console = make_console()
    console.print(plan(options), highlight=False)
    if options.dry_run:
        return 0
    with open_study(options, console) as study:
        ledger = study.ledger
        search = Search(preset, folder / "optuna.journal")
        study.train(search, "search")
        if len(search):
            console.print(
                f"[yellow]stopped with {len(search)} trials to go[/yellow]: the same command continues"
            )
            return 130
        specs = search.ended_specs()
        trials = run_table(specs, ledger, pruned={s.run_id for s in specs if s.run_id not in ledger})
        finished = trials[trials["status"] == "finished"]
        fits = {name: fit_recipe(finished[finished["arm"] == name]) for name in preset.arms}
        recipes = {name: fit.recipe for name, fit in fits.items()}
        checks = check_specs(preset, recipes, {})
        while todo := study.missing(checks):
            study.train(todo, "check")
            if study.missing(checks):
                console.print("[yellow]stopped in the check runs[/yellow]: the same command continues")
                return 130
            ended = [ledger.read(spec.run_id) for spec in checks if spec.run_id in ledger]
            checks = check_specs(preset, recipes, finished_losses(ended))
        runs = run_table(checks, ledger)
        write_search_report(trials, runs, check_table(preset, recipes, runs), fits, options.results)
        study.describe([*specs, *checks])
        study.track([*specs, *checks])
        study.complete = True
    return 0


if __name__ == "__main__":
    sys.exit(run_or_exit(main))
