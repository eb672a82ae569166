"""Step times of all shapes of a study, taken in one sitting for the axis of seconds (``eqscale time``).

What runs record themselves depends on the machine and on its other load, which may differ between sittings, and so
between arms.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from eqscale.errors import InputError
from eqscale.laws.table import load_table
from eqscale.rigid.dataset import open_stored
from eqscale.training.loop import time_steps
from eqscale.training.spec import RunSpec

ROUNDS = 3
"""Every shape is timed once a round: what slows the machine for a while slows all of them."""
_KEYS = [
    "arm",
    "width",
    "depth",
    "heads",
    "batch_size",
]  # columns of the run table that a step's time depends on


def path_of(folder: Path) -> Path:
    """The step times of a results folder."""
    return folder / "step_times.csv"


def shapes(specs: Iterable[RunSpec]) -> list[RunSpec]:
    """One run of each shape, that with the most training scenes; the cheapest step first."""
    found: dict[tuple, RunSpec] = {}
    for spec in sorted(specs, key=lambda spec: spec.train_scenes):
        found[(spec.arm, spec.size, spec.batch_size)] = spec
    return sorted(found.values(), key=lambda spec: spec.budget / spec.steps)


def time_shapes(
    specs: Iterable[RunSpec], data: Path, seconds: float, timed: Callable[[str], None]
) -> pd.DataFrame:
    """Time every shape, ``ROUNDS`` times in turn.

    Args:
        specs: one run of each shape.
        data: folder of data sets.
        seconds: how long to time a shape in each round.
        timed: called with the name of a run whenever its shape has been timed.

    Returns:
        A row for each shape: arm, width, depth, heads, batch_size, ``step_seconds`` (median over the rounds),
        ``spread`` (highest minus lowest over the median) and ``hardware``.

    Raises:
        InputError: if the data of a run are not there.
    """
    times: dict[RunSpec, list[float]] = {spec: [] for spec in specs}
    hardware = ""
    for _ in range(ROUNDS):
        for spec, values in times.items():
            train, test = (
                open_stored(spec.data, data, split, horizon=spec.horizon, frame=spec.frame, scenes=scenes)
                for split, scenes in (("train", spec.train_scenes), ("test", spec.test_scenes))
            )
            step_seconds, hardware = time_steps(spec, train, test, seconds)
            values.append(step_seconds)
            timed(spec.name)
    rows = []
    for spec, values in times.items():
        median = statistics.median(values)
        spread = (max(values) - min(values)) / median
        shape = (spec.arm, spec.size.width, spec.size.depth, spec.size.heads, spec.batch_size)
        rows.append((*shape, float(f"{median:.4g}"), round(spread, 3), hardware))
    return pd.DataFrame(rows, columns=[*_KEYS, "step_seconds", "spread", "hardware"])


def read_step_times(folder: Path) -> pd.DataFrame | None:
    """The step times of a results folder, None if it has none.

    Raises:
        InputError: a column is missing, or a time is not positive.
    """
    path = path_of(folder)
    if not path.is_file():
        return None
    table = load_table(path)
    for column in (*_KEYS, "step_seconds"):
        if column not in table:
            raise InputError(f"{path}: the column {column!r} is missing: run eqscale time again")
    if not (table["step_seconds"] > 0).all():
        raise InputError(f"{path}: step_seconds must be positive: run eqscale time again")
    return table


def untimed_shapes(runs: pd.DataFrame, step_times: pd.DataFrame) -> int:
    """Number of shapes of finished runs without a step time; a run on several devices has none."""
    finished = runs[runs["status"] == "finished"]
    if not {*_KEYS, "steps"} <= set(finished):
        return len(finished)
    known = set(step_times[_KEYS].itertuples(index=False, name=None))
    alone = finished["devices"].fillna(1) == 1 if "devices" in finished else True
    found = finished[_KEYS].assign(alone=alone).drop_duplicates().itertuples(index=False, name=None)
    return sum(shape not in known or not single for *key, single in found for shape in [tuple(key)])


def seconds_by_step_times(runs: pd.DataFrame, step_times: pd.DataFrame) -> pd.Series:
    """Steps × time of a step for every run, NaN where its shape has none."""
    times = runs[_KEYS].merge(step_times, on=_KEYS, how="left")["step_seconds"]
    return runs["steps"] * times.set_axis(runs.index)
