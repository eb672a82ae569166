"""Presets: everything that sizes a study, as plain data in one place."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from eqscale.tasks import DEFAULT, get_task
from eqscale.tasks.base import OptionValue


def _option(help_text: str, default: Any = dataclasses.MISSING) -> Any:
    """A value of a preset, with the help text of its option; it must be given unless it has a default."""
    return dataclasses.field(default=default, metadata={"help": help_text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """What every job says about its data and its trials; each value can be overridden on the command line."""

    arms: tuple[str, ...] = _option("arms to compare")
    seeds: tuple[int, ...] = _option(
        "numbers of the replicates of every run; initialisation, data order and augmentation differ between them"
    )
    task: str = _option("task to train on", DEFAULT)
    task_options: tuple[tuple[str, OptionValue], ...] = ()
    """Where they aren't the task's defaults."""
    train_systems: int = _option("unique training systems")
    test_systems: int = _option("systems in the test split")
    test_samples_per_system: int = _option("samples evaluated of each test system")
    data_seed: int = _option("root seed of the systems")
    batch_size: int = _option("samples in a batch; 0: by the arm's recipe")
    optimizer: str = _option("optimiser of all runs (default: by each arm's recipe)", "")
    warmup: float = _option("share of the steps over which the learning rate rises; 0: by the arm's recipe")
    cost_range: float = _option("FLOPs per token of the largest over the smallest model at one budget")
    min_steps: int = _option("models that would train for fewer steps than this at a budget are left out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replicated(Preset):
    """A preset whose largest runs have fewer replicates."""

    replicate_up_to: float = _option(
        "runs beyond this (of a data grid: number of systems; else: budget) have the first --fewest-seeds seeds only", 0
    )
    fewest_seeds: int = _option("see --replicate-up-to", 1)

    def seeds_at(self, at: float) -> tuple[int, ...]:
        """The seeds of runs at a budget or number of systems."""
        return self.seeds if at <= self.replicate_up_to else self.seeds[: self.fewest_seeds]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeGrid(Replicated):
    """Budgets x arms x sizes x seeds."""

    budgets: tuple[float, ...] = _option("training budgets in executed FLOPs, e.g. 1e10 3e10 1e11")
    sizes_per_budget: int = _option("model sizes trained at each budget (isoFLOP points)")
    extra_sizes: tuple[str, ...] = _option(
        "further sizes as ARM:BUDGET:WIDTHxDEPTH, e.g. gatr:1e12:16x2, where an optimum sits at an edge of the others "
        "(of the compute grid: optima at an edge, in its report)",
        (),
    )


def extra_size(text: str) -> tuple[str, float, str]:
    """Arm, budget (NaN if it is no number) and size of an entry of ``extra_sizes``."""
    arm, _, rest = text.partition(":")
    number, _, size = rest.partition(":")
    try:
        return arm, float(number), size
    except ValueError:
        return arm, math.nan, size


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataGrid(Replicated):
    """Numbers of unique systems x budgets x arms x sizes x seeds; at fixed systems a larger budget is more epochs."""

    budgets: tuple[float, ...] = _option("training budgets in executed FLOPs; one, or more to vary the epochs")
    systems: tuple[int, ...] = _option("numbers of unique training systems, each the first so many of the split")
    sizes_per_cell: int = _option("model sizes trained at each number of systems and budget; the best one counts", 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AspectRatio(Preset):
    """Other shapes than the ladder's, at the same cost per token."""

    budgets: tuple[float, ...] = _option("training budgets in executed FLOPs")
    costs: tuple[float, ...] = _option("rungs of the ladder to vary: FLOPs per token over the guessed optimum")
    depths: tuple[int, ...] = _option("depths to try, each with the width that costs what the rung does")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Controls(Replicated):
    """Arms whose symmetry is broken, and equivariant ones on the task's variant, at sizes of the compute grid."""

    budgets: tuple[float, ...] = _option("training budgets in executed FLOPs, of the compute grid")
    grid_sizes: int = _option("sizes per budget of the compute grid")
    sizes_per_budget: int = _option(
        "sizes of an arm whose symmetry is broken, the middle ones of the grid's; others have one, on the variant"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation(Preset):
    """Sizes around the optima that were predicted for each arm above the compute grid's budgets."""

    sizes_per_arm: int = _option("model sizes of each arm around each predicted optimum")
    size_step: float = _option("parameters of one size over those of the next smaller, about")
    extra_sizes: tuple[str, ...] = _option(
        "further sizes as ARM:BUDGET:WIDTHxDEPTH, e.g. gatr:3e13:16x5, where the best of the others is the smallest or "
        "the largest",
        (),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerControl(Preset):
    """Arms with several optimisers."""

    optimizers: tuple[str, ...] = _option("optimisers that every arm is trained with", ("adamw", "muon"))
    budgets: tuple[float, ...] = _option("training budgets in executed FLOPs")
    sizes_per_budget: int = _option("model sizes trained at each budget")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearningRateSearch(Preset):
    """Proxy runs from which each arm's recipe with an optimiser is fitted, and larger ones that check it."""

    optimizers: tuple[str, ...] = _option("optimisers that every arm is searched with", ("adamw", "muon"))
    budgets: tuple[float, ...] = _option("budgets of the proxy runs in executed FLOPs")
    sizes_per_budget: int = _option("model sizes searched at each budget")
    trials: int = _option("trials at each arm, optimiser, budget and size")
    rates: tuple[float, ...] = _option("smallest and largest learning rate")
    batch_sizes: tuple[int, ...] = _option("smallest and largest batch size")
    warmups: tuple[float, ...] = _option("smallest and largest share of the steps over which the rate rises")
    momenta: tuple[float, ...] = _option("smallest and largest momentum")
    decays: tuple[float, ...] = _option("smallest and largest weight decay")
    check_budgets: tuple[float, ...] = _option("larger budgets at which the recipe is checked, one size each")


P = TypeVar("P", bound=Preset)


def overridden(preset: P, values: Mapping[str, Any]) -> P:
    """A preset with other values; what belonged to values that it then lacks goes with them.

    Extra sizes go with their arms and budgets; a task's options and samples with another task.
    """
    lost: dict[str, Any] = {}
    if values.get("task", preset.task) != preset.task:
        samples = min(preset.test_samples_per_system, get_task(values["task"]).samples_per_system)
        lost = {"task_options": (), "test_samples_per_system": samples}
    changed = dataclasses.replace(preset, **(lost | dict(values)))
    if not isinstance(changed, ComputeGrid) or "extra_sizes" in values:
        return changed
    return dataclasses.replace(changed, extra_sizes=kept_sizes(changed, changed.budgets))


def kept_sizes(preset: ComputeGrid | Validation, budgets: Collection[float]) -> tuple[str, ...]:
    """The extra sizes of a preset at these budgets, of arms that it has."""
    entries = [(text, extra_size(text)) for text in preset.extra_sizes]
    return tuple(text for text, (arm, at, _) in entries if arm in preset.arms and at in budgets)


# Of every job, unless it says otherwise: "quick" and "cpu" are for two cores without a GPU (each job's --help says how
# long it takes), "gpu" for one card, "paper" for a GPU cluster, with the budgets of the paper.
_QUICK: dict[str, Any] = {
    "arms": ("transformer", "gatr"),
    "seeds": (0,),
    "train_systems": 4000,
    "test_systems": 600,
    "test_samples_per_system": 3,
    "data_seed": 0,
    "batch_size": 0,
    "warmup": 0.0,
    "cost_range": 6.0,
    "min_steps": 40,
}
_CPU = _QUICK | {
    "arms": ("transformer", "transformer_aligned", "gatr"),
    "train_systems": 100_000,
    "test_systems": 3000,
    "test_samples_per_system": 4,
    "cost_range": 12.0,
    "min_steps": 100,
}
_PAPER = _CPU | {
    "arms": ("transformer", "transformer_aug", "transformer_aligned", "gatr"),
    "task_options": (("family", "L"),),
    # The recipes' small batches would take up to 1e7 steps: time of overhead, which no number of GPUs shortens.
    "batch_size": 256,
    "train_systems": 400_000,
    "cost_range": 16.0,
    "min_steps": 1000,
}
# One card: steps of small batches would be overhead, and 1e13 meets the budgets of the preset "cpu".
_GPU = _CPU | {"batch_size": 256, "train_systems": 400_000, "cost_range": 6.0, "min_steps": 1000}
_THREE_SEEDS = {"seeds": (0, 1, 2)}
_FORCES_QUICK = _QUICK | {"task": "forces", "train_systems": 3000, "test_systems": 400}
# The two sizes of a cell lie beside the guessed optimum, not at the ends of the compute grid's range.
_TWO_SIZES = {"sizes_per_cell": 2, "cost_range": 4.0, "fewest_seeds": 3}
# All ways to meet the symmetry, without augmentation, which only pays where data are seen again.
_MAIN = {"arms": ("transformer", "transformer_aligned", "transformer_local", "gatr_slim", "gatr")}
_REPEATED = {"arms": ("transformer", "transformer_aug", *_MAIN["arms"][1:])}
_FORCES_CPU = _CPU | {"task": "forces"}

COMPUTE_GRIDS: dict[str, ComputeGrid] = {
    "first": ComputeGrid(budgets=(1e10, 3e10, 1e11), sizes_per_budget=3, **(_QUICK | {"train_systems": 2000})),
    "quick": ComputeGrid(budgets=(1e10, 3e10, 1e11, 2e11), sizes_per_budget=4, **_QUICK),
    "cpu": ComputeGrid(
        budgets=(1e11, 3e11, 1e12, 3e12, 1e13),
        sizes_per_budget=6,
        replicate_up_to=3e11,
        fewest_seeds=3,
        # Per second, larger networks spend more FLOPs: these bracket the optima on that axis.
        extra_sizes=(
            *("gatr:3e11:8x5", "gatr:3e11:8x7", "gatr:1e13:20x7", "gatr:1e13:24x7"),
            *("gatr_slim:1e11:7x6", "gatr_slim:1e11:8x6"),
            *("transformer_local:1e11:24x4", "transformer_local:1e11:24x6"),
        ),
        **(_CPU | _MAIN | {"seeds": (0, 1, 2, 3, 4)}),
    ),
    "forces-quick": ComputeGrid(budgets=(5e9, 1.5e10, 4e10), sizes_per_budget=3, **_FORCES_QUICK),
    "forces-cpu": ComputeGrid(
        budgets=(1e11, 3e11, 1e12, 3e12),
        sizes_per_budget=6,
        replicate_up_to=1e12,
        extra_sizes=(  # for the same reason
            *("gatr:1e11:6x6", "gatr:1e11:8x5", "gatr_slim:1e11:8x8", "gatr_slim:1e11:10x8"),
            *("transformer:3e11:30x4", "transformer:3e11:30x6"),
            *("transformer_aligned:1e11:20x4", "transformer_aligned:1e11:24x4"),
            *("transformer_aligned:3e11:24x6", "transformer_aligned:3e11:24x8"),
            *("transformer_aligned:1e12:24x8", "transformer_aligned:1e12:30x8"),
            *("transformer_aligned:3e12:36x8", "transformer_aligned:3e12:42x8"),
            *("transformer_local:1e11:20x4", "transformer_local:1e11:24x4"),
            *("transformer_local:1e11:24x6", "transformer_local:1e11:24x8"),
            *("transformer_local:3e11:24x6", "transformer_local:3e11:24x8"),
            *("transformer_local:1e12:30x8", "transformer_local:1e12:36x8"),
            *("transformer_local:3e12:36x8", "transformer_local:3e12:42x8"),
        ),
        **(_FORCES_CPU | _MAIN | _THREE_SEEDS),
    ),
    "gpu": ComputeGrid(budgets=(1e13, 1e14, 1e15, 1e16), sizes_per_budget=3, **_GPU),
    "paper": ComputeGrid(budgets=(1e16, 1e17, 1e18, 1e19), sizes_per_budget=6, **_PAPER),
}

DATA_GRIDS: dict[str, DataGrid] = {
    "quick": DataGrid(
        budgets=(5e10,), systems=(30, 100, 400, 4000), **(_QUICK | {"arms": ("transformer", "transformer_aug", "gatr")})
    ),
    "cpu": DataGrid(
        budgets=(3e11, 3e12), systems=(100, 1000, 100_000), **(_CPU | _REPEATED | _THREE_SEEDS | _TWO_SIZES)
    ),
    "forces-quick": DataGrid(
        budgets=(1e10,),
        systems=(30, 300, 3000),
        **(_FORCES_QUICK | {"arms": ("transformer", "transformer_aug", "gatr")}),
    ),
    "forces-cpu": DataGrid(
        budgets=(1e11, 1e12), systems=(300, 3000, 100_000), **(_FORCES_CPU | _REPEATED | _THREE_SEEDS | _TWO_SIZES)
    ),
    "paper": DataGrid(
        budgets=(1e18,),
        systems=(100, 400, 1600, 6400, 25_600, 102_400, 400_000),
        replicate_up_to=400,
        **(_PAPER | _THREE_SEEDS),
    ),
}

ASPECT_RATIOS: dict[str, AspectRatio] = {
    # One seed says little.
    "quick": AspectRatio(budgets=(5e10,), costs=(1.0,), depths=(1, 2, 4), **_QUICK),
    # On the compute grid's data. Sizes of one budget are those of the next, so that the best depth can be told apart by
    # parameters and by budget.
    "cpu": AspectRatio(
        budgets=(3e11, 1e12, 3e12, 1e13),
        costs=(0.7, 1.4),
        depths=(1, 2, 3, 4, 6, 8),
        **(_CPU | {"arms": ("transformer", "transformer_aligned", "gatr_slim", "gatr")}),
    ),
    "paper": AspectRatio(budgets=(1e17,), costs=(1.0, 3.0), depths=(2, 4, 8, 16), **(_PAPER | {"seeds": (0, 1)})),
}

_CONTROLS: dict[str, Any] = {"arms": ("gatr", "gatr_absolute", "gatr_turned")}
# Their quick compute grid has no aligned arm to compare with.
_ALL_CONTROLS: dict[str, Any] = {
    "arms": (*_CONTROLS["arms"], "transformer_misaligned"),
    "grid_sizes": 6,
    "sizes_per_budget": 4,
}

CONTROLS: dict[str, Controls] = {
    "quick": Controls(budgets=(1e10, 3e10), grid_sizes=4, sizes_per_budget=2, **(_QUICK | _CONTROLS)),
    "cpu": Controls(budgets=(1e11, 1e12, 3e12), replicate_up_to=3e12, **(_CPU | _THREE_SEEDS | _ALL_CONTROLS)),
    "paper": Controls(budgets=(1e16, 1e17), **(_PAPER | _ALL_CONTROLS)),
}

OPTIMIZERS: dict[str, OptimizerControl] = {
    "quick": OptimizerControl(budgets=(1e10, 3e10), sizes_per_budget=2, **_QUICK),
    "cpu": OptimizerControl(budgets=(1e11, 3e11, 1e12), sizes_per_budget=3, **(_CPU | _THREE_SEEDS)),
    "paper": OptimizerControl(budgets=(1e16, 1e17), sizes_per_budget=3, **_PAPER),
}

VALIDATIONS: dict[str, Validation] = {
    "quick": Validation(sizes_per_arm=3, size_step=2.0, **_QUICK),
    # still no system twice
    "cpu": Validation(
        sizes_per_arm=3,
        size_step=1.7,
        extra_sizes=(
            *("gatr:3e13:8x5", "transformer_aligned:3e13:24x8"),
            *("transformer:1e14:36x8", "transformer:1e14:42x8", "gatr:1e14:20x7"),
        ),
        **(_CPU | _MAIN | {"train_systems": 200_000}),
    ),
    "forces-cpu": Validation(
        sizes_per_arm=3,
        size_step=1.7,
        extra_sizes=("gatr:1e13:16x5", "transformer_aligned:1e13:24x4"),
        **(_FORCES_CPU | _MAIN),
    ),
    "paper": Validation(sizes_per_arm=3, size_step=2.0, **_PAPER),
}

# The controls and gatr_published, an option for comparison, train by their arms' recipes.
_SEARCHED: dict[str, Any] = {
    "arms": (
        "transformer", "transformer_aug", "transformer_aligned", "transformer_frames", "transformer_local", "gatr_slim",
        "gatr",
    )
}  # fmt: skip
_SMALL: dict[str, Any] = {"test_systems": 1000, "test_samples_per_system": 2, "cost_range": 10.0, "min_steps": 20}
_RANGES: dict[str, Any] = {"rates": (1e-3, 1e-1), "warmups": (0.05, 0.6), "momenta": (0.8, 0.98), "decays": (1e-3, 0.3)}
_SEARCH: dict[str, Any] = _RANGES | {"sizes_per_budget": 2, "trials": 16}

SEARCHES: dict[str, LearningRateSearch] = {
    # Enough to see a new arm in the right range.
    "quick": LearningRateSearch(
        budgets=(1e10, 3e10), batch_sizes=(8, 64), check_budgets=(6e10, 1e11), **(_QUICK | _SEARCH)
    ),
    "cpu": LearningRateSearch(
        budgets=(1e11, 3e11, 1e12),
        batch_sizes=(16, 128),
        check_budgets=(1e12, 3e12),
        **(_CPU | _SEARCHED | _SEARCH | _SMALL | {"trials": 7}),
    ),
    "paper": LearningRateSearch(
        budgets=(1e14, 1e15, 1e16),
        batch_sizes=(32, 1024),
        check_budgets=(1e17, 1e18),
        **(_PAPER | _SEARCHED | _SEARCH | {"rates": (1e-4, 3e-2)}),
    ),
}
