"""How networks see a sample, by the kinds of its fields: as plain numbers, or as multivectors."""

from __future__ import annotations

import torch
from torch import Tensor

from eqscale.algebra import embed_direction, embed_plane, embed_point
from eqscale.tasks.fields import Batch, Field, Kind, Schema, at_tokens


def numbers_width(schema: Schema) -> int:
    """Length of the last dimension of ``numbers``."""
    return sum(field.width for field in schema.fields)


def numbers(batch: Batch) -> Tensor:
    """Everything known about a token and its sample as plain numbers of order one, (B, T, ``numbers_width``).

    Fields per token come first. A field relative to another is given as the difference to it.
    """
    schema, T = batch.schema, batch.mask.shape[1]
    tokens = [_number(batch, field) for field in schema.fields if field.per == "token"]
    samples = [_number(batch, field) for field in schema.fields if field.per == "sample"]
    if samples:
        tokens.append(at_tokens(torch.cat(samples, -1), T))
    return torch.cat(tokens, -1)


def _number(batch: Batch, field: Field) -> Tensor:
    value, length = batch[field.name], batch.schema.length
    if field.kind is Kind.PLANE:
        return torch.cat([value[..., :3], value[..., 3:] / length], -1)
    if field.relative_to is not None:
        other = batch[field.relative_to]
        value = value - (other if other.ndim == value.ndim else other[:, None])
    return value / (length if field.kind is Kind.POINT else field.scale)


def plane_invariants_width(schema: Schema) -> int:
    """Length of the last dimension of ``plane_invariants``."""
    seen = [f for f in schema.fields if f.per == "token" and f.kind in (Kind.POINT, Kind.DIRECTION)]
    return len(schema.of(Kind.PLANE, "sample")) * len(seen)


def plane_invariants(batch: Batch) -> list[Tensor]:
    """A token's heights above each plane of its sample and its directions' components along the normals, (B, T, n).

    Unchanged when the whole sample is turned, mirrored or shifted. Empty for a task without planes. Padded tokens hold
    meaningless numbers.
    """
    schema, found = batch.schema, []
    for plane in schema.of(Kind.PLANE, "sample"):
        normal, offset = batch[plane.name][:, None, :3], batch[plane.name][:, None, 3]
        for field in schema.of(Kind.POINT, "token"):
            found.append(((batch[field.name] * normal).sum(-1) - offset) / schema.length)
        for field in schema.of(Kind.DIRECTION, "token"):
            found.append((batch[field.name] / field.scale * normal).sum(-1))
    return [torch.stack(found, -1)] if found else []


def invariants_width(schema: Schema) -> int:
    """Length of the last dimension of ``invariants``."""
    return sum(field.width for field in schema.of(Kind.INVARIANT)) + plane_invariants_width(schema)


def invariants(batch: Batch) -> Tensor:
    """All that no motion changes of a token, (B, T, ``invariants_width``): invariant fields, then those of planes."""
    T = batch.mask.shape[1]
    own = [_everywhere(_number(batch, field), field, T) for field in batch.schema.of(Kind.INVARIANT)]
    found = own + plane_invariants(batch)
    return torch.cat(found, -1) if found else batch.target.new_zeros(*batch.mask.shape, 0)


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
    schema, at = batch.schema, _scaled(batch, unit)
    planes = [at[field.name] for field in schema.of(Kind.PLANE)]
    true = [embed_plane(plane[..., :3], plane[..., :3] * plane[..., 3:]) for plane in planes]
    true += [embed_plane(at[f.name], at[f.at]) for f in schema.of(Kind.DIRECTION) if f.at]
    true += [embed_plane(at[f.name] - at[f.relative_to], at[f.name]) for f in schema.of(Kind.POINT) if f.relative_to]
    # In a true channel an ideal point keeps its sign under reflections, as an axial vector does.
    true += [embed_direction(at[field.name]) for field in schema.of(Kind.PSEUDOVECTOR)]
    pseudo = [embed_point(at[field.name]) for field in schema.of(Kind.POINT)]
    pseudo += [embed_direction(at[field.name]) for field in schema.of(Kind.DIRECTION)]
    return torch.stack(true + pseudo, 2)


def _scaled(batch: Batch, unit: float) -> dict[str, Tensor]:
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
    schema, at = batch.schema, _scaled(batch, unit)
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
