"""Projective geometric algebra G(3,0,1): products, embeddings, the action of Pin(3,0,1) with parity."""

from eqscale.algebra.embeddings import (
    embed_direction,
    embed_line,
    embed_plane,
    embed_point,
    embed_reflection,
    embed_rotation,
    embed_translation,
    extract_direction,
    extract_displacement,
    extract_line,
    extract_normal,
    extract_plane,
    extract_point,
    extract_rotation,
    extract_translation,
    extract_weight,
)
from eqscale.algebra.primitives import (
    dual,
    geometric_product,
    grade_involution,
    grade_projection,
    inner_product,
    join,
    outer_product,
    reverse,
    undual,
)
from eqscale.algebra.versors import PSEUDO, TRUE, assert_equivariant, is_odd, random_versor, transform

__all__ = [
    "PSEUDO", "TRUE", "assert_equivariant", "dual", "embed_direction", "embed_line", "embed_plane", "embed_point",
    "embed_reflection", "embed_rotation", "embed_translation", "extract_direction", "extract_displacement",
    "extract_line", "extract_normal", "extract_plane", "extract_point", "extract_rotation", "extract_translation",
    "extract_weight", "geometric_product", "grade_involution", "grade_projection", "inner_product", "is_odd", "join",
    "outer_product", "random_versor", "reverse", "transform", "undual",
]  # fmt: skip
