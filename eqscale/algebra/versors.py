"""The group Pin(3,0,1) acting on parity-typed multivectors, and a public test of equivariance.

An element u (a product of planes) acts on a *true* (+1) multivector by the graded sandwich
rho(u) x = u x u^-1 (u even) or u involute(x) u^-1 (u odd), and on a *pseudo* (-1) one with an extra factor
det(u) = +-1. Points belong to pseudo channels: rho of a reflection maps the trivector of a point to minus the
trivector of the mirrored point, the extra sign keeps e123 = +1. Geometric products multiply parities, the
join gives minus their product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from eqscale.algebra.blades import GRADES
from eqscale.algebra.embeddings import embed_reflection, embed_translation
from eqscale.algebra.primitives import check_multivector, geometric_product, grade_involution, reverse
from eqscale.errors import InputError

TRUE = 1
"""Parity of planes and true scalars."""
PSEUDO = -1
"""Parity of points, directions (ideal points) and lines joined from points."""

Parity = int | Sequence[int] | None
"""Parity of a tensor: one for all channels, one per channel, or None for invariant (not a multivector)."""


def is_odd(versor: Tensor) -> Tensor:
    """True, (...,), where a versor (..., 16) is a product of an odd number of planes: contains a reflection."""
    odd = torch.tensor([g & 1 for g in GRADES], dtype=torch.bool, device=versor.device)
    energy = check_multivector(versor, "versor").square()
    return energy[..., odd].sum(-1) > energy[..., ~odd].sum(-1)


def transform(versor: Tensor, x: Tensor, parity: Parity = TRUE) -> Tensor:
    """Action of ``versor`` (..., 16) on the multivectors ``x`` (..., C, 16) or (..., 16) of the given parity.

    ``parity`` is +1, -1 or one sign per channel. The versor broadcasts against ``x``.
    """
    odd = is_odd(versor)[..., None]
    inverse = reverse(versor)
    inverse = inverse / geometric_product(versor, inverse)[..., :1]
    moved = geometric_product(geometric_product(versor, torch.where(odd, grade_involution(x), x)), inverse)
    sign = torch.as_tensor(parity, dtype=x.dtype, device=x.device)
    if sign.ndim:
        sign = sign[:, None]
    return torch.where(odd, moved * sign, moved)


def random_versor(
    generator: torch.Generator, *, odd: bool, max_translation: float = 0.0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Random element of Pin(3,0,1), (16,): 2 (even) or 3 (odd) reflections, then a bounded shift."""

    def direction() -> Tensor:
        v = torch.randn(3, generator=generator, dtype=dtype)
        return v / v.norm()

    length = max_translation * torch.rand((), generator=generator, dtype=dtype)
    versor = embed_translation(length * direction())
    for _ in range(3 if odd else 2):
        versor = geometric_product(versor, embed_reflection(direction(), torch.zeros(3, dtype=dtype)))
    return versor


def assert_equivariant(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    in_parity: Sequence[Parity],
    out_parity: Sequence[Parity],
    *,
    tolerance: float = 1e-10,
    max_translation: float = 100.0,
    transforms: int = 6,
    reflections: bool = True,
    seed: int = 0,
) -> float:
    """Check f(g x) = g f(x) for random g in Pin(3,0,1), reflections included; returns the worst relative error.

    ``inputs`` are multivectors (..., C, 16) with a parity each (+1, -1 or one sign a channel), or anything
    with parity None, which is left alone. ``function`` returns one tensor or a tuple, with one
    ``out_parity`` each. The error of an output is max |f(gx) - g f(x)| / max |g f(x)|. Translations have
    lengths up to ``max_translation`` metres.

    Example:
        >>> assert_equivariant(geometric_product, [x, y], [TRUE, PSEUDO], [PSEUDO])

    Raises:
        AssertionError: the error exceeds ``tolerance``; the message names the output and the transformation.
        InputError: numbers of inputs or outputs and parities differ.
    """
    if len(inputs) != len(in_parity):
        raise InputError(f"in_parity: {len(in_parity)} parities for {len(inputs)} inputs")
    generator = torch.Generator().manual_seed(seed)
    plain = _as_tuple(function(*inputs))
    if len(plain) != len(out_parity):
        raise InputError(f"out_parity: {len(out_parity)} parities for {len(plain)} outputs")
    worst = 0.0
    for trial in range(transforms):
        odd = reflections and trial % 2 == 1
        versor = random_versor(generator, odd=odd, max_translation=max_translation)
        moved = _as_tuple(function(*(_move(versor, x, p) for x, p in zip(inputs, in_parity, strict=True))))
        for number, (out, got, parity) in enumerate(zip(plain, moved, out_parity, strict=True)):
            want = _move(versor, out, parity)
            error = ((got - want).abs().max() / want.abs().max().clamp(min=torch.finfo(want.dtype).tiny)).item()
            worst = max(worst, error)
            if not error <= tolerance:
                kind = "reflection" if odd else "proper motion"
                raise AssertionError(f"output {number}: error {error:.2e} > {tolerance:.0e} ({kind}, trial {trial})")
    return worst


def _as_tuple(out: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (out,) if isinstance(out, Tensor) else tuple(out)


def _move(versor: Tensor, x: Tensor, parity: Parity) -> Tensor:
    # In float64: the reference action must not add rounding of its own.
    return x if parity is None else transform(versor.to(x.device), x.double(), parity).to(x.dtype)
