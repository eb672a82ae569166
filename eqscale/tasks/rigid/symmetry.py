"""What the benchmark's symmetry adds to that of every task: objects to permute, a vertical, an upright frame."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from eqscale.tasks.fields import Batch
from eqscale.tasks.rigid.motion import rotation_by
from eqscale.tasks.symmetry import ELEMENTS as COMMON
from eqscale.tasks.symmetry import permute, random_signs, transform


def shuffle_objects(batch: Batch, generator: torch.Generator | None = None) -> Batch:
    """Give the objects of every window another order, tokens and labels with them; padding stays at the end."""
    labels = batch["object_index"]
    n = int(labels.max()) + 1
    objects = torch.where(batch.mask, labels, -1).amax(1, keepdim=True) + 1
    draw = torch.rand(len(labels), n, generator=generator).to(labels.device)
    draw[torch.arange(n, device=labels.device) >= objects] = 2.0  # absent ones go last
    rank = draw.argsort(1).argsort(1)
    label = torch.where(batch.mask, rank.gather(1, labels), n)
    order = label.argsort(dim=1, stable=True)
    moved = permute(batch, order)
    return moved.replace(object_index=torch.where(batch.mask, label.gather(1, order), 0))


def random_vertical(n: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Matrices (n, 3, 3) uniform on the O(2) that fixes z: turns about it, half of them mirrored."""
    device = generator.device if generator is not None else torch.device("cpu")
    angle = 2 * math.pi * torch.rand(n, generator=generator, dtype=torch.float64, device=device)
    mirror = random_signs(n, generator, device)
    out = torch.zeros(n, 3, 3, dtype=torch.float64, device=device)
    out[:, 0, 0], out[:, 0, 1] = angle.cos(), -angle.sin() * mirror
    out[:, 1, 0], out[:, 1, 1] = angle.sin(), angle.cos() * mirror
    out[:, 2, 2] = 1
    return out.to(dtype)


def _direction(vectors: Tensor) -> Tensor:
    """Unit vectors along the rows; zero along zero."""
    return functional.normalize(vectors, dim=1, eps=torch.finfo(vectors.dtype).tiny)


def _yaw(batch: Batch, generator: torch.Generator) -> Batch:
    axis = _direction(batch["gravity"])  # none without gravity: no turn
    angle = 2 * math.pi * torch.rand(len(axis), 1, generator=generator, dtype=torch.float64)
    return transform(batch, rotation_by(angle.to(axis) * axis))


ELEMENTS: dict[str, Callable[[Batch, torch.Generator], Batch]] = {"yaw": _yaw, **COMMON, "permutation": shuffle_objects}
"""Those of every task, with a uniform turn about gravity's axis, and an order of the objects instead of tokens."""


def align(batch: Batch) -> tuple[Batch, Tensor]:
    """The upright view: gravity to -z by the shortest rotation, and that rotation, (B, 3, 3).

    Where gravity is exactly +z, the half-turn about x; without gravity nothing says what is down, and the sample stays
    as it is.
    """
    start = _direction(batch["gravity"].double())
    end = torch.zeros_like(start)
    end[:, 2] = -1
    # a -> b by I - (a + b)(a + b)^T / (1 + a.b) + 2 b a^T, with 1 + a.b = |a + b|^2 / 2 free of cancellation.
    both = start + end
    square = both.square().sum(1)
    eye = torch.eye(3, dtype=start.dtype, device=start.device)
    outer = both[:, :, None] * both[:, None, :] * (2 / square.clamp_min(1e-24))[:, None, None]
    matrix = eye - outer + 2 * end[:, :, None] * start[:, None, :]
    half_turn = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=start.dtype, device=start.device))
    matrix = torch.where((square < 1e-20)[:, None, None], half_turn, matrix)
    matrix = torch.where(start.any(1)[:, None, None], matrix, eye).to(batch["position"].dtype)
    return transform(batch, matrix), matrix
