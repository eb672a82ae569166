"""FLOPs of a GATr training step in closed form."""

from __future__ import annotations

import math

from eqscale.algebra import blades
from eqscale.models.flops import FlopCount, TrainingFlops
from eqscale.models.gatr.config import BlockMaps, GATrConfig, border_maps
from eqscale.models.gatr.linear import LinearMap

PRODUCT_TERMS = len(blades.GEOMETRIC_PRODUCT) + len(blades.JOIN)
"""Multiply-adds of one geometric product and one join: 192 + 81."""


def gatr_training_flops(config: GATrConfig) -> TrainingFlops:
    """Forward + backward FLOPs of one sample, as a polynomial in its computed tokens T.

    The CPU kernels compute the real tokens only, ATen operations and compiled code the padding too
    (``GATr.packs``).

    Nominal: 6 per weight and token, a pair of multivector channels counted as a dense 16 x 16 block, as the
    authors of arXiv 2410.23179 and GATr's own ``nominal_flops_per_token`` count; attention, products, norms,
    activations and biases are left out. With typed channels only pairs of equal parity have weights.

    Executed: 2 per multiply-add of the matrix products of the planar layout (their structural zeros and the
    bias column included; backward twice the forward, except that the inputs need no gradient), of attention
    (logits and values) and of the products (192 + 81 terms, twice that backward). Left out: elementwise work
    (norms, softmax, GELU, features), the optimiser, and what the backward pass computes again. The count is the same
    however a network runs; the CPU kernels skip part of the zeros.
    """
    embed, read_out = border_maps(config)
    block = BlockMaps.of(config)
    everything = (embed, read_out, *config.blocks * block.linear)
    nominal = 6.0 * sum(map(_nominal_weights, everything))
    linear = 6.0 * sum(map(_executed_weights, everything)) - 2.0 * _executed_weights(embed)
    products = 6.0 * config.blocks * block.products.channels * PRODUCT_TERMS
    pairs = 6.0 * config.blocks * block.attention.heads * (block.attention.features + block.attention.values)
    return TrainingFlops(nominal=FlopCount(nominal), executed=FlopCount(linear + products, pairs))


def _nominal_weights(linear: LinearMap) -> int:
    s, t = linear.source, linear.target
    shapes = linear.parameter_shapes
    pairs = t.true * s.true + t.pseudo * s.pseudo
    return 256 * pairs + math.prod(shapes["from_scalars"]) + math.prod(shapes["to_scalars"])


def _executed_weights(linear: LinearMap) -> int:
    return sum(block.size for block in linear.blocks)
