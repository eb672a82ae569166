"""Products and involutions of G(3,0,1) on dense multivectors ``(..., 16)``: plain, differentiable, any dtype.

These serve borders, tests and users' own layers; the network computes on the planar layout of
``eqscale.models.gatr`` instead.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from eqscale.algebra import blades
from eqscale.errors import InputError


def check_multivector(x: Tensor, name: str) -> Tensor:
    """``x`` itself; raises InputError unless its last dimension holds 16 components."""
    if x.ndim == 0 or x.shape[-1] != 16:
        raise InputError(f"{name}: expected a multivector of shape (..., 16), got {tuple(x.shape)}")
    return x


def _bilinear(terms: tuple[blades.Term, ...], x: Tensor, y: Tensor) -> Tensor:
    check_multivector(x, "x")
    check_multivector(y, "y")
    return torch.einsum("kij,...i,...j->...k", dense_table(terms, x.dtype, x.device), x, y)


@functools.lru_cache(maxsize=64)
def dense_table(terms: tuple[blades.Term, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Terms as a dense (16, 16, 16) tensor [out, left, right]."""
    with torch.inference_mode(False):  # the cache also serves training
        table = torch.zeros(16, 16, 16, dtype=dtype, device="cpu")
        for k, i, j, sign in terms:
            table[k, i, j] += sign
        return table.to(device)


def _signs(signs: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.tensor(signs, dtype=like.dtype, device=like.device)


def geometric_product(x: Tensor, y: Tensor) -> Tensor:
    """Geometric product xy; shapes broadcast to (..., 16)."""
    return _bilinear(blades.GEOMETRIC_PRODUCT, x, y)


def outer_product(x: Tensor, y: Tensor) -> Tensor:
    """Outer product x ^ y (meet of planes); shapes broadcast to (..., 16)."""
    return _bilinear(blades.OUTER_PRODUCT, x, y)


def join(x: Tensor, y: Tensor) -> Tensor:
    """Join x v y = undual(dual x ^ dual y) (line through two points, ...); shapes broadcast to (..., 16).

    The join changes sign under reflections: its parity is minus the product of the parities of x and y
    (``eqscale.algebra.versors``).
    """
    return _bilinear(blades.JOIN, x, y)


def dual(x: Tensor) -> Tensor:
    """Right complement: e_A ^ dual(e_A) = e0123."""
    return (check_multivector(x, "x") * _signs(blades.DUAL_SIGN, x)).flip(-1)


def undual(x: Tensor) -> Tensor:
    """Inverse of :func:`dual` (left complement)."""
    return (check_multivector(x, "x") * _signs(blades.UNDUAL_SIGN, x)).flip(-1)


def reverse(x: Tensor) -> Tensor:
    """Reversal: the order of vectors in each product turned round."""
    return check_multivector(x, "x") * _signs(blades.REVERSE_SIGN, x)


def grade_involution(x: Tensor) -> Tensor:
    """Grade involution: odd grades change sign."""
    return check_multivector(x, "x") * _signs(blades.INVOLUTION_SIGN, x)


def grade_projection(x: Tensor, grade: int) -> Tensor:
    """Only the components of one grade (0 to 4), zeros elsewhere."""
    return check_multivector(x, "x") * _signs(tuple(int(g == grade) for g in blades.GRADES), x)


def inner_product(x: Tensor, y: Tensor) -> Tensor:
    """Invariant inner product <reverse(x) y>_0, the dot product of the 8 components without e0; (...,)."""
    index = list(blades.EUCLIDEAN)
    return (check_multivector(x, "x")[..., index] * check_multivector(y, "y")[..., index]).sum(-1)
