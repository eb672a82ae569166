"""Geometry <-> multivectors: points, directions, planes, lines, translations, rotations, reflections.

Conventions follow plane-based PGA: the plane n.x = d is n1 e1 + n2 e2 + n3 e3 - d e0, a point is the meet of
three planes, e123 - x e023 + y e013 - z e012. The parity each object needs for exact E(3) equivariance is
given with its embedding (``eqscale.algebra.versors``). All coordinates are (..., 3), all multivectors (...,
16).
"""

from __future__ import annotations

import torch
from torch import Tensor

from eqscale.algebra.blades import INDEX
from eqscale.algebra.primitives import check_multivector, join
from eqscale.errors import InputError

_PLANE = [INDEX["e1"], INDEX["e2"], INDEX["e3"]]
_IDEAL_POINT = [INDEX["e023"], INDEX["e013"], INDEX["e012"]]
_IDEAL_SIGN = (-1.0, 1.0, -1.0)
_LINE = [INDEX["e23"], INDEX["e13"], INDEX["e12"]]
_LINE_SIGN = (1.0, -1.0, 1.0)
_MOMENT = [INDEX["e01"], INDEX["e02"], INDEX["e03"]]


def _check_vector(x: Tensor, name: str) -> Tensor:
    if x.ndim == 0 or x.shape[-1] != 3:
        raise InputError(f"{name}: expected shape (..., 3), got {tuple(x.shape)}")
    return x


def _assemble(like: Tensor, parts: dict[int, Tensor | float]) -> Tensor:
    zero = torch.zeros_like(like[..., 0])
    return torch.stack([parts[i] + zero if i in parts else zero for i in range(16)], -1)


def embed_point(x: Tensor) -> Tensor:
    """Points x as trivectors with e123 = 1. Parity: pseudo."""
    return embed_direction(x) + _assemble(x, {INDEX["e123"]: 1.0})


def embed_direction(v: Tensor) -> Tensor:
    """Directions (velocities, differences of points) as ideal points, e123 = 0. Parity: pseudo."""
    _check_vector(v, "v")
    return _assemble(
        v, {i: s * v[..., k] for k, (i, s) in enumerate(zip(_IDEAL_POINT, _IDEAL_SIGN, strict=True))}
    )


def extract_point(mv: Tensor, min_weight: float = 1e-3) -> Tensor:
    """Coordinates of a trivector, its ideal part divided by e123 (kept at least ``min_weight`` from 0)."""
    weight = extract_weight(mv)[..., None]
    sign = torch.where(weight < 0, -1.0, 1.0).to(weight.dtype)
    return extract_direction(mv) / torch.where(weight.abs() < min_weight, sign * min_weight, weight)


def extract_direction(mv: Tensor) -> Tensor:
    """Ideal part of a trivector: the direction of an ideal point, weight times position of a point."""
    check_multivector(mv, "mv")
    return mv[..., _IDEAL_POINT] * torch.tensor(_IDEAL_SIGN, dtype=mv.dtype, device=mv.device)


def extract_weight(mv: Tensor) -> Tensor:
    """Weight e123 of a trivector: 1 for a point, 0 for a direction; (...,)."""
    return check_multivector(mv, "mv")[..., INDEX["e123"]]


def extract_displacement(true: Tensor, pseudo: Tensor, x: Tensor) -> Tensor:
    """Displacement of a particle at ``x`` read from a true and a pseudo channel; exactly E(3)-covariant.

    The normal (e1, e2, e3) of the true channel plus the ideal part of the pseudo channel's trivector minus
    its weight times ``x``: both are unchanged by translations of the whole scene and turn or mirror with it.
    """
    return extract_normal(true) + extract_direction(pseudo) - extract_weight(pseudo)[..., None] * x


def embed_plane(normal: Tensor, point: Tensor) -> Tensor:
    """Planes with ``normal`` through ``point``. Parity: true. Any length of ``normal`` is kept."""
    _check_vector(normal, "normal")
    _check_vector(point, "point")
    return _assemble(
        normal, {**{i: normal[..., k] for k, i in enumerate(_PLANE)}, INDEX["e0"]: -(normal * point).sum(-1)}
    )


def extract_normal(mv: Tensor) -> Tensor:
    """Normal (e1, e2, e3) of a plane."""
    return check_multivector(mv, "mv")[..., _PLANE]


def extract_plane(mv: Tensor) -> tuple[Tensor, Tensor]:
    """Normal n (..., 3) and offset d (...,) of the plane n.x = d."""
    return extract_normal(mv), -mv[..., INDEX["e0"]]


def embed_line(point: Tensor, direction: Tensor) -> Tensor:
    """Lines through ``point`` along ``direction`` (any length is kept), joined from the two. Parity:
    pseudo."""
    return join(embed_point(point), embed_direction(direction))


def extract_line(mv: Tensor) -> tuple[Tensor, Tensor]:
    """Direction d and moment p x d of a line, both (..., 3)."""
    check_multivector(mv, "mv")
    return mv[..., _LINE] * torch.tensor(_LINE_SIGN, dtype=mv.dtype, device=mv.device), mv[..., _MOMENT]


def embed_translation(t: Tensor) -> Tensor:
    """Versor 1 - e0 t / 2 that shifts by ``t``."""
    _check_vector(t, "t")
    return _assemble(t, {0: 1.0, **{i: -0.5 * t[..., k] for k, i in enumerate(_MOMENT)}})


def extract_translation(versor: Tensor) -> Tensor:
    """Shift of a translation versor."""
    return -2.0 * check_multivector(versor, "versor")[..., _MOMENT] / versor[..., :1]


def embed_rotation(quaternion: Tensor) -> Tensor:
    """Rotor of a unit quaternion (w, x, y, z), Hamilton's convention, (..., 4): rotates about the origin."""
    if quaternion.ndim == 0 or quaternion.shape[-1] != 4:
        raise InputError(f"quaternion: expected shape (..., 4), got {tuple(quaternion.shape)}")
    bivector = {
        i: -s * quaternion[..., k + 1] for k, (i, s) in enumerate(zip(_LINE, _LINE_SIGN, strict=True))
    }
    return _assemble(quaternion, {0: quaternion[..., 0], **bivector})


def extract_rotation(versor: Tensor) -> Tensor:
    """Unit quaternion (w, x, y, z) of a rotor, (..., 4)."""
    check_multivector(versor, "versor")
    signs = torch.tensor((1.0, *(-s for s in _LINE_SIGN)), dtype=versor.dtype, device=versor.device)
    return versor[..., [0, *_LINE]] * signs


def embed_reflection(normal: Tensor, point: Tensor) -> Tensor:
    """Versor of the reflection in the plane with unit ``normal`` through ``point``: the plane itself."""
    return embed_plane(normal, point)
