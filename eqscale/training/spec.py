"""The specification of a training run, and its record."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from eqscale import __version__
from eqscale.arms import Size, get_arm
from eqscale.errors import InputError
from eqscale.tasks import DEFAULT, Task, get_task
from eqscale.tasks.base import OptionValue
from eqscale.training.optim import get_optimizer

# Raise this when a change of code changes the outcome of a run: its identity changes with it, so that
# results of different code never mix.
RESULTS_VERSION = 6
_VERSION = "results version "
CODE = f"eqscale {__version__}, {_VERSION}{RESULTS_VERSION}"
"""What a record names as its code."""

ADDED: dict[str, Any] = {"task": DEFAULT, "optimizer": "adamw", "momentum": 0.9}
"""Fields of a run that came after results version 4, with the value that earlier runs had: there they are left out of
what is hashed and stored, so that a run keeps its identity."""

MAX_LEARNING_RATE = 1.0
"""Weights start at 1 / sqrt(fan-in): a step of this size leaves nothing of them."""

WARMUP = 0.4
"""Share of the steps over which the learning rate rises. With 0.05, losses ended up to 20 % higher and scattered
more between seeds, GATr's most (``docs/training.md``)."""


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """Everything that determines the outcome of one training run; its hash is the run's identity."""

    arm: str
    """Name of a registered arm."""
    size: Size
    """Width, depth and heads."""
    budget: float
    """Training FLOPs (executed) that the run was designed to spend."""
    steps: int
    batch_size: int
    """Samples in a batch."""
    learning_rate: float
    """Peak of the schedule."""
    seed: int
    """Number of the replicate; see ``luck``."""
    data: str
    """Digest of the data definition."""
    train_systems: int
    """Unique systems seen in training: a prefix of the training split."""
    test_systems: int
    """Systems of the test split that the final evaluation uses."""
    test_samples_per_system: int
    """Samples evaluated of each test system, evenly spaced."""
    view: tuple[tuple[str, OptionValue], ...] = ()
    """The task's options that don't change the stored data, in the task's order; by default theirs."""
    warmup: float = WARMUP
    """Share of the steps over which the learning rate rises linearly."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrix weights."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    task: str = ADDED["task"]
    optimizer: str = ADDED["optimizer"]
    """Names of a registered task and optimiser."""
    momentum: float = ADDED["momentum"]
    """Share of the past in the optimiser's average of gradients."""
    version: int = RESULTS_VERSION
    """Results version of the code that it is for; only the present one can be trained."""

    def __post_init__(self) -> None:
        # Runs of earlier results versions are only read, and their arm may be gone.
        arm = get_arm(self.arm) if self.version == RESULTS_VERSION else None
        task = get_task(self.task)
        system, systems, samples = task.words.unit.one, task.words.unit.many, task.words.sample.many
        object.__setattr__(self, "view", _view(task, self.view))
        get_optimizer(self.optimizer)
        for name in ("steps", "batch_size", "train_systems", "test_systems", "test_samples_per_system"):
            self._require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("seed", "weight_decay"):
            self._require(getattr(self, name) >= 0, f"{name} must be at least 0, not {getattr(self, name)}")
        for name in ("budget", "learning_rate", "clip"):
            value = getattr(self, name)
            self._require(0 < value < math.inf, f"{name} must be positive and finite, not {value}")
        self._require(
            self.learning_rate <= MAX_LEARNING_RATE,
            f"learning rate {self.learning_rate:g} can't work: weights start far below 1; at most "
            f"{MAX_LEARNING_RATE:g}",
        )
        self._require(0 <= self.momentum < 1, f"momentum must be at least 0 and below 1, not {self.momentum}")
        self._require(0 <= self.warmup <= 1, f"warmup must be a share of the steps, not {self.warmup}")
        available = self.train_systems * task.samples_per_system
        self._require(
            self.batch_size <= available,
            f"batch size {self.batch_size} exceeds the {available} {samples} of {self.train_systems} training "
            f"{systems}: at most {available}, or more {systems}",
        )
        self._require(
            self.test_samples_per_system <= task.samples_per_system,
            f"{self.test_samples_per_system} test {samples} per {system}; a {system} has {task.samples_per_system}",
        )
        try:
            if arm:
                arm.flops(self.size, task)
        except InputError as error:
            raise InputError(f"run of arm {self.arm}, size {self.size}: {error}") from error

    def _require(self, met: bool, message: str) -> None:
        if not met:
            raise InputError(f"run of arm {self.arm}: {message}")

    @property
    def options(self) -> dict[str, OptionValue]:
        """The task's options that don't change the stored data."""
        return dict(self.view)

    @property
    def run_id(self) -> str:
        """Stable identity: a hash of ``to_dict`` and the results version."""
        content = json.dumps([self.version, self.to_dict()], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def luck(self) -> int:
        """Seed of everything random about a run: initialisation, data order and augmentation.

        Runs of another arm, size, budget, batch, data or replicate share none of it. Runs that differ only in how they
        are optimised, or in the task's view, share all of it, so that they can be compared in pairs.
        """
        own = [self.task, self.arm, dataclasses.astuple(self.size), self.budget, self.batch_size, self.data]
        content = json.dumps([*own, self.train_systems, self.seed])
        return int(hashlib.sha256(content.encode()).hexdigest()[:16], 16)

    @property
    def name(self) -> str:
        """Readable name for tables and the MLflow UI."""
        budget = f"{self.budget:.3g}".replace("e+", "e")
        defaults = get_task(self.task).check_options({})
        parts = [self.task] if self.task != DEFAULT else []
        parts += [self.arm, budget, str(self.size), f"s{self.seed}"]
        parts += [self.optimizer] if self.optimizer != ADDED["optimizer"] else []
        parts += [str(value) for name, value in self.view if value != defaults[name]]
        return "-".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The run as records hold it and as it is hashed: plain JSON under the task's stored names."""
        names = get_task(self.task).stored_names
        content: dict[str, Any] = {}
        for name, value in dataclasses.asdict(self).items():
            if name == "version":
                continue
            if name == "view":
                content |= self.options
            elif name not in ADDED or value != ADDED[name]:
                content[names.get(name, name)] = value
        return content

    @classmethod
    def from_dict(cls, content: dict[str, Any], version: int = RESULTS_VERSION) -> RunSpec:
        """Inverse of ``to_dict``, for a run of a results version."""
        task = get_task(content.get("task", ADDED["task"]))
        fields = _own_names(content, task.stored_names)
        view = {name: fields.pop(name) for name in fields.keys() - _fields()}
        own = {"size": Size(**fields["size"]), "view": tuple(view.items()), "version": version}
        return cls(**(fields | own))


def _fields() -> set[str]:
    return {field.name for field in dataclasses.fields(RunSpec)}


def _view(task: Task, given: tuple[tuple[str, OptionValue], ...]) -> tuple[tuple[str, OptionValue], ...]:
    """Every view option of the task with its value; raises InputError for one that a run can't have."""
    own = [option.name for option in task.options if not option.of_data]
    if taken := sorted(_fields().intersection(own)):
        raise InputError(f"task {task.name!r}: option {taken[0]!r} has the name of a field of every run")
    if unknown := sorted(dict(given).keys() - set(own)):
        raise InputError(
            f"a run of task {task.name!r} has no option {unknown[0]!r}; choose from {', '.join(own) or 'none'}"
        )
    values = task.check_options(dict(given))
    return tuple((name, values[name]) for name in own)


def _own_names(content: Mapping[str, Any], stored: Mapping[str, str]) -> dict[str, Any]:
    own = {there: here for here, there in stored.items()}
    return {own.get(name, name): value for name, value in content.items()}


LOSS_NAMES = {"nmse": "loss", "nmse_se": "loss_se", "test_nmse": "test_loss"}
"""The benchmark's loss, its standard error and its points on a curve: name in a record -> name everywhere else, i.e. in
run tables (``loss``) and MLflow (``test/loss``, ``loss/test_loss``)."""


@dataclasses.dataclass
class CurvePoint:
    """One point of the training curve."""

    step: int
    train_loss: float
    """Mean training loss since the previous point."""
    test_nmse: float
    """NMSE on a small fixed part of the test split."""
    learning_rate: float
    seconds: float
    """Training seconds so far, as in the record."""


class ChangedRecord(ValueError):
    """A record that was changed since it was written."""


@dataclasses.dataclass
class RunRecord:
    """Outcome of one run: what the ledger stores."""

    spec: RunSpec
    run_id: str
    status: str
    """finished, or diverged (NaN, Inf or a loss above 10 times that of predicting zero)."""
    parameters: int
    """Trainable parameters N."""
    tokens: int
    """Training tokens D: real (unpadded) tokens processed, repeats included."""
    padded_tokens: int
    epochs: float
    """Passes over the unique samples."""
    unique_samples: int
    unique_tokens: int
    flops_nominal: float
    """Training FLOPs as the paper's authors count."""
    flops_executed: float
    """Training FLOPs executed by this implementation, padding included where the arm computes it."""
    seconds: float
    """Device-seconds in the training loop, evaluations and checkpoints excluded: on k devices a second counts k
    times, so that this is what a run costs, whatever the number of its devices."""
    evaluation_seconds: float
    peak_memory_mb: float
    """Peak resident memory of the worker process, MB."""
    steps_done: int
    test: dict[str, float]
    """Final test metrics at the last step; empty if diverged."""
    curve: list[CurvePoint]
    hardware: str
    code: str
    started: str
    """UTC time, ISO 8601."""
    devices: int = 1
    """Processors or GPUs that trained the run together when it ended."""
    micro_batch: int | None = None
    """Samples that a device computed at once: its share of the batch, or less after running out of memory. None if
    not noted."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """Incidents: memory that ran out, checkpoints that were damaged or not written."""
    cpu_seconds: float | None = None
    """CPU time of the first training process over the same stretches as ``seconds``, times devices. None on a GPU,
    where it says nothing, and in records from before it was counted."""

    @property
    def loss(self) -> float:
        """Final test loss; infinite if the run diverged."""
        return self.test["nmse"] if self.status == "finished" else math.inf

    @property
    def outdated(self) -> bool:
        """True for a record of an earlier results version: the same run would have another identity now."""
        return self.spec.version != RESULTS_VERSION or self.run_id != self.spec.run_id

    def to_json(self, indent: int | None = 1) -> str:
        """Serialise, losslessly, under the task's stored names, with a digest; on one line with ``indent`` None."""
        names = get_task(self.spec.task).stored_names
        fields = dataclasses.asdict(self) | {"spec": self.spec.to_dict()}
        content = {names.get(name, name): value for name, value in fields.items()}
        return json.dumps(content | {"digest": _digest(content)}, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> RunRecord:
        """Inverse of ``to_json``; records of earlier versions have no digest.

        Raises ChangedRecord if it doesn't fit its digest; ValueError, KeyError or TypeError if it is something else.
        """
        content = json.loads(text)
        if content.pop("digest", None) not in (None, _digest(content)):
            raise ChangedRecord("its content was changed since it was written")
        version = content["code"].rpartition(_VERSION)[2]
        spec = RunSpec.from_dict(content["spec"], int(version) if version.isdigit() else RESULTS_VERSION)
        fields = _own_names(content, get_task(spec.task).stored_names) | {"spec": spec}
        fields["curve"] = [CurvePoint(**point) for point in fields["curve"]]
        return cls(**fields)


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of the values, whatever their order and layout, hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
