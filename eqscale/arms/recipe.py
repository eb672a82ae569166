"""How an arm's runs are trained, by what ``eqscale run search`` found."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

PARAMETERS, STEPS, BATCH, BUDGET = 1e4, 1e3, 16, 1e11
"""Where the scales of a recipe are meant: parameters, steps, samples in a batch, executed FLOPs."""
# The smallest that was searched; half of it costs nearly twice the seconds at small sizes.
_SMALLEST_BATCH = 16
_FILE = Path(__file__).with_name("recipes.json")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Learning rate = ``rate`` (N / 1e4)^``by_parameters`` (steps / 1e3)^``by_steps`` (batch / 16)^``by_batch``."""

    rate: float
    """Peak learning rate at 1e4 parameters, 1e3 steps and batches of 16."""
    by_parameters: float = -0.25
    by_steps: float = 0.0
    by_batch: float = 0.0
    batch: float = 16.0
    """Samples in a batch at 1e11 executed FLOPs, before rounding."""
    by_budget: float = 0.0
    """Exponent of the batch size in the budget."""
    optimizer: str = "adamw"
    """Optimiser that it was searched with."""
    warmup: float = 0.4
    """Share of the steps over which the learning rate rises."""
    momentum: float = 0.9
    """Share of the past in the optimiser's average of gradients."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrix weights."""
    rate_on: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    """Task -> factor of ``rate`` there, where a check found another one than the search."""

    def on(self, task: str) -> Recipe:
        """The recipe on a task."""
        return dataclasses.replace(self, rate=self.rate_on.get(task, 1.0) * self.rate, rate_on={})

    def batch_size(self, budget: float) -> int:
        """Samples in a batch at a budget of executed FLOPs: the nearest power of two, at least 16."""
        exact = math.log2(self.batch) + self.by_budget * math.log2(budget / BUDGET)
        return max(_SMALLEST_BATCH, 2 ** round(exact))

    def learning_rate(self, parameters: int, steps: int, batch_size: int) -> float:
        """Peak learning rate of a run, to four digits."""
        rate = (
            self.rate
            * (parameters / PARAMETERS) ** self.by_parameters
            * (steps / STEPS) ** self.by_steps
            * (batch_size / BATCH) ** self.by_batch
        )
        return float(f"{rate:.4g}")


def fitted_recipes(arm: str) -> tuple[Recipe, ...]:
    """The recipes that the search found for a built-in arm, one for each optimiser; its runs train by the first."""
    return tuple(Recipe(**values) for values in json.loads(_FILE.read_text(encoding="utf-8"))[arm])
