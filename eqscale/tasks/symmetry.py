"""Groups that act on batches: rotations, reflections, shifts and permutations, by the kinds of the fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from eqscale.tasks.fields import Batch, Kind

Elements = Callable[[int, torch.Generator | None, torch.dtype], Tensor]
"""(n, generator, dtype) -> matrices (n, 3, 3), uniform on a subgroup of O(3)."""


def transform(batch: Batch, matrix: Tensor) -> Batch:
    """Act with matrix (B, 3, 3) in O(3) about the origin on every field and on the target."""
    moved = {f.name: turn(batch.values[f.name], f.kind, matrix) for f in batch.schema.fields}
    return batch.replace(turn(batch.target, batch.schema.target.kind, matrix), **moved)


def turn(value: Tensor, kind: Kind, matrix: Tensor) -> Tensor:
    """Act with matrix (B, 3, 3) in O(3) on one quantity, (B, T, width) or (B, width)."""
    if kind is Kind.INVARIANT:
        return value
    if value.ndim == 2:
        return turn(value[:, None], kind, matrix)[:, 0]
    if kind is Kind.PLANE:
        return torch.cat([turn(value[..., :3], Kind.DIRECTION, matrix), value[..., 3:]], -1)
    turned = torch.bmm(value, matrix.transpose(1, 2))
    return turned * torch.linalg.det(matrix).sign()[:, None, None] if kind is Kind.PSEUDOVECTOR else turned


def translate(batch: Batch, shift: Tensor) -> Batch:
    """Act with a translation by shift (B, 3): points and planes move; padded tokens stay zero."""
    moved = {}
    for field in batch.schema.fields:
        value, by = batch.values[field.name], shift
        if field.per == "token":
            by = shift[:, None] * batch.mask[..., None]
        if field.kind is Kind.POINT:
            moved[field.name] = value + by
        elif field.kind is Kind.PLANE:
            offset = value[..., 3] + (value[..., :3] * by).sum(-1)
            moved[field.name] = torch.cat([value[..., :3], offset[..., None]], -1)
    return batch.replace(**moved)


def permute(batch: Batch, order: Tensor) -> Batch:
    """Give the tokens another order (B, T), an index for each place; what is per sample stays."""
    row = torch.arange(len(order), device=order.device)[:, None]
    per_token = {field.name for field in batch.schema.fields if field.per == "token"}
    moved = {name: value[row, order] for name, value in batch.values.items() if name in per_token}
    moved |= {name: value[row, order] for name, value in batch.labels.items()}
    batch = dataclasses.replace(batch.replace(**moved), mask=batch.mask[row, order])
    if batch.schema.target.per == "sample":
        return batch
    return dataclasses.replace(batch, target=batch.target[row, order], weight=batch.weight[row, order])


def shuffle_tokens(batch: Batch, generator: torch.Generator) -> Batch:
    """Give the real tokens of every sample a random order; padding stays at the end."""
    draw = torch.rand(batch.mask.shape, generator=generator).to(batch.mask.device)
    return permute(batch, torch.where(batch.mask, draw, 2.0).argsort(1))


def _quaternion_to_rotation() -> tuple[Tensor, ...]:
    """For the nine entries of a rotation: identity + factor * (q_a q_b + sign * q_c q_d), q = (w, x, y, z)."""
    pairs = ["yy+zz", "xy-wz", "xz+wy", "xy+wz", "xx+zz", "yz-wx", "xz-wy", "yz+wx", "xx+yy"]
    first, second = (
        torch.tensor([4 * "wxyz".index(pair[k]) + "wxyz".index(pair[k + 1]) for pair in pairs]) for k in (0, 3)
    )
    sign = torch.tensor([float(pair[2] + "1") for pair in pairs], dtype=torch.float64)
    identity = torch.eye(3, dtype=torch.float64).reshape(9)
    return first, second, sign, 2 - 4 * identity, identity


_QUATERNION_TO_ROTATION = _quaternion_to_rotation()


def random_orthogonal(n: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Matrices (n, 3, 3) uniform on O(3) (Haar), on the generator's device."""
    device = generator.device if generator is not None else torch.device("cpu")
    # A uniform quaternion gives a uniform rotation; a fair sign extends SO(3) to O(3).
    q = torch.randn(n, 4, generator=generator, dtype=torch.float64, device=device)
    q = q / q.norm(dim=1, keepdim=True)
    products = (q[:, :, None] * q[:, None, :]).reshape(n, 16)
    first, second, sign, factor, identity = (constant.to(device) for constant in _QUATERNION_TO_ROTATION)
    rotation = identity + factor * (products.index_select(1, first) + sign * products.index_select(1, second))
    return (random_signs(n, generator, device)[:, None] * rotation).reshape(n, 3, 3).to(dtype)


def random_signs(n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Fair signs (n,), float64."""
    return 1.0 - 2.0 * torch.randint(2, (n,), generator=generator, dtype=torch.float64, device=device)


def random_unit(n: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Vectors (n, 3) uniform on the sphere."""
    device = generator.device if generator is not None else torch.device("cpu")
    v = torch.randn(n, 3, generator=generator, dtype=torch.float64, device=device)
    return (v / v.norm(dim=1, keepdim=True)).to(dtype)


def random_rotation(n: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Matrices (n, 3, 3) uniform on SO(3) (Haar), on the generator's device."""
    matrix = random_orthogonal(n, generator, torch.float64)
    return (torch.linalg.det(matrix)[:, None, None] * matrix).to(dtype)


@dataclasses.dataclass(frozen=True)
class Group:
    """The transformations that turn a sample with its label into another sample with its label."""

    name: str = "E(3)"
    elements: Elements = random_orthogonal
    """Its rotations and reflections: the samples' law is unchanged by them too, so augmentation draws from here."""
    translations: bool = True
    permutations: bool = True
    """Of the tokens of a sample."""


E3 = Group()
SE3 = Group("SE(3)", random_rotation)


def _rotation(batch: Batch, generator: torch.Generator) -> Batch:
    return transform(batch, random_rotation(len(batch), generator, torch.float64).to(batch.target))


def _reflection(batch: Batch, generator: torch.Generator) -> Batch:
    normal = random_unit(len(batch), generator, torch.float64)
    matrix = torch.eye(3, dtype=torch.float64) - 2 * normal[:, :, None] * normal[:, None, :]
    return transform(batch, matrix.to(batch.target))


def _translation(batch: Batch, generator: torch.Generator) -> Batch:
    unit = random_unit(len(batch), generator, torch.float64).to(batch.target)
    return translate(batch, unit * batch.schema.length)


ELEMENTS: dict[str, Callable[[Batch, torch.Generator], Batch]] = {
    "rotation": _rotation,
    "reflection": _reflection,
    "translation": _translation,
    "permutation": shuffle_tokens,
}
"""Act with a random element of each class, one per sample: a uniform rotation; a reflection in a uniform plane through
the origin; a shift of the task's length in a uniform direction; another order of the tokens. Generators live on the
CPU."""
