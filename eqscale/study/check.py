"""Compares run table, published records and MLflow with the ledger, and mends what differs."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.tracking import MlflowClient

from eqscale.description import description_path, read_description
from eqscale.errors import InputError
from eqscale.laws.tracking import search_runs
from eqscale.storage import matching, subfolders
from eqscale.study import overview
from eqscale.study.lease import StillOurs
from eqscale.study.ledger import Ledger, UnreadableRecord
from eqscale.study.records import read_records, write_records
from eqscale.study.table import is_outdated, record_row, row_aside, sorted_table, table_columns, write_table
from eqscale.study.tracking import RUN_TAG, STUDY_TAG, Tracker, final_metrics, run_parameters, unreachable
from eqscale.study.trials import Storage
from eqscale.tasks import DEFAULT
from eqscale.tracking import database, existing
from eqscale.training.checkpoint import is_whole
from eqscale.training.spec import RunRecord

_SAME = 1e-9  # relative difference of numbers that count as equal: text and databases round


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that a check has found."""

    where: str
    """ledger, run table, records, MLflow or storage."""
    kind: str
    """missing, doubled, different, unknown, not adopted, unmarked, running, damaged; or of a note: outdated..."""
    what: str
    """Name of the run, or its identity if that is all that is known."""
    detail: str
    note: bool = False
    """Worth knowing, but not a disagreement."""


@dataclasses.dataclass(frozen=True)
class Study:
    """The places that a check compares."""

    name: str
    storage: Storage
    results: Path
    tracking_uri: str
    experiment: str


@dataclasses.dataclass
class _Ledger:
    current: dict[str, RunRecord]
    outdated: dict[str, RunRecord]
    unreadable: dict[str, UnreadableRecord]
    failed: dict[str, str]

    @property
    def readable(self) -> dict[str, RunRecord]:
        return self.current | self.outdated


def check(study: Study, running: bool = False) -> list[Finding]:
    """Compare ledger, run table, published records, MLflow experiment and storage.

    Args:
        study: where they are.
        running: a driver is at work on the study, so that trials may be unfinished.

    Raises:
        InputError: if the study doesn't exist, or MLflow doesn't answer.
    """
    described = _describe(study)
    ledger = _read(study.storage.ledger, described)
    return [
        *_check_ledger(ledger, described),
        *_check_description(study),
        *_check_table(study, ledger, described),
        *_check_records(study, ledger),
        *_check_mlflow(study, ledger, described, running),
        *_check_storage(study, ledger, running),
    ]


def mend(study: Study, still_ours: StillOurs) -> None:
    """Bring run table, records and MLflow into agreement with the ledger; the caller is the study's only driver.

    Damaged records are moved to the ledger's folder ``damaged``. What the ledger then lacks and the published
    records hold is adopted; the next start trains the other runs again.
    MLflow runs that are doubled, different or unknown to the ledger are deleted as the MLflow UI deletes them:
    they can be restored there.
    """
    described = _describe(study)
    for run_id, error in _read(study.storage.ledger, described).unreadable.items():
        if error.damaged:
            still_ours()
            study.storage.ledger.set_aside(run_id)
    read_records(study.results).adopt(study.storage.ledger, still_ours)
    ledger = _read(study.storage.ledger, described)

    if any(finding.where == "run table" and not finding.note for finding in _check_table(study, ledger, described)):
        still_ours()
        _rewrite_table(study, ledger, described)
    if any(not finding.note for finding in _check_records(study, ledger)):
        still_ours()
        write_records(study.storage.ledger, study.results)
    if (damage := _database_damage(study)) is not None:
        raise InputError(f"MLflow database {str(database(study.tracking_uri))!r} is damaged: {damage}")
    client, experiment = _client(study)
    if experiment is not None:
        for run in _unfit(_completed(client, experiment.experiment_id), ledger):
            still_ours()
            client.delete_run(run.info.run_id)
    tags = {"study": study.name} | {name: described[name] for name in ("preset",) if name in described}
    still_ours()
    tracker = Tracker(study.tracking_uri, study.experiment, tags)  # ends what was left running
    tracker.sync(ledger.current.values())
    tracker.mark_outdated(ledger.outdated)
    tracker.draw(_table(_expected_rows(ledger, described).values()))
    tracker.close("FINISHED" if not set(described.get("runs", ())) - set(ledger.readable) else "KILLED")
    if tracker.errors:
        raise InputError(f"{len(tracker.errors)} writes to MLflow failed: {' '.join(tracker.errors[0].split())}")


def _describe(study: Study) -> dict[str, Any]:
    """What the last start wrote about itself: preset, and the identities of the planned runs."""
    if not study.storage.ledger.folder.exists():
        raise InputError(f"there is no study at {str(study.storage.study)!r}: no folder {'ledger'!r} in it")
    return read_description(study.results) or {}


def _read(ledger: Ledger, described: Mapping[str, Any]) -> _Ledger:
    records, unreadable = ledger.scan()
    planned = set(described.get("runs", ()))
    data = {record.spec.data for record in records if record.run_id in planned}
    sorted_out = _Ledger({}, {}, unreadable, ledger.failures())
    for record in records:
        (sorted_out.outdated if is_outdated(record, data) else sorted_out.current)[record.run_id] = record
    return sorted_out


def _note(where: str, kind: str, what: str, detail: str) -> Finding:
    return Finding(where, kind, what, detail, note=True)


def _check_ledger(ledger: _Ledger, described: Mapping[str, Any]) -> Iterator[Finding]:
    for run_id, error in ledger.unreadable.items():
        yield Finding("ledger", "damaged" if error.damaged else "outdated", run_id, str(error), not error.damaged)
    for record in ledger.outdated.values():
        why = record.code if record.outdated else "other data"
        yield _note("ledger", "outdated", record.spec.name, f"kept and marked: {why}")
    for run_id in ledger.current.keys() - set(described.get("runs", ledger.current)):
        yield _note("ledger", "unplanned", ledger.current[run_id].spec.name, "not in the plan of the last start")
    for run_id, error_text in ledger.failed.items():
        yield _note("ledger", "failed", run_id, error_text)


def _check_description(study: Study) -> Iterator[Finding]:
    if read_description(study.results) is None:
        path = description_path(study.results)
        yield _note("results", "damaged", path.name, "not readable; the next start writes it anew, with the plan")


def _read_table(study: Study) -> pd.DataFrame:
    """The run table; raises ValueError if the file holds something else."""
    table = pd.read_csv(study.results / "runs.csv", float_precision="round_trip")
    if missing := {"run_id", "name", "status"} - set(table):
        raise ValueError(f"no column {min(missing)!r}")
    return table


def _expected_rows(ledger: _Ledger, described: Mapping[str, Any]) -> dict[str, dict[str, object]]:
    planned = set(described.get("runs", ledger.current.keys()))
    rows = {i: record_row(r) if i in planned else row_aside(r, False) for i, r in ledger.current.items()}
    return rows | {i: row_aside(r, True) for i, r in ledger.outdated.items()}


def _check_table(study: Study, ledger: _Ledger, described: Mapping[str, Any]) -> Iterator[Finding]:
    if not (study.results / "runs.csv").is_file():
        yield _note("run table", "absent", study.name, f"no runs.csv in {str(study.results)!r}")
        return
    found: dict[str, list[Any]] = defaultdict(list)
    try:
        rows = _read_table(study).to_dict("records")
    except ValueError as error:
        yield Finding("run table", "damaged", "runs.csv", " ".join(str(error).split()))
        return
    for row in rows:
        found[row["run_id"]].append(row)
    expected = _expected_rows(ledger, described)
    for run_id, row in expected.items():
        if run_id not in found:
            yield Finding("run table", "missing", str(row["name"]), "in the ledger only")
            continue
        if len(found[run_id]) > 1:
            yield Finding("run table", "doubled", str(row["name"]), f"{len(found[run_id])} rows")
        yield from _different("run table", row, found[run_id][0])
    for run_id in found.keys() - expected.keys():
        row = found[run_id][0]
        if row["status"] in ("finished", "diverged", "outdated", "unplanned"):
            yield Finding("run table", "unknown", row["name"], f"{row['status']}; not in the ledger")


def _rewrite_table(study: Study, ledger: _Ledger, described: Mapping[str, Any]) -> None:
    expected = _expected_rows(ledger, described)
    rows: list[Mapping[Any, Any]] = list(expected.values())
    with contextlib.suppress(ValueError):  # from a damaged table nothing is kept: the next start adds what it lacks
        table = _read_table(study)
        others = table[~table["run_id"].isin(expected.keys()) & table["status"].isin(["failed", "pruned"])]
        rows += others.to_dict("records")
    write_table(sorted_table(_table(rows)), study.results)


def _table(rows: Collection[Mapping[Any, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(table_columns(next((row["task"] for row in rows), DEFAULT))))


def _check_records(study: Study, ledger: _Ledger) -> Iterator[Finding]:
    published = read_records(study.results)
    if not published.path.is_file():
        yield _note("records", "absent", study.name, f"no {published.path.name} in {str(study.results)!r}")
        return
    for number, reason in published.damaged.items():
        yield Finding("records", "damaged", f"line {number}", reason)
    expected = {run_id: record for run_id, record in ledger.readable.items() if not record.outdated}
    for run_id, record in expected.items():
        if run_id not in published.records:
            yield Finding("records", "missing", record.spec.name, "in the ledger only")
        elif published.records[run_id].to_json() != record.to_json():
            yield Finding("records", "different", record.spec.name, "other values than the ledger")
    for run_id in published.records.keys() - expected.keys() - ledger.unreadable.keys():
        name = published.records[run_id].spec.name
        yield Finding("records", "not adopted", name, "not in the ledger; --mend adopts it")
    if {run_id: note["error"] for run_id, note in published.failures.items()} != ledger.failed:
        yield Finding("records", "different", study.name, "other failed runs than the ledger")


def _different(where: str, ledger: Mapping[str, Any], view: Mapping[str, Any]) -> Iterator[Finding]:
    """The finding that values in a view differ from the ledger's, if any do."""
    names = [name for name in ledger if not _same(ledger[name], view.get(name))]
    if names:
        shown = ", ".join(f"{n}: {view.get(n)} instead of {ledger[n]}" for n in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield Finding(where, "different", str(ledger["name"]), shown + more)


def _same(first: Any, second: Any) -> bool:
    empty = [value is None or (isinstance(value, float) and math.isnan(value)) for value in (first, second)]
    if any(empty):
        return all(empty)
    if isinstance(first, (int, float)) and isinstance(second, (int, float)):
        return math.isclose(first, second, rel_tol=_SAME)
    return str(first) == str(second)


def _client(study: Study) -> tuple[MlflowClient, Any]:
    uri = existing(study.tracking_uri)
    try:
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(study.experiment)
        return client, found if found is not None and found.lifecycle_stage == "active" else None
    except Exception as error:
        raise unreachable(study.tracking_uri, error) from error


def _database_damage(study: Study) -> str | None:
    """What SQLite finds wrong with the file of the MLflow database; None of a sound one, or of a server."""
    if (path := database(existing(study.tracking_uri))) is None:
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        found = str(error)
    return None if found == "ok" else f"{found}: move the file away and start the study again, which writes it anew"


def _completed(client: MlflowClient, experiment_id: str) -> dict[str, list[Any]]:
    runs: dict[str, list[Any]] = defaultdict(list)
    for run in search_runs(client, experiment_id, f"attributes.status = 'FINISHED' and tags.`{RUN_TAG}` != ''"):
        runs[run.data.tags[RUN_TAG]].append(run)
    return runs


def _mlflow_difference(record: RunRecord, run: Any) -> Iterator[Finding]:
    expected: dict[str, Any] = {"name": record.spec.name, **final_metrics(record)}
    seen = {"name": run.info.run_name, **run.data.metrics}
    for name, value in run_parameters(record.spec).items():  # some share their names with metrics
        expected[f"parameter {name}"], seen[f"parameter {name}"] = value, run.data.params.get(name)
    outcome = run.data.tags.get("outcome")
    if outcome != "outdated":
        expected["outcome"], seen["outcome"] = record.status, outcome
    return _different("MLflow", expected, seen)


def _unfit(completed: Mapping[str, list[Any]], ledger: _Ledger) -> list[Any]:
    """MLflow runs that must go: unknown to the ledger, different from it, or the second of the same run."""
    unfit = []
    for run_id, runs in completed.items():
        if (record := ledger.readable.get(run_id)) is not None:
            right = [run for run in runs if not any(_mlflow_difference(record, run))]
            unfit += [run for run in runs if run not in right[:1]]
        elif run_id not in ledger.unreadable:
            unfit += runs
    return unfit


def _check_mlflow(study: Study, ledger: _Ledger, described: Mapping[str, Any], running: bool) -> Iterator[Finding]:
    if (damage := _database_damage(study)) is not None:
        yield Finding("MLflow", "damaged", str(database(study.tracking_uri)), damage)
        return
    client, experiment = _client(study)
    if experiment is None:
        for record in ledger.current.values():
            yield Finding("MLflow", "missing", record.spec.name, f"MLflow has no experiment {study.experiment!r}")
        return
    completed = _completed(client, experiment.experiment_id)
    for run_id, record in ledger.readable.items():
        runs, name = completed.get(run_id, []), record.spec.name
        if not runs:
            if run_id in ledger.current:
                yield Finding("MLflow", "missing", name, "in the ledger only")
            continue
        if len(runs) > 1:
            yield Finding("MLflow", "doubled", name, f"{len(runs)} finished runs")
        yield from _mlflow_difference(record, runs[0])
        if run_id in ledger.outdated and runs[0].data.tags.get("outcome") != "outdated":
            yield Finding("MLflow", "unmarked", name, "outdated in the ledger, not tagged so")
    for run_id in completed.keys() - ledger.readable.keys() - ledger.unreadable.keys():
        yield Finding("MLflow", "unknown", completed[run_id][0].info.run_name, "finished; not in the ledger")
    if not running:  # a driver draws now and then
        yield from _check_lines(client, experiment.experiment_id, _table(_expected_rows(ledger, described).values()))
    for run in search_runs(client, experiment.experiment_id, "attributes.status = 'RUNNING'"):
        if running:
            yield _note("MLflow", "running", run.info.run_name, "the driver is at work")
        elif RUN_TAG in run.data.tags or STUDY_TAG in run.data.tags:
            yield Finding("MLflow", "running", run.info.run_name, "left RUNNING; no driver is at work")


def _check_lines(client: MlflowClient, experiment_id: str, table: pd.DataFrame) -> Iterator[Finding]:
    expected, found = overview.best_losses(table), defaultdict(list)
    for _, arm, line in overview.drawn(client, experiment_id):
        found[arm].append(line)
    for arm in sorted(expected.keys() | found.keys()):
        if found[arm] != [expected.get(arm)]:
            yield Finding("MLflow", "different", f"line of {arm}", "loss against compute isn't as the ledger has it")


def _check_storage(study: Study, ledger: _Ledger, running: bool) -> Iterator[Finding]:
    checkpoints = set(subfolders(study.storage.study / "checkpoints"))
    weights = {path.stem for path in matching(study.storage.study / "weights", "[!.]*.pt")}
    ended = ledger.readable.keys()
    for run_id in sorted(checkpoints & ended):
        detail = "checkpoints of a run that has ended: can be deleted"
        yield _note("storage", "orphaned", ledger.readable[run_id].spec.name, detail)
    if not running:
        for run_id in sorted(checkpoints - ended):
            detail = "checkpoints of a run that hasn't ended: the next start goes on from there"
            yield _note("storage", "unfinished", run_id, detail)
        for run_id in sorted(weights - ended):
            yield _note("storage", "orphaned", run_id, "weights without a record")
    for run_id in sorted(ended & weights):
        if not is_whole(study.storage.weights(run_id)):
            name = ledger.readable[run_id].spec.name
            yield Finding("storage", "damaged", name, "its weights don't fit their digest: nothing can use them")
    for run_id in sorted(ended - weights):
        if ledger.readable[run_id].status == "finished":
            yield _note("storage", "missing", ledger.readable[run_id].spec.name, "no final weights")
