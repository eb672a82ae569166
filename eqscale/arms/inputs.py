"""How networks see a sample, by the kinds of its fields: as plain numbers, or as multivectors."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from eqscale.algebra import embed_direction, embed_plane, embed_point
from eqscale.tasks.fields import Batch, Field, Kind, Schema, at_tokens


def numbers_width(schema: Schema) -> int:
    """Length of the last dimension of ``numbers``."""
    return sum(field.width for field in schema.fields)


def numbers(batch: Batch) -> Tensor:
    """Everything known about a token and its sample as plain numbers of order one, (B, T, ``numbers_width``).

    Fields per token come first. A field relative to another is given as the difference to it.
    """
    found = []
    for per in ("token", "sample"):
        if fields := [field for field in batch.schema.fields if field.per == per]:
            # One division for all: small models notice an operation a field.
            value = torch.cat([_relative(batch, field) for field in fields], -1) / _units(batch, fields)
            found.append(value if per == "token" else at_tokens(value, batch.mask.shape[1]))
    return torch.cat(found, -1)


def columns_of_numbers(schema: Schema, kinds: tuple[Kind, ...]) -> tuple[int, ...]:
    """The first of the columns of each field of these kinds among ``numbers``."""
    found, at = [], 0
    for field in sorted(schema.fields, key=lambda field: field.per != "token"):
        if field.kind in kinds:
            found.append(at)
        at += field.width
    return tuple(found)


def _relative(batch: Batch, field: Field) -> Tensor:
    """A field, as the difference to the one that it is relative to, if any."""
    value = batch[field.name]
    if field.relative_to is None or field.kind is Kind.PLANE:
        return value
    other = batch[field.relative_to]
    return value - (other if other.ndim == value.ndim else other[:, None])


def _units(batch: Batch, fields: list[Field]) -> Tensor:
    """What makes the numbers of the fields, side by side, of order one."""
    units: list[float] = []
    for field in fields:
        if field.kind is Kind.PLANE:
            units += [1.0, 1.0, 1.0, batch.schema.length]
        else:
            units += [batch.schema.length if field.kind is Kind.POINT else field.scale] * field.width
    return _constant(tuple(units), batch.target.dtype, batch.target.device)


@functools.lru_cache(maxsize=256)
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the cache also serves training
        return torch.tensor(values, dtype=dtype, device=device)


def tokens_have_places(schema: Schema) -> bool:
    """Whether a token is somewhere, so that two of them have a distance."""
    return bool(schema.of(Kind.POINT, "token"))


def places(batch: Batch) -> list[Tensor]:
    """Where each token is over the task's length, (B, T, 3): its target's point, or its first. Empty without points."""
    names = [field.name for field in batch.schema.of(Kind.POINT, "token")]
    own = [name for name in names if name == batch.schema.target.at] or names
    return [batch[name] / batch.schema.length for name in own[:1]]


def plane_invariants_width(schema: Schema) -> int:
    """Length of the last dimension of ``plane_invariants``."""
    seen = [f for f in schema.fields if f.per == "token" and f.kind in (Kind.POINT, Kind.DIRECTION)]
    return len(schema.of(Kind.PLANE, "sample")) * len(seen)


def plane_invariants(batch: Batch) -> list[Tensor]:
    """A token's heights above each plane of its sample and its directions' components along the normals, (B, T, n).

    Unchanged when the whole sample is turned, mirrored or shifted. Empty for a task without planes. Padded tokens hold
    meaningless numbers.
    """
    schema = batch.schema
    points, directions = schema.of(Kind.POINT, "token"), schema.of(Kind.DIRECTION, "token")
    planes = schema.of(Kind.PLANE, "sample")
    if not planes or not points + directions:
        return []
    fields = points + directions
    vectors = torch.stack([batch[field.name] for field in fields], 2)
    B, T, n = vectors.shape[:3]
    units = [schema.length] * len(points) + [field.scale for field in directions]
    unit = _constant(tuple(units), vectors.dtype, vectors.device)
    has_height = _constant((1.0,) * len(points) + (0.0,) * len(directions), vectors.dtype, vectors.device)
    found = []
    for plane in planes:
        normal, offset = batch[plane.name][:, :3, None], batch[plane.name][:, None, 3:]
        along = torch.bmm(vectors.view(B, T * n, 3), normal).view(B, T, n)
        found.append((along - offset * has_height) / unit)
    return [torch.cat(found, -1)]


def invariants_width(schema: Schema) -> int:
    """Length of the last dimension of ``invariants``."""
    return sum(field.width for field in schema.of(Kind.INVARIANT)) + plane_invariants_width(schema)


def invariants(batch: Batch) -> Tensor:
    """All that no motion changes of a token, (B, T, ``invariants_width``): invariant fields, then those of planes."""
    T = batch.mask.shape[1]
    own = [_everywhere(batch[field.name] / field.scale, field, T) for field in batch.schema.of(Kind.INVARIANT)]
    found = own + plane_invariants(batch)
    return torch.cat(found, -1) if found else batch.target.new_zeros(*batch.mask.shape, 0)


def in_one_call(model: nn.Module, net: nn.Module, own: type[nn.Module], batch: Batch) -> bool:
    """Whether loss and gradient of a model on a batch may be one kernel call of its network.

    So it is for targets of tokens, unless the model is of a class with another ``forward`` than ``own``, or has hooks.
    """
    hooks = any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in (model, net))
    return type(model).forward is own.forward and not hooks and batch.schema.target.per == "token"


def multivectors_width(schema: Schema) -> tuple[int, int]:
    """True and pseudo channels of ``multivectors``."""
    attached = [f for f in schema.of(Kind.DIRECTION) if f.at]
    relative = [f for f in schema.of(Kind.POINT) if f.relative_to]
    true = schema.of(Kind.PLANE) + attached + relative + schema.of(Kind.PSEUDOVECTOR)
    return len(true), len(schema.of(Kind.POINT) + schema.of(Kind.DIRECTION))


def multivectors(batch: Batch, unit: float) -> Tensor:
    """A token and its sample as multivectors, (B, T, true + pseudo, 16); all of them move with the sample under E(3).

    True channels: planes; planes through a point, normal to a direction that is attached to it, or to its difference
    from the point that it is relative to; pseudovectors as ideal points. Pseudo channels: points, and directions as
    ideal points.

    Args:
        batch: the samples.
        unit: unit of length of the multivectors, in that of the points.
    """
    schema, at = batch.schema, scaled(batch, unit)
    planes = [(at[f.name][..., :3], at[f.name][..., :3] * at[f.name][..., 3:]) for f in schema.of(Kind.PLANE)]
    planes += [(at[f.name], at[f.at]) for f in schema.of(Kind.DIRECTION) if f.at]
    planes += [(at[f.name] - at[f.relative_to], at[f.name]) for f in schema.of(Kind.POINT) if f.relative_to]
    found = [embed_plane(*(torch.stack(part, 2) for part in zip(*planes, strict=True)))] if planes else []
    # In a true channel an ideal point keeps its sign under reflections, as an axial vector does.
    for kind, embed in (
        (Kind.PSEUDOVECTOR, embed_direction),
        (Kind.POINT, embed_point),
        (Kind.DIRECTION, embed_direction),
    ):
        if fields := schema.of(kind):
            found.append(embed(torch.stack([at[field.name] for field in fields], 2)))
    return torch.cat(found, 2)


def scaled(batch: Batch, unit: float) -> dict[str, Tensor]:
    """The geometric fields at every token, (B, T, 3 or 4): lengths in the unit, the rest over its scale."""
    found = {}
    for field in batch.schema.fields:
        value = batch[field.name]
        if field.kind is Kind.INVARIANT:
            continue
        if field.kind is Kind.PLANE:
            value = torch.cat([value[..., :3], value[..., 3:] / unit], -1)
        else:
            value = value / (unit if field.kind is Kind.POINT else field.scale)
        found[field.name] = _everywhere(value, field, batch.mask.shape[1])
    return found


def published_multivectors_width(schema: Schema) -> int:
    """Channels of ``published_multivectors``."""
    return len(schema.fields) - len(schema.of(Kind.INVARIANT))


def published_multivectors(batch: Batch, unit: float) -> Tensor:
    """The same inputs as published GATr embeds them: multivectors (B, T, channels, 16).

    Points with e123 = +1 in untyped channels, directions as planes through the origin: exact for rotations about
    the origin only (arXiv 2305.18415, table 1).
    """
    schema, at = batch.schema, scaled(batch, unit)
    planes = [at[field.name] for field in schema.of(Kind.PLANE)]
    found = [embed_plane(plane[..., :3], plane[..., :3] * plane[..., 3:]) for plane in planes]
    vectors = [at[field.name] for field in schema.of(Kind.DIRECTION) + schema.of(Kind.PSEUDOVECTOR)]
    found += [embed_plane(vector, torch.zeros_like(vector)) for vector in vectors]
    found += [embed_point(at[field.name]) for field in schema.of(Kind.POINT)]
    return torch.stack(found, 2)


def _everywhere(value: Tensor, field: Field, tokens: int) -> Tensor:
    return value if field.per == "token" else at_tokens(value, tokens)


def pooled(output: Tensor, batch: Batch) -> Tensor:
    """Token outputs (B, T, width) as the target wants them: unchanged, or their mean over real tokens, (B, width)."""
    if batch.schema.target.per == "token":
        return output
    mask = batch.mask[..., None]
    return torch.where(mask, output, 0.0).sum(1) / mask.sum(1)
