"""Planned runs one after another, without Ray and MLflow.

To debug one run, in a Slurm array, or on a machine with PyTorch alone. A plan is a file with a line of JSON for each
run: its spec, and the data that it trains on. Records go to a file like the ``records.jsonl`` of a results folder,
which a study adopts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from eqscale.errors import InputError
from eqscale.storage import write_atomically
from eqscale.study.records import read_records
from eqscale.tasks.dataset import DataSpec, open_split, prepare
from eqscale.training.loop import train
from eqscale.training.spec import RESULTS_VERSION, CurvePoint, RunRecord, RunSpec

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run, and what it trains on."""

    spec: RunSpec
    data: DataSpec

    def __post_init__(self) -> None:
        if self.data.digest != self.spec.data:
            raise InputError(
                f"run {self.spec.name} is of the data {self.spec.data[:12]}; this code makes {self.data.digest[:12]}: "
                "plan it with the version that trains it"
            )


def write_plan(path: Path, planned: Sequence[Planned]) -> None:
    """Write what ``read_plan`` reads, in that order; raises InputError if the file can't be written."""
    lines = [
        {"version": run.spec.version, "run": run.spec.to_dict(), "data": dataclasses.asdict(run.data)}
        for run in planned
    ]
    try:
        write_atomically(path, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def read_plan(path: Path) -> list[Planned]:
    """The runs of a plan; raises InputError, which names the line, for one that can't be trained."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the plan {path}: {getattr(error, 'strerror', None) or error}") from error
    planned = []
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
            if content["version"] != RESULTS_VERSION:
                raise InputError(f"of results version {content['version']}; this code trains {RESULTS_VERSION}")
            data = DataSpec(**(content["data"] | {"given": tuple(map(tuple, content["data"]["given"]))}))
            planned.append(Planned(RunSpec.from_dict(content["run"]), data))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}, line {number}: not a run of a plan ({type(error).__name__}: {error})") from error
    if not planned:
        raise InputError(f"the plan {path} holds no run")
    return planned


def share(items: Sequence[T], which: str) -> list[T]:
    """Part I of N of a list, for ``which`` = "I/N": items are dealt in turn, so that parts take about as long.

    Raises InputError unless 1 <= I <= N.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", which)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--shard {which!r}: write I/N with 1 <= I <= N, e.g. 3/8")
    return list(items[int(found[1]) - 1 :: int(found[2])])


def train_alone(
    planned: Sequence[Planned], records: Path, data: Path, weights: Path | None, say: Callable[[str], Any]
) -> int:
    """Train the runs that a file of records lacks, one after another; each record is appended as its run ends.

    A run that was interrupted goes on from its checkpoint, in a folder beside the file. One that fails is noted there,
    and tried again by the next start.

    Args:
        planned: the runs.
        records: file that receives the records; made if it isn't there.
        data: folder of data sets; what it lacks is made.
        weights: folder that receives the final weights, if any.
        say: prints a line.

    Returns:
        The number of runs that failed.

    Raises:
        InputError: the file holds something else, can't be written or is written by another process, or data that the
            folder lacks can't be made here.
    """
    failed = 0
    with _only_writer(records):
        known = _known(records, say)
        todo = [run for run in planned if run.spec.run_id not in known]
        say(f"{len(planned)} runs: {len(planned) - len(todo)} have a record in {records}, {len(todo)} to go")
        prepared: set[DataSpec] = set()
        for number, run in enumerate(todo, start=1):
            say(f"[{number}/{len(todo)}] {run.spec.name}: {run.spec.steps} steps")
            if run.data not in prepared:  # which reads all of it
                prepare(run.data, data, progress=_Tenths(say))
                prepared.add(run.data)
            try:
                record = _train(run, records, data, weights, say)
            except InputError:
                raise
            except Exception as error:  # the others can still be trained
                failed += 1
                traceback.print_exc()
                note = {"name": run.spec.name, "run_id": run.spec.run_id, "error": f"{type(error).__name__}: {error}"}
                _append(records, json.dumps(note))
                say(f"  failed: {note['error']}")
            else:
                _append(records, record.to_json(indent=None))
                loss = f"loss {record.loss:.4f}, " if record.status == "finished" else ""
                say(f"  {record.status}: {loss}{record.seconds:.0f} s of training")
                shutil.rmtree(_checkpoints(records, run), ignore_errors=True)
    return failed


class _Tenths:
    """Says how far the making of data has come, at every tenth."""

    def __init__(self, say: Callable[[str], Any]) -> None:
        self.say, self.said = say, -1

    def __call__(self, done: int, total: int) -> None:
        if (tenth := 10 * done // total) > self.said and (done < total or self.said >= 0):
            self.said = tenth
            self.say(f"  data: {done} of {total} systems")


def _checkpoints(records: Path, run: Planned) -> Path:
    return records.with_name(f"{records.name}.checkpoints") / run.spec.run_id


def _train(run: Planned, records: Path, data: Path, weights: Path | None, say: Callable[[str], Any]) -> RunRecord:
    spec = run.spec

    def report(point: CurvePoint) -> None:
        say(f"  step {point.step}/{spec.steps}: test loss {point.test_nmse:.4f}, {point.seconds:.0f} s")

    return train(
        spec,
        open_split(run.data, data, "train", systems=spec.train_systems, **spec.options),
        open_split(run.data, data, "test", systems=spec.test_systems, **spec.options),
        checkpoints=_checkpoints(records, run),
        weights=None if weights is None else weights / f"{spec.run_id}.pt",
        report=report,
    )


@contextmanager
def _only_writer(records: Path) -> Iterator[None]:
    lock = FileLock(records.with_name(f".{records.name}.lock"))
    try:
        records.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        records.open("a").close()
    except Timeout as error:
        raise InputError(f"another process writes {records}: give each its own --records") from error
    except OSError as error:
        raise InputError(f"cannot write {records}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def _known(records: Path, say: Callable[[str], Any]) -> set[str]:
    """Runs with a record; half a line at the end, of a process that was killed while it wrote, is cut off."""
    if not records.is_file():
        return set()
    content = records.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        say(f"{records} ends in half a line, which is dropped: its run is trained again")
        write_atomically(records, whole)
    return set(read_records(records).require_sound().records)


def _append(records: Path, line: str) -> None:
    with records.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
        file.flush()
        os.fsync(file.fileno())
