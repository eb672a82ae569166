"""Grid design: a pure function from a preset to the runs of the study."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from eqscale.errors import InputError
from eqscale.rigid.dataset import DatasetSpec
from eqscale.rigid.families import family
from eqscale.rigid.windows import STARTS
from eqscale.study.presets import Preset
from eqscale.training.arms import Arm, Size, get_arm
from eqscale.training.order import DataOrder
from eqscale.training.spec import RunSpec

_SAMPLED_SCENES = 4096
MIN_POINTS = 7  # five coefficients and two more


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """Expected size of a batch after padding, and what of it is real."""

    tokens: float
    """Real tokens in a batch."""
    pairs: float
    """Pairs of real tokens of one sample, summed over the batch."""
    padded_tokens: float
    """Tokens in a batch, padding included: B * T."""
    padded_pairs: float
    """Token pairs in a batch, padding included: B * T**2."""

    def executed_flops(self, arm: Arm, size: Size) -> float:
        """FLOPs that one step of an arm executes."""
        count = arm.flops(size).executed
        if arm.packed:
            return count.total(self.tokens, self.pairs)
        return count.total(self.padded_tokens, self.padded_pairs)


def expected_batch(preset: Preset) -> BatchShape:
    """Shape of the average training batch, from token counts drawn as the family draws its objects."""
    scenes = family(preset.family)
    rng = np.random.default_rng(0)
    vertices = rng.choice(
        [len(hull.vertices) for hull in scenes.hulls], (_SAMPLED_SCENES, scenes.max_objects)
    )
    objects = rng.integers(scenes.objects[0], scenes.objects[1] + 1, (_SAMPLED_SCENES, 1))
    tokens = np.where(np.arange(scenes.max_objects) < objects, vertices, 0).sum(1)
    order = DataOrder(tokens, STARTS, preset.batch_size, seed=0)
    T = np.array(list(itertools.islice(order.padded_tokens(), order.batches_per_epoch)), float)
    means = (tokens.mean(), (tokens**2).mean(), T.mean(), (T**2).mean())
    return BatchShape(*(preset.batch_size * float(mean) for mean in means))


def dataset_spec(preset: Preset) -> DatasetSpec:
    """The data that a preset trains and tests on."""
    return DatasetSpec(
        family=preset.family,
        train_scenes=preset.train_scenes,
        test_scenes=preset.test_scenes,
        seed=preset.data_seed,
    )


def choose_sizes(arm: Arm, budget: float, preset: Preset, batch: BatchShape) -> list[Size]:
    """Rungs of the arm's ladder for one budget, evenly spread in log FLOPs around the guessed optimum.

    Raises:
        InputError: if the budget doesn't pay for a single step of the smallest model, or for too few sizes.
    """
    step_flops = {size: batch.executed_flops(arm, size) for size in arm.ladder}
    smallest = min(step_flops.values())
    if budget < smallest:
        raise InputError(
            f"budget {budget:g} FLOPs is too small for a single step of the smallest {arm.name} "
            f"({smallest:.3g} FLOPs with batch size {preset.batch_size})"
        )
    affordable = [size for size in arm.ladder if budget / step_flops[size] >= preset.min_steps]
    if len(affordable) < preset.sizes_per_budget:
        raise InputError(
            f"budget {budget:g} FLOPs trains only {len(affordable)} sizes of {arm.name} for "
            f"{preset.min_steps} steps or more; {preset.sizes_per_budget} are asked for: "
            "raise the budget, or lower --min-steps or --sizes-per-budget"
        )
    center = math.log(arm.optimal_cost * math.sqrt(budget))
    half = math.log(preset.cost_range) / 2
    cost = {size: math.log(step_flops[size] / batch.tokens) for size in affordable}
    chosen: list[Size] = []
    for goal in np.linspace(center - half, center + half, preset.sizes_per_budget):
        free = [size for size in affordable if size not in chosen]
        chosen.append(min(free, key=lambda size: abs(cost[size] - goal)))
    return sorted(chosen, key=lambda size: cost[size])


def compute_grid(preset: Preset) -> list[RunSpec]:
    """All runs of the compute grid: budgets x arms x sizes x seeds, each spending its budget exactly.

    Raises:
        InputError: for an unknown arm or family, a budget that is too small, or too few runs to fit a law.
    """
    batch = expected_batch(preset)
    data = dataset_spec(preset).digest
    specs = []
    for budget, name in itertools.product(preset.budgets, preset.arms):
        arm = get_arm(name)
        for size in choose_sizes(arm, budget, preset, batch):
            steps = max(1, round(budget / batch.executed_flops(arm, size)))
            rate = arm.learning_rate(arm.parameters(size))
            for seed in preset.seeds:
                specs.append(
                    RunSpec(
                        arm=name,
                        size=size,
                        budget=budget,
                        steps=steps,
                        batch_size=preset.batch_size,
                        learning_rate=float(f"{rate:.4g}"),
                        seed=seed,
                        data=data,
                        train_scenes=preset.train_scenes,
                        test_scenes=preset.test_scenes,
                        test_windows_per_scene=preset.test_windows_per_scene,
                        horizon=preset.horizon,
                        frame=preset.frame,
                    )
                )
    for name in preset.arms:
        points = len({(spec.size, spec.steps) for spec in specs if spec.arm == name})
        if points < MIN_POINTS:
            raise InputError(
                f"{points} budgets x sizes are too few to fit a law to {name}; at least {MIN_POINTS} are needed: "
                "add --budgets or raise --sizes-per-budget"
            )
    return specs
