"""MLflow as a view of the ledger: the driver alone writes, in a thread that can't slow or stop a trial."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import re
import sqlite3
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

# Fail fast when an address is wrong; the ledger holds everything, so nothing is lost by giving up.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

import pandas as pd
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from eqscale.errors import InputError
from eqscale.laws.tracking import search_runs
from eqscale.study import overview
from eqscale.study.table import record_row, spec_columns, test_columns
from eqscale.tracking import database
from eqscale.training.spec import LOSS_NAMES, CurvePoint, RunRecord, RunSpec

logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every new database

_LONGEST_WAIT_SECONDS = 15.0
_TRIES = 3
STUDY_TAG = "eqscale.study"
RUN_TAG = "eqscale.run_id"


_ARTIFACTS = "mlartifacts"
"""Folder of artifacts beside an SQLite database."""


def unreachable(uri: str, error: BaseException) -> InputError:
    """One line about a tracking URI that can't be used, from what MLflow raised."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause  # MLflow's own message wraps those of three libraries; the innermost says what is wrong
    reason = textwrap.shorten(str(error), 200, placeholder=" …")
    parts = urlsplit(uri)
    proxy = getproxies().get(parts.scheme) if parts.hostname and not proxy_bypass(parts.hostname) else None
    through = f" (through the proxy {proxy}, see {parts.scheme}_proxy and no_proxy)" if proxy else ""
    message = (
        f"MLflow tracking URI {uri!r} doesn't answer or can't be written{through}: {reason}; give http://HOST:PORT of "
        "a server, or sqlite:///FILE on this machine"
    )
    return InputError(re.sub(r"//[^/@\s]+@", "//…@", message))  # without user and password


def _check_database(path: Path) -> None:
    """Open an SQLite file for writing, or create it: MLflow itself retries for minutes before it gives up."""
    with contextlib.closing(sqlite3.connect(path, timeout=20.0)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.rollback()


class Tracker:
    """Writes one study to one MLflow experiment: a parent run for the study, a child run per trial.

    A thread makes all writes, in order, from a queue. While the server doesn't answer, it retries, ever less often.
    What is still queued when the study ends, or is lost with the driver, is in the ledger: the next start writes it.
    """

    def __init__(self, uri: str, experiment: str, study_tags: Mapping[str, str]) -> None:
        """Connect, create the experiment (and an SQLite file), and end runs that an earlier driver left open.

        ``study_tags`` are given to every run: study, preset, git commit, data digest.

        Raises InputError if the address doesn't answer or can't be written.
        """
        self.uri, self._tags = uri, dict(study_tags)
        self._database = database(uri)
        try:
            if self._database is not None:
                _check_database(self._database)
            self._client = MlflowClient(tracking_uri=uri)
            self.experiment_id = self._open_experiment(experiment)
            self._known = self._sweep()
            self.parent_id = self._open_parent()
        except Exception as error:
            raise unreachable(uri, error) from error
        self._open: dict[str, str] = {}
        self._described: set[str] = set()
        self._points: dict[str, int] = {}
        self.errors: list[str] = []
        """Writes that were given up."""
        self.outages = 0
        """How often the server stopped answering."""
        self._retrying = False
        self._give_up = threading.Event()
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def _open_experiment(self, name: str) -> str:
        """The study's experiment: made, or restored if it was deleted; its artifacts lie beside an SQLite file."""
        location = (self._database.resolve().parent / _ARTIFACTS).as_uri() if self._database else None
        if (found := self._client.get_experiment_by_name(name)) is None:
            return self._client.create_experiment(name, artifact_location=location)
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        if location is not None and found.artifact_location not in (None, location):
            self._move_artifacts(found, location)
        return found.experiment_id

    def _move_artifacts(self, experiment: Any, location: str) -> None:
        """Let artifacts lie beside a database that was moved or copied; MLflow itself can't change where they are."""
        before = experiment.artifact_location
        if not before.startswith("file:") or not before.endswith(f"/{_ARTIFACTS}"):  # not where a study has put them
            return
        assert self._database is not None
        with contextlib.closing(sqlite3.connect(self._database, timeout=20.0)) as connection, connection:
            own = (experiment.experiment_id,)
            connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (location, *own))
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
                "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                (location, len(before) + 1, *own, len(before), before),
            )

    def _search(self, condition: str) -> list[Any]:
        return list(search_runs(self._client, self.experiment_id, condition))

    def _sweep(self) -> dict[str, str]:
        """End what a killed driver left RUNNING; return run_id -> MLflow id of the completed runs."""
        for run in self._search("attributes.status = 'RUNNING'"):
            self._client.set_terminated(run.info.run_id, "KILLED")
        done = self._search(f"attributes.status = 'FINISHED' and tags.`{RUN_TAG}` != ''")
        return {run.data.tags[RUN_TAG]: run.info.run_id for run in done}

    def _open_parent(self) -> str:
        study = self._tags["study"]
        if found := self._search(f"tags.`{STUDY_TAG}` = '{study}'"):
            return found[0].info.run_id
        tags = self._tags | {STUDY_TAG: study}
        return self._client.create_run(self.experiment_id, run_name=f"study-{study}", tags=tags).info.run_id

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            self._carry_out(job)

    def _carry_out(self, job: Callable[[], None]) -> None:
        """Do one write; a dead server is waited for, a write that a live server refuses is given up."""
        self._retrying = False
        refused = 0
        wait = 0.5
        while not self._give_up.is_set():
            try:
                return job()
            except Exception as error:  # whatever it is, it must not end this thread
                reason = str(error)
            if self._answers():
                refused += 1
                if refused == _TRIES:
                    break
            elif not self._retrying:
                self.outages += 1
            self._retrying = True
            self._give_up.wait(wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
        else:
            reason = "the server doesn't answer"
        self.errors.append(reason)

    def _answers(self) -> bool:
        try:
            self._client.get_experiment(self.experiment_id)
        except Exception:
            return False
        return True

    def run_started(self, spec: RunSpec) -> None:
        """Open the MLflow run of a trial (once, also if the trial is retried)."""
        self._queue.put(lambda: self._start(spec))

    def _start(self, spec: RunSpec) -> None:
        if spec.run_id in self._described:
            return
        if spec.run_id not in self._open:
            self._open[spec.run_id] = self._half_created(spec) or self._create(spec)
        params = [Param(name, value) for name, value in run_parameters(spec).items()]
        self._client.log_batch(self._open[spec.run_id], params=params)
        self._described.add(spec.run_id)

    def _half_created(self, spec: RunSpec) -> str | None:
        """MLflow id of a run that the server created without living to say so."""
        if not self._retrying:
            return None
        found = self._search(f"attributes.status = 'RUNNING' and tags.`{RUN_TAG}` = '{spec.run_id}'")
        return found[0].info.run_id if found else None

    def _create(self, spec: RunSpec) -> str:
        tags = self._tags | {
            RUN_TAG: spec.run_id,
            "mlflow.parentRunId": self.parent_id,
            "arm": spec.arm,
            "budget": f"{spec.budget:g}",
            "size": str(spec.size),
            "seed": str(spec.seed),
            "data": spec.data,
        }
        return self._client.create_run(self.experiment_id, run_name=spec.name, tags=tags).info.run_id

    def point(self, run_id: str, point: CurvePoint) -> None:
        """Add a point to a running trial's curves."""
        now = _now()
        self._queue.put(lambda: self._log_points(run_id, [point], now))

    def _log_points(self, run_id: str, points: Iterable[CurvePoint], now: int) -> None:
        fresh = [p for p in points if p.step > self._points.get(run_id, 0)]
        metrics = [Metric(metric, getattr(p, name), now, p.step) for p in fresh for metric, name in _CURVES.items()]
        if metrics and run_id in self._open:
            self._client.log_batch(self._open[run_id], metrics=metrics)
            self._points[run_id] = max(p.step for p in fresh)

    def run_ended(self, record: RunRecord) -> None:
        """Complete the MLflow run of a trial from its record."""
        now = _now()  # the same at every try: MLflow then stores a metric once
        self._queue.put(lambda: self._complete(record, now))

    def _complete(self, record: RunRecord, now: int) -> None:
        if record.run_id in self._known:
            return
        self._start(record.spec)
        self._log_points(record.run_id, record.curve, now)
        values = final_metrics(record)
        metrics = [Metric(name, float(value), now, record.steps_done) for name, value in values.items()]
        mlflow_id = self._open[record.run_id]
        outcome = [RunTag("outcome", record.status), RunTag("hardware", record.hardware)]
        self._client.log_batch(mlflow_id, metrics=metrics, tags=outcome)
        self._client.set_terminated(mlflow_id, "FINISHED")
        self._known[record.run_id] = mlflow_id
        del self._open[record.run_id]

    def run_pruned(self, spec: RunSpec) -> None:
        """End the MLflow run of a trial that was given up."""
        self._queue.put(lambda: self._end(spec, "KILLED", RunTag("outcome", "pruned")))

    def run_failed(self, spec: RunSpec, error: str) -> None:
        """Mark the MLflow run of a trial as failed."""
        self._queue.put(lambda: self._end(spec, "FAILED", RunTag("error", error[:500])))

    def _end(self, spec: RunSpec, status: str, tag: RunTag) -> None:
        mlflow_id = self._open.get(spec.run_id)
        if mlflow_id is not None:
            self._client.log_batch(mlflow_id, tags=[tag])
            self._client.set_terminated(mlflow_id, status)
            del self._open[spec.run_id]
            self._described.discard(spec.run_id)

    def sync(self, records: Iterable[RunRecord]) -> None:
        """Write every record that MLflow doesn't have yet."""
        for record in records:
            self.run_ended(record)

    def mark_outdated(self, run_ids: Iterable[str]) -> None:
        """Tag the completed runs of earlier code or other data, so that nobody compares them unknowingly."""

        ids = set(run_ids)

        def mark() -> None:
            for run_id in ids & self._known.keys():
                self._client.set_tag(self._known[run_id], "outcome", "outdated")

        self._queue.put(mark)

    def draw(self, table: pd.DataFrame) -> None:
        """Draw the lines of loss against compute that a run table has now."""
        self._queue.put(lambda: overview.draw(self._client, self.experiment_id, table))

    def artifacts(self, folder: Path) -> None:
        """Attach a folder (plan, fits, figures, report) to the study's parent run."""
        self._queue.put(lambda: self._client.log_artifacts(self.parent_id, str(folder)))

    def close(self, status: str | None = "FINISHED", patience_seconds: float = 60.0) -> None:
        """Write what is queued, end the parent run with ``status`` and runs that are still open as KILLED.

        Once no write ends for ``patience_seconds``, the rest is left to the next start. Without a status nothing more
        is written: the runs are another driver's.
        """

        def end() -> None:
            for mlflow_id in self._open.values():
                self._client.set_terminated(mlflow_id, "KILLED")
            self._client.set_terminated(self.parent_id, status)

        if status is None:
            self._give_up.set()
        else:
            self._queue.put(end)
        self._queue.put(None)
        with contextlib.suppress(KeyboardInterrupt):
            left = math.inf
            while self._thread.is_alive() and (now := self._queue.qsize()) < left:
                left = now
                self._thread.join(patience_seconds)
        self._give_up.set()
        with contextlib.suppress(KeyboardInterrupt):
            self._thread.join(_LONGEST_WAIT_SECONDS)


def _now() -> int:
    return int(time.time() * 1000)


_CURVES = {
    "loss/train_loss": "train_loss",
    f"loss/{LOSS_NAMES['test_nmse']}": "test_nmse",
    "run/learning_rate": "learning_rate",
}
_COST = ("N", "D", "flops_nominal", "flops_executed", "seconds", "cpu_seconds", "epochs", "peak_memory_mb")


def final_metrics(record: RunRecord) -> dict[str, float]:
    """Metrics of an ended run, beside its curves.

    The UI charts metrics by section, in alphabetical order: ``loss/`` (curves), what the run cost (``run/``), final
    test metrics (``test/``). Without its section, a metric has the name of its column in the run table.
    """
    row = record_row(record)
    cost = {f"run/{name}": row[name] for name in _COST if row[name] is not None}
    test = {f"test/{name}": v for name, v in test_columns(record).items() if name in row}
    return cost | test


def run_parameters(spec: RunSpec) -> dict[str, str]:
    """What is logged as parameters of a run."""
    return {k: f"{v:g}" if isinstance(v, float) else str(v) for k, v in spec_columns(spec).items()}
