"""Invariants of a vertex and the floor that arms take as plain numbers beside the geometry."""

from __future__ import annotations

import torch
from torch import Tensor

from eqscale.rigid.batch import Batch

SPEED = 2.0
"""Typical speed, m/s: the unit of velocities as inputs of a network."""
FLOOR_INVARIANTS = 4
"""Length of the last dimension of ``floor_invariants``."""


def floor_invariants(batch: Batch) -> Tensor:
    """Heights above the floor (m) of a vertex and of its centre of mass, and their speeds along its normal, (B, T, 4).

    Unchanged when the whole scene is turned, mirrored or shifted. Padded tokens hold meaningless numbers.
    """
    normal, offset = batch.floor_normal[:, None], batch.floor_offset[:, None]

    def along(vectors: Tensor) -> Tensor:
        return (vectors * normal).sum(-1)

    heights = [along(batch.position) - offset, along(batch.center) - offset]
    speeds = [along(batch.velocity) / SPEED, along(batch.center_velocity) / SPEED]
    return torch.stack(heights + speeds, -1)
