"""The ledger: one atomically written record per ended run. Run table and MLflow are views of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Mapping

from eqscale.arms import UnknownArm
from eqscale.errors import InputError
from eqscale.storage import AnyPath, matching, write_atomically
from eqscale.tasks import UnknownTask
from eqscale.training.optim import UnknownOptimizer
from eqscale.training.spec import CODE, ChangedRecord, CurvePoint, RunRecord, RunSpec


class UnreadableRecord(InputError):
    """A record that can't be read."""

    def __init__(self, message: str, damaged: bool = True) -> None:
        super().__init__(message)
        self.damaged = damaged
        """False if it is a record of other code."""


class Ledger:
    """Records of a study, one JSON file per run, named by the run's identity."""

    def __init__(self, folder: AnyPath) -> None:
        self.folder = folder
        self._failures = folder / "failed"

    def _path(self, run_id: str) -> AnyPath:
        return self.folder / f"{run_id}.json"

    def __contains__(self, run_id: object) -> bool:
        return isinstance(run_id, str) and self._path(run_id).exists()

    def write(self, record: RunRecord) -> None:
        """Store the record of an ended run; an earlier failure of the same run is forgotten."""
        write_atomically(self._path(record.run_id), record.to_json().encode())
        (self._failures / f"{record.run_id}.json").unlink(missing_ok=True)

    def write_failure(self, spec: RunSpec, error: str) -> None:
        """Note that a run failed, and why; it counts as not done and is tried again by the next start."""
        self.note_failure({"name": spec.name, "run_id": spec.run_id, "error": error})

    def note_failure(self, note: Mapping[str, str]) -> None:
        """Store a note as ``failure_notes`` gives it."""
        write_atomically(self._failures / f"{note['run_id']}.json", json.dumps(note, indent=1).encode())

    def read(self, run_id: str) -> RunRecord:
        """Record of one run.

        Raises:
            UnreadableRecord: if it is damaged, or was written by a version of the code with other fields.
            InputError: if its arm is unknown.
        """
        where = f"record {run_id} in {str(self.folder)!r}"
        try:
            record = parse_record(self._path(run_id).read_bytes(), where)
            if record.run_id != run_id:
                raise UnreadableRecord(f"{where} {_ANOTHER}")
        except UnreadableRecord as error:
            if not error.damaged:
                raise
            raise UnreadableRecord(f"{error}; eqscale check STUDY --mend sets it aside") from error
        return record

    def scan(self) -> tuple[list[RunRecord], dict[str, UnreadableRecord]]:
        """All records that can be read, in the order of their identities; identity -> why not, of the others."""
        records, unreadable = [], {}
        for path in matching(self.folder, "*.json"):
            try:
                records.append(self.read(path.stem))
            except UnreadableRecord as error:
                unreadable[path.stem] = error
        return records, unreadable

    def records(self) -> list[RunRecord]:
        """All records that can be read, in the order of their identities."""
        return self.scan()[0]

    def sound(self) -> list[RunRecord]:
        """As ``records``; raises UnreadableRecord if one is damaged: to publish the others would lose its last copy."""
        records, unreadable = self.scan()
        for error in unreadable.values():
            if error.damaged:
                raise error
        return records

    def set_aside(self, run_id: str) -> None:
        """Move a damaged record to the folder ``damaged``: the next start trains the run again."""
        write_atomically(self.folder / "damaged" / f"{run_id}.json", self._path(run_id).read_bytes())
        self._path(run_id).unlink()

    def failures(self) -> dict[str, str]:
        """Identity -> error of the runs whose latest attempt failed."""
        return {note["run_id"]: note["error"] for note in self.failure_notes()}

    def failure_notes(self) -> list[dict[str, str]]:
        """Name, run_id and error of the runs whose latest attempt failed, in the order of their identities.

        Where a note is damaged, its error says so: the run counts as failed, and the next start tries it again.
        """
        notes = []
        for path in matching(self._failures, "*.json"):
            note = parse_note(path.read_bytes())
            if note is not None and note["run_id"] == path.stem:
                notes.append(note)
            elif _is_run_id(path.stem):
                notes.append({"name": path.stem, "run_id": path.stem, "error": "the note of its failure is damaged"})
        return notes


def _is_run_id(text: str) -> bool:
    """Whether a text has the form of ``RunSpec.run_id``: identities become file names."""
    return re.fullmatch("[0-9a-f]{16}", text) is not None


def parse_note(text: bytes) -> dict[str, str] | None:
    """The failure note that a text holds: name, run_id and error; None if it holds anything else."""
    try:
        note = json.loads(text)
    except ValueError:
        return None
    if not isinstance(note, dict) or note.keys() != {"name", "run_id", "error"}:
        return None
    return note if all(isinstance(value, str) for value in note.values()) and _is_run_id(note["run_id"]) else None


_REGISTERED = {UnknownArm: "--arm-file", UnknownTask: "--task-file", UnknownOptimizer: "--optimizer-file"}
_ANOTHER = "is damaged (its content has another identity)"


def parse_record(text: bytes, where: str) -> RunRecord:
    """The record that a text holds.

    Args:
        text: what ``RunRecord.to_json`` wrote, as UTF-8.
        where: what to call it in messages.

    Raises:
        UnreadableRecord: if it is damaged, or was written by a version of the code with other fields.
        InputError: if its arm, task or optimiser is unknown, which says nothing against the record.
    """
    try:
        record = RunRecord.from_json(text.decode())
        _check_types(record)
    except ChangedRecord as error:
        raise UnreadableRecord(f"{where} is damaged ({error})") from error
    except (ValueError, TypeError, KeyError, AttributeError, InputError) as error:
        code = _code_of(text)
        if code not in (None, CODE):
            raise UnreadableRecord(f"{where} was written by {code}", damaged=False) from error
        for unknown, option in _REGISTERED.items():
            if isinstance(error, unknown):
                raise InputError(f"{where} can't be read without its file ({error}): name it with {option}") from error
        raise UnreadableRecord(f"{where} is damaged ({type(error).__name__}: {error})") from error
    if record.outdated and record.code == CODE:
        raise UnreadableRecord(f"{where} {_ANOTHER}")
    return record


_TYPES: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float)}


def _check_types(record: RunRecord) -> None:
    """Raise TypeError or ValueError for a value that no run can have: it would be published as it is."""
    parts: list[RunRecord | CurvePoint] = [record, *record.curve]
    for part in parts:
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            wanted = _TYPES.get(str(field.type))
            if wanted is not None and (isinstance(value, bool) or not isinstance(value, wanted)):
                raise TypeError(f"{field.name} is {value!r}")
    for name, value in record.test.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} is {value!r}")
    if record.status not in ("finished", "diverged"):
        raise ValueError(f"status is {record.status!r}")


def _code_of(text: bytes) -> str | None:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(text)["code"])
    return None
