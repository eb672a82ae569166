"""Controls that break the symmetry of another arm and change nothing else: networks and costs stay the same."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from eqscale.arms.base import Size
from eqscale.arms.gatr import BUILT_IN, GATrModel, gatr_config
from eqscale.arms.inputs import invariants
from eqscale.arms.plain import ALIGNED, PlainModel, plain_config
from eqscale.errors import InputError
from eqscale.models.flops import TrainingFlops
from eqscale.models.gatr import GATrConfig, gatr_training_flops
from eqscale.models.transformer import transformer_training_flops
from eqscale.roles import Role
from eqscale.tasks import Batch, Field, Kind, Schema, Task
from eqscale.tasks.fields import at_tokens
from eqscale.tasks.symmetry import random_rotation, transform

_ROTATIONS = 4096


class IrrelevantFrame(nn.Module):
    """Turns a sample by a random rotation of its system, one of 4096: alignment by a direction that means nothing."""

    rotations: Tensor

    def __init__(self) -> None:
        super().__init__()
        rotations = random_rotation(_ROTATIONS, torch.Generator().manual_seed(0), torch.float64)
        self.register_buffer("rotations", rotations, persistent=False)

    def forward(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The turned batch, and the rotations (B, 3, 3)."""
        matrix = self.rotations[batch.system % _ROTATIONS].to(batch.target.dtype)
        return transform(batch, matrix), matrix


def _misaligned(size: Size, task: Task) -> nn.Module:
    return PlainModel(plain_config(size, task, planes=False), IrrelevantFrame(), planes=False)


def _misaligned_flops(size: Size, task: Task) -> TrainingFlops:
    return transformer_training_flops(plain_config(size, task, planes=False))


def with_coordinates(batch: Batch) -> Tensor:
    """Invariants, and the coordinates of all points, over the task's length, which are none: (B, T, n)."""
    T = batch.mask.shape[1]
    points = [batch[f.name] if f.per == "token" else at_tokens(batch[f.name], T) for f in batch.schema.of(Kind.POINT)]
    return torch.cat([invariants(batch), *(point / batch.schema.length for point in points)], -1)


def _absolute_config(size: Size, task: Task) -> GATrConfig:
    config, points = gatr_config(size, task), task.schema.of(Kind.POINT)
    return dataclasses.replace(config, scalars_in=config.scalars_in + 3 * len(points))


def _absolute(size: Size, task: Task) -> nn.Module:
    return GATrModel(_absolute_config(size, task), task.schema, with_coordinates)


def _absolute_flops(size: Size, task: Task) -> TrainingFlops:
    return gatr_training_flops(_absolute_config(size, task))


class TurnedGATr(GATrModel):
    """GATr that sees one field turned by a rotation that is the same for all samples."""

    rotation: Tensor

    def __init__(self, config: GATrConfig, schema: Schema) -> None:
        super().__init__(config, schema)
        self.field = turned_field(schema).name
        rotation = random_rotation(1, torch.Generator().manual_seed(0), torch.float64)[0]
        self.register_buffer("rotation", rotation, persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """Predict the targets of a batch, in its own frame."""
        value = batch[self.field]
        return super().forward(batch.replace(**{self.field: value @ self.rotation.to(value.dtype).T}))


def turned_field(schema: Schema) -> Field:
    """The first direction of the tokens, else of the samples, else the first pseudovector or point.

    Raises InputError if there is none.
    """
    for kind in (Kind.DIRECTION, Kind.PSEUDOVECTOR, Kind.POINT):
        for per in ("token", "sample"):
            if fields := schema.of(kind, per):
                return fields[0]
    raise InputError("the task has no direction, pseudovector or point that a control could turn")


def _turned(size: Size, task: Task) -> nn.Module:
    return TurnedGATr(gatr_config(size, task), task.schema)


# Each is trained by the recipe of the arm that it is a control of.
ARMS = (
    dataclasses.replace(
        ALIGNED,
        name="transformer_misaligned",
        description="a control: the aligned transformer, with a random rotation of every system in place of gravity's",
        role=Role.CONTROL,
        control_of="transformer_aligned",
        build=_misaligned,
        flops=_misaligned_flops,
    ),
    dataclasses.replace(
        BUILT_IN,
        name="gatr_absolute",
        description="a control: GATr that also sees the points' coordinates as scalars",
        role=Role.CONTROL,
        control_of="gatr",
        build=_absolute,
        flops=_absolute_flops,
    ),
    dataclasses.replace(
        BUILT_IN,
        name="gatr_turned",
        description="a control: GATr that sees one field, the vertices' velocity, turned by a fixed rotation",
        role=Role.CONTROL,
        control_of="gatr",
        build=_turned,
    ),
)
