"""Rigid motion of the objects of a batch: means over objects, spins, ballistic flight, Kabsch fits."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from eqscale.tasks.fields import Batch


class Objects:
    """Sums over the tokens of each object; objects without tokens give zeros."""

    def __init__(self, batch: Batch):
        b = len(batch)
        self.n = int(batch["object_index"].max()) + 1
        row = torch.arange(b, device=batch.mask.device)[:, None] * self.n
        self._slot = (row + batch["object_index"]).reshape(-1)
        self._mask = batch.mask
        self._shape = (b, self.n)
        self.count = self.sum(batch.mask.to(batch["position"].dtype))
        """Tokens per object, (B, N)."""
        self.exists = self.count > 0
        """(B, N) bool."""

    def sum(self, values: Tensor) -> Tensor:
        """Sum of values (B, T, ...) over each object's tokens, (B, N, ...)."""
        trailing = values.shape[2:]
        kept = values * self._mask.reshape(*self._mask.shape, *[1] * len(trailing))
        out = torch.zeros(self._shape[0] * self.n, *trailing, dtype=values.dtype, device=values.device)
        out.index_add_(0, self._slot, kept.reshape(-1, *trailing))
        return out.reshape(*self._shape, *trailing)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of values (B, T, ...) over each object's tokens, (B, N, ...)."""
        count = self.count.clamp_min(1)
        return self.sum(values) / count.reshape(*count.shape, *[1] * (values.dim() - 2))

    def spread(self, values: Tensor) -> Tensor:
        """Give each token its object's value, (B, N, ...) to (B, T, ...)."""
        flat = values.reshape(-1, *values.shape[2:])
        return flat[self._slot].reshape(*self._mask.shape, *values.shape[2:])


def spin(batch: Batch, objects: Objects) -> Tensor:
    """Angular velocities (B, N, 3), rad/s, from the vertex velocities v + omega x r, by least squares."""
    r = batch["position"] - batch["center"]
    u = batch["velocity"] - batch["center_velocity"]
    eye = torch.eye(3, dtype=r.dtype, device=r.device)
    inertia = objects.sum(r.square().sum(-1)[..., None, None] * eye - r[..., :, None] * r[..., None, :])
    inertia = torch.where(objects.exists[..., None, None], inertia, eye)
    return torch.linalg.solve(inertia, objects.sum(torch.linalg.cross(r, u)))


def rotation_by(vector: Tensor) -> Tensor:
    """Rotations exp([v]x), (..., 3, 3), of rotation vectors (..., 3)."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(*x.shape, 3, 3)
    return torch.linalg.matrix_exp(cross)


def rotation_vector(rotation: Tensor) -> Tensor:
    """Rotation vectors (..., 3) of rotation matrices (..., 3, 3); angle in [0, pi)."""
    skew = 0.5 * (rotation - rotation.transpose(-1, -2))
    axis = torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], dim=-1)
    sine = axis.norm(dim=-1, keepdim=True)
    cosine = 0.5 * (rotation.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) - 1)
    angle = torch.atan2(sine, cosine)
    return axis * torch.where(sine > 1e-12, angle / sine.clamp_min(1e-12), 1.0)


@dataclasses.dataclass(frozen=True)
class Flight:
    """Free flight of a batch over a horizon."""

    position: Tensor
    """Vertices, (B, T, 3)."""
    center: Tensor
    """Centres of mass, (B, N, 3)."""
    velocity: Tensor
    """Of the centres of mass, (B, N, 3)."""
    rotation: Tensor
    """Since the start, (B, N, 3, 3)."""
    spin: Tensor
    """Constant, as ballistic motion is defined, (B, N, 3)."""


def ballistic(batch: Batch, objects: Objects, time: float, time_step: float) -> Flight:
    """Gravity and constant spin for ``time`` seconds; the engine's Euler steps fall by g T (T + dt) / 2."""
    omega = spin(batch, objects)
    rotation = rotation_by(omega * time)
    fall = batch["gravity"][:, None] * (0.5 * time * (time + time_step))
    velocity = objects.mean(batch["center_velocity"])
    center = objects.mean(batch["center"]) + velocity * time + fall
    center = torch.where(objects.exists[..., None], center, 0.0)
    position = place(batch, objects, rotation, center)
    return Flight(position, center, velocity + batch["gravity"][:, None] * time, rotation, omega)


def kabsch(batch: Batch, objects: Objects, position: Tensor) -> tuple[Tensor, Tensor]:
    """Best rigid motion of each object from the batch's vertices to ``position`` (B, T, 3), least squares.

    Returns rotations (B, N, 3, 3), proper, and where they take the centres of mass, (B, N, 3).
    (Kabsch, Acta Cryst. A32, 1976.)
    """
    start, end = objects.mean(batch["position"]), objects.mean(position)
    a, b = batch["position"] - objects.spread(start), position - objects.spread(end)
    covariance = objects.sum(b[..., :, None] * a[..., None, :])
    u, _, vh = torch.linalg.svd(covariance)
    sign = torch.ones_like(start)
    sign[..., 2] = torch.linalg.det(u @ vh).sign()
    rotation = (u * sign[..., None, :]) @ vh
    center = end + (rotation @ (objects.mean(batch["center"]) - start)[..., None])[..., 0]
    return rotation, center


def place(batch: Batch, objects: Objects, rotation: Tensor, center: Tensor) -> Tensor:
    """Vertices (B, T, 3) of the objects turned from the batch's state and put at new centres of mass."""
    arm = (batch["position"] - batch["center"])[..., None]
    moved = objects.spread(center) + (objects.spread(rotation) @ arm)[..., 0]
    return moved * batch.mask[..., None]


def squared_errors(
    batch: Batch, objects: Objects, rotation: Tensor, center: Tensor, truth: Tensor
) -> tuple[Tensor, Tensor]:
    """Squared errors of centres of mass, m^2, and of rotations, rad^2, of predicted motions of the objects.

    ``truth`` are the true vertices (B, T, 3). Means over the objects of a window, summed over the windows.
    """
    true_rotation, true_center = kabsch(batch, objects, truth)
    angle = rotation_vector(rotation @ true_rotation.transpose(-1, -2)).norm(dim=-1)
    weight = objects.exists / objects.exists.sum(1, keepdim=True)
    return (weight * (center - true_center).square().sum(-1)).sum(), (weight * angle.square()).sum()
