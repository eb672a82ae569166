"""Run tables: reading, column names and checks that name the row and the column at fault."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eqscale.errors import InputError

ROLES = {
    "N": "parameters",
    "D": "training tokens",
    "U": "unique training tokens",
    "C": "training cost: FLOPs or seconds",
    "loss": "final loss",
}
"""Columns the laws know by name; all others are carried along for grouping."""


def parse_map(entries: str | None, further: Sequence[str] = ()) -> dict[str, str]:
    """``"N=params,D=tokens"`` as ``{"N": "params", "D": "tokens"}``; roles are ``ROLES`` and further ones."""
    roles = dict.fromkeys((*ROLES, *further))
    out: dict[str, str] = {}
    for entry in filter(None, (entries or "").split(",")):
        role, sep, column = (part.strip() for part in entry.partition("="))
        if not sep or role not in roles or not column:
            raise InputError(f"--map: bad entry {entry!r}; write ROLE=COLUMN with ROLE one of {', '.join(roles)}")
        out[role] = column
    return out


def parse_where(entries: Sequence[str]) -> dict[str, str]:
    """``["status=finished"]`` as ``{"status": "finished"}``."""
    out = {}
    for entry in entries:
        column, sep, value = entry.partition("=")
        if not sep or not column.strip():
            raise InputError(f"--where: bad entry {entry!r}; write COLUMN=VALUE")
        out[column.strip()] = value.strip()
    return out


def load_table(source: str | Path) -> pd.DataFrame:
    """A .csv, .tsv or .parquet file, or an MLflow experiment, unchecked; raises InputError if unreadable."""
    text = str(source)
    if text.startswith("mlflow:"):
        from eqscale.laws.tracking import read_experiment

        return read_experiment(text.removeprefix("mlflow:"))
    path = Path(source)
    if not path.is_file():
        raise InputError(f"{source}: no such file; give a .csv or .parquet table or mlflow:EXPERIMENT")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return pd.read_parquet(path)
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        frame = pd.read_csv(path, sep=separator, skipinitialspace=True, float_precision="round_trip")
        header = pd.read_csv(path, sep=separator, skipinitialspace=True, header=None, nrows=1, dtype=str).iloc[0]
    except (ValueError, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{source}: not a readable table ({reason})") from error
    for name in header[header.notna() & header.str.strip().duplicated()]:  # pandas would call it NAME.1
        raise InputError(f"{source}: column {name!r} appears more than once")
    return frame


def _as_number(value: object) -> float:
    try:
        return float(value.strip() if isinstance(value, str) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return np.nan


def positive(
    column: pd.Series, name: str, source: str, rows: np.ndarray | None = None, hint: str = "", zero: bool = False
) -> np.ndarray:
    """A column as positive float64 (with ``zero``: or 0); numbers may arrive as text, decimals, categories or
    nullable types.

    Raises:
        InputError: a value is something else; names its row among ``rows`` (by default counted from 1).
    """
    rows = np.arange(1, len(column) + 1) if rows is None else rows
    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_datetime64_any_dtype(column):
        raise InputError(f"{source}: column {name!r} holds {column.dtype}, not numbers")
    raw = column.astype(object)
    plain = isinstance(column.dtype, np.dtype) and column.dtype.kind in "fiu"
    out = column.to_numpy(float) if plain else np.array([_as_number(v) for v in raw])
    for i in np.flatnonzero(~np.isfinite(out)):
        shown = "empty" if pd.isna(raw.iloc[i]) else repr(raw.iloc[i])
        raise InputError(f"{source}: row {rows[i]}, column {name!r}: {shown} is not a finite number{hint}")
    for i in np.flatnonzero((out < 0) if zero else (out <= 0)):
        wrong = "is negative" if zero else "is not positive"
        raise InputError(f"{source}: row {rows[i]}, column {name!r}: {out[i]:g} {wrong}{hint}")
    return out


def require_columns(frame: pd.DataFrame, columns: Iterable[str | None], source: str, use: str = "") -> None:
    """Raise InputError for the first of the columns that the table lacks; None stands for a column not asked for."""
    for column in columns:
        if column is not None and column not in frame.columns:
            raise InputError(f"{source}: no column {column!r}{use}; columns: {_listed(frame)}")


def _listed(frame: pd.DataFrame) -> str:
    return ", ".join(map(str, frame.columns[:30])) + (", …" if len(frame.columns) > 30 else "")


def positive_column(frame: pd.DataFrame, name: str, source: str) -> np.ndarray:
    """A further column as positive numbers; raises InputError as ``require_columns`` and ``positive`` do."""
    require_columns(frame, [name], source)
    return positive(frame[name], name, source)


def check_runs(
    frame: pd.DataFrame,
    mapping: Mapping[str, str] | None = None,
    *,
    required: Sequence[str] = ("N", "D", "loss"),
    where: Mapping[str, str] | None = None,
    source: str = "table",
    duplicates: str = "error",
    weights: str | None = None,
) -> pd.DataFrame:
    """Rename, filter and check a run table.

    Args:
        frame: any table with one row a run.
        mapping: role (``N``, ``D``, ``U``, ``C``, ``loss``) to the column that plays it.
        required: roles that must be present.
        where: keep rows whose column equals the value (compared as text).
        source: name of the table in messages.
        duplicates: ``error``, ``drop`` or ``keep`` for rows that repeat another run entirely.
        weights: column with the weight of each run, zero or more.

    Returns:
        A table with the required and mapped roles as positive float64 columns, everything else unchanged.

    Raises:
        InputError: a missing or non-numeric column, a non-positive, missing or infinite value, a run that
            appears twice, nothing left after filtering, or no filter where only some runs have finished.
    """
    frame = frame.rename(columns=lambda name: str(name).strip())
    mapping = dict(mapping or {})
    for role, column in mapping.items():
        require_columns(frame, [column], source, f" to use as {role}")
    for role in required:
        if role not in mapping and role not in frame.columns:
            raise InputError(
                f"{source}: no column {role!r} ({ROLES.get(role, 'of the form')}); name it with --map {role}=COLUMN; "
                f"columns: {_listed(frame)}"
            )
    statuses = set(frame["status"].astype(str)) if "status" in frame.columns else set()
    if "finished" in statuses and len(statuses) > 1 and "status" not in (where or {}):
        raise InputError(
            f"{source}: column 'status' holds {', '.join(sorted(statuses))}: choose with --where status=finished"
        )
    rows = np.arange(1, len(frame) + 1)
    keep = np.ones(len(frame), bool)
    for column, value in (where or {}).items():
        require_columns(frame, [column], source, " to filter by")
        matches = frame[column].astype(str).str.strip() == value
        if not matches.any():
            seen = ", ".join(sorted(frame[column].astype(str).unique())[:8])
            raise InputError(f"{source}: no row has {column} = {value!r}; it holds {seen}")
        keep &= matches.to_numpy(dtype=bool)
    if not keep.any():
        raise InputError(f"{source}: no rows left" if where else f"{source}: the table has no rows")
    frame, rows = frame.loc[keep].reset_index(drop=True), rows[keep]
    hint = "" if where else "; filter failed runs with --where COLUMN=VALUE"
    columns = {}
    for role in dict.fromkeys((*ROLES, *required)):
        name = mapping.get(role, role)
        if name not in frame.columns:
            continue
        if isinstance(frame[name], pd.DataFrame):
            raise InputError(f"{source}: column {name!r} appears more than once")
        if role in required or role in mapping or role == "C":  # others are carried along unchecked
            columns[role] = positive(frame[name], name, source, rows, hint)
    out = frame.assign(**columns)
    if weights is not None:
        require_columns(frame, [weights], source, " to use as weights")
        out[weights] = positive(frame[weights], weights, source, rows, hint, zero=True)
    return out if duplicates == "keep" else _without_duplicates(out, rows, source, duplicates == "drop")


def _without_duplicates(runs: pd.DataFrame, rows: np.ndarray, source: str, drop: bool) -> pd.DataFrame:
    """Drop or refuse rows with a run id that came before or, without ids, rows that agree in everything.

    Seeds with equal N and D but another loss are replicates, not duplicates.
    """
    same = runs[["run_id"]] if "run_id" in runs.columns else runs
    again = same.astype(str).duplicated().to_numpy()
    if again.any() and not drop:
        i = int(again.argmax())
        first = int((same.astype(str) == same.astype(str).iloc[i]).all(axis=1).to_numpy().argmax())
        column = "run_id" if "run_id" in runs.columns else next(r for r in ROLES if r in runs.columns)
        raise InputError(
            f"{source}: row {rows[i]} repeats row {rows[first]} (column {column!r}: {runs[column].iloc[i]}); "
            "remove it or pass --duplicates drop (or keep)"
        )
    return runs.loc[~again].reset_index(drop=True)


def read_runs(source: str | Path, mapping: Mapping[str, str] | None = None, **checks: Any) -> pd.DataFrame:
    """Read and check a run table: a CSV or Parquet file or ``mlflow:EXPERIMENT`` (name or id; ``MLFLOW_TRACKING_URI``).

    Raises:
        InputError: see ``check_runs``; also an unreadable file or unknown experiment.
    """
    return check_runs(load_table(source), mapping, source=str(source), **checks)
