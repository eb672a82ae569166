"""Reading a results folder: the run table of each part of a study, and the files beside it.

``eqscale report --help`` lists what it may hold. A folder whose own table has several numbers of unique units at one
budget is a data grid by itself.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eqscale.description import read_description
from eqscale.errors import InputError
from eqscale.laws import check_runs
from eqscale.laws.axes import AXES, count_seconds
from eqscale.laws.table import load_table, positive_column
from eqscale.report.roles import Roles, read_roles
from eqscale.report.step_times import read_step_times, seconds_by_step_times
from eqscale.report.wording import Wording, read_json, read_wording

PARTS = {"compute": "compute grid", "data_grid": "data grid", "controls": "control", "validation": "validation"}
"""Parts with a run table, and what one run of each is called; the compute grid lies in the folder itself."""

UNIQUE = "unique_units"
"""Column of ``Study.runs``: independent units of data that a run may see (``unique_…`` in the run table)."""
VARIANT = "variant"
"""Column of ``Study.runs``: the variant of the task; empty where the table names none."""

_REQUIRED = ("N", "D", "loss", "arm", "budget", "status", *(axis.column for axis in AXES.values()))


@dataclasses.dataclass(frozen=True)
class Study:
    """Everything a report is made of."""

    folder: Path
    """Where it was read from, and where its report goes."""
    runs: pd.DataFrame = dataclasses.field(repr=False)
    """Every run of every part, in the column ``part``; the index names the run in figures."""
    wording: Wording
    roles: Roles
    predictions: tuple[dict[str, Any], ...]
    """What ``eqscale predict`` wrote before the validation runs, by axis and compute."""
    evaluations: tuple[dict[str, Any], ...]
    """Of one trained model each, by ``eqscale measure`` or ``eqscale evaluate --json``."""
    to_come: Mapping[str, int]
    """How many planned runs haven't ended, by part, of parts that have any."""
    untimed: int | None
    """Finished runs that ``step_times.csv`` doesn't cover, None without it; with 0 it gives the axis of seconds."""
    animations: tuple[Path, ...]
    """Files of ``eqscale measure``, named by their arms."""
    curves: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)
    """Share of the steps and test loss of the compute grid's finished runs, (2, points), by ``run_id``."""

    def part(self, name: str) -> pd.DataFrame:
        """Finished runs of a part, empty if it has none."""
        return self.runs[(self.runs["part"] == name) & (self.runs["status"] == "finished")]

    @property
    def best(self) -> pd.DataFrame:
        """The run with the lowest loss of each arm at its largest budget, of compute grid and validation."""
        finished = pd.concat([self.part("compute"), self.part("validation")])
        top = finished[finished["budget"] == finished.groupby("arm")["budget"].transform("max")]
        return top.loc[top.groupby("arm", sort=False)["loss"].idxmin()]


def part_folder(folder: Path, part: str) -> Path:
    """Folder of a part's run table."""
    return folder if part == "compute" else folder / part


def study_folder(folder: Path) -> Path:
    """The results folder of the whole study: the parent if ``folder`` is a part of a study with a compute grid."""
    absolute = folder.absolute()
    is_part = absolute.name in PARTS and (absolute.parent / "runs.csv").is_file()
    return absolute.parent if is_part else folder


def read_study(folder: Path) -> Study:
    """Read all parts of a results folder.

    Raises:
        InputError: no run table or none with a run, an unreadable file, a missing column, or an invalid value.
    """
    paths = {part: part_folder(folder, part) / "runs.csv" for part in PARTS}
    paths = {part: path for part, path in paths.items() if path.is_file()}
    if not {"compute", "data_grid"} & paths.keys():
        raise InputError(f"{str(folder)!r} holds no runs.csv, nor does its folder data_grid")
    # a job that was stopped before its first run had ended leaves a table without rows
    tables = {part: table for part, path in paths.items() if len(table := _read_table(path))}
    if not {"compute", "data_grid"} & tables.keys():
        raise InputError(f"{str(folder)!r}: no run has ended yet")
    wording = read_wording(next(iter(paths.values())).parent / "task.json")
    seconds = {part: count_seconds(table) for part, table in tables.items()}
    step_times, untimed = read_step_times(folder), None
    if step_times is not None:
        timed = {part: seconds_by_step_times(table, step_times) for part, table in tables.items()}
        untimed = sum(int(timed[part][tables[part]["status"] == "finished"].isna().sum()) for part in tables)
        if not untimed:
            seconds = {part: timed[part].fillna(seconds[part]) for part in tables}
    checked = (_checked(tables[part].assign(seconds=seconds[part]), part, str(paths[part]), wording) for part in tables)
    runs = pd.concat(checked, ignore_index=True)
    measured = sorted((folder / "evaluation").glob("*"))
    evaluations = tuple(_read_evaluation(path, wording) for path in measured if path.suffix == ".json")
    animations = tuple(path for path in measured if path.suffix == ".gif")
    curves = _read_curves(folder / "records.jsonl")
    to_come = {part: missing for part, path in paths.items() if (missing := _runs_to_come(path, tables.get(part)))}
    roles, predictions = read_roles(runs), read_predictions(folder)
    return Study(folder, runs, wording, roles, predictions, evaluations, to_come, untimed, animations, curves)


def prediction_path(folder: Path, compute: float, axis: str) -> Path:
    """Where ``eqscale predict`` writes what it predicts for a cost: ``prediction_3e13.json``."""
    amount = f"{compute:g}".replace("e+", "e")
    return folder / f"prediction{AXES[axis].suffix}_{amount}.json"


def read_predictions(folder: Path) -> tuple[dict[str, Any], ...]:
    """All that ``eqscale predict`` wrote to a results folder, by axis and compute.

    Raises:
        InputError: a file is something else, or damaged.
    """
    found = [read_prediction(path) for path in folder.glob("prediction*.json")]
    return tuple(sorted(found, key=lambda prediction: (list(AXES).index(prediction["axis"]), prediction["compute"])))


def read_prediction(path: Path) -> dict[str, Any]:
    """What ``eqscale predict`` wrote.

    Raises:
        InputError: it is something else, or damaged.
    """
    content = read_json(path) or {}
    try:
        axis, _digest = content["axis"], content["runs_digest"]
        if axis not in AXES:
            raise ValueError(repr(axis))
        records = list(content["arms"].values())
        numbers = [content[name] for name in ("compute", "largest_budget_seen", "runs_seen")]
        for at in (record["at_sizes"] for record in records if "at_sizes" in record):
            numbers += [value for name in ("N", "loss", "low", "high") for value in at[name]]
        known: list[object] = []  # or null: without an optimum, or where no resample has one
        for found in (*records, *(record["trend"] for record in records if "trend" in record)):
            limits = [found["N_interval"]["model"], found["N_interval"]["robust"], found["new_run"]["model"]]
            known += [found["N"], found["loss"], *(value for low, high in limits for value in (low, high))]
        for value in (*numbers, *(value for value in known if value is not None)):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(repr(value))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: not a prediction, or damaged ({why}): eqscale predict writes it") from error
    return content


def _read_evaluation(path: Path, wording: Wording) -> dict[str, Any]:
    content = read_json(path) or {}
    needed = {"predictor", "errors"} | ({wording.variant.one} if wording.variant else set())
    for number, result in enumerate(content.get("results", []), start=1):
        if missing := sorted(needed - result.keys()) or sorted({"nmse", "nmse_se"} - result["errors"].keys()):
            raise InputError(
                f"{path}: result {number} has no {missing[0]!r}: delete the file; eqscale measure writes it"
            )
    return content


def _runs_to_come(path: Path, table: pd.DataFrame | None) -> int:
    """How many runs that ``study.json`` plans are not in the run table beside it."""
    planned = (read_description(path.parent) or {}).get("runs", [])
    return len(set(planned) - set(table["run_id"] if table is not None and "run_id" in table else ()))


def _read_curves(path: Path) -> dict[str, np.ndarray]:
    curves: dict[str, np.ndarray] = {}
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], 1):
        try:
            record = json.loads(line)
            if "spec" not in record and "error" in record:  # the note of a run that failed
                continue
            points = [(point["step"] / record["spec"]["steps"], point["test_nmse"]) for point in record["curve"]]
            finished = record["status"] == "finished"
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}:{number}: not the record of a run ({error!r})") from None
        if finished and points:
            curves[record["run_id"]] = np.array(points).T
    return curves


def _read_table(path: Path) -> pd.DataFrame:
    table = load_table(path)
    again = ", the table is of an earlier version: run its job again, which writes it from records.jsonl and trains "
    for column in (*_REQUIRED, "role", "control_of"):
        if column not in table:
            why = "" if column in _REQUIRED else f"{again}nothing twice"
            raise InputError(f"{path}: the column {column!r} is missing{why}")
    return table


def _checked(table: pd.DataFrame, part: str, source: str, wording: Wording) -> pd.DataFrame:
    table = table.assign(budget=positive_column(table, "budget", source))  # planned, so runs without a loss have it too
    if (table["status"] == "finished").any():
        for axis in AXES.values():
            needed = ("N", "D", "loss", "C")
            check_runs(table, {"C": axis.column}, required=needed, where=["status=finished"], source=source)
    names = {f"unique_{wording.unit.many}": UNIQUE} | ({wording.variant.one: VARIANT} if wording.variant else {})
    table = table.rename(columns=names)
    is_data_grid = UNIQUE in table and (table.groupby("budget")[UNIQUE].nunique() > 1).any()
    # optional columns get defaults, so that no reader needs a case for a table without them
    defaults = {"run_id": "", "seed": 0, "loss_se": float("nan"), "epochs": 0.0, "name": table["arm"], VARIANT: ""}
    missing = {name: value for name, value in defaults.items() if name not in table}
    return table.assign(part="data_grid" if is_data_grid else part, **missing)
