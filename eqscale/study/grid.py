"""Grid design: pure functions from a preset to the runs of a study."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from eqscale.arms import Arm, Recipe, Size, TokenCounts, get_arm
from eqscale.errors import InputError
from eqscale.numbers import number
from eqscale.roles import Role
from eqscale.study.presets import (
    AspectRatio,
    ComputeGrid,
    Controls,
    DataGrid,
    OptimizerControl,
    Preset,
    Validation,
    extra_size,
)
from eqscale.tasks import Task, get_task
from eqscale.tasks.dataset import DataSpec
from eqscale.training.optim import get_optimizer, step_flops
from eqscale.training.order import DataOrder
from eqscale.training.spec import RunSpec

_SAMPLED_SYSTEMS = 4096
_SAME_COST = 0.12  # relative: near the optimum, losses differ by the square of this
MIN_POINTS = 7
"""Fewest points (parameters, tokens) that determine a law: five coefficients and two more."""


@functools.lru_cache(maxsize=64)
def expected_batch(preset: Preset, batch_size: int) -> TokenCounts:
    """Counts of the average training batch of a preset's task."""
    task = get_task(preset.task)
    options = task.check_options(dict(preset.task_options))
    tokens = task.draw_tokens(options, _SAMPLED_SYSTEMS, np.random.default_rng(0))
    order = DataOrder(tokens, task.samples_per_system, batch_size, seed=0)
    T = np.array([order.counts(step)[2] for step in range(order.batches_per_epoch)], float)
    means = (tokens.mean(), (tokens**2).mean(), T.mean(), (T**2).mean())
    return TokenCounts(*(batch_size * float(mean) for mean in means))


def recipe_of(arm: Arm, preset: Preset) -> Recipe:
    """How a preset trains an arm: by its recipe on the preset's task with its optimiser.

    Where that wasn't searched, the arm's own recipe with the optimiser's usual rate and momentum.
    """
    if found := arm.recipe_with(preset.optimizer):
        return found.on(preset.task)
    optimizer, usual = get_optimizer(preset.optimizer), arm.recipe.on(preset.task)
    return dataclasses.replace(
        usual, optimizer=optimizer.name, rate=optimizer.rate_factor * usual.rate, momentum=optimizer.momentum
    )


def _cost_of_step(arm: Arm, size: Size, preset: Preset, batch_size: int) -> float:
    """Executed FLOPs of an average training step, the optimiser's included."""
    task, batch = get_task(preset.task), expected_batch(preset, batch_size)
    return arm.executed_flops(size, task, batch) + step_flops(recipe_of(arm, preset).optimizer, arm, size, task)


def data_spec(preset: Preset) -> DataSpec:
    """The data that a preset trains and tests on."""
    of_data = {option.name for option in get_task(preset.task).options if option.of_data}
    given = tuple((name, value) for name, value in preset.task_options if name in of_data)
    return DataSpec(preset.task, given, preset.data_seed, preset.train_systems, preset.test_systems)


def _affordable(arm: Arm, budget: float, preset: Preset) -> dict[Size, float]:
    """Rungs of the arm's ladder that a budget trains for ``min_steps`` steps, and their executed FLOPs per token.

    Raises InputError if the budget doesn't pay for a single step of the smallest model.
    """
    batch_size = preset.batch_size or recipe_of(arm, preset).batch_size(budget)
    batch, task = expected_batch(preset, batch_size), get_task(preset.task)
    own = {size: arm.executed_flops(size, task, batch) for size in arm.ladder}
    # What is too large already needn't be built to count the FLOPs of its optimiser: that takes a minute.
    tried = [size for size in own if own[size] <= max(budget / preset.min_steps, min(own.values()))]
    cost_of_step = {size: _cost_of_step(arm, size, preset, batch_size) for size in tried}
    smallest = min(cost_of_step.values())
    if budget < smallest:
        raise InputError(
            f"budget {number(budget, 6)} FLOPs is too small for a single step of the smallest {arm.name} "
            f"({number(smallest, 3)} FLOPs with batch size {batch_size})"
        )
    return {size: cost / batch.tokens for size, cost in cost_of_step.items() if budget / cost >= preset.min_steps}


def choose_sizes(arm: Arm, budget: float, count: int, preset: Preset) -> list[Size]:
    """Rungs of the arm's ladder at one budget, evenly spread in log FLOPs around the guessed optimum.

    Raises InputError if the budget doesn't pay for a single step of the smallest model, or for too few sizes.
    """
    affordable = _affordable(arm, budget, preset)
    _require_sizes(affordable, count, arm, budget, preset, "raise the budget, lower --min-steps or ask for fewer sizes")
    center = math.log(arm.optimal_cost * math.sqrt(budget))
    half = math.log(preset.cost_range) / 2 if count > 1 else 0.0
    cost = {size: math.log(per_token) for size, per_token in affordable.items()}
    chosen: list[Size] = []
    for goal in np.linspace(center - half, center + half, count):
        free = [size for size in affordable if size not in chosen]
        chosen.append(min(free, key=lambda size: abs(cost[size] - goal)))
    return sorted(chosen, key=lambda size: cost[size])


def _require_sizes(affordable: Collection, count: int, arm: Arm, budget: float, preset: Preset, advice: str) -> None:
    if len(affordable) < count:
        raise InputError(
            f"budget {number(budget, 6)} FLOPs trains only {len(affordable)} sizes of {arm.name} for "
            f"{preset.min_steps} steps or more; {count} are asked for: {advice}"
        )


def design_run(
    arm: Arm,
    size: Size,
    budget: float,
    preset: Preset,
    seed: int,
    *,
    train_systems: int | None = None,
    batch_size: int | None = None,
    variant: Mapping[str, str | int | float] = {},
    **settings: Any,
) -> RunSpec:
    """One run that spends its budget exactly, by the arm's recipe unless told otherwise.

    Args:
        arm: what to train.
        size: the model's.
        budget: executed FLOPs.
        preset: the study's.
        seed: number of the replicate.
        train_systems: if not the preset's.
        batch_size: if neither the preset's nor the recipe's.
        variant: options of the task that differ from the preset's.
        settings: ``learning_rate``, ``warmup``, ``momentum`` or ``weight_decay``, where they aren't the recipe's.
    """
    task, recipe = get_task(preset.task), recipe_of(arm, preset)
    batch_size = batch_size or preset.batch_size or recipe.batch_size(budget)
    steps = max(1, round(budget / _cost_of_step(arm, size, preset, batch_size)))
    settings = {
        "learning_rate": recipe.learning_rate(arm.parameters(size, task), steps, batch_size),
        "warmup": preset.warmup or recipe.warmup,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
    } | settings
    options = task.check_options({**dict(preset.task_options), **variant})
    return RunSpec(
        arm=arm.name,
        size=size,
        budget=budget,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        data=data_spec(preset).digest,
        train_systems=train_systems or preset.train_systems,
        test_systems=preset.test_systems,
        test_samples_per_system=preset.test_samples_per_system,
        view=tuple((option.name, options[option.name]) for option in task.options if not option.of_data),
        task=task.name,
        optimizer=recipe.optimizer,
        **settings,
    )


def _extra_sizes(
    preset: ComputeGrid | Validation, budgets: Collection[float], arm: Arm, budget: float, planned: Sequence[Size]
) -> list[Size]:
    """Sizes of ``extra_sizes`` for an arm and budget that aren't planned anyway; ``budgets`` are all of the study's."""
    found = []
    rungs = {str(size): size for size in arm.ladder}
    for text in preset.extra_sizes:
        name, at, size = extra_size(text)
        here = (name, at) == (arm.name, budget)
        if name not in preset.arms or at not in budgets or (here and size not in rungs):
            raise InputError(
                f"--extra-sizes {text!r}: write ARM:BUDGET:WIDTHxDEPTH with one of the --arms, one of the budgets "
                f"({', '.join(number(b, 6) for b in budgets)}) and a size of the arm's ladder"
                + (f" ({', '.join(rungs)})" if here else "")
            )
        if here and rungs[size] not in planned:
            found.append(rungs[size])
    return found


def compute_grid(preset: ComputeGrid) -> list[RunSpec]:
    """Budgets x arms x sizes, extra ones included, x seeds, each run spending its budget exactly.

    Raises InputError for an unknown arm or extra size, or a budget that is too small.
    """
    specs = []
    for budget, name in itertools.product(preset.budgets, preset.arms):
        arm = get_arm(name)
        sizes = choose_sizes(arm, budget, preset.sizes_per_budget, preset)
        for size in sizes + _extra_sizes(preset, preset.budgets, arm, budget, sizes):
            specs += [design_run(arm, size, budget, preset, seed) for seed in preset.seeds_at(budget)]
    return specs


def data_grid(preset: DataGrid) -> list[RunSpec]:
    """All runs of the data grid: budgets x arms x sizes x numbers of unique systems x seeds.

    The sizes of a budget are the same at every number of systems.

    Raises InputError for an unknown arm, a budget that is too small, or more systems than there are.
    """
    if max(preset.systems) > preset.train_systems:
        raise InputError(
            f"--systems asks for {max(preset.systems)} unique systems; --train-systems has {preset.train_systems}"
        )
    return [
        design_run(arm, size, budget, preset, seed, train_systems=systems)
        for budget, arm in itertools.product(preset.budgets, map(get_arm, preset.arms))
        for size in choose_sizes(arm, budget, preset.sizes_per_cell, preset)
        for systems in preset.systems
        for seed in preset.seeds_at(systems)
    ]


@dataclasses.dataclass(frozen=True)
class ShapeGroup:
    """A rung of a ladder and other shapes that cost as much per token, at one budget."""

    arm: str
    budget: float
    rung: Size
    """The ladder's own shape."""
    shapes: tuple[Size, ...]
    """All shapes by depth, the rung among them."""


def shape_groups(preset: AspectRatio) -> list[ShapeGroup]:
    """Rungs to vary and the shapes beside them; a depth that no width brings within 12 % of the cost is left out.

    Raises InputError for an unknown arm or a budget that is too small.
    """
    groups: dict[ShapeGroup, None] = {}
    task = get_task(preset.task)
    for budget, name, cost in itertools.product(preset.budgets, preset.arms, preset.costs):
        arm = get_arm(name)
        wanted = dataclasses.replace(arm, optimal_cost=cost * arm.optimal_cost)
        (rung,) = choose_sizes(wanted, budget, 1, preset)
        batch_size = preset.batch_size or recipe_of(arm, preset).batch_size(budget)
        goal = _cost_of_step(arm, rung, preset, batch_size)
        shapes = {rung.depth: rung}
        for depth in preset.depths:
            off, width, heads = min(
                (abs(math.log(_cost_of_step(arm, size, preset, batch_size) / goal)), size.width, size.heads)
                for size in _shapes(arm, task, depth, 4 * rung.width)
            )
            if off <= _SAME_COST:
                shapes.setdefault(depth, Size(width, depth, heads))
        groups[ShapeGroup(name, budget, rung, tuple(shapes[depth] for depth in sorted(shapes)))] = None
    return list(groups)


def _shapes(arm: Arm, task: Task, depth: int, widest: int) -> Iterator[Size]:
    """Every width that works with as many heads as the ladder has at that width."""
    for width in range(arm.ladder[0].width, max(widest, arm.ladder[0].width) + 1):
        below = max((rung for rung in arm.ladder if rung.width <= width), key=lambda rung: rung.width)
        size = Size(width, depth, below.heads)
        with contextlib.suppress(InputError):
            arm.flops(size, task)
            yield size


def aspect_ratio_grid(preset: AspectRatio) -> list[RunSpec]:
    """All runs of the aspect-ratio study: the shapes of every group x seeds, each spending its budget exactly.

    Raises InputError for an unknown arm or a budget that is too small.
    """
    runs = {(group.arm, group.budget, shape): None for group in shape_groups(preset) for shape in group.shapes}
    return [
        design_run(get_arm(arm), shape, budget, preset, seed) for arm, budget, shape in runs for seed in preset.seeds
    ]


def controls_grid(preset: Controls) -> list[RunSpec]:
    """Controls at the middle sizes of the compute grid, and other arms on the task's variant at one, x budgets x seeds.

    Of an even number of sizes the middle one is the lower. The grid's runs on the unchanged task are their twins.

    Raises InputError for an unknown arm, a budget that is too small, more sizes than the grid's, or an arm on the
    variant of a task without one.
    """
    if preset.sizes_per_budget > preset.grid_sizes:
        raise InputError(
            f"--sizes-per-budget {preset.sizes_per_budget}: controls have sizes of the compute grid, which has "
            f"{preset.grid_sizes} at each budget (--grid-sizes)"
        )
    specs = []
    for budget, arm in itertools.product(preset.budgets, map(get_arm, preset.arms)):
        broken = arm.role is Role.CONTROL
        variant = {} if broken else get_task(preset.task).variant
        if not broken and not variant:
            raise InputError(
                f"--task {preset.task} has no variant that {arm.name} should ignore: leave {arm.name} out of --arms"
            )
        count = preset.sizes_per_budget if broken else 1
        first = (preset.grid_sizes - count) // 2
        for size in choose_sizes(arm, budget, preset.grid_sizes, preset)[first : first + count]:
            specs += [design_run(arm, size, budget, preset, seed, variant=variant) for seed in preset.seeds_at(budget)]
    return specs


def optimizer_grid(preset: OptimizerControl) -> list[RunSpec]:
    """Optimisers x budgets x arms x sizes x seeds.

    Raises InputError for an unknown arm or optimiser, fewer than two optimisers, or a budget that is too small.
    """
    if len(preset.optimizers) < 2:
        raise InputError(f"--optimizers {' '.join(preset.optimizers)}: name at least two, which are compared")
    specs = []
    for optimizer, budget, name in itertools.product(preset.optimizers, preset.budgets, preset.arms):
        arm, own = get_arm(name), dataclasses.replace(preset, optimizer=get_optimizer(optimizer).name)
        for size in choose_sizes(arm, budget, preset.sizes_per_budget, own):
            specs += [design_run(arm, size, budget, own, seed) for seed in preset.seeds]
    return specs


def validation_grid(preset: Validation, optima: Mapping[float, Mapping[str, float]]) -> list[RunSpec]:
    """Runs of each arm at rungs of its ladder around its predicted optima, and at extra sizes.

    Args:
        preset: what to train.
        optima: by budget in executed FLOPs, the predicted optimal parameters of arms.

    Raises:
        InputError: for an unknown arm or extra size, or a budget that trains too few sizes for ``min_steps`` steps.
    """
    specs, task = [], get_task(preset.task)
    for budget, name in itertools.product(optima, preset.arms):
        if name not in optima[budget]:
            continue
        arm = get_arm(name)
        sizes = {size: arm.parameters(size, task) for size in _affordable(arm, budget, preset)}
        advice = "lower --sizes-per-arm or --min-steps"
        _require_sizes(sizes, preset.sizes_per_arm, arm, budget, preset, advice)
        chosen = []
        for k in range(preset.sizes_per_arm):
            goal = optima[budget][name] * preset.size_step ** (k - (preset.sizes_per_arm - 1) / 2)
            chosen.append(min(sizes, key=lambda size: abs(math.log(sizes[size] / goal))))
            del sizes[chosen[-1]]
        for size in chosen + _extra_sizes(preset, optima, arm, budget, chosen):
            specs += [design_run(arm, size, budget, preset, seed) for seed in preset.seeds]
    return specs


def possible_runs(preset: ComputeGrid, planned: Sequence[RunSpec]) -> list[RunSpec]:
    """A run with the first seed at every rung from the one below the smallest to the one above the largest planned, for
    each arm and budget, if it trains for ``min_steps`` steps.
    """
    specs = []
    for budget, name in itertools.product(preset.budgets, preset.arms):
        sizes, known = get_arm(name).ladder, {s.size for s in planned if (s.arm, s.budget) == (name, budget)}
        at = [k for k, size in enumerate(sizes) if size in known]
        rungs = sizes[max(at[0] - 1, 0) : at[-1] + 2]
        specs += [design_run(get_arm(name), size, budget, preset, preset.seeds[0]) for size in rungs]
    return [spec for spec in specs if spec.steps >= preset.min_steps]


def expected_tokens(spec: RunSpec, preset: Preset) -> float:
    """Training tokens of a run, about."""
    return spec.steps * expected_batch(preset, spec.batch_size).tokens


def further_grid(preset: ComputeGrid, entries: Sequence[Mapping[str, Any]]) -> list[RunSpec]:
    """Runs that were chosen for a study after its grid, by arm, budget, size and seed.

    Those of arms and budgets that the preset lacks are left out, as are sizes that no ladder has any more.
    """
    specs = []
    for entry in entries:
        if entry["arm"] in preset.arms and entry["budget"] in preset.budgets:
            arm = get_arm(entry["arm"])
            sizes = {str(size): size for size in arm.ladder}
            if size := sizes.get(entry["size"]):
                specs.append(design_run(arm, size, entry["budget"], preset, entry["seed"]))
    return specs
