"""Step times of all shapes of a study, taken in one sitting for the axis of seconds (``eqscale time``)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pandas as pd

from eqscale.report.step_times import SHAPE
from eqscale.rigid.dataset import open_stored
from eqscale.rigid.windows import Windows
from eqscale.training.loop import time_steps
from eqscale.training.spec import RunSpec

ROUNDS = 3
"""Every shape is timed once a round: what slows the machine for a while slows all of them."""


def open_shapes(specs: Iterable[RunSpec], data: Path) -> dict[RunSpec, tuple[Windows, Windows]]:
    """One run of each shape, that with the most training scenes, with its windows; the cheapest step first.

    Args:
        specs: runs.
        data: folder of data sets.

    Returns:
        Run -> training and test windows.

    Raises:
        InputError: if the data of a run are not there.
    """
    found: dict[tuple, RunSpec] = {}
    for spec in sorted(specs, key=lambda spec: spec.train_scenes):
        found[(spec.arm, spec.size, spec.batch_size)] = spec

    def windows(spec: RunSpec, split: str, scenes: int) -> Windows:
        return open_stored(spec.data, data, split, horizon=spec.horizon, frame=spec.frame, scenes=scenes)

    return {
        spec: (windows(spec, "train", spec.train_scenes), windows(spec, "test", spec.test_scenes))
        for spec in sorted(found.values(), key=lambda spec: spec.budget / spec.steps)
    }


def time_shapes(
    shapes: Mapping[RunSpec, tuple[Windows, Windows]], seconds: float, timed: Callable[[], None]
) -> pd.DataFrame:
    """Time every shape, ``ROUNDS`` times in turn.

    Args:
        shapes: one run of each shape, with its windows.
        seconds: how long to time a shape in each round, at least 20 steps.
        timed: called whenever a shape has been timed.

    Returns:
        A row for each shape: arm, width, depth, heads, batch_size, ``step_seconds`` (median over the rounds),
        ``spread`` (highest minus lowest over the median) and ``hardware``.
    """
    times: dict[RunSpec, list[float]] = {spec: [] for spec in shapes}
    hardware = ""
    for _ in range(ROUNDS):
        for spec, windows in shapes.items():
            step_seconds, hardware = time_steps(spec, *windows, seconds)
            times[spec].append(step_seconds)
            timed()
    rows = []
    for spec, values in times.items():
        median = statistics.median(values)
        spread = (max(values) - min(values)) / median
        shape = (spec.arm, spec.size.width, spec.size.depth, spec.size.heads, spec.batch_size)
        rows.append((*shape, float(f"{median:.4g}"), round(spread, 3), hardware))
    return pd.DataFrame(rows, columns=[*SHAPE, "step_seconds", "spread", "hardware"])
