"""What a task is: typed inputs and a target, the group under which they are symmetric, data and metrics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqscale.errors import InputError
from eqscale.tasks.fields import Batch, Field, Kind, Schema
from eqscale.tasks.metrics import Errors, Predictor, equivariance, evaluate, squared_error
from eqscale.tasks.samples import Samples, StoredSamples
from eqscale.tasks.symmetry import E3, ELEMENTS, Elements, Group, transform
from eqscale.wording import Wording

OptionValue = Any
"""A string, a number, or any hashable value that a task takes from Python code."""
_CHECKED_SYSTEMS = 32
_UNLIKE = 1e-4
"""Allowed 1 - cosine of labels as stored and recomputed from inputs that were stored in float32."""

Options = Mapping[str, OptionValue]
"""The task's own settings: every option has a value."""


@dataclasses.dataclass(frozen=True)
class Option:
    """A setting of the task, e.g. a family of systems or how far to look ahead: an option of every job."""

    name: str
    default: OptionValue
    help: str
    choices: tuple[OptionValue, ...] = ()
    """Allowed values; empty: any of the default's type."""
    of_data: bool = True
    """Whether it changes the stored data; if not, it is a view of them, and part of the identity of a run."""

    def check(self, value: OptionValue) -> OptionValue:
        """The value, in the type of the choices or of the default: 4 and 4.0 are one setting, with one identity.

        Raises InputError for a value that isn't allowed.
        """
        if self.choices:
            if value not in self.choices:
                raise InputError(f"unknown {self.name} {value!r}; choose from {', '.join(map(str, self.choices))}")
            return self.choices[self.choices.index(value)]
        kind = type(self.default)
        if kind is float and type(value) is int:
            return float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"{self.name} {value!r}: must be of type {kind.__name__}")
        return value

    def parse(self, text: str) -> OptionValue:
        """The value that a word of a command line says, in the type of the default; raises InputError."""
        kind = type(self.default)
        try:
            return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (TypeError, ValueError, KeyError) as error:
            wanted = "true or false" if kind is bool else f"of type {kind.__name__}"
            raise InputError(f"{self.name} {text!r}: must be {wanted}") from error


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number that the task's evaluation adds to a run's record and table."""

    name: str
    """Column of the run table."""
    meaning: str
    """For readers of the table, with its unit."""


class Task:
    """One benchmark. A subclass declares what it is and how its samples are made; ``register`` makes it known.

    The simplest task sets ``words`` and ``schema``, and overrides ``max_tokens`` and ``generate``.
    """

    schema: Schema
    group: Group = E3
    options: tuple[Option, ...] = ()
    variant: Mapping[str, OptionValue] = {}
    """View options under which an equivariant network must do equally well: a control."""
    samples_per_system: int = 1
    system_seconds: float = 0.02
    """CPU seconds in which a system is made, about: for estimates."""
    metrics: tuple[Metric, ...] = ()
    """What ``evaluate`` returns beside nmse and nmse_se, and belongs in run tables."""
    words: Wording
    """Its name, and its terms in tables and reports."""
    version: int = 1
    """Raise it when ``generate`` changes: data of another version are other data."""
    symmetry_tolerance: float = 1e-6
    """Largest relative error of the labels under the group; checked when data are made, if there is ``relabel``."""
    stored_names: Mapping[str, str] = {}
    """Names under which records hold some fields of a run, where they aren't those of ``RunSpec``."""

    @property
    def name(self) -> str:
        """Identifier in specs, run tables and command lines."""
        return self.words.name

    # Data.

    def generate(self, options: Options, seed: int, split: str, start: int, stop: int) -> dict[str, np.ndarray]:
        """Systems ``start`` to ``stop - 1`` of a split ("train" or "test"), the same numbers wherever it runs.

        System k must not depend on ``start`` and ``stop``: seed a generator with (seed, split, k).

        Returns:
            Every field of the schema and ``target``, (systems, T, width) per token or (systems, width) per sample,
            T being ``max_tokens``. Optionally ``tokens``: how many of the T are real, the first ones, (systems,),
            default all. Optionally, of targets per token, ``weight``: their relative weights, (systems, T), default
            equal. Numbers of tokens that aren't real are ignored; targets may have any unit.
        """
        raise InputError(f"task {self.name!r} doesn't say how its systems are made: override generate")

    def max_tokens(self, options: Options) -> int:
        """Largest number of tokens of a sample."""
        raise InputError(f"task {self.name!r} doesn't say how many tokens a sample has: override max_tokens")

    def draw_tokens(self, options: Options, n: int, rng: np.random.Generator) -> np.ndarray:
        """Token counts of ``n`` random systems, (n,): what plans count FLOPs with."""
        return np.full(n, self.max_tokens(options))

    def definition(self, options: Options, seed: int) -> dict[str, Any]:
        """Everything that decides the numbers of a system, as plain JSON."""
        of_data = {option.name: options[option.name] for option in self.options if option.of_data}
        fields = {name: [field.per, field.width] for name, field in self._stored().items()}
        return {
            "task": self.name,
            "version": self.version,
            "options": of_data,
            "seed": seed,
            "tokens": self.max_tokens(options),
            "fields": fields,
        }

    def folder_name(self, options: Options) -> str:
        """First part of the name of a data set's folder."""
        return self.name

    def records(self, options: Options, seed: int, split: str, start: int, stop: int) -> np.ndarray:
        """Systems as they are stored: a structured array (stop - start,)."""
        return self._pack(options, self.generate(options, seed, split, start, stop), stop - start)

    def statistics(self, options: Options, records: np.ndarray) -> dict[str, float]:
        """What is measured once on the first training systems and kept with the data: units of the targets."""
        square = records["weight"] * np.square(records["target"], dtype=float).sum(-1)
        rms = float(np.sqrt(square.sum() / len(records)))
        if rms == 0:
            raise InputError(f"task {self.name!r}: the targets of the first {len(records)} systems are all zero")
        return {"target_rms": rms}

    def left_out(self, records: np.ndarray) -> dict[str, int]:
        """Reason -> how many attempts at these systems were left out by it; said when data are prepared."""
        return {}

    def open(self, options: Options, shards: Sequence[np.ndarray], statistics: Mapping[str, float]) -> Samples:
        """The samples of stored records."""
        return StoredSamples(self.schema, shards, statistics["target_rms"], options)

    def relabel(self, options: Options, batch: Batch) -> Tensor | None:
        """Targets recomputed from the inputs of a batch in float64, up to one factor; None if the task can't.

        ``check_labels`` compares them under the declared group, so that a wrong group is found when data are made.
        """
        return None

    # Symmetry.

    def elements(self, options: Options) -> Elements:
        """Draws from the group's matrices that leave the law of the samples unchanged: for augmentation."""
        return self.group.elements

    def classes(self) -> Mapping[str, Callable[[Batch, torch.Generator], Batch]]:
        """Transformations under which the equivariance error is measured."""
        return ELEMENTS

    def align(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The batch in its canonical frame, and the rotation there, (B, 3, 3).

        Raises:
            InputError: if the task has no canonical frame.
        """
        self.require_canonical_frame()
        raise AssertionError

    def require_canonical_frame(self) -> None:
        """Raise InputError unless the task overrides ``align``."""
        if type(self).align is Task.align:
            raise InputError(f"task {self.name!r} has no canonical frame: arms that align can't train on it")

    # Evaluation.

    def evaluate(self, predict: Predictor, samples: Samples, indices: np.ndarray) -> dict[str, float]:
        """nmse, nmse_se and the task's own metrics on the samples of those indices."""
        errors = evaluate(predict, samples, indices)
        return {"nmse": errors.nmse, "nmse_se": errors.nmse_se} | self.measure(errors, samples)

    def measure(self, errors: Errors, samples: Samples) -> dict[str, float]:
        """The task's own metrics, where they follow from the errors alone."""
        return {}

    def equivariance(self, predict: Predictor, samples: Samples, indices: np.ndarray) -> dict[str, float]:
        """Equivariance errors, see ``eqscale.tasks.metrics.equivariance``."""
        return equivariance(predict, samples, indices, self.elements(samples.options), self.classes())

    def rollout(self, predict: Predictor, samples: Samples, systems: int, seconds: float) -> dict[str, Any] | None:
        """Errors of predictions that are fed back for so long, from one start in each of the first ``systems``.

        Returns:
            ``time_s`` and the errors that ``words.rollout`` names, lists with an entry a step; None for a task without
            rollouts.
        """
        return None

    # Pictures.

    look_options: tuple[Option, ...] = ()
    """Further options of ``look``."""

    def look(self, options: Options, seed: int, index: int, out: Path | None) -> str:
        """Write a picture of a training system made afresh; returns a line that names the file.

        ``options`` hold the task's own and ``look_options``. ``out`` None: a name of the task's choice.
        """
        raise InputError(f"task {self.name!r} draws no pictures of its systems")

    def look_at_prediction(self, predict: Predictor, samples: Samples, index: int, out: Path, title: str) -> Path:
        """Write a picture of a prediction beside the truth, for a system of the samples."""
        raise InputError(f"task {self.name!r} draws no pictures of predictions")

    @property
    def draws_predictions(self) -> bool:
        """Whether it overrides ``look_at_prediction``."""
        return type(self).look_at_prediction is not Task.look_at_prediction

    # Checks.

    def check_options(self, given: Mapping[str, Any]) -> dict[str, OptionValue]:
        """Every option's value, with defaults; raises InputError for one that doesn't exist or isn't allowed."""
        known = {option.name: option for option in self.options}
        for name in given:
            if name not in known:
                options = ", ".join(known) or "it has none"
                raise InputError(f"task {self.name!r} has no option {name!r}; its options: {options}")
        return {name: option.check(given.get(name, option.default)) for name, option in known.items()}

    def check_labels(self, options: Options, seed: int) -> None:
        """Make a few systems, and raise InputError if ``relabel`` shows that their labels break the symmetry."""
        records = self.records(options, seed, "train", 0, _CHECKED_SYSTEMS)
        samples = self.open(options, [records], self.statistics(options, records))
        batch = samples.batch(np.arange(_CHECKED_SYSTEMS) * self.samples_per_system, dtype=torch.float64)
        labels = self.relabel(options, batch)
        if labels is None:
            return
        labelled = batch.replace(labels)
        size = float(squared_error(torch.zeros_like(labels), labelled).sum()) ** 0.5
        stored = float(squared_error(torch.zeros_like(labels), batch).sum()) ** 0.5
        alike = float((batch.weight[..., None] * labels * batch.target).sum()) / (size * stored or math.nan)
        if not alike > 1 - _UNLIKE:
            raise InputError(
                f"task {self.name!r}: relabel gives other labels than generate: their cosine is {alike:.3g}"
            )
        acts: dict[str, Callable[[Batch, torch.Generator], Batch]] = {
            "rotation or reflection": lambda b, g: transform(b, self.group.elements(len(b), g, b.target.dtype))
        }
        if self.group.translations:
            acts["shift"] = ELEMENTS["translation"]
        if self.group.permutations:
            acts["permutation"] = self.classes()["permutation"]
        generator = torch.Generator().manual_seed(0)
        for name, act in acts.items():
            moved = act(labelled, generator)
            again = self.relabel(options, moved)
            assert again is not None
            gap = float(squared_error(again, moved).sum()) ** 0.5 / size
            if not gap <= self.symmetry_tolerance:
                raise InputError(
                    f"task {self.name!r}: its labels break the declared symmetry {self.group.name} under a random "
                    f"{name}: relative error {gap:.2g}, stated tolerance {self.symmetry_tolerance:g}; declare the "
                    "group that they obey, or mend the labels"
                )

    def _stored(self) -> dict[str, Field]:
        return {field.name: field for field in self.schema.fields} | {"target": self.schema.target}

    def _pack(self, options: Options, made: Mapping[str, np.ndarray], count: int) -> np.ndarray:
        T, fields = self.max_tokens(options), self._stored()
        per_target = (T,) if self.schema.target.per == "token" else ()
        shapes = {name: (T, f.width) if f.per == "token" else (f.width,) for name, f in fields.items()}
        allowed = shapes | {"tokens": ()} | ({"weight": per_target} if per_target else {})
        if missing := shapes.keys() - made.keys():
            raise InputError(f"task {self.name!r}: generate returned no {', '.join(sorted(missing))}")
        for name, value in made.items():
            if name not in allowed:
                raise InputError(
                    f"task {self.name!r}: generate returned {name!r}, which it doesn't declare; choose from "
                    f"{', '.join(allowed)}"
                )
            wanted, got = (count, *allowed[name]), np.shape(value)
            if got != wanted:
                raise InputError(f"task {self.name!r}, field {name!r}: wanted shape {wanted}, got {got}")
        columns = [(name, "<f4", shape) for name, shape in shapes.items()]
        out = np.zeros(count, [("tokens", "<i4"), ("weight", "<f4", per_target), *columns])
        out["tokens"] = made.get("tokens", T)
        if not 1 <= out["tokens"].min() <= out["tokens"].max() <= T:
            raise InputError(f"task {self.name!r}, field 'tokens': must lie in 1..{T}")
        real = np.arange(T) < out["tokens"][:, None]
        for name, field in fields.items():
            # what tokens that aren't real hold counts for nothing, and a float64 may be too large for a float32
            with np.errstate(over="ignore"):
                out[name] = np.where(real[..., None], made[name], 0.0) if field.per == "token" else made[name]
            if not np.isfinite(out[name]).all():
                raise InputError(f"task {self.name!r}, field {name!r}: not finite in single precision")
            if field.kind is Kind.PLANE:
                planes = out[name][real] if field.per == "token" else out[name]
                if not np.allclose(np.linalg.norm(planes[:, :3], axis=-1), 1, atol=1e-3):
                    raise InputError(f"task {self.name!r}, field {name!r}: a plane's normal must have length 1")
        if not per_target:
            out["weight"] = 1.0
            return out
        weight = np.where(real, made.get("weight", 1.0), 0.0)
        if not np.isfinite(weight).all():
            raise InputError(f"task {self.name!r}, field 'weight': not finite")
        if weight.min() < 0 or weight.sum(1).min() <= 0:
            raise InputError(f"task {self.name!r}, field 'weight': negative, or 0 for a whole sample")
        out["weight"] = weight / weight.sum(1, keepdims=True)
        return out
