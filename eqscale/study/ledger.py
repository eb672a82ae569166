"""The ledger: one atomically written record per ended run. Run table and MLflow are views of it."""

from __future__ import annotations

import json

from eqscale.storage import AnyPath, matching, write_atomically
from eqscale.training.spec import RunRecord, RunSpec


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
        content = {"name": spec.name, "run_id": spec.run_id, "error": error}
        write_atomically(self._failures / f"{spec.run_id}.json", json.dumps(content, indent=1).encode())

    def read(self, run_id: str) -> RunRecord:
        """Record of one run."""
        return RunRecord.from_json(self._path(run_id).read_text())

    def records(self) -> list[RunRecord]:
        """All records, in the order of their identities."""
        return [self.read(path.stem) for path in matching(self.folder, "*.json")]

    def failures(self) -> dict[str, str]:
        """Identity -> error of the runs whose latest attempt failed."""
        return {
            path.stem: json.loads(path.read_text())["error"] for path in matching(self._failures, "*.json")
        }
