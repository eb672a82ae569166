"""The axis of seconds from step times of all shapes, taken in one sitting (``step_times.csv``, by ``eqscale time``).

What runs record themselves depends on the machine and on its other load, which may differ between sittings, and so
between arms.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from eqscale.errors import InputError
from eqscale.laws.table import load_table, positive_column

SHAPE = ["arm", "width", "depth", "heads", "batch_size"]
"""Columns of the run table that a step's time depends on."""


def path_of(folder: Path) -> Path:
    """The step times of a results folder."""
    return folder / "step_times.csv"


def read_step_times(folder: Path) -> pd.DataFrame | None:
    """The step times of a results folder, None if it has none.

    Raises:
        InputError: a column is missing, a number isn't positive and finite, or a shape comes twice.
    """
    path = path_of(folder)
    if not path.is_file():
        return None
    table = load_table(path)
    numbers = {name: positive_column(table, name, str(path)) for name in (*SHAPE[1:], "step_seconds")}
    if "arm" not in table:
        raise InputError(f"{path}: no column 'arm'; columns: {', '.join(table)}")
    table = table.assign(**numbers)
    if (again := table[SHAPE].duplicated()).any():
        raise InputError(f"{path}: row {int(np.argmax(again)) + 1} repeats a shape: run eqscale time again")
    return table


def seconds_by_step_times(runs: pd.DataFrame, step_times: pd.DataFrame) -> pd.Series:
    """Steps × time of a step, for every run; NaN where the shape was not timed or several devices trained it."""
    if not {*SHAPE, "steps"} <= set(runs):
        return pd.Series(np.nan, runs.index)
    times = runs[SHAPE].merge(step_times, on=SHAPE, how="left")["step_seconds"].set_axis(runs.index)
    seconds = runs["steps"] * times
    return seconds.where(runs["devices"].fillna(1) == 1) if "devices" in runs else seconds
