"""The typed sample that every arm receives: one padded batch of windows, one token per mesh vertex."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Batch:
    """B windows with up to T vertex tokens each; all floats are float32 (float64 in tests).

    Coordinates are metres in the scene's own frame, relative to the mean centre of mass of the scene's
    objects at the start time. Padded tokens hold zeros and have ``mask`` False.
    """

    position: Tensor
    """Vertex positions, (B, T, 3), m."""
    velocity: Tensor
    """Vertex velocities v + omega x r, (B, T, 3), m/s."""
    center: Tensor
    """Centre of mass of the vertex's object, (B, T, 3), m."""
    center_velocity: Tensor
    """Velocity of that centre of mass, (B, T, 3), m/s."""
    material: Tensor
    """Per token (log mass/kg, friction, restitution) of its object, (B, T, 3)."""
    object_index: Tensor
    """Which object a token belongs to, 0-based within the scene, (B, T), int64."""
    mask: Tensor
    """True for real tokens, (B, T), bool."""
    floor_normal: Tensor
    """Unit normal n of the floor plane n.x = d, pointing to the free side, (B, 3)."""
    floor_offset: Tensor
    """Offset d of the floor plane in the coordinates of ``position``, (B,), m."""
    gravity: Tensor
    """Gravity vector, (B, 3), m/s^2."""
    floor_material: Tensor
    """(friction, restitution) of the floor, (B, 2)."""
    target: Tensor
    """Residual to ballistic motion after the horizon, in units of sigma_h, (B, T, 3)."""
    weight: Tensor
    """Loss weight of a token: 1 / (objects in the scene x vertices of its object), 0 if padded, (B, T)."""
    contact: Tensor
    """What the token's object touched within the horizon: 0 nothing, 1 floor only, 2 an object, (B, T), int64."""
    scene: Tensor
    """Index of the scene within its split, (B,), int64."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Copy of the batch on another device."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=non_blocking)
            for f in dataclasses.fields(self)
        }
        return Batch(**moved)
