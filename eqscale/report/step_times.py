"""Step times of all shapes of a study, taken in one sitting for the axis of seconds (``eqscale time``).

What runs record themselves depends on the machine and on its other load, which may differ between sittings, and so
between arms.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from eqscale.errors import InputError
from eqscale.laws.table import load_table, positive_column
from eqscale.rigid.dataset import open_stored
from eqscale.rigid.windows import Windows
from eqscale.training.loop import time_steps
from eqscale.training.spec import RunSpec

ROUNDS = 3
"""Every shape is timed once a round: what slows the machine for a while slows all of them."""

# Columns of the run table that a step's time depends on.
_SHAPE = ["arm", "width", "depth", "heads", "batch_size"]


def path_of(folder: Path) -> Path:
    """The step times of a results folder."""
    return folder / "step_times.csv"


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
    return pd.DataFrame(rows, columns=[*_SHAPE, "step_seconds", "spread", "hardware"])


def read_step_times(folder: Path) -> pd.DataFrame | None:
    """The step times of a results folder, None if it has none.

    Raises:
        InputError: a column is missing, a number isn't positive and finite, or a shape comes twice.
    """
    path = path_of(folder)
    if not path.is_file():
        return None
    table = load_table(path)
    numbers = {name: positive_column(table, name, str(path)) for name in (*_SHAPE[1:], "step_seconds")}
    if "arm" not in table:
        raise InputError(f"{path}: no column 'arm'; columns: {', '.join(table)}")
    table = table.assign(**numbers)
    if (again := table[_SHAPE].duplicated()).any():
        raise InputError(f"{path}: row {int(np.argmax(again)) + 1} repeats a shape: run eqscale time again")
    return table


def seconds_by_step_times(runs: pd.DataFrame, step_times: pd.DataFrame) -> pd.Series:
    """Steps × time of a step, for every run; NaN where the shape was not timed or several devices trained it."""
    if not {*_SHAPE, "steps"} <= set(runs):
        return pd.Series(np.nan, runs.index)
    times = runs[_SHAPE].merge(step_times, on=_SHAPE, how="left")["step_seconds"].set_axis(runs.index)
    seconds = runs["steps"] * times
    return seconds.where(runs["devices"].fillna(1) == 1) if "devices" in runs else seconds
