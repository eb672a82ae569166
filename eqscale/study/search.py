"""Learning-rate search: Optuna proposes proxy runs cell by cell, and a recipe is fitted to what they reach."""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
import zlib
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from scipy.optimize import least_squares

from eqscale.arms import Recipe, Size, get_arm
from eqscale.arms.recipe import BATCH, BUDGET, PARAMETERS, STEPS
from eqscale.errors import InputError
from eqscale.study.grid import choose_sizes, design_run
from eqscale.study.presets import LearningRateSearch
from eqscale.training.loop import CURVE_POINTS
from eqscale.training.spec import MAX_LEARNING_RATE, CurvePoint, RunRecord, RunSpec

GOAL = 0.02
"""Largest relative loss that a recipe's pick may lie above the best found."""
CHECK_ROUNDS = 3
"""Most recipes of an arm that are checked."""
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
_RANDOM_TRIALS = 5  # of a cell, before its sampler models anything
_PRUNE_FROM = 0.75  # share of the steps; before that a large learning rate looks worse than it ends
# Standard deviation of the prior of every exponent: a recipe is used two decades beyond its trials.
_PRIOR = 0.1
_USUAL = {"by_parameters": -0.25, "by_steps": -0.15, "by_batch": 0.35, "by_budget": 0.2}
_NOISE = 0.04  # relative loss that repeats of a run differ by: weighs the prior against the trials
_WORTH = 0.3  # trials that end this much above the best of their cell say little about its optimum


@dataclasses.dataclass(frozen=True)
class Cell:
    """One arm, size and budget: learning rate and batch size are searched within it."""

    arm: str
    size: Size
    budget: float

    @property
    def name(self) -> str:
        """Name of the cell's Optuna study."""
        return f"{self.arm}-{self.budget:.3g}-{self.size}".replace("e+", "e")


def search_cells(preset: LearningRateSearch) -> list[Cell]:
    """The cells of a search: arms x budgets x sizes.

    Raises InputError for an unknown arm, a budget that is too small, or an empty range.
    """
    for option, values in (("--rates", preset.rates), ("--batch-sizes", preset.batch_sizes)):
        if len(values) != 2 or values[0] >= values[1]:
            raise InputError(f"{option} needs two values, the smaller first, not {values}")
    if preset.rates[1] > MAX_LEARNING_RATE:
        raise InputError(f"--rates must be at most {MAX_LEARNING_RATE:g}, not {preset.rates[1]:g}")
    if any(size & (size - 1) for size in preset.batch_sizes):
        raise InputError(f"--batch-sizes must be powers of two, not {preset.batch_sizes}")
    # the sizes of a search must not depend on the recipes that come out of it
    preset = dataclasses.replace(preset, batch_size=preset.batch_size or BATCH)
    return [
        Cell(name, size, budget)
        for budget, name in itertools.product(preset.budgets, preset.arms)
        for size in choose_sizes(get_arm(name), budget, preset.sizes_per_budget, preset)
    ]


class Search:
    """A source of trials: one Optuna study per cell (TPE, median pruner), kept in a journal that survives kills.

    Trials that were running when a driver died are asked for again, with the same values, so that they go on
    from their checkpoints.
    """

    def __init__(self, preset: LearningRateSearch, journal: Path) -> None:
        self.preset, self.cells = preset, search_cells(preset)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        journal.parent.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(journal)))
        self.studies = {cell: self._open(cell, storage) for cell in self.cells}
        self._running: dict[str, tuple[Cell, optuna.Trial]] = {}

    def _open(self, cell: Cell, storage: JournalStorage) -> optuna.Study:
        study = optuna.create_study(
            study_name=cell.name,
            storage=storage,
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=_RANDOM_TRIALS, n_warmup_steps=round(CURVE_POINTS * _PRUNE_FROM), n_min_trials=3
            ),
        )
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=_RANDOM_TRIALS,
            multivariate=True,
            constant_liar=True,
            # a restart must not draw the first trials' numbers again
            seed=zlib.crc32(f"{cell.name} {self.preset.seeds[0]} {len(study.trials)}".encode()),
        )
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.enqueue_trial(trial.params)
            study.tell(trial.number, state=TrialState.FAIL)
        return study

    def _asked(self, cell: Cell) -> int:
        return len(self.studies[cell].get_trials(deepcopy=False, states=(*_ENDED, TrialState.RUNNING)))

    def __len__(self) -> int:
        """Number of trials still to be asked for."""
        return sum(max(0, self.preset.trials - self._asked(cell)) for cell in self.cells)

    def ask(self) -> RunSpec | None:
        """The next trial: of the cell that has had the fewest, and of the largest budget among those."""
        asked = {cell: self._asked(cell) for cell in self.cells}
        cell = min(self.cells, key=lambda c: (asked[c], -c.budget))
        if asked[cell] >= self.preset.trials:
            return None
        trial = self.studies[cell].ask()
        rate = trial.suggest_float("learning_rate", *self.preset.rates, log=True)
        low, high = (size.bit_length() - 1 for size in self.preset.batch_sizes)
        batch_size = 2 ** trial.suggest_int("log2_batch_size", low, high)
        spec = self.spec(cell, rate, batch_size)
        self._running[spec.run_id] = (cell, trial)
        return spec

    def spec(self, cell: Cell, learning_rate: float, batch_size: int) -> RunSpec:
        """The run of one trial of a cell."""
        return design_run(
            get_arm(cell.arm),
            cell.size,
            cell.budget,
            self.preset,
            self.preset.seeds[0],
            batch_size=batch_size,
            learning_rate=float(f"{learning_rate:.4g}"),
        )

    def should_prune(self, spec: RunSpec, point: CurvePoint) -> bool:
        """Whether a trial is worse than the median of its cell at the same share of the budget."""
        _, trial = self._running[spec.run_id]
        trial.report(point.test_nmse, round(CURVE_POINTS * point.step / spec.steps))
        return point.step < spec.steps and trial.should_prune()

    def tell(self, spec: RunSpec, record: RunRecord | None) -> None:
        """Note how a trial ended; one that diverged counts as pruned."""
        cell, trial = self._running.pop(spec.run_id)
        if record is not None and record.status == "finished":
            self.studies[cell].tell(trial, record.loss)
        else:
            self.studies[cell].tell(trial, state=TrialState.PRUNED)

    def ended_specs(self) -> list[RunSpec]:
        """Runs of all trials that have ended, pruned ones included."""
        return [
            self.spec(cell, trial.params["learning_rate"], 2 ** trial.params["log2_batch_size"])
            for cell, study in self.studies.items()
            for trial in study.get_trials(deepcopy=False, states=_ENDED)
        ]


@dataclasses.dataclass(frozen=True)
class RecipeFit:
    """A fitted recipe and how well it describes the trials."""

    recipe: Recipe
    trials: int
    """Runs that entered: finished, and not far above the best of their cell."""
    checks: int
    """Check runs among them."""
    scatter: float
    """Root mean squared relative deviation of the losses from the fitted surface."""
    curvature_rate: float
    """Relative loss for being off by a factor e in the learning rate is half of this."""
    curvature_batch: float
    """The same for the batch size, at the learning rate that suits it."""


def fit_recipe(trials: pd.DataFrame, checks: pd.DataFrame | None = None) -> RecipeFit:
    """Fit one arm's recipe to the trials of all its cells at once, and to check runs as further cells.

    log loss = a constant per cell + a parabola in log learning rate around the recipe's, + one in log batch
    size around the recipe's. Exponents have a normal prior around usual values, since a few cells of one seed
    don't determine them all.

    Args:
        trials: finished trials of one arm: columns budget, width, depth, N, steps, batch_size, learning_rate, loss.
        checks: finished check runs of the arm's earlier recipes, in the same columns.

    Raises:
        InputError: if fewer than eight trials are near the best of their cell.
    """
    keys = ["budget", "width", "depth"]
    runs = pd.concat({False: trials, True: trials.head(0) if checks is None else checks})
    best = runs.groupby(keys)["loss"].transform("min")
    near = runs[runs["loss"] <= (1 + _WORTH) * best]
    if len(near) < 8:
        raise InputError(f"{len(near)} trials are too few to fit a recipe; run more --trials")
    cell = near.groupby(keys).ngroup().to_numpy()
    cells = int(cell.max()) + 1
    units = {"loss": 1, "learning_rate": 1, "batch_size": BATCH, "N": PARAMETERS, "steps": STEPS, "budget": BUDGET}
    y, rate, batch, parameters, steps, budget = (np.log(near[name].to_numpy() / unit) for name, unit in units.items())
    usual = np.array(list(_USUAL.values()))

    def residuals(p: np.ndarray) -> np.ndarray:
        scale, by_n, by_s, by_b, batch0, by_c, log_q, log_p = p[:8]
        off_rate = rate - (scale + by_n * parameters + by_s * steps + by_b * batch)
        off_batch = batch - (batch0 + by_c * budget)
        surface = p[8:][cell] + 0.5 * math.exp(log_q) * off_rate**2 + 0.5 * math.exp(log_p) * off_batch**2
        prior = (p[[1, 2, 3, 5]] - usual) / _PRIOR
        return np.concatenate([(y - surface) / _NOISE, prior, [(log_q + 3) / 2, (log_p + 4) / 2]])

    lowest = np.array([y[cell == k].min() for k in range(cells)])
    start = np.concatenate([[math.log(1e-2), *usual[:3], 0.0, usual[3], -3.0, -4.0], lowest])
    lower = np.full(len(start), -np.inf)
    # A batch that shrinks with the budget would be the noise of a few cells, carried far beyond them.
    lower[5] = 0.0
    fit = least_squares(residuals, start, loss="soft_l1", bounds=(lower, np.inf), max_nfev=2000)
    scale, by_n, by_s, by_b, batch0, by_c, log_q, log_p = fit.x[:8]
    values = {"by_parameters": by_n, "by_steps": by_s, "by_batch": by_b, "by_budget": by_c}
    recipe = Recipe(
        rate=float(f"{math.exp(scale):.3g}"),
        batch=float(f"{BATCH * math.exp(batch0):.3g}"),
        **{name: round(float(value), 3) for name, value in values.items()},  # type: ignore[arg-type]
    )
    scatter = float(np.sqrt(np.mean((residuals(fit.x)[: len(y)] * _NOISE) ** 2)))
    check_runs = int(near.index.get_level_values(0).to_numpy().sum())
    return RecipeFit(recipe, len(near), check_runs, scatter, math.exp(log_q), math.exp(log_p))


def _picked_run(preset: LearningRateSearch, arm_name: str, budget: float, recipe: Recipe) -> RunSpec:
    """The check run by a recipe itself."""
    arm = dataclasses.replace(get_arm(arm_name), recipe=recipe)
    (size,) = choose_sizes(arm, budget, 1, preset)
    return design_run(arm, size, budget, preset, preset.seeds[0])


def check_specs(preset: LearningRateSearch, recipes: dict[str, Recipe], losses: dict[str, float]) -> list[RunSpec]:
    """The check runs: each arm at each check budget with half, once and twice the recipe's learning rate.

    Where the lowest known loss lies at the edge of the rates, the next rate by a factor two is added, so
    that the best rate is bracketed.

    Args:
        preset: the search.
        recipes: recipe of each arm to check.
        losses: run_id -> final loss of the check runs that have ended (inf if diverged).
    """
    specs = []
    for budget, name in itertools.product(preset.check_budgets, recipes):
        picked = _picked_run(preset, name, budget, recipes[name])

        def at(exponent: int, picked: RunSpec = picked) -> RunSpec:
            return dataclasses.replace(picked, learning_rate=float(f"{picked.learning_rate * 2.0**exponent:.4g}"))

        exponents = [-1, 0, 1]
        while all(at(e).run_id in losses for e in exponents):
            best = min(exponents, key=lambda e: losses[at(e).run_id])
            if exponents[0] < best < exponents[-1] or len(exponents) >= 7:
                break
            exponents = [exponents[0] - 1, *exponents] if best == exponents[0] else [*exponents, best + 1]
        specs += [at(e) for e in exponents]
    return specs


def check_table(preset: LearningRateSearch, recipes: dict[str, Recipe], runs: pd.DataFrame) -> pd.DataFrame:
    """Loss of each recipe's pick beside the best loss found, per arm and check budget.

    Columns: arm, budget, N, batch_size, learning_rate, loss, best_learning_rate, best_loss, excess (relative).

    Args:
        preset: the search.
        recipes: the recipes whose picks are among the runs.
        runs: check runs in the columns of the run table; those of earlier recipes count among the best.
    """
    rows = []
    for name, budget in itertools.product(recipes, preset.check_budgets):
        spec = _picked_run(preset, name, budget, recipes[name])
        group = runs[(runs["arm"] == name) & (runs["budget"] == budget)]
        recipe = (group["learning_rate"] == spec.learning_rate) & (group["batch_size"] == spec.batch_size)
        picked = group[recipe].iloc[0]
        best = picked if group["loss"].isna().all() else group.loc[group["loss"].idxmin()]  # all diverged
        at = {"arm": name, "budget": budget, "N": int(picked["N"])}
        pick = {"batch_size": spec.batch_size, "learning_rate": spec.learning_rate, "loss": picked["loss"]}
        found = {"best_learning_rate": best["learning_rate"], "best_loss": best["loss"]}
        rows.append(at | pick | found | {"excess": picked["loss"] / best["loss"] - 1})
    return pd.DataFrame(rows)


def found_wanting(checks: pd.DataFrame) -> list[str]:
    """Arms of a ``check_table`` whose recipe misses the goal at some budget: they are fitted again."""
    return list(checks.loc[~(checks["excess"] <= GOAL), "arm"].unique())
