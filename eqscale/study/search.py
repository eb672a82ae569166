"""Search of recipes: Optuna proposes proxy runs cell by cell, and a recipe is fitted to what they reach."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import BaseTrial, TrialState
from scipy.optimize import least_squares

from eqscale.arms import Recipe, Size, get_arm
from eqscale.arms.recipe import BATCH, BUDGET, PARAMETERS, STEPS
from eqscale.errors import InputError
from eqscale.storage import write_atomically
from eqscale.study.grid import choose_sizes, design_run
from eqscale.study.presets import LearningRateSearch
from eqscale.tasks import get_task
from eqscale.training.loop import CURVE_POINTS
from eqscale.training.spec import MAX_LEARNING_RATE, CurvePoint, RunRecord, RunSpec

GOAL = 0.02
"""Largest relative loss that a recipe's pick may lie above the best found."""
CHECK_ROUNDS = 2
"""Most recipes of an arm that are checked."""
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
_FEWEST_TRIALS = 8  # that a recipe can be fitted to
_RANDOM_TRIALS = 5  # of a cell, before its sampler models anything
_PRUNE_FROM = 0.75  # share of the steps; before that a large learning rate looks worse than it ends
# Standard deviation of the prior of every exponent: a recipe is used two decades beyond its trials.
_PRIOR = 0.1
_USUAL = {"by_parameters": -0.25, "by_steps": -0.15, "by_batch": 0.35, "by_budget": 0.2}
_SCALE = 0.5  # the same of log rate and log batch, around the recipe so far: a factor 1.6
# The same for what a recipe holds constant, in the coordinates of ``_CONSTANTS``.
_CONSTANTS: dict[str, tuple[Callable, Callable, float]] = {
    "warmup": (lambda x: x, lambda y: y, 0.1),
    "momentum": (lambda x: np.log1p(-x), lambda y: 1 - math.exp(y), 0.5),
    "weight_decay": (np.log, math.exp, 1.5),
}
"""Values that a recipe holds constant: to the coordinate in which their parabola is, and back; and the standard
deviation there of their prior around the optimiser's usual value."""
_NOISE = 0.04  # relative loss that repeats of a run differ by: weighs the prior against the trials
_WORTH = 0.3  # trials that end this much above the best of their cell say little about its optimum


@dataclasses.dataclass(frozen=True)
class Cell:
    """One arm, optimiser, size and budget: everything that a recipe says is searched within it."""

    arm: str
    optimizer: str
    size: Size
    budget: float

    @property
    def name(self) -> str:
        """Name of the cell's Optuna study."""
        return f"{self.arm}-{self.optimizer}-{self.budget:.3g}-{self.size}".replace("e+", "e")


def search_cells(preset: LearningRateSearch) -> list[Cell]:
    """The cells of a search: arms x optimisers x budgets x sizes.

    Raises InputError for an unknown arm or optimiser, a budget that is too small, an empty range, or too few trials.
    """
    for option in ("rates", "batch_sizes", "warmups", "momenta", "decays"):
        values = getattr(preset, option)
        if len(values) != 2 or values[0] >= values[1]:
            raise InputError(f"--{option.replace('_', '-')} needs two values, the smaller first, not {values}")
    for option in ("warmups", "momenta"):
        if not getattr(preset, option)[1] < 1:
            raise InputError(f"--{option} must be below 1, not {getattr(preset, option)[1]:g}")
    if preset.rates[1] > MAX_LEARNING_RATE:
        raise InputError(f"--rates must be at most {MAX_LEARNING_RATE:g}, not {preset.rates[1]:g}")
    if any(size & (size - 1) for size in preset.batch_sizes):
        raise InputError(f"--batch-sizes must be powers of two, not {preset.batch_sizes}")
    trials = len(preset.budgets) * preset.sizes_per_budget * preset.trials
    if trials < _FEWEST_TRIALS:
        raise InputError(
            f"--trials {preset.trials}: {trials} trials of an arm and optimiser, at all budgets and sizes, are too few "
            f"to fit a recipe, which takes {_FEWEST_TRIALS}"
        )
    # the sizes of a search must not depend on the recipes that come out of it
    preset = dataclasses.replace(preset, batch_size=preset.batch_size or BATCH)
    return [
        Cell(name, optimizer, size, budget)
        for budget, name, optimizer in itertools.product(preset.budgets, preset.arms, preset.optimizers)
        for size in choose_sizes(get_arm(name), budget, preset.sizes_per_budget, with_optimizer(preset, optimizer))
    ]


def _drop_bad_tail(journal: Path) -> int:
    """Cut a journal where a line can't be read, as a full disk or a crash leaves it; what is cut is kept beside it.

    Optuna would write on after half a line, and then refuse the whole file.
    """
    content = journal.read_bytes() if journal.is_file() else b""
    end = 0
    for line in content.splitlines(keepends=True):
        try:
            good = line.endswith(b"\n") and isinstance(json.loads(line), dict)
        except ValueError:
            good = False
        if not good:
            break
        end += len(line)
    if end < len(content):
        write_atomically(journal.with_name(f"{journal.name}.dropped"), content[end:])
        write_atomically(journal, content[:end])
    return len(content) - end


def with_optimizer(preset: LearningRateSearch, optimizer: str) -> LearningRateSearch:
    """The search with one of its optimisers."""
    return dataclasses.replace(preset, optimizer=optimizer)


class Search:
    """A source of trials: one Optuna study per cell (TPE, median pruner), kept in a journal that survives kills.

    One trial of each cell is by the arm's recipe so far. Trials that were running when a driver died are asked for
    again, with the same values, so that they go on from their checkpoints; not those outside ranges that were changed
    since.
    """

    def __init__(self, preset: LearningRateSearch, journal: Path) -> None:
        self.preset, self.cells = preset, search_cells(preset)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        journal.parent.mkdir(parents=True, exist_ok=True)
        self.dropped = _drop_bad_tail(journal)
        """Bytes at the journal's end that couldn't be read: what they say is asked and trained again."""
        # Optuna's usual lock is a symbolic link, which some filesystems lack.
        storage = JournalStorage(JournalFileBackend(str(journal), JournalFileOpenLock(str(journal))))
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
            if all(low <= trial.params.get(name, low) <= high for name, (low, high) in self._ranges.items()):
                study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
            study.tell(trial.number, state=TrialState.FAIL)
        # from where the sampler can look for something better
        study.enqueue_trial(self._usual(cell), skip_if_exists=True)
        return study

    def _usual(self, cell: Cell) -> dict[str, float]:
        """Values of a trial by the arm's recipe so far, within the ranges."""
        run = design_run(get_arm(cell.arm), cell.size, cell.budget, with_optimizer(self.preset, cell.optimizer), 0)
        values = {
            "learning_rate": run.learning_rate,
            "log2_batch_size": int(math.log2(run.batch_size)),
            "warmup": run.warmup,
            "one_minus_momentum": 1 - run.momentum,
            "weight_decay": run.weight_decay,
        }
        return {name: min(max(values[name], low), high) for name, (low, high) in self._ranges.items()}

    @property
    def _ranges(self) -> dict[str, tuple[Any, Any]]:
        """Lowest and highest value of everything that is searched."""
        preset, (low, high) = self.preset, self.preset.momenta
        smallest, largest = preset.batch_sizes
        return {
            "learning_rate": (preset.rates[0], preset.rates[1]),
            "log2_batch_size": (smallest.bit_length() - 1, largest.bit_length() - 1),
            "warmup": (preset.warmups[0], preset.warmups[1]),
            "one_minus_momentum": (1 - high, 1 - low),
            "weight_decay": (preset.decays[0], preset.decays[1]),
        }

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
        preset = self.preset
        if "seed" not in trial.user_attrs:  # one that goes on after a kill has its own
            trial.set_user_attr("seed", preset.seeds[0] + trial.number)
        ranges = self._ranges
        trial.suggest_float("learning_rate", *ranges["learning_rate"], log=True)
        trial.suggest_int("log2_batch_size", *ranges["log2_batch_size"])
        trial.suggest_float("warmup", *ranges["warmup"])
        trial.suggest_float("one_minus_momentum", *ranges["one_minus_momentum"], log=True)
        trial.suggest_float("weight_decay", *ranges["weight_decay"], log=True)
        spec = self.spec(cell, trial)
        self._running[spec.run_id] = (cell, trial)
        return spec

    def spec(self, cell: Cell, trial: BaseTrial) -> RunSpec:
        """The run of one trial of a cell; each has a seed of its own, so that no luck is shared."""
        values = trial.params
        return design_run(
            get_arm(cell.arm),
            cell.size,
            cell.budget,
            with_optimizer(self.preset, cell.optimizer),
            trial.user_attrs["seed"],
            batch_size=2 ** values["log2_batch_size"],
            learning_rate=float(f"{values['learning_rate']:.4g}"),
            warmup=round(values["warmup"], 3),
            momentum=round(1 - values["one_minus_momentum"], 4),
            weight_decay=float(f"{values['weight_decay']:.3g}"),
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

    def running_specs(self) -> list[RunSpec]:
        """Runs of the trials that were asked for here and haven't ended, or have failed."""
        return [self.spec(cell, trial) for cell, trial in self._running.values()]

    def ended_specs(self) -> list[RunSpec]:
        """Runs of all trials that have ended, pruned ones included."""
        return [
            self.spec(cell, trial)
            for cell, study in self.studies.items()
            for trial in study.get_trials(deepcopy=False, states=_ENDED)
        ]


Recipes = dict[tuple[str, str], Recipe]
"""Recipes by arm and optimiser."""


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
    curvatures: dict[str, float]
    """The same for what a recipe holds constant: for being off by the standard deviation of its prior."""
    as_before: bool = False
    """Whether it is the recipe so far, beside what the fit found out about the trials."""


def fit_recipe(
    trials: pd.DataFrame,
    checks: pd.DataFrame | None = None,
    usual: Recipe = Recipe(rate=1e-2),  # noqa: B008
) -> RecipeFit:
    """Fit one arm's recipe to the trials of all its cells at once, and to check runs as further cells.

    log loss = a constant per cell + a parabola in log learning rate around the recipe's, + one in log batch
    size around the recipe's, + one each in warm-up, log (1 - momentum) and log weight decay. All have a
    normal prior around usual values, since a few cells don't determine them.

    Args:
        trials: finished trials of one arm with one optimiser: columns budget, width, depth, N, steps, batch_size,
            learning_rate, warmup, momentum, weight_decay, loss.
        checks: finished check runs of the arm's earlier recipes, in the same columns.
        usual: the recipe so far, which holds where the trials say nothing else; its exponents aren't used.

    Raises:
        InputError: if fewer than eight trials are near the best of their cell.
    """
    keys = ["budget", "width", "depth"]
    runs = pd.concat({False: trials, True: trials.head(0) if checks is None else checks})
    best = runs.groupby(keys)["loss"].transform("min")
    near = runs[runs["loss"] <= (1 + _WORTH) * best]
    if len(near) < _FEWEST_TRIALS:
        raise InputError(f"{len(near)} trials are too few to fit a recipe; run more --trials")
    cell = near.groupby(keys).ngroup().to_numpy()
    cells = int(cell.max()) + 1
    units = {"loss": 1, "learning_rate": 1, "batch_size": BATCH, "N": PARAMETERS, "steps": STEPS, "budget": BUDGET}
    y, rate, batch, parameters, steps, budget = (np.log(near[name].to_numpy() / unit) for name, unit in units.items())
    exponents = np.array(list(_USUAL.values()))
    there = {name: there for name, (there, _, _) in _CONSTANTS.items()}
    constants = np.stack([there[name](near[name].to_numpy(float)) for name in _CONSTANTS], 1)
    usual_constants = np.array([there[name](getattr(usual, name)) for name in _CONSTANTS])
    spread = np.array([spread for _, _, spread in _CONSTANTS.values()])
    # below the smallest batch they are all the same
    usual_rate, usual_batch = math.log(usual.rate), math.log(max(usual.batch, BATCH) / BATCH)
    n = len(spread)

    def residuals(p: np.ndarray) -> np.ndarray:
        scale, by_n, by_s, by_b, batch0, by_c, log_q, log_p = p[:8]
        best, log_curvature, base = np.split(p[8:], [n, 2 * n])
        off_rate = rate - (scale + by_n * parameters + by_s * steps + by_b * batch)
        off_batch = batch - (batch0 + by_c * budget)
        surface = base[cell] + 0.5 * math.exp(log_q) * off_rate**2 + 0.5 * math.exp(log_p) * off_batch**2
        # curvatures are per spread: being off by that much usually costs about 1 %
        surface = surface + 0.5 * ((constants - best) / spread) ** 2 @ np.exp(log_curvature)
        prior = [*((p[[1, 2, 3, 5]] - exponents) / _PRIOR), *((best - usual_constants) / spread)]
        prior += [(scale - usual_rate) / _SCALE, (batch0 - usual_batch) / _SCALE]
        shapes = [(log_q + 3) / 2, (log_p + 4) / 2, *((log_curvature + 4) / 2)]
        return np.concatenate([(y - surface) / _NOISE, prior, shapes])

    lowest = np.array([y[cell == k].min() for k in range(cells)])
    start = [usual_rate, *exponents[:3], usual_batch, exponents[3], -3.0, -4.0, *usual_constants, *[-4.0] * n, *lowest]
    lower = np.full(len(start), -np.inf)
    # A batch that shrinks with the budget would be the noise of a few cells, carried far beyond them.
    lower[5] = 0.0
    upper = np.full(len(start), np.inf)
    # nor do constants leave what was searched
    both = np.vstack([constants, usual_constants])
    lower[8 : 8 + n], upper[8 : 8 + n] = both.min(0) - 1e-9, both.max(0) + 1e-9
    fit = least_squares(residuals, start, loss="soft_l1", bounds=(lower, upper), max_nfev=2000)
    scale, by_n, by_s, by_b, batch0, by_c, log_q, log_p = fit.x[:8]
    best, log_curvature, _ = np.split(fit.x[8:], [n, 2 * n])
    found = {name: back(y) for (name, (_, back, _)), y in zip(_CONSTANTS.items(), best, strict=True)}
    values = {"by_parameters": by_n, "by_steps": by_s, "by_batch": by_b, "by_budget": by_c}
    recipe = Recipe(
        rate=float(f"{math.exp(scale):.3g}"),
        batch=float(f"{BATCH * math.exp(batch0):.3g}"),
        optimizer=usual.optimizer,
        **{name: round(float(value), 3) for name, value in (values | found).items()},  # type: ignore[arg-type]
    )
    scatter = float(np.sqrt(np.mean((residuals(fit.x)[: len(y)] * _NOISE) ** 2)))
    check_runs = int(near.index.get_level_values(0).to_numpy().sum())
    curvatures = dict(zip(_CONSTANTS, np.exp(log_curvature).tolist(), strict=True))
    return RecipeFit(recipe, len(near), check_runs, scatter, math.exp(log_q), math.exp(log_p), curvatures)


def _picked_run(preset: LearningRateSearch, arm_name: str, budget: float, recipe: Recipe) -> RunSpec:
    """The check run by a recipe itself."""
    arm = dataclasses.replace(get_arm(arm_name), recipe=recipe, alternatives=())
    preset = with_optimizer(preset, recipe.optimizer)
    (size,) = choose_sizes(arm, budget, 1, preset)
    return design_run(arm, size, budget, preset, preset.seeds[0])


def check_specs(
    preset: LearningRateSearch, recipes: Recipes, losses: dict[str, float], usual: Recipes
) -> list[RunSpec]:
    """The check runs: each arm and optimiser at each check budget with half, once and twice the recipe's learning rate,
    and by the recipe so far.

    Where the lowest known loss lies at the edge of the rates, the next rate by a factor two is added, so
    that the best rate is bracketed.

    Args:
        preset: the search.
        recipes: the recipes to check.
        losses: run_id -> final loss of the check runs that have ended (inf if diverged).
        usual: the recipes so far.
    """
    specs: list[RunSpec] = []
    for budget, (name, optimizer) in itertools.product(preset.check_budgets, recipes):
        picked = _picked_run(preset, name, budget, recipes[name, optimizer])

        def at(exponent: int, picked: RunSpec = picked) -> RunSpec:
            return dataclasses.replace(picked, learning_rate=float(f"{picked.learning_rate * 2.0**exponent:.4g}"))

        exponents = [-1, 0, 1]
        while all(at(e).run_id in losses for e in exponents):
            best = min(exponents, key=lambda e: losses[at(e).run_id])
            if exponents[0] < best < exponents[-1] or len(exponents) >= 7:
                break
            exponents = [exponents[0] - 1, *exponents] if best == exponents[0] else [*exponents, best + 1]
        specs += [*(at(e) for e in exponents), _picked_run(preset, name, budget, usual[name, optimizer])]
    return list(dict.fromkeys(specs))


def best_checked(
    preset: LearningRateSearch, tried: Mapping[tuple[str, str], Sequence[RecipeFit]], runs: pd.DataFrame
) -> dict[tuple[str, str], RecipeFit]:
    """Of each arm and optimiser the recipe whose check runs have the lowest losses, on geometric average.

    Args:
        preset: the search.
        tried: recipes whose picks are among the runs.
        runs: check runs: columns run_id, loss (NaN if diverged).
    """
    losses = runs.set_index("run_id")["loss"].fillna(math.inf)

    def total(arm: str, fit: RecipeFit) -> float:
        picked = (_picked_run(preset, arm, budget, fit.recipe).run_id for budget in preset.check_budgets)
        return sum(math.log(losses[run_id]) for run_id in picked)

    return {key: min(fits, key=lambda fit: total(key[0], fit)) for key, fits in tried.items()}


def check_table(preset: LearningRateSearch, recipes: Recipes, runs: pd.DataFrame) -> pd.DataFrame:
    """Loss of each recipe's pick beside the best loss found, per arm, optimiser and check budget.

    Columns: arm, optimizer, budget, N, batch_size, learning_rate, loss, best_learning_rate, best_loss, excess
    (relative).

    Args:
        preset: the search.
        recipes: the recipes whose picks are among the runs.
        runs: check runs in the columns of the run table; those of earlier recipes count among the best.
    """
    rows = []
    for (name, optimizer), budget in itertools.product(recipes, preset.check_budgets):
        spec = _picked_run(preset, name, budget, recipes[name, optimizer])
        group = runs[(runs["arm"] == name) & (runs["optimizer"] == optimizer) & (runs["budget"] == budget)]
        recipe = (group["learning_rate"] == spec.learning_rate) & (group["batch_size"] == spec.batch_size)
        picked = group[recipe].iloc[0]
        best = picked if group["loss"].isna().all() else group.loc[group["loss"].idxmin()]  # all diverged
        N = get_arm(name).parameters(spec.size, get_task(spec.task))  # a run that failed says nothing of it
        at = {"arm": name, "optimizer": optimizer, "budget": budget, "N": N}
        pick = {"batch_size": spec.batch_size, "learning_rate": spec.learning_rate, "loss": picked["loss"]}
        found = {"best_learning_rate": best["learning_rate"], "best_loss": best["loss"]}
        rows.append(at | pick | found | {"excess": picked["loss"] / best["loss"] - 1})
    return pd.DataFrame(rows)


def found_wanting(checks: pd.DataFrame) -> list[tuple[str, str]]:
    """Arms and optimisers of a ``check_table`` whose recipe misses the goal at some budget: they are fitted again."""
    wanting = checks.loc[~(checks["excess"] <= GOAL), ["arm", "optimizer"]].drop_duplicates()
    return list(wanting.itertuples(index=False, name=None))
