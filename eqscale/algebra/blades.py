"""Tables of the projective geometric algebra G(3,0,1), derived from the blades (e0^2 = 0, ei^2 = 1).

Component order of every ``(..., 16)`` multivector: by grade, then lexicographic, e0 first:
1 | e0 e1 e2 e3 | e01 e02 e03 e12 e13 e23 | e012 e013 e023 e123 | e0123.
Plane-based reading (Brehmer et al., arXiv 2305.18415; Dorst and De Keninck): vectors are planes, bivectors
lines, trivectors points.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Term(NamedTuple):
    """One product of components: ``out[k] += sign * x[i] * y[j]``."""

    k: int
    i: int
    j: int
    sign: int


def _grade(blade: int) -> int:
    return blade.bit_count()


def _reorder_sign(a: int, b: int) -> int:
    """Sign of bringing e_a e_b (bitmasks, bit i = e_i) into ascending order."""
    swaps, a = 0, a >> 1
    while a:
        swaps += (a & b).bit_count()
        a >>= 1
    return -1 if swaps & 1 else 1


BLADES: tuple[int, ...] = tuple(sorted(range(16), key=lambda m: (_grade(m), [i for i in range(4) if m >> i & 1])))
"""Bitmask of each component (bit i set: contains e_i)."""
NAMES: tuple[str, ...] = tuple("e" + "".join(str(i) for i in range(4) if m >> i & 1) if m else "1" for m in BLADES)
"""Name of each component: "1", "e0", ..., "e0123"."""
INDEX: dict[str, int] = {name: i for i, name in enumerate(NAMES)}
"""Component index of a blade name."""
GRADES: tuple[int, ...] = tuple(_grade(m) for m in BLADES)
"""Grade of each component."""
_POSITION = {m: i for i, m in enumerate(BLADES)}

EUCLIDEAN: tuple[int, ...] = tuple(_POSITION[m] for m in BLADES if not m & 1)
"""The eight components without e0, blades of G(3): 1, e1, e2, e3, e12, e13, e23, e123."""
IDEAL: tuple[int, ...] = tuple(_POSITION[BLADES[i] | 1] for i in EUCLIDEAN)
"""For each Euclidean component, the component e0 times that blade."""

REVERSE_SIGN: tuple[int, ...] = tuple((1, 1, -1, -1, 1)[g] for g in GRADES)
"""Sign of each component under reversal."""
INVOLUTION_SIGN: tuple[int, ...] = tuple(-1 if g & 1 else 1 for g in GRADES)
"""Sign of each component under grade involution."""

GEOMETRIC_PRODUCT: tuple[Term, ...] = tuple(
    Term(_POSITION[a ^ b], _POSITION[a], _POSITION[b], _reorder_sign(a, b))
    for a in BLADES
    for b in BLADES
    if not a & b & 1  # e0 squares to zero
)
"""The 192 terms of the geometric product."""
OUTER_PRODUCT: tuple[Term, ...] = tuple(
    Term(_POSITION[a | b], _POSITION[a], _POSITION[b], _reorder_sign(a, b)) for a in BLADES for b in BLADES if not a & b
)
"""The 81 terms of the outer product (meet)."""

# The complement of component i is component 15 - i: the order by grade is symmetric under complementing.
DUAL_SIGN: tuple[int, ...] = tuple(_reorder_sign(m, 15 ^ m) for m in BLADES)
"""Right complement: ``dual(x)[15 - i] = DUAL_SIGN[i] * x[i]``, so that e_A ^ dual(e_A) = e0123."""
UNDUAL_SIGN: tuple[int, ...] = tuple(DUAL_SIGN[15 - i] for i in range(16))
"""Inverse of ``dual``: ``undual(x)[15 - i] = UNDUAL_SIGN[i] * x[i]``."""
JOIN: tuple[Term, ...] = tuple(
    Term(15 - t.k, 15 - t.i, 15 - t.j, t.sign * DUAL_SIGN[15 - t.i] * DUAL_SIGN[15 - t.j] * UNDUAL_SIGN[t.k])
    for t in OUTER_PRODUCT
)
"""The 81 terms of the join (regressive product) undual(dual x ^ dual y)."""


def _by_output(terms: Iterable[Term]) -> list[list[tuple[int, int, int]]]:
    out: list[list[tuple[int, int, int]]] = [[] for _ in range(16)]
    for k, i, j, sign in terms:
        out[k].append((i, j, sign))
    return out


BY_OUTPUT: dict[str, list[list[tuple[int, int, int]]]] = {}
"""Terms by output component, ``[k] -> [(i, j, sign), ...]``, of the products of a network, ``gp`` and ``join``, and of
their gradients: ``_x`` with respect to x, a bilinear map of (gradient of out, y), and ``_y``, of (gradient of out, x).
"""
for _name, _terms in (("gp", GEOMETRIC_PRODUCT), ("join", JOIN)):
    BY_OUTPUT[_name] = _by_output(_terms)
    BY_OUTPUT[f"{_name}_x"] = _by_output(Term(t.i, t.k, t.j, t.sign) for t in _terms)
    BY_OUTPUT[f"{_name}_y"] = _by_output(Term(t.j, t.k, t.i, t.sign) for t in _terms)
