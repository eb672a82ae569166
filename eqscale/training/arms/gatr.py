"""The arm that builds the symmetry in, GATr, and its controls on the same backbone."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor, nn

from eqscale.algebra import embed_direction, embed_plane, embed_point, extract_displacement
from eqscale.models.flops import TrainingFlops
from eqscale.models.gatr import GATr, GATrConfig, gatr_training_flops
from eqscale.rigid.batch import Batch
from eqscale.roles import Role
from eqscale.training.arms.base import Arm, Size
from eqscale.training.arms.invariants import FLOOR_INVARIANTS, SPEED, floor_invariants
from eqscale.training.arms.recipe import fitted_recipe

_ACCELERATION = 9.81  # typical, m/s^2: every channel is of order one
LENGTHS = {"parity": 0.1, "published": 0.1, "off": 1.0}
"""Unit of length of the multivectors in m. Larger networks train far better in dm than in metres (docs/arms.md);
unconstrained maps don't know which components are lengths, and start with huge outputs in dm."""
_TRUE_IN, _PSEUDO_IN, _SCALARS_IN = 3, 5, 5 + FLOOR_INVARIANTS
_PUBLISHED_IN = 6


def _with_lengths_in(batch: Batch, unit: float) -> Batch:
    """The batch with positions and the floor's offset in another unit of length, given in m."""
    return dataclasses.replace(
        batch,
        position=batch.position / unit,
        center=batch.center / unit,
        floor_offset=batch.floor_offset / unit,
    )


def token_multivectors(batch: Batch) -> Tensor:
    """A vertex and the scene as multivectors (B, T, 8, 16), in the batch's unit of length.

    True channels: the floor; planes through the vertex, normal to its velocity and to its distance from the
    centre of mass. Pseudo channels: vertex and centre of mass as points; their velocities and gravity as
    directions. Every channel moves with the scene under all of E(3), translations included.
    """
    everywhere = functools.partial(_everywhere, tokens=batch.position.shape[1])
    floor_point = batch.floor_normal * batch.floor_offset[:, None]
    return torch.stack(
        [
            everywhere(embed_plane(batch.floor_normal, floor_point)),
            embed_plane(batch.velocity / SPEED, batch.position),
            embed_plane(batch.position - batch.center, batch.position),
            embed_point(batch.position),
            embed_point(batch.center),
            embed_direction(batch.velocity / SPEED),
            embed_direction(batch.center_velocity / SPEED),
            everywhere(embed_direction(batch.gravity / _ACCELERATION)),
        ],
        2,
    )


def token_invariants(batch: Batch) -> Tensor:
    """Materials of the vertex's object and of the floor, and its motion relative to the floor, (B, T, 9)."""
    floor = _everywhere(batch.floor_material, batch.position.shape[1])
    return torch.cat([batch.material, floor, floor_invariants(batch)], -1)


def published_multivectors(batch: Batch) -> Tensor:
    """The same inputs as published GATr embeds them: multivectors (B, T, 6, 16), in the batch's unit of length.

    Points with e123 = +1 in untyped channels, directions as planes through the origin: exact for rotations about
    the origin only (arXiv 2305.18415, table 1).
    """
    everywhere = functools.partial(_everywhere, tokens=batch.position.shape[1])
    origin = torch.zeros_like(batch.position)
    floor_point = batch.floor_normal * batch.floor_offset[:, None]
    return torch.stack(
        [
            everywhere(embed_plane(batch.floor_normal, floor_point)),
            embed_plane(batch.velocity / SPEED, origin),
            embed_plane(batch.center_velocity / SPEED, origin),
            embed_plane(everywhere(batch.gravity / _ACCELERATION), origin),
            embed_point(batch.position),
            embed_point(batch.center),
        ],
        2,
    )


def _everywhere(x: Tensor, tokens: int) -> Tensor:
    """A property of the scene at each of its tokens: (B, ...) -> (B, T, ...)."""
    return x[:, None].expand(-1, tokens, *x.shape[1:])


class GATrModel(nn.Module):
    """GATr on vertex tokens: Batch -> predicted targets (B, T, 3)."""

    def __init__(self, config: GATrConfig) -> None:
        super().__init__()
        self.net = GATr(config)
        self.unit = LENGTHS[config.symmetry]
        self.embed = published_multivectors if config.symmetry == "published" else token_multivectors

    def forward(self, batch: Batch) -> Tensor:
        """Predict the targets of a batch, in its own frame."""
        scaled = _with_lengths_in(batch, self.unit)
        multivectors, _ = self.net(self.embed(scaled), token_invariants(batch), batch.mask)
        normal, displaced = multivectors.unbind(2)
        return extract_displacement(normal, displaced, scaled.position)


def _config(size: Size, symmetry: str) -> GATrConfig:
    half, published = size.width // 2, symmetry == "published"
    return GATrConfig(
        true_in=_PUBLISHED_IN if published else _TRUE_IN,
        pseudo_in=0 if published else _PSEUDO_IN,
        scalars_in=_SCALARS_IN,
        true_out=2 if published else 1,
        pseudo_out=0 if published else 1,
        scalars_out=0,
        true=size.width if published else half,
        pseudo=0 if published else size.width - half,
        scalars=2 * size.width,
        blocks=size.depth,
        heads=size.heads,
        symmetry=symmetry,
    )


def _build(size: Size, symmetry: str) -> nn.Module:
    return GATrModel(_config(size, symmetry))


def _flops(size: Size, symmetry: str) -> TrainingFlops:
    return gatr_training_flops(_config(size, symmetry))


# About 1e3 to 1e9 parameters; width counts multivector channels, half of them true, half pseudo. Narrow and deep
# pays: at 3e11 FLOPs four channels with 2 to 6 blocks end far below eight channels with one (docs/arms.md).
_LADDER = tuple(
    Size(width, depth, heads)
    for width, depth, heads in (
        (2, 1, 2), (2, 2, 2), (2, 3, 2), (3, 2, 2), (3, 3, 2), (4, 2, 2), (4, 3, 2), (4, 4, 2), (4, 6, 2),
        (6, 4, 2), (6, 6, 2), (8, 5, 4), (8, 7, 4), (12, 4, 4), (12, 6, 4), (16, 5, 4), (16, 7, 4),
        (20, 7, 4), (24, 7, 4), (28, 8, 4), (32, 9, 8), (40, 9, 8), (48, 9, 8), (56, 10, 8), (72, 9, 8),
        (80, 11, 8), (96, 11, 8), (112, 12, 8), (136, 12, 8), (160, 13, 8), (192, 14, 8), (224, 15, 8),
        (264, 16, 8), (312, 17, 8), (376, 17, 8), (448, 18, 8), (512, 21, 8),
    )
)  # fmt: skip


def _arm(
    name: str, description: str, symmetry: str, recipe: str | None = None, control_of: str | None = None
) -> Arm:
    return Arm(
        name,
        description,
        Role.CONTROL if control_of else Role.BUILD_IN,
        functools.partial(_build, symmetry=symmetry),
        functools.partial(_flops, symmetry=symmetry),
        _LADDER,
        fitted_recipe(recipe or name),
        optimal_cost=0.6,
        packed=GATr.packs,
        control_of=control_of,
    )


ARMS = (
    _arm("gatr", "build it in: geometric algebra transformer, exactly E(3)-equivariant", "parity"),
    _arm(
        "gatr_published",
        "GATr as published: untyped channels, exact for rotations only",
        "published",
        recipe="gatr",
    ),
    _arm(
        "gatr_off",
        "the control: GATr's backbone with unconstrained maps, no symmetry left",
        "off",
        control_of="gatr",
    ),
)
