"""Run tables: reading, column names and checks that name the row and the column at fault."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eqscale.errors import InputError
from eqscale.laws.expressions import Condition, parse_condition, parse_expression
from eqscale.laws.files import read_file
from eqscale.laws.quantities import as_number

ROLES = {
    "N": "parameters",
    "D": "training tokens",
    "U": "unique training tokens",
    "C": "training cost: FLOPs or seconds",
    "loss": "final loss",
}
"""Columns the laws know by name; all others are carried along for grouping."""


def parse_map(entries: Sequence[str], further: Sequence[str] = ()) -> dict[str, str]:
    """``["N=params,C=6*N*D"]`` as ``{"N": "params", "C": "6*N*D"}``; roles are ``ROLES`` and further ones."""
    roles = dict.fromkeys((*ROLES, *further))
    out: dict[str, str] = {}
    for entry in filter(str.strip, ",".join(entries).split(",")):
        role, sep, column = (part.strip() for part in entry.partition("="))
        if sep and role in roles and not column:
            raise InputError(f"--map {role}= names no column; write {role}=COLUMN or a formula such as C=6*N*D")
        if not sep or role not in roles:
            raise InputError(f"--map: bad entry {entry!r}; write ROLE=COLUMN with ROLE one of {', '.join(roles)}")
        if role in out:
            raise InputError(f"--map: {role} is mapped twice, to {out[role]} and {column}")
        out[role] = column
    return out


@dataclass(frozen=True)
class History:
    """A table with one row a step: which of them stand for the runs."""

    run: str
    """Column that names the run."""
    step: str | None = None
    """Column with the step; one of ``STEP_COLUMNS`` if None."""
    steps: tuple[float, ...] = ()
    """Steps to keep; none for each run's last one with a loss."""


def load_table(source: str | Path) -> pd.DataFrame:
    """A table from a file (see ``eqscale.laws.files``) or an MLflow experiment, unchecked.

    Raises:
        InputError: it can't be read.
    """
    text = str(source)
    if text.startswith("mlflow:"):
        from eqscale.laws.tracking import read_experiment

        return read_experiment(text.removeprefix("mlflow:"))
    return read_file(Path(source))


def _as_number(value: object) -> float:
    if isinstance(value, str):
        return as_number(value.strip())
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return np.nan


def _is_plain(column: pd.Series) -> bool:
    return isinstance(column.dtype, np.dtype) and column.dtype.kind in "fiu"


def to_numbers(column: pd.Series) -> np.ndarray:
    """A column as float64, NaN for what is no number; numbers may arrive as text (also ``7M``), decimals, categories or
    nullable types.
    """
    if _is_plain(column):
        return column.to_numpy(float)
    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_datetime64_any_dtype(column):
        return np.full(len(column), np.nan)
    return np.array([_as_number(v) for v in column.astype(object)], float)


def _is_empty(column: pd.Series) -> np.ndarray:
    if _is_plain(column):
        return column.isna().to_numpy()
    return np.array([bool(pd.isna(v)) or (isinstance(v, str) and not v.strip()) for v in column.astype(object)])


def positive(
    column: pd.Series,
    name: str,
    source: str,
    rows: np.ndarray | None = None,
    hint: str = "",
    zero: bool = False,
    empty: bool = False,
) -> np.ndarray:
    """A column as positive float64 (with ``zero``: or 0; with ``empty``: or NaN where a cell is empty).

    Raises:
        InputError: a value is something else; names its row among ``rows`` (by default counted from 1).
    """
    rows = np.arange(1, len(column) + 1) if rows is None else rows
    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_datetime64_any_dtype(column):
        raise InputError(f"{source}: column {name!r} holds {column.dtype}, not numbers")
    out = to_numbers(column)
    bad = ~np.isfinite(out)
    if empty and bad.any():
        bad &= ~_is_empty(column)
    for i in np.flatnonzero(bad):
        value = column.iloc[i]
        shown = "empty" if pd.isna(value) else repr(value) if isinstance(value, str) else str(value)
        why = ": write it without the comma" if isinstance(value, str) and re.fullmatch(r"[-\d.,]+", value) else ""
        raise InputError(f"{source}: row {rows[i]}, column {name!r}: {shown} is not a finite number{why or hint}")
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
    names = (" ".join(str(name).split()) for name in frame.columns[:30])  # a quoted name may hold a line break
    return ", ".join(names) + (", …" if len(frame.columns) > 30 else "")


def positive_column(frame: pd.DataFrame, name: str, source: str) -> np.ndarray:
    """A further column as positive numbers; raises InputError as ``require_columns`` and ``positive`` do."""
    require_columns(frame, [name], source)
    return positive(frame[name], name, source)


class _Columns:
    """Columns of a table by name, or by the role that ``--map`` gives them."""

    def __init__(self, frame: pd.DataFrame, mapping: Mapping[str, str], source: str):
        self.frame, self.mapping, self.source = frame, mapping, source

    def __contains__(self, name: str) -> bool:
        return name in self.mapping or name in self.frame.columns

    def column(self, name: str, within: tuple[str, ...] = ()) -> pd.Series:
        """The column that plays a role, or has a name; a formula of columns is evaluated.

        ``within`` are the roles whose formulas are being evaluated: inside its own a role's name means the column.

        Raises:
            InputError: no such column, a formula that makes no sense, or formulas in a circle.
        """
        if name in within and name != within[-1]:
            raise InputError(f"--map: the formulas of {name} and {within[-1]} refer to each other")
        use = f" to use as {within[-1]}" if within else ""
        if name in self.mapping and name not in within:
            text = self.mapping[name]
            if text in self.frame.columns:
                return self._named(text, use)
            formula, within = parse_expression(text, f"--map {name}"), (*within, name)
            values = formula.value(lambda other: to_numbers(self.column(other, within)))
            return pd.Series(np.broadcast_to(values, len(self.frame)), self.frame.index)
        return self._named(name, use)

    def _named(self, name: str, use: str) -> pd.Series:
        require_columns(self.frame, [name], self.source, use)
        column = self.frame[name]
        if isinstance(column, pd.DataFrame):
            raise InputError(f"{self.source}: column {name!r} appears more than once")
        return column

    def where(self, condition: Condition) -> np.ndarray:
        """Rows on which a condition holds, (n,).

        Raises:
            InputError: it makes no sense, or holds nowhere.
        """
        if condition.is_order:
            holds = condition.holds([self._side(side) for side in condition.sides])
            if not holds.any():
                raise InputError(f"{self.source}: no row has {condition.text}")
            return np.broadcast_to(holds, len(self.frame))
        name, value = condition.sides
        column = self.column(name) if name in self else pd.Series(np.broadcast_to(self._side(name), len(self.frame)))
        number = as_number(value)
        equal = to_numbers(column) == number if np.isfinite(number) else np.zeros(len(column), bool)
        if not (_is_plain(column) and np.isfinite(number)):
            equal |= (column.astype(str).str.strip() == value).to_numpy(dtype=bool)
        holds = ~equal if condition.comparators[0] == "!=" else equal
        if not holds.any():
            seen = ", ".join(sorted(map(str, column.unique()))[:8])
            raise InputError(f"{self.source}: no row has {name} {condition.comparators[0]} {value!r}; it holds {seen}")
        return holds

    def _side(self, text: str) -> np.ndarray:
        number = as_number(text)
        if np.isfinite(number):
            return np.asarray(number)
        if text in self:
            return to_numbers(self.column(text))
        value = parse_expression(text, "--where").value(lambda name: to_numbers(self.column(name)))
        return np.broadcast_to(value, len(self.frame))


def check_runs(
    frame: pd.DataFrame,
    mapping: Mapping[str, str] | None = None,
    *,
    required: Sequence[str] = ("N", "D", "loss"),
    where: Sequence[str] = (),
    history: History | None = None,
    source: str = "table",
    duplicates: str = "error",
    weights: str | None = None,
) -> pd.DataFrame:
    """Rename, filter and check a run table.

    Args:
        frame: any table with one row a run, or one row a step.
        mapping: role (``N``, ``D``, ``U``, ``C``, ``loss``) to the column, or formula of columns, that plays it.
        required: roles that must be present and without empty cells.
        where: conditions on the rows to keep, such as ``status=finished``, ``arm!=gatr``, ``1e17<C<=1e20`` or
            ``D/N>=20``; names are roles or columns.
        history: for one row a step; without it, a table whose ``run_id`` repeats and that has a step column is reduced
            to the last step of each run.
        source: name of the table in messages.
        duplicates: ``error``, ``drop`` or ``keep`` for rows that repeat another run entirely.
        weights: column with the weight of each run, zero or more.

    Returns:
        A table with the required and mapped roles as positive float64 columns, everything else unchanged. A role that
        isn't required is NaN where its cell is empty, and left out if all are. ``attrs["notes"]`` says in words what
        was left out.

    Raises:
        InputError: a missing or non-numeric column, a non-positive, missing or infinite value, a run that
            appears twice, nothing left after filtering, or no filter where only some runs have finished.
    """
    frame = frame.rename(columns=lambda name: str(name).strip())
    columns, notes = _Columns(frame, dict(mapping or {}), source), list[str]()
    conditions = [parse_condition(text) for text in where]
    for role in required:
        if role not in columns and any(name.endswith("__MIN") for name in frame.columns):
            raise InputError(
                f"{source}: a chart exported from W&B, one column a run; export the table of runs, or their history"
            )
        if role not in columns:
            raise InputError(
                f"{source}: no column {role!r} ({ROLES.get(role, 'of the form')}); name it with --map {role}=COLUMN; "
                f"columns: {_listed(frame)}"
            )
    statuses = set(map(str, frame["status"].unique())) if "status" in frame.columns else set()
    if "finished" in statuses and len(statuses) > 1 and not any(c.sides[0] == "status" for c in conditions):
        raise InputError(
            f"{source}: column 'status' holds {', '.join(sorted(statuses))}: choose with --where status=finished"
        )
    roles = [role for role in dict.fromkeys((*ROLES, *required, *columns.mapping)) if role in columns]
    # others are carried along unchecked
    found = {role: columns.column(role) for role in roles if role in (*required, *columns.mapping, "C")}
    keep = np.ones(len(frame), bool)
    for condition in conditions:
        keep &= columns.where(condition)
    if not keep.any():
        raise InputError(f"{source}: no rows left" if where else f"{source}: the table has no rows")
    rows = np.arange(1, len(frame) + 1)
    history = history or _found_history(frame[keep])
    if history is not None:
        keep[keep] = _steps_kept(frame[keep], history, to_numbers(found["loss"])[keep], source, notes)
    hint = "" if where else "; filter failed runs with --where COLUMN=VALUE"
    if not keep.all():
        frame, rows = frame.loc[keep].reset_index(drop=True), rows[keep]
        found = {role: column[keep] for role, column in found.items()}
    checked = {}
    for role, column in found.items():
        name = columns.mapping.get(role, role)
        values = positive(column, name, source, rows, hint, empty=role not in required)
        missing = int(np.isnan(values).sum())
        if missing == len(values):
            notes.append(f"column {name!r} is empty and not used")
            frame = frame.drop(columns=role, errors="ignore")
            continue
        if missing:
            filled = "; their cost is that of a model fitted to the other rows" if role == "C" else ""
            notes.append(f"column {name!r} is empty in {missing} of {len(values)} rows{filled}")
        checked[role] = values
    out = frame.assign(**checked)
    if weights is not None:
        require_columns(frame, [weights], source, " to use as weights")
        out[weights] = positive(frame[weights], weights, source, rows, hint, zero=True)
    if duplicates != "keep":
        out = _without_duplicates(out, rows, source, duplicates == "drop", by_id=history is None)
    out.attrs["notes"] = notes
    return out


STEP_COLUMNS = ("step", "_step", "global_step", "trainer/global_step", "Step", "iteration")
"""Names under which the step of a history is found."""


def _step_column(frame: pd.DataFrame) -> str | None:
    return next((name for name in STEP_COLUMNS if name in frame.columns), None)


def _found_history(frame: pd.DataFrame) -> History | None:
    """One run id in several rows with a step each can only be a history."""
    repeats = "run_id" in frame.columns and _step_column(frame) and frame["run_id"].duplicated().any()
    return History("run_id") if repeats else None


def _steps_kept(frame: pd.DataFrame, history: History, loss: np.ndarray, source: str, notes: list[str]) -> np.ndarray:
    """Rows of a history that stand for its runs, (n,)."""
    step_name = history.step or _step_column(frame)
    if step_name is None:
        raise InputError(f"{source}: no step column ({', '.join(STEP_COLUMNS)}); name it with --step COLUMN")
    require_columns(frame, [history.run, step_name], source, " of a history")
    steps = to_numbers(frame[step_name])
    run, names = pd.factorize(frame[history.run])
    known = np.isfinite(loss) & np.isfinite(steps) & (run >= 0)
    order = np.lexsort((steps, run))
    order = order[known[order]]
    last = order[np.append(run[order][1:] != run[order][:-1], True)] if len(order) else order
    if len(last) == 0:
        raise InputError(f"{source}: no row has a run, a step and a loss")
    keep = np.zeros(len(frame), bool)
    keep[last] = True
    if history.steps:
        ends = keep
        keep = known & np.isin(steps, history.steps)
        if not keep.any():
            span = f"{steps[known].min():g} to {steps[known].max():g}"
            raise InputError(f"{source}: no run has a loss at the steps asked for; column {step_name!r} has {span}")
        if np.any(keep & ~ends):
            notes.append(
                "some of these steps are not the last of their run: where the learning rate had not yet decayed, the "
                "loss is too high and exponents are biased"
            )
    counts = np.bincount(run[keep], minlength=len(names))
    what = "at the steps asked for" if history.steps else "the last step with a loss"
    notes.insert(0, f"a history: {int(keep.sum())} of {len(frame)} rows kept, {what} of {int((counts > 0).sum())} runs")
    if counts.max() > 1:
        notes.append(
            f"rows of one run are not independent: intervals are too narrow unless whole runs are resampled "
            f"(--bootstrap cluster:{history.run})"
        )
    if left_out := int((counts == 0).sum()):
        notes.append(f"{left_out} runs have no such row and are left out")
    return keep


_BOOKKEEPING = {"", "unnamed: 0", "index", "level_0", "timestamp", "date", "datetime", "created_at", "started",
                "host", "hostname", "node", "machine", "uuid", "uid"}  # fmt: skip
"""Columns, in lower case, that number or label rows and say nothing of a run."""


def _without_duplicates(runs: pd.DataFrame, rows: np.ndarray, source: str, drop: bool, by_id: bool) -> pd.DataFrame:
    """Drop or refuse rows with a run id that came before or, without ids, rows that agree in everything.

    Seeds with equal N and D but another loss are replicates, not duplicates.
    """
    by_id &= "run_id" in runs.columns
    same = runs[["run_id"]] if by_id else runs.drop(columns=[name for name in runs if name.lower() in _BOOKKEEPING])
    try:
        key = pd.util.hash_pandas_object(same, index=False)
    except TypeError:  # cells of a JSON table may be lists
        key = pd.util.hash_pandas_object(same.astype(str), index=False)
    again = key.duplicated().to_numpy()
    if not again.any():
        return runs
    if not drop:
        i = int(again.argmax())
        first = int((key == key.iloc[i]).to_numpy().argmax())
        column = "run_id" if by_id else next(r for r in ROLES if r in runs.columns)
        raise InputError(
            f"{source}: row {rows[i]} repeats row {rows[first]} (column {column!r}: {runs[column].iloc[i]}); "
            "remove it or pass --duplicates drop (or keep)"
        )
    return runs.loc[~again].reset_index(drop=True)


def best_of_sweep(runs: pd.DataFrame, sweep: Sequence[str], same: Sequence[str], source: str) -> pd.DataFrame:
    """Of each point of the design the runs with the best setting of a sweep, such as its best learning rate.

    Args:
        runs: a checked run table.
        sweep: columns of the settings that were swept.
        same: columns that make a point: numbers agree to six digits.
        source: name of the table in messages.

    Returns:
        All runs (seeds) of the setting with the lowest mean loss, point by point; ``attrs["notes"]`` counts them.

    Raises:
        InputError: a column is missing, or no point has more than one setting.
    """
    require_columns(runs, (*sweep, *same), source, " of the sweep")
    point = runs.assign(
        **{name: np.round(np.log(runs[name]), 6) for name in same if _is_plain(runs[name])}
    ).groupby(list(same), dropna=False).ngroup()  # fmt: skip
    setting = runs.groupby(list(sweep), dropna=False).ngroup()
    means = runs["loss"].groupby([point, setting]).mean()
    if not means.index.get_level_values(0).has_duplicates:
        raise InputError(f"{source}: no runs that agree in {', '.join(same)} differ in {', '.join(sweep)}")
    best = {key[0]: key[1] for key in means.groupby(level=0).idxmin()}
    kept = runs[setting == point.map(best)].reset_index(drop=True)
    note = f"best of a sweep of {', '.join(sweep)}: {len(kept)} of {len(runs)} runs kept"
    kept.attrs["notes"] = [*runs.attrs.get("notes", ()), note]
    return kept


def read_runs(source: str | Path, mapping: Mapping[str, str] | None = None, **checks: Any) -> pd.DataFrame:
    """Read and check a run table: a file or ``mlflow:EXPERIMENT`` (see ``load_table``).

    Raises:
        InputError: see ``check_runs``; also an unreadable file or unknown experiment.
    """
    return check_runs(load_table(source), mapping, source=str(source), **checks)
