"""Presets: everything that sizes a study, as plain data in one place."""

from __future__ import annotations

import dataclasses
from typing import Any


def _option(help_text: str) -> Any:
    return dataclasses.field(metadata={"help": help_text})


@dataclasses.dataclass(frozen=True)
class Preset:
    """All values of a compute-grid study; each can be overridden on the command line."""

    arms: tuple[str, ...] = _option("arms to compare")
    budgets: tuple[float, ...] = _option("training budgets in executed FLOPs, e.g. 1e10 3e10 1e11")
    sizes_per_budget: int = _option("model sizes trained at each budget (isoFLOP points)")
    seeds: tuple[int, ...] = _option("seeds; each sets initialisation, data order and augmentation")
    family: str = _option("scene family: S (3-5 small hulls), M (3-10) or L (3-10 hulls of 33-64 vertices)")
    frame: str = _option("frame of the samples: random (no direction is special) or upright")
    horizon: int = _option("frames of 1/24 s between input and target")
    train_scenes: int = _option("unique training scenes (24 windows each)")
    test_scenes: int = _option("scenes in the test split")
    test_windows_per_scene: int = _option("start frames evaluated in each test scene")
    data_seed: int = _option("root seed of the scenes")
    batch_size: int = _option("windows in a batch")
    cost_range: float = _option("FLOPs per token of the largest over the smallest model at one budget")
    min_steps: int = _option("models that would train for fewer steps than this at a budget are left out")


PRESETS: dict[str, Preset] = {
    # Two cores, no GPU: about ten minutes, all included.
    "quick": Preset(
        arms=("transformer", "gatr"),
        budgets=(1e10, 3e10, 1e11, 2e11),
        sizes_per_budget=4,
        seeds=(0,),
        family="S",
        frame="random",
        horizon=4,
        train_scenes=4000,
        test_scenes=600,
        test_windows_per_scene=3,
        data_seed=0,
        batch_size=16,
        cost_range=6.0,
        min_steps=40,
    ),
    # Two cores, no GPU: some ten hours.
    "cpu": Preset(
        arms=("transformer", "transformer_aligned", "gatr"),
        budgets=(1e11, 3e11, 1e12, 3e12, 1e13),
        sizes_per_budget=6,
        seeds=(0,),
        family="S",
        frame="random",
        horizon=4,
        train_scenes=100_000,
        test_scenes=3000,
        test_windows_per_scene=4,
        data_seed=0,
        batch_size=32,
        cost_range=12.0,
        min_steps=100,
    ),
    # A GPU cluster: the budgets of the paper.
    "paper": Preset(
        arms=("transformer", "transformer_aug", "transformer_aligned", "gatr"),
        budgets=(1e16, 1e17, 1e18, 1e19),
        sizes_per_budget=6,
        seeds=(0,),
        family="L",
        frame="random",
        horizon=4,
        train_scenes=400_000,
        test_scenes=3000,
        test_windows_per_scene=4,
        data_seed=0,
        batch_size=256,
        cost_range=16.0,
        min_steps=1000,
    ),
}
