"""The arm that builds the symmetry in, GATr, and GATr as published."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from eqscale import native
from eqscale.algebra import extract_displacement, extract_normal
from eqscale.arms.base import Arm, Size
from eqscale.arms.inputs import (
    in_one_call,
    invariants,
    invariants_width,
    multivectors,
    multivectors_width,
    pooled,
    published_multivectors,
    published_multivectors_width,
)
from eqscale.arms.recipe import fitted_recipes
from eqscale.errors import InputError
from eqscale.models.flops import TrainingFlops
from eqscale.models.gatr import GATr, GATrConfig, gatr_training_flops
from eqscale.roles import Role
from eqscale.tasks import Batch, Kind, Prepared, Schema, Task


class GATrModel(nn.Module):
    """GATr on tokens: Batch -> predicted targets."""

    def __init__(self, config: GATrConfig, schema: Schema, scalars: Callable[[Batch], Tensor] = invariants) -> None:
        """A model; ``scalars`` are the numbers (B, T, scalars_in) that its scalar channels hold."""
        super().__init__()
        self.net = GATr(config)
        self.unit = schema.vector_unit
        self.embed = published_multivectors if config.symmetry == "published" else multivectors
        self.scalars = scalars
        self.at = schema.target.at
        self._maps: tuple[Tensor, Tensor] | None = None

    def forward(self, batch: Batch) -> Tensor:
        """Predict the targets of a batch, in its own frame."""
        channels, scalars = self.net(self.embed(batch, self.unit), self.scalars(batch), batch.mask)
        if batch.schema.target.kind is Kind.INVARIANT:
            return pooled(scalars, batch)
        return pooled(self._read(channels, self._point(batch)), batch)

    def prepared(self, batch: Batch) -> Prepared | None:
        """What ``add_loss_gradient`` takes; None where it isn't one kernel call, as in a subclass or with hooks."""
        directions = batch.schema.target.kind is not Kind.INVARIANT
        if not directions or not in_one_call(self, self.net, GATrModel, batch) or not native.available(batch.target):
            return None
        embedded, point = self.embed(batch, self.unit), self._point(batch).expand_as(batch.target)
        return Prepared((embedded, self.scalars(batch), batch.mask, point, batch.target, batch.weight))

    def add_loss_gradient(self, given: Prepared, scale: float) -> Tensor:
        """The weighted squared error of samples times ``scale``, its gradient added to that of the parameters."""
        # The kernel takes as many samples at once as fit with their padding.
        embedded, scalars, mask, point, target, weight = (tensor[:, : given.longest] for tensor in given.tensors)
        return self.net.add_loss_gradient(embedded, scalars, mask, self._readings(target), point, target, weight, scale)

    def _point(self, batch: Batch) -> Tensor:
        """Where displacements are read, (B, T or 1, 3)."""
        if self.at is None:
            return batch.target.new_zeros(1, 1, 3)
        return (batch[self.at] if batch[self.at].ndim == 3 else batch[self.at][:, None]) / self.unit

    def _read(self, channels: Tensor, point: Tensor) -> Tensor:
        """Multivectors (..., 2, 16) and a point (..., 3) to a direction (..., 3)."""
        normal, displaced = channels.unbind(-2)
        if self.at is None:  # a channel's normal is unchanged by shifts wherever it is read
            return extract_normal(normal)
        return extract_displacement(normal, displaced, point)

    def _readings(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """``_read`` as maps of the outputs: (outputs, 3), and (outputs,) times the point."""
        if self._maps is None or self._maps[0].dtype != like.dtype:
            units = torch.eye(32, dtype=like.dtype).unflatten(1, (2, 16))
            there, here = (self._read(units, like.new_full((3,), at)) for at in (1.0, 0.0))
            self._maps = here, (there - here)[:, 0]
        return self._maps


def gatr_config(size: Size, task: Task, symmetry: str = "parity") -> GATrConfig:
    """Shape of the network."""
    half, published = size.width // 2, symmetry == "published"
    schema = task.schema
    true_in, pseudo_in = multivectors_width(schema)
    blind = schema.of(Kind.DIRECTION) + schema.of(Kind.PSEUDOVECTOR)
    if blind and not published and not schema.of(Kind.POINT):
        raise InputError(
            f"field {blind[0].name!r}: a {blind[0].kind.value}, but the task has no point. GATr sees it as a point at "
            "infinity, which no product or invariant shows without another: train gatr_slim or gatr_published"
        )
    if published:
        true_in, pseudo_in = published_multivectors_width(schema), 0
    vectors = 2 if schema.target.kind is Kind.DIRECTION else 0
    return GATrConfig(
        true_in=true_in,
        pseudo_in=pseudo_in,
        scalars_in=invariants_width(schema),
        true_out=vectors if published else vectors // 2,
        pseudo_out=0 if published else vectors // 2,
        scalars_out=0 if vectors else schema.target.width,
        true=size.width if published else half,
        pseudo=0 if published else size.width - half,
        scalars=2 * size.width,
        blocks=size.depth,
        heads=size.heads,
        symmetry=symmetry,
    )


def _build(size: Size, task: Task, symmetry: str) -> nn.Module:
    return GATrModel(gatr_config(size, task, symmetry), task.schema)


def _flops(size: Size, task: Task, symmetry: str) -> TrainingFlops:
    return gatr_training_flops(gatr_config(size, task, symmetry))


# About 1e3 to 1e9 parameters; width counts multivector channels, half of them true, half pseudo. Narrow and deep
# pays: at 3e11 FLOPs four channels with 2 to 6 blocks end far below eight channels with one (docs/arms.md).
_LADDER = tuple(
    Size(width, depth, heads)
    for width, depth, heads in (
        (2, 1, 2), (2, 2, 2), (2, 3, 2), (3, 2, 2), (3, 3, 2), (4, 2, 2), (4, 3, 2), (4, 4, 2), (4, 6, 2),
        (6, 4, 2), (6, 6, 2), (8, 5, 4), (8, 7, 4), (10, 6, 2), (12, 6, 4), (16, 5, 4), (16, 7, 4),
        (20, 7, 4), (24, 7, 4), (28, 8, 4), (32, 9, 8), (40, 9, 8), (48, 9, 8), (56, 10, 8), (72, 9, 8),
        (80, 11, 8), (96, 11, 8), (112, 12, 8), (136, 12, 8), (160, 13, 8), (192, 14, 8), (224, 15, 8),
        (264, 16, 8), (312, 17, 8), (376, 17, 8), (448, 18, 8), (512, 21, 8),
    )
)  # fmt: skip


def _arm(name: str, description: str, symmetry: str) -> Arm:
    recipes = fitted_recipes("gatr")
    return Arm(
        name,
        description,
        Role.BUILD_IN,
        functools.partial(_build, symmetry=symmetry),
        functools.partial(_flops, symmetry=symmetry),
        _LADDER,
        recipes[0],
        optimal_cost=0.6,
        packed=lambda size, device: GATr.packs(device),
        alternatives=recipes[1:],
    )


BUILT_IN = _arm("gatr", "build it in: geometric algebra transformer, exactly E(3)-equivariant", "parity")
ARMS = (BUILT_IN, _arm("gatr_published", "GATr as published: untyped channels, exact for rotations only", "published"))
