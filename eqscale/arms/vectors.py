"""How networks without multivectors see a sample exactly: as true vectors, pseudovectors and invariants."""

from __future__ import annotations

import torch
from torch import Tensor

from eqscale.arms.inputs import invariants, invariants_width, scaled
from eqscale.errors import InputError
from eqscale.tasks.fields import Batch, Kind, Schema
from eqscale.tasks.symmetry import translate


def require_origin(schema: Schema) -> None:
    """Raise InputError for planes without a point: nothing says where a sample is."""
    if schema.of(Kind.PLANE) and not schema.of(Kind.POINT):
        raise InputError(
            f"field {schema.of(Kind.PLANE)[0].name!r}: a plane, but the task has no point; arms that see vectors need "
            "one to measure the plane's distance from"
        )


def centred(batch: Batch) -> Batch:
    """The batch about the mean of its points: those of its real tokens, or of the sample if tokens have none."""
    per = "token" if batch.schema.of(Kind.POINT, "token") else "sample"
    if not (points := batch.schema.of(Kind.POINT, per)):
        return batch
    mean = torch.stack([batch[field.name] for field in points]).mean(0)
    if per == "token":
        mask = batch.mask[..., None]
        mean = torch.where(mask, mean, 0.0).sum(1) / mask.sum(1)
    return translate(batch, -mean)


def vectors_width(schema: Schema) -> tuple[int, int, int]:
    """True vectors, pseudovectors and invariants of ``vectors``."""
    planes, points, directions = map(schema.of, (Kind.PLANE, Kind.POINT, Kind.DIRECTION))
    relative = sum(field.relative_to is not None for field in points)
    offsets = len(planes) + sum(field.at is not None for field in directions) + relative
    true, pseudo = len(planes + points + directions) + relative, len(schema.of(Kind.PSEUDOVECTOR))
    return true, pseudo, offsets + invariants_width(schema)


def vectors(batch: Batch, unit: float) -> tuple[Tensor, Tensor, Tensor]:
    """A token and its sample, which must be centred, as they turn: what ``multivectors`` holds without projections.

    True vectors: normals of planes, points, their differences from the points that they are relative to, directions.
    Invariants: the distances from the origin of the planes, and of the planes through a point whose normal is a
    direction attached to it or that difference; then those of every arm. Padded tokens hold meaningless numbers.

    Args:
        batch: the samples.
        unit: unit of length, in that of the points.

    Returns:
        True vectors (B, T, K, 3), pseudovectors (B, T, P, 3), invariants (B, T, I); all of order one in that unit.
    """
    schema = batch.schema
    at = scaled(batch, unit)
    differences = {f.name: at[f.name] - at[f.relative_to] for f in schema.of(Kind.POINT) if f.relative_to}
    planes = [at[field.name] for field in schema.of(Kind.PLANE)]
    attached = [(at[f.name], at[f.at]) for f in schema.of(Kind.DIRECTION) if f.at]
    attached += [(difference, at[name]) for name, difference in differences.items()]
    true = [plane[..., :3] for plane in planes]
    true += [at[field.name] for field in schema.of(Kind.POINT)]
    true += [*differences.values(), *(at[field.name] for field in schema.of(Kind.DIRECTION))]
    offsets = [plane[..., 3] for plane in planes] + [(normal * point).sum(-1) for normal, point in attached]
    stacked = [
        torch.stack(part, -2) if part else batch.target.new_zeros(*batch.mask.shape, 0, 3)
        for part in (true, [at[field.name] for field in schema.of(Kind.PSEUDOVECTOR)])
    ]
    return stacked[0], stacked[1], torch.cat([*(offset[..., None] for offset in offsets), invariants(batch)], -1)
