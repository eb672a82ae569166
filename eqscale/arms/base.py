"""What an arm of the study is: a model, how it sees a sample, and its ladder of sizes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
from torch import nn

from eqscale.arms.recipe import Recipe
from eqscale.errors import InputError
from eqscale.models.flops import TrainingFlops
from eqscale.models.skeleton import skeletons
from eqscale.plugins import load_files
from eqscale.roles import Role
from eqscale.tasks import Task


@dataclasses.dataclass(frozen=True, order=True)
class Size:
    """One rung of an arm's ladder: width and depth grow jointly."""

    width: int
    """Residual width: features of a plain transformer, multivector channels of GATr."""
    depth: int
    """Number of blocks."""
    heads: int
    """Attention heads."""

    def __str__(self) -> str:
        return f"{self.width}x{self.depth}"


@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """Tokens of samples with T tokens each, padded to the longest of their batch."""

    tokens: float
    """Real tokens: sum of T."""
    pairs: float
    """Pairs of real tokens of one sample: sum of T**2."""
    padded_tokens: float
    """Tokens, padding included."""
    padded_pairs: float
    """Pairs of tokens of one sample, padding included."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to deal with the symmetry, with everything the study needs to train it at any size."""

    name: str
    """Identifier in specs, run tables and command lines."""
    description: str
    """One line for ``--help``."""
    role: Role
    """How it deals with the symmetry; reports compare arms by it."""
    build: Callable[[Size, Task], nn.Module]
    """Size, task -> module that maps a Batch to what its target holds, in the frame of the batch."""
    flops: Callable[[Size, Task], TrainingFlops]
    """Size, task -> forward + backward FLOPs of one sample."""
    ladder: tuple[Size, ...]
    """Sizes in order of parameters."""
    recipe: Recipe
    """How its runs are trained."""
    optimal_cost: float = 0.15
    """Guess of the compute-optimal FLOPs per token over sqrt(budget): grids lay their sizes around it."""
    augmented: bool = False
    """Each drawn sample is transformed by a fresh group element of its frame's symmetry group."""
    packed: Callable[[Size, torch.device], bool] | None = None
    """For models that can leave padding out: size, device -> whether it costs them nothing there. Plans assume so,
    records count what was computed."""
    alternatives: tuple[Recipe, ...] = ()
    """Recipes with other optimisers."""
    control_of: str | None = None
    """The arm that a control is compared with; only for ``role=Role.CONTROL``."""

    def __post_init__(self) -> None:
        if self.role not in tuple(Role):
            raise InputError(f"arm {self.name!r}: role {self.role!r}; choose from {', '.join(Role)}")
        if (self.role == Role.CONTROL) != (self.control_of is not None):
            raise InputError(
                f"arm {self.name!r}: role {str(self.role)!r} with control_of {self.control_of!r}; a control, and no "
                "other arm, names the arm that it is compared with"
            )

    def recipe_with(self, optimizer: str) -> Recipe | None:
        """The recipe with an optimiser, or None if there is none; without a name its own."""
        recipes = (self.recipe, *self.alternatives)
        return next((recipe for recipe in recipes if optimizer in ("", recipe.optimizer)), None)

    def executed_flops(self, size: Size, task: Task, counts: TokenCounts, device: torch.device | None = None) -> float:
        """Training FLOPs that samples cost, with their padding unless the arm leaves it out.

        Args:
            size: the model's.
            task: what it trains on.
            counts: tokens of the samples.
            device: where they were computed; None for a plan, which assumes that padding is left out if it can be.
        """
        packed = self.packed is not None and (device is None or self.packed(size, device))
        computed = (counts.tokens, counts.pairs) if packed else (counts.padded_tokens, counts.padded_pairs)
        return self.flops(size, task).executed.total(*computed)

    def parameters(self, size: Size, task: Task) -> int:
        """Number of trainable parameters, counted without allocating them."""
        return _count(self.build, size, task)


@functools.lru_cache(maxsize=1024)
def _count(build: Callable[[Size, Task], nn.Module], size: Size, task: Task) -> int:
    with skeletons():
        return sum(p.numel() for p in build(size, task).parameters() if p.requires_grad)


class UnknownArm(InputError):
    """An arm that no built-in and no arm file has registered."""


_ARMS: dict[str, Arm] = {}


def register(arm: Arm) -> Arm:
    """Make an arm known to every command under its name; registering a name twice is an error."""
    if arm.name in _ARMS:
        raise InputError(f"an arm named {arm.name!r} is already registered")
    _ARMS[arm.name] = arm
    return arm


def get_arm(name: str) -> Arm:
    """Look an arm up by name; raises UnknownArm, which lists the known ones."""
    if name not in _ARMS:
        raise UnknownArm(f"unknown arm {name!r}; choose from {', '.join(_ARMS)}")
    return _ARMS[name]


def arm_names() -> tuple[str, ...]:
    """Names of all registered arms."""
    return tuple(_ARMS)


def load_arm_files(files: Sequence[str]) -> None:
    """Import Python files that register arms; raises InputError for one that can't be imported or registers none."""
    load_files(files, "arm", arm_names)
