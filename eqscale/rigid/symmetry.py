"""The symmetry group of the task acting on batches: exact, as the simulated map is itself equivariant."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from eqscale.errors import InputError
from eqscale.rigid.batch import Batch
from eqscale.rigid.motion import rotation_by

_VECTORS = ("position", "velocity", "center", "center_velocity", "target", "floor_normal", "gravity")


def transform(batch: Batch, matrix: Tensor) -> Batch:
    """Act with matrix (B, 3, 3) in O(3) about the origin on everything, gravity and floor included."""
    rows = matrix.transpose(1, 2)
    moved = {}
    for name in _VECTORS:
        value = getattr(batch, name)
        moved[name] = torch.bmm(value, rows) if value.ndim == 3 else torch.bmm(value[:, None], rows)[:, 0]
    return dataclasses.replace(batch, **moved)


def translate(batch: Batch, shift: Tensor) -> Batch:
    """Act with a translation by shift (B, 3): points and the floor move; padded tokens stay zero."""
    by = shift[:, None] * batch.mask[..., None]
    return dataclasses.replace(
        batch,
        position=batch.position + by,
        center=batch.center + by,
        floor_offset=batch.floor_offset + (batch.floor_normal * shift).sum(-1),
    )


def shuffle_objects(batch: Batch, generator: torch.Generator | None = None) -> Batch:
    """Give the objects of every window another order, tokens and labels with them; padding stays at the end."""
    labels = batch.object_index
    n = int(labels.max()) + 1
    objects = torch.where(batch.mask, labels, -1).amax(1, keepdim=True) + 1
    draw = torch.rand(len(labels), n, generator=generator).to(labels.device)
    draw[torch.arange(n, device=labels.device) >= objects] = 2.0  # absent ones go last
    rank = draw.argsort(1).argsort(1)
    label = torch.where(batch.mask, rank.gather(1, labels), n)
    order = label.argsort(dim=1, stable=True)
    moved = {"object_index": torch.where(batch.mask, label.gather(1, order), 0)}
    row = torch.arange(len(labels), device=labels.device)[:, None]
    for name in (
        "position",
        "velocity",
        "center",
        "center_velocity",
        "material",
        "target",
        "weight",
        "contact",
    ):
        moved[name] = getattr(batch, name)[row, order]
    return dataclasses.replace(batch, **moved)


def _quaternion_to_rotation() -> tuple[Tensor, ...]:
    """For the nine entries of a rotation: identity + factor * (q_a q_b + sign * q_c q_d), q = (w, x, y, z)."""
    w, x, y, z = range(4)
    pairs: list[tuple[tuple[int, int], tuple[int, int], int]] = [
        ((y, y), (z, z), 1), ((x, y), (w, z), -1), ((x, z), (w, y), 1),
        ((x, y), (w, z), 1), ((x, x), (z, z), 1), ((y, z), (w, x), -1),
        ((x, z), (w, y), -1), ((y, z), (w, x), 1), ((x, x), (y, y), 1),
    ]  # fmt: skip
    first = torch.tensor([4 * a + b for (a, b), _, _ in pairs])
    second = torch.tensor([4 * c + d for _, (c, d), _ in pairs])
    identity = torch.eye(3, dtype=torch.float64).reshape(9)
    sign = torch.tensor([s for _, _, s in pairs], dtype=torch.float64)
    return first, second, sign, 2 - 4 * identity, identity


_QUATERNION_TO_ROTATION = _quaternion_to_rotation()


def random_orthogonal(
    n: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Matrices (n, 3, 3) uniform on O(3) (Haar), on the generator's device."""
    device = generator.device if generator is not None else torch.device("cpu")
    # A uniform quaternion gives a uniform rotation; a fair sign extends SO(3) to O(3).
    q = torch.randn(n, 4, generator=generator, dtype=torch.float64, device=device)
    q = q / q.norm(dim=1, keepdim=True)
    products = (q[:, :, None] * q[:, None, :]).reshape(n, 16)
    first, second, sign, factor, identity = (constant.to(device) for constant in _QUATERNION_TO_ROTATION)
    rotation = identity + factor * (products.index_select(1, first) + sign * products.index_select(1, second))
    return (_signs(n, generator, device)[:, None] * rotation).reshape(n, 3, 3).to(dtype)


def random_vertical(
    n: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Matrices (n, 3, 3) uniform on the O(2) that fixes z: turns about it, half of them mirrored."""
    device = generator.device if generator is not None else torch.device("cpu")
    angle = 2 * math.pi * torch.rand(n, generator=generator, dtype=torch.float64, device=device)
    mirror = _signs(n, generator, device)
    out = torch.zeros(n, 3, 3, dtype=torch.float64, device=device)
    out[:, 0, 0], out[:, 0, 1] = angle.cos(), -angle.sin() * mirror
    out[:, 1, 0], out[:, 1, 1] = angle.sin(), angle.cos() * mirror
    out[:, 2, 2] = 1
    return out.to(dtype)


def _signs(n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    return 1.0 - 2.0 * torch.randint(2, (n,), generator=generator, dtype=torch.float64, device=device)


def random_unit(
    n: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Vectors (n, 3) uniform on the sphere."""
    device = generator.device if generator is not None else torch.device("cpu")
    v = torch.randn(n, 3, generator=generator, dtype=torch.float64, device=device)
    return (v / v.norm(dim=1, keepdim=True)).to(dtype)


def _yaw(batch: Batch, generator: torch.Generator) -> Batch:
    axis = batch.gravity / batch.gravity.norm(dim=1, keepdim=True)
    angle = 2 * math.pi * torch.rand(len(axis), 1, generator=generator, dtype=torch.float64)
    return transform(batch, rotation_by(angle.to(axis) * axis))


def _rotation(batch: Batch, generator: torch.Generator) -> Batch:
    matrix = random_orthogonal(len(batch.gravity), generator, torch.float64)
    return transform(batch, (torch.linalg.det(matrix)[:, None, None] * matrix).to(batch.position))


def _reflection(batch: Batch, generator: torch.Generator) -> Batch:
    normal = random_unit(len(batch.gravity), generator, torch.float64)
    matrix = torch.eye(3, dtype=torch.float64) - 2 * normal[:, :, None] * normal[:, None, :]
    return transform(batch, matrix.to(batch.position))


def _translation(batch: Batch, generator: torch.Generator) -> Batch:
    return translate(batch, random_unit(len(batch.gravity), generator, torch.float64).to(batch.position))


ELEMENTS: dict[str, Callable[[Batch, torch.Generator], Batch]] = {
    "yaw": _yaw,
    "rotation": _rotation,
    "reflection": _reflection,
    "translation": _translation,
    "permutation": shuffle_objects,
}
"""Act with a random element of each class, a fresh one per window: a uniform turn about gravity's axis; a uniform
rotation; a reflection in a uniform plane through the origin; a shift of 1 m in a uniform direction; another order
of the objects. Generators live on the CPU."""


def frame_elements(
    frame: str, n: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Matrices (n, 3, 3), uniform on the frame protocol's own symmetry group.

    'random': all of O(3); 'upright': rotations about the vertical and mirror (gravity must be along -z).
    """
    groups = {"random": random_orthogonal, "upright": random_vertical}
    if frame not in groups:
        raise InputError(f"unknown frame protocol {frame!r}: choose from {', '.join(groups)}")
    return groups[frame](n, generator, dtype)


def augment(batch: Batch, frame: str, generator: torch.Generator | None = None) -> Batch:
    """Act with a fresh element, per window, of the frame protocol's own symmetry group (``frame_elements``).

    The data's distribution is invariant under it, so augmentation never changes the task.
    """
    matrix = frame_elements(frame, len(batch.gravity), generator, batch.position.dtype)
    return transform(batch, matrix.to(batch.position.device))


def align(batch: Batch) -> tuple[Batch, Tensor]:
    """The upright view: gravity to -z by the shortest rotation, and that rotation, (B, 3, 3).

    Where gravity is exactly +z, the half-turn about x.
    """
    gravity = batch.gravity.double()
    start = gravity / gravity.norm(dim=1, keepdim=True)
    end = torch.zeros_like(start)
    end[:, 2] = -1
    # a -> b by I - (a + b)(a + b)^T / (1 + a.b) + 2 b a^T, with 1 + a.b = |a + b|^2 / 2 free of cancellation.
    both = start + end
    square = both.square().sum(1)
    eye = torch.eye(3, dtype=start.dtype, device=start.device)
    outer = both[:, :, None] * both[:, None, :] * (2 / square.clamp_min(1e-24))[:, None, None]
    matrix = eye - outer + 2 * end[:, :, None] * start[:, None, :]
    half_turn = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=start.dtype, device=start.device))
    matrix = torch.where((square < 1e-20)[:, None, None], half_turn, matrix).to(batch.position.dtype)
    return transform(batch, matrix), matrix
