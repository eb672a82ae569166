"""The axis of seconds from step times of all shapes, measured in one session (``step_times.csv``, by ``eqscale time``).

The seconds that runs record depend on the machine and on its other load. These may differ from session to session, and
so between arms.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from eqscale.errors import InputError
from eqscale.laws.table import load_table, positive_column

SHAPE = ["arm", "width", "depth", "heads", "batch_size"]
"""Columns of the run table that a step's time depends on."""
FILE = "step_times.csv"
"""Name of the table in a results folder."""


def read_step_times(folder: Path) -> pd.DataFrame | None:
    """The step times of a results folder, None if it has none.

    Raises:
        InputError: a column is missing, a number isn't positive and finite, or a shape comes twice.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    table = load_table(path)
    table = table.assign(**{name: positive_column(table, name, str(path)) for name in (*SHAPE[1:], "step_seconds")})
    if "arm" not in table:
        raise InputError(f"{path}: no column 'arm'; columns: {', '.join(table)}")
    if (again := table[SHAPE].duplicated()).any():
        raise InputError(f"{path}: row {int(np.argmax(again)) + 1} repeats a shape: run eqscale time again")
    return table


def seconds_by_step_times(runs: pd.DataFrame, step_times: pd.DataFrame) -> pd.Series:
    """Steps × time of a step of every run; NaN if its shape was not timed or several devices trained it."""
    if not {*SHAPE, "steps"} <= set(runs):
        return pd.Series(np.nan, runs.index)
    times = runs[SHAPE].merge(step_times, on=SHAPE, how="left")["step_seconds"].set_axis(runs.index)
    seconds = runs["steps"] * times
    return seconds.where(runs["devices"].fillna(1) == 1) if "devices" in runs else seconds
