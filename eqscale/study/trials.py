"""What a study and its backend exchange: places, devices, events, and trials that are chosen as others end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

from eqscale.storage import AnyPath, matching, remove_folder, subfolders
from eqscale.study.ledger import Ledger
from eqscale.study.schedule import Cluster
from eqscale.training.spec import CurvePoint, RunRecord, RunSpec


@dataclasses.dataclass(frozen=True)
class Storage:
    """Where a study lives: folders that every node sees, or places on an object store."""

    study: AnyPath
    """Folder of this study: ledger, checkpoints, weights, Ray's own files."""
    data: AnyPath
    """Folder of the generated data sets."""

    @property
    def ledger(self) -> Ledger:
        """The study's ledger."""
        return Ledger(self.study / "ledger")

    def checkpoints(self, run_id: str) -> AnyPath:
        """Folder of a running trial's checkpoints."""
        return self.study / "checkpoints" / run_id

    def weights(self, run_id: str) -> AnyPath:
        """File of a finished run's final weights."""
        return self.study / "weights" / f"{run_id}.pt"

    def sweep(self) -> None:
        """Delete what killed processes left behind: half-written files, checkpoints of runs with a record."""
        for folder in (self.ledger.folder, self.ledger.folder / "failed", self.study / "weights"):
            for partial in matching(folder, ".*.tmp"):
                partial.unlink(missing_ok=True)
        for run_id in subfolders(self.study / "checkpoints"):
            if run_id in self.ledger:
                remove_folder(self.checkpoints(run_id))


@dataclasses.dataclass
class StudyEvents:
    """What the driver does when something happens to a trial."""

    started: Callable[[RunSpec], None]
    point: Callable[[RunSpec, CurvePoint], None]
    ended: Callable[[RunSpec], None]
    retried: Callable[[RunSpec, str], None]
    failed: Callable[[RunSpec, str], None]
    pruned: Callable[[RunSpec], None]
    stopping: Callable[[], None]
    """The user has asked it to stop (Ctrl-C)."""
    still_ours: Callable[[], None]
    """Called before the others; what it raises ends the trials."""


class TrialSource(Protocol):
    """Trials that are chosen while others run, as a search does."""

    def __len__(self) -> int:
        """Number of trials still to be asked for."""

    def ask(self) -> RunSpec | None:
        """The next trial, or None if there are no more."""

    def should_prune(self, spec: RunSpec, point: CurvePoint) -> bool:
        """Whether a running trial that has reached ``point`` should be stopped."""

    def tell(self, spec: RunSpec, record: RunRecord | None) -> None:
        """A trial has ended with its record, or without one because it was pruned."""


@dataclasses.dataclass(frozen=True)
class Devices:
    """What a Ray cluster has, or may have once its autoscaler has started every node it is allowed."""

    cpus: int
    gpus: int
    per_node: int
    """Devices of the smallest node that has any: GPUs if there are any, else CPU cores."""

    @property
    def cluster(self) -> Cluster:
        """What trials are planned for."""
        return Cluster(self.gpus or self.cpus, self.per_node)
