"""Geometry <-> multivectors: points, directions, planes, lines, translations, rotations, reflections.

Conventions follow plane-based PGA: the plane n.x = d is n1 e1 + n2 e2 + n3 e3 - d e0, a point is the meet of
three planes, e123 - x e023 + y e013 - z e012. The parity each object needs for exact E(3) equivariance is
given with its embedding (``eqscale.algebra.versors``). Coordinates are (..., 3), multivectors (..., 16).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from eqscale.algebra.blades import INDEX
from eqscale.algebra.primitives import check_multivector, join
from eqscale.errors import InputError

_PLANE = {"e1": 1.0, "e2": 1.0, "e3": 1.0}
_IDEAL_POINT = {"e023": -1.0, "e013": 1.0, "e012": -1.0}
_LINE = {"e23": 1.0, "e13": -1.0, "e12": 1.0}
_MOMENT = {"e01": 1.0, "e02": 1.0, "e03": 1.0}
_ROTOR = {"1": 1.0, "e23": -1.0, "e13": 1.0, "e12": -1.0}


@functools.lru_cache(maxsize=256)
def _matrix(signs: tuple[tuple[str, float], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Rows of signed blades, (len(signs), 16): one product embeds, its transpose reads out."""
    with torch.inference_mode(False):  # the cache also serves training
        matrix = torch.zeros(len(signs), 16, dtype=dtype, device="cpu")
        for row, (name, sign) in enumerate(signs):
            matrix[row, INDEX[name]] = sign
        return matrix.to(device)


def _embed(coordinates: Tensor, signs: dict[str, float]) -> Tensor:
    return coordinates @ _matrix(tuple(signs.items()), coordinates.dtype, coordinates.device)


def _extract(mv: Tensor, signs: dict[str, float], name: str = "mv") -> Tensor:
    return check_multivector(mv, name) @ _matrix(tuple(signs.items()), mv.dtype, mv.device).mT


def _constant(name: str, like: Tensor) -> Tensor:
    return _matrix(((name, 1.0),), like.dtype, like.device)[0]


def _check_vector(x: Tensor, name: str) -> Tensor:
    if x.ndim == 0 or x.shape[-1] != 3:
        raise InputError(f"{name}: expected shape (..., 3), got {tuple(x.shape)}")
    return x


def embed_point(x: Tensor) -> Tensor:
    """Points x as trivectors with e123 = 1. Parity: pseudo."""
    return embed_direction(x) + _constant("e123", x)


def embed_direction(v: Tensor) -> Tensor:
    """Directions (velocities, differences of points) as ideal points, e123 = 0. Parity: pseudo."""
    return _embed(_check_vector(v, "v"), _IDEAL_POINT)


def extract_point(mv: Tensor, min_weight: float = 1e-3) -> Tensor:
    """Coordinates of a trivector, its ideal part divided by e123 (kept at least ``min_weight`` from 0)."""
    weight = extract_weight(mv)[..., None]
    sign = torch.where(weight < 0, -1.0, 1.0).to(weight.dtype)
    return extract_direction(mv) / torch.where(weight.abs() < min_weight, sign * min_weight, weight)


def extract_direction(mv: Tensor) -> Tensor:
    """Ideal part of a trivector: the direction of an ideal point, weight times position of a point."""
    return _extract(mv, _IDEAL_POINT)


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
    offset = (normal * point).sum(-1, keepdim=True)
    return _embed(normal, _PLANE) - offset * _constant("e0", offset)


def extract_normal(mv: Tensor) -> Tensor:
    """Normal (e1, e2, e3) of a plane."""
    return _extract(mv, _PLANE)


def extract_plane(mv: Tensor) -> tuple[Tensor, Tensor]:
    """Normal n (..., 3) and offset d (...,) of the plane n.x = d."""
    return extract_normal(mv), -mv[..., INDEX["e0"]]


def embed_line(point: Tensor, direction: Tensor) -> Tensor:
    """Lines through ``point`` along ``direction`` of any length, joined from the two. Parity: pseudo."""
    return join(embed_point(point), embed_direction(direction))


def extract_line(mv: Tensor) -> tuple[Tensor, Tensor]:
    """Direction d and moment p x d of a line, both (..., 3)."""
    return _extract(mv, _LINE), _extract(mv, _MOMENT)


def embed_translation(t: Tensor) -> Tensor:
    """Versor 1 - e0 t / 2 that shifts by ``t``."""
    return _constant("1", t) - 0.5 * _embed(_check_vector(t, "t"), _MOMENT)


def extract_translation(versor: Tensor) -> Tensor:
    """Shift of a translation versor."""
    return -2.0 * _extract(versor, _MOMENT, "versor") / versor[..., :1]


def embed_rotation(quaternion: Tensor) -> Tensor:
    """Rotor of a unit quaternion (w, x, y, z), Hamilton's convention, (..., 4): rotates about the origin."""
    if quaternion.ndim == 0 or quaternion.shape[-1] != 4:
        raise InputError(f"quaternion: expected shape (..., 4), got {tuple(quaternion.shape)}")
    return _embed(quaternion, _ROTOR)


def extract_rotation(versor: Tensor) -> Tensor:
    """Unit quaternion (w, x, y, z) of a rotor, (..., 4)."""
    return _extract(versor, _ROTOR, "versor")


def embed_reflection(normal: Tensor, point: Tensor) -> Tensor:
    """Versor of the reflection in the plane with unit ``normal`` through ``point``: the plane itself."""
    return embed_plane(normal, point)
