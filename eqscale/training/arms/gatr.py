"""The arm that builds the symmetry in: GATr, exactly E(3)-equivariant from the scene to the prediction."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eqscale.algebra import embed_direction, embed_plane, embed_point, extract_displacement
from eqscale.models.flops import TrainingFlops
from eqscale.models.gatr import GATr, GATrConfig, gatr_training_flops
from eqscale.rigid.batch import Batch
from eqscale.training.arms.base import Arm, Size

# Typical sizes of the inputs (m/s, m/s^2), so that every channel is of order one.
_SPEED, _ACCELERATION = 2.0, 9.81
_TRUE_IN, _PSEUDO_IN, _SCALARS_IN = 3, 5, 5


def token_multivectors(batch: Batch) -> tuple[Tensor, Tensor]:
    """A vertex and the scene as multivectors (B, T, 8, 16) and invariants (B, T, 5).

    True channels: the floor; planes through the vertex, normal to its velocity and to its distance from the
    centre of mass. Pseudo channels: vertex and centre of mass as points; their velocities and gravity as
    directions. Every channel moves with the scene under all of E(3), translations included.
    """
    T = batch.position.shape[1]

    def everywhere(x: Tensor) -> Tensor:
        return x[:, None].expand(-1, T, *x.shape[1:])

    floor_point = batch.floor_normal * batch.floor_offset[:, None]
    multivectors = torch.stack(
        [
            everywhere(embed_plane(batch.floor_normal, floor_point)),
            embed_plane(batch.velocity / _SPEED, batch.position),
            embed_plane(batch.position - batch.center, batch.position),
            embed_point(batch.position),
            embed_point(batch.center),
            embed_direction(batch.velocity / _SPEED),
            embed_direction(batch.center_velocity / _SPEED),
            everywhere(embed_direction(batch.gravity / _ACCELERATION)),
        ],
        2,
    )
    return multivectors, torch.cat([batch.material, everywhere(batch.floor_material)], -1)


class GATrModel(nn.Module):
    """GATr on vertex tokens: Batch -> predicted targets (B, T, 3)."""

    def __init__(self, config: GATrConfig) -> None:
        super().__init__()
        self.net = GATr(config)

    def forward(self, batch: Batch) -> Tensor:
        """Predict the targets of a batch, in its own frame."""
        multivectors, _ = self.net(*token_multivectors(batch), batch.mask)
        true, pseudo = multivectors.unbind(2)
        return extract_displacement(true, pseudo, batch.position)


def _config(size: Size) -> GATrConfig:
    half = size.width // 2
    return GATrConfig(
        true_in=_TRUE_IN,
        pseudo_in=_PSEUDO_IN,
        scalars_in=_SCALARS_IN,
        true_out=1,
        pseudo_out=1,
        scalars_out=0,
        true=half,
        pseudo=size.width - half,
        scalars=2 * size.width,
        blocks=size.depth,
        heads=size.heads,
    )


def _flops(size: Size) -> TrainingFlops:
    return gatr_training_flops(_config(size))


def _build(size: Size) -> nn.Module:
    return GATrModel(_config(size))


def _learning_rate(parameters: int) -> float:
    return 2e-2 * (parameters / 6e3) ** -0.25


# About 1e3 to 1e6 parameters; width counts multivector channels, half of them true, half pseudo.
_LADDER = tuple(
    Size(width, depth, heads)
    for width, depth, heads in (
        (2, 1, 2), (2, 2, 2), (2, 3, 2), (4, 1, 2), (4, 2, 2), (4, 3, 2), (6, 2, 2), (6, 3, 2), (8, 3, 4), (8, 4, 4),
        (12, 3, 4), (12, 4, 4), (16, 3, 4), (16, 4, 4), (16, 6, 4), (20, 6, 4), (24, 6, 4), (32, 5, 8), (40, 5, 8),
    )
)  # fmt: skip

ARM = Arm(
    "gatr",
    "build it in: geometric algebra transformer, exactly E(3)-equivariant",
    _build,
    _flops,
    _LADDER,
    _learning_rate,
    packed=True,
)
