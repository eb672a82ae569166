"""The typed sample: a task declares its fields, a batch holds them, and every arm represents their kinds."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from eqscale.errors import InputError


class Kind(enum.Enum):
    """How a quantity transforms under rotations, reflections and shifts."""

    POINT = "point"
    """A position x: becomes R x + t. (..., 3)."""
    DIRECTION = "direction"
    """A true vector such as a velocity: R v, whatever the shift. (..., 3)."""
    PSEUDOVECTOR = "pseudovector"
    """An axial vector such as a spin: det(R) R w. (..., 3)."""
    PLANE = "plane"
    """The plane n.x = d, n of length 1, stored as (n, d): n turns as a direction, d follows shifts. (..., 4)."""
    INVARIANT = "invariant"
    """Plain numbers that stay the same. (..., channels)."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One input of a task."""

    name: str
    kind: Kind
    per: Literal["token", "sample"] = "token"
    """Stored as (B, T, width) or (B, width)."""
    unit: str = ""
    """Physical unit of the stored numbers, for readers."""
    scale: float = 1.0
    """Typical size in that unit: networks see the field over it. Of points and planes the task's length is used."""
    channels: int = 1
    """Numbers of an invariant."""
    relative_to: str | None = None
    """Another field of this kind: arms without the symmetry also see, or see instead, the difference to it."""
    at: str | None = None
    """Of a direction: the point that it is attached to."""

    def __post_init__(self) -> None:
        if not isinstance(self.kind, Kind):
            kinds = ", ".join(map(str, Kind))
            raise InputError(f"field {self.name!r}: unknown kind {self.kind!r}; choose from {kinds}")
        if self.per not in ("token", "sample"):
            raise InputError(f"field {self.name!r}: per {self.per!r}; choose from token, sample")
        if not self.scale > 0 or self.channels < 1:
            raise InputError(f"field {self.name!r}: scale {self.scale:g} and channels {self.channels} must be positive")
        if self.channels > 1 and self.kind is not Kind.INVARIANT:
            raise InputError(f"field {self.name!r}: a {self.kind.value} has 1 channel, got {self.channels}")

    @property
    def width(self) -> int:
        """Numbers of one token or sample."""
        return {Kind.PLANE: 4, Kind.INVARIANT: self.channels}.get(self.kind, 3)


@dataclasses.dataclass(frozen=True)
class Schema:
    """Inputs and target of a task: all that an arm needs to know about it."""

    fields: tuple[Field, ...]
    target: Field
    """What is predicted: a direction, attached to a point if per token, or an invariant; of order one."""
    length: float = 1.0
    """Typical distance between points, in their unit."""
    vector_length: float | None = None
    """What networks of vectors and multivectors see lengths over, in that unit: they take products of them, so that the
    best one can differ from ``length`` (default: a tenth of it)."""

    def __post_init__(self) -> None:
        known = {field.name: field for field in self.fields}
        if len(known) < len(self.fields):
            raise InputError(f"two fields have one name: {', '.join(field.name for field in self.fields)}")
        if taken := known.keys() & {"target", "tokens", "weight"}:
            raise InputError(f"field {min(taken)!r}: that name is kept for the target, its weight or tokens")
        if not any(field.per == "token" for field in self.fields):
            raise InputError("the task declares no field per token")
        if self.target.kind not in (Kind.DIRECTION, Kind.INVARIANT):
            raise InputError(
                f"target {self.target.name!r}: must be a direction or an invariant, not a {self.target.kind.value}"
            )
        for name, length in (("length", self.length), ("vector_length", self.vector_unit)):
            if not length > 0:
                raise InputError(f"{name} {length:g}: must be positive")
        for field in (*self.fields, self.target):
            for link, kind in (("relative_to", field.kind), ("at", Kind.POINT)):
                name = getattr(field, link)
                options = [f.name for f in self.of(kind) if f.per == "sample" or field.per == "token"]
                if name is not None and name not in options:
                    raise InputError(
                        f"field {field.name!r}: {link}={name!r} must name a {kind.value}"
                        f"{' per sample' if field.per == 'sample' else ''}: "
                        f"{', '.join(options) or 'there is none'}"
                    )
            if (other := field.relative_to) and (field.kind is Kind.PLANE or known[other].width != field.width):
                raise InputError(
                    f"field {field.name!r}: relative_to={other!r} must have as many channels, and neither be a plane"
                )

    @property
    def vector_unit(self) -> float:
        """Unit of length of vectors and multivectors."""
        return 0.1 * self.length if self.vector_length is None else self.vector_length

    def of(self, kind: Kind, per: str | None = None) -> list[Field]:
        """The fields of a kind, in the order of their declaration."""
        return [f for f in self.fields if f.kind is kind and per in (None, f.per)]


class Later(Mapping[str, Tensor]):
    """Tensors by name, each made when it is asked for."""

    def __init__(self, **makers: Callable[[], Tensor]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


@dataclasses.dataclass(frozen=True)
class Batch:
    """B samples with up to T tokens each; floats are float32 (float64 in tests).

    ``batch[name]`` is a field of the schema or a label. Padded tokens hold zeros and have ``mask`` False.
    """

    schema: Schema
    values: Mapping[str, Tensor]
    """The fields by name: (B, T, width) per token, (B, width) per sample."""
    mask: Tensor
    """True for real tokens, (B, T), bool."""
    target: Tensor
    """(B, T, width) or (B, width), of order one."""
    weight: Tensor
    """Loss weight of every target, (B, T) or (B,); sums to 1 over a sample, 0 where padded."""
    system: Tensor
    """Index of the sample's system within its split, (B,), int64."""
    labels: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    """What only the task's metrics read, per token: (B, T, ...); no arm sees it."""

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name] if name in self.values else self.labels[name]

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with ``change`` applied to every tensor."""
        tensors = ("mask", "target", "weight", "system")
        return Batch(
            schema=self.schema,
            values={name: change(value) for name, value in self.values.items()},
            labels=Later(**{name: functools.partial(_changed, self.labels, name, change) for name in self.labels}),
            **{name: change(getattr(self, name)) for name in tensors},
        )

    def split(self, size: int, longest: Sequence[int]) -> Iterator[Batch]:
        """Batches of so many samples, each with as many tokens as its longest sample has, contiguous."""
        for start, tokens in zip(range(0, len(self), size), longest, strict=True):
            yield self._cut(slice(start, start + size), tokens)

    def _cut(self, rows: slice, tokens: int) -> Batch:
        schema = self.schema

        def of(value: Tensor, per: str = "token") -> Tensor:
            return (value[rows, :tokens] if per == "token" else value[rows]).contiguous()

        return Batch(
            schema=schema,
            values={field.name: of(self.values[field.name], field.per) for field in schema.fields},
            mask=of(self.mask),
            target=of(self.target, schema.target.per),
            weight=of(self.weight, schema.target.per),
            system=of(self.system, "sample"),
            labels=Later(**{name: functools.partial(_changed, self.labels, name, of) for name in self.labels}),
        )

    def to(self, device: torch.device | str) -> Batch:
        """Copy of the batch on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def double(self) -> Batch:
        """The batch with its floats in float64."""
        return self.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)

    def replace(self, target: Tensor | None = None, **changed: Tensor) -> Batch:
        """The batch with another target, fields or labels; raises KeyError for a name that it doesn't hold."""
        if unknown := changed.keys() - self.values.keys() - self.labels.keys():
            raise KeyError(min(unknown))
        return dataclasses.replace(
            self,
            target=self.target if target is None else target,
            values={name: changed.get(name, value) for name, value in self.values.items()},
            # labels that are made when they are asked for stay so
            labels={name: changed.get(name, value) for name, value in self.labels.items()}
            if changed.keys() & self.labels.keys()
            else self.labels,
        )


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a model has made of B samples ahead of a training step that takes nothing else of them."""

    tensors: tuple[Tensor, ...]
    """(B, T, ...) each."""
    longest: int | None = None
    """Tokens of the longest sample, if that is known to be less than T."""

    def __len__(self) -> int:
        return len(self.tensors[0])

    def map(self, change: Callable[[Tensor], Tensor]) -> Prepared:
        """The same with ``change`` applied to every tensor."""
        return dataclasses.replace(self, tensors=tuple(change(tensor) for tensor in self.tensors))

    def split(self, size: int, longest: Sequence[int]) -> Iterator[Prepared]:
        """As of ``Batch``, but with the padding: to cut it off would take small networks 1 % of a step."""
        parts = zip(*(tensor.split(size) for tensor in self.tensors), strict=True)
        return map(Prepared, parts, longest)


def _changed(values: Mapping[str, Tensor], name: str, change: Callable[[Tensor], Tensor]) -> Tensor:
    return change(values[name])


def at_tokens(value: Tensor, tokens: int) -> Tensor:
    """A property of the sample at each of its tokens: (B, ...) -> (B, T, ...)."""
    return value[:, None].expand(-1, tokens, *value.shape[1:])
