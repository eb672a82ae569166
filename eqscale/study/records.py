"""``records.jsonl`` of a results folder: the published ledger, from which a study continues in any clone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable
from pathlib import Path

from eqscale.errors import InputError
from eqscale.storage import write_atomically
from eqscale.study.lease import StillOurs
from eqscale.study.ledger import Ledger, UnreadableRecord, parse_note, parse_record
from eqscale.training.spec import RunRecord


def records_path(results: Path) -> Path:
    """The published records of a results folder."""
    return results / "records.jsonl"


@dataclasses.dataclass(frozen=True)
class PublishedRecords:
    """What a ``records.jsonl`` holds."""

    path: Path
    records: dict[str, RunRecord]
    """By identity; of the present results version."""
    failures: dict[str, dict[str, str]]
    """By identity: name, run_id and error of the runs whose latest attempt failed."""
    damaged: dict[int, str]
    """Line number -> what is wrong with it."""
    outdated: dict[str, RunRecord]
    """By identity; of earlier results versions, which no study takes over."""

    def require_sound(self) -> PublishedRecords:
        """These records; raises InputError, which names the lines, if any is damaged."""
        if self.damaged:
            lines = "; ".join(f"line {number} {reason}" for number, reason in self.damaged.items())
            raise InputError(
                f"{self.path}: {lines}: restore what was published, or delete it and the run is trained again"
            )
        return self

    def missing(self, ledger: Ledger) -> dict[str, RunRecord]:
        """The records that a ledger lacks."""
        return {run_id: record for run_id, record in self.records.items() if run_id not in ledger}

    def only(self, run_ids: Collection[str]) -> PublishedRecords:
        """The records and failures of some runs."""
        records = {run_id: record for run_id, record in self.records.items() if run_id in run_ids}
        failures = {run_id: note for run_id, note in self.failures.items() if run_id in run_ids}
        return dataclasses.replace(self, records=records, failures=failures)

    def adopt(self, ledger: Ledger, still_ours: StillOurs) -> int:
        """Write to the ledger what it lacks; returns the number of records. Failures are only notes on the side."""
        records = self.missing(ledger)
        for record in records.values():
            still_ours()
            ledger.write(record)
        known = ledger.failures()
        for run_id, note in self.failures.items():
            if run_id not in ledger and run_id not in known:
                still_ours()
                ledger.note_failure(note)
        return len(records)


def read_records(results: Path) -> PublishedRecords:
    """Read the published records of a results folder, or those of a file; none if there is no such file.

    Raises InputError if a run's arm is unknown.
    """
    path = results if results.suffix == ".jsonl" or results.is_file() else records_path(results)
    published = PublishedRecords(path, {}, {}, {}, {})
    if not published.path.is_file():
        return published
    for number, line in enumerate(published.path.read_bytes().splitlines(), start=1):
        if (failure := parse_note(line)) is not None:
            published.failures[failure["run_id"]] = failure
            continue
        try:
            record = parse_record(line, "")
        except UnreadableRecord as error:
            if error.damaged:
                published.damaged[number] = str(error).strip()
            continue
        except InputError as error:
            raise InputError(f"{published.path}: line {number}{error}") from error
        if record.outdated:
            published.outdated[record.run_id] = record
            continue
        if record.to_json() != published.records.setdefault(record.run_id, record).to_json():
            published.damaged[number] = f"holds another record of run {record.spec.name} than a line before it"
    for run_id in published.records:  # a later attempt succeeded
        published.failures.pop(run_id, None)
    return published


def write_records(ledger: Ledger, results: Path, records: Iterable[RunRecord] | None = None) -> None:
    """Publish a ledger: a line for every record of the present results version, then for every failure.

    Each by identity, so that equal ledgers give equal files, byte for byte, and a new run is a new line. ``records``:
    the ledger's, if they have been read already.
    """
    records = ledger.records() if records is None else records
    lines = [record.to_json(indent=None) for record in records if not record.outdated]
    lines += [json.dumps(note) for note in ledger.failure_notes()]
    write_atomically(records_path(results), "".join(f"{line}\n" for line in lines).encode())
