"""Multi-query attention with inner-product, distance and scalar features on the planar layout.

Logits are dot products of invariant features (arXiv 2311.04744, section 3.2): the components without e0 of
equal parities, scalars, and for trivectors five features whose dot product is minus the squared distance of
the two points. Typed networks take distances between pseudo channels, where the points are.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from eqscale.algebra.blades import EUCLIDEAN, INDEX
from eqscale.models.gatr.layout import Layout, table

DISTANCE_EPS = 1e-3
"""Softening of the normalisation of points, w / (w^2 + eps) (arXiv 2311.04744)."""
SDPA_TOKENS = 128
"""Above this many tokens the ATen path uses SDPA instead of bmm-softmax-bmm (faster from there on CPUs)."""

_GATHERED = ("q_inner", "k_inner", "value", "q_distance", "k_distance")
_TRIVECTOR = [INDEX[name] for name in ("e123", "e023", "e013", "e012")]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Which tokens attend to each other: those of a sample of a padded (B, T) batch."""

    batch: int
    length: int
    mask: Tensor | None = None
    """(B, T), True for real tokens; None = all."""


@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """``heads`` query heads over one key and value head; channels of each kind a head has."""

    heads: int
    true: int
    pseudo: int
    scalars: int
    distance_on_true: bool
    """Distances between trivectors of true channels (untyped networks) rather than of pseudo channels."""

    @property
    def source(self) -> Layout:
        """In each group (true, pseudo, scalars): the queries of all heads, keys, values."""
        groups = self.heads + 2
        return Layout(groups * self.true, groups * self.pseudo, groups * self.scalars)

    @property
    def out(self) -> Layout:
        """The values of all heads, with a row of ones."""
        return Layout(self.heads * self.true, self.heads * self.pseudo, self.heads * self.scalars, ones=True)

    @property
    def distances(self) -> int:
        """Channels of a head with distance features."""
        return self.true if self.distance_on_true else self.pseudo

    @property
    def inner(self) -> int:
        """Features of a query that enter unchanged: 8 a channel (7 where there are distances), and the scalars."""
        return 8 * (self.true + self.pseudo) - self.distances + self.scalars

    @property
    def features(self) -> int:
        """Length of a query or key."""
        return self.inner + 5 * self.distances

    @property
    def values(self) -> int:
        """Length of a value."""
        return 16 * (self.true + self.pseudo) + self.scalars

    @functools.cached_property
    def rows(self) -> dict[str, Tensor]:
        """Which rows of ``source`` make up queries, keys and values, and which of ``out`` the heads' values; int32.

        Inner features and values: (heads, n), or (n) where all heads share them. Trivectors for distances:
        (heads, distances, 4), or (distances, 4).
        """
        heads, true, pseudo, scalars = self.heads, self.true, self.pseudo, self.scalars
        source, out, distance_on_true = self.source, self.out, self.distance_on_true

        def rows_of(layout: Layout, group: int, components: list[int], parities: tuple[bool, ...]) -> list[list[int]]:
            rows = []
            for is_true, count, first in ((True, true, 0), (False, pseudo, layout.true)):
                if is_true in parities:
                    for c in range(count):
                        rows.append([layout.multivector(first + group * count + c)[i] for i in components])
            return rows

        def flat(rows: list[list[int]], layout: Layout, group: int) -> list[int]:
            scalar_rows = [layout.scalar(group * scalars + i) for i in range(scalars)]
            return [*itertools.chain.from_iterable(rows), *scalar_rows]

        plain = [i for i in EUCLIDEAN if i != INDEX["e123"]]

        def inner(group: int) -> list[int]:
            rows = rows_of(source, group, plain, (distance_on_true,))
            return flat(rows + rows_of(source, group, list(EUCLIDEAN), (not distance_on_true,)), source, group)

        def distance(group: int) -> list[list[int]]:
            return rows_of(source, group, _TRIVECTOR, (distance_on_true,))

        def whole(layout: Layout, group: int) -> list[int]:
            return flat(rows_of(layout, group, list(range(16)), (True, False)), layout, group)

        head_range = range(heads)
        return {
            "q_inner": table([inner(h) for h in head_range]),
            "k_inner": table(inner(heads)),
            "q_distance": table([distance(h) for h in head_range]),
            "k_distance": table(distance(heads)),
            "value": table(whole(source, heads + 1)),
            "out": table([whole(out, h) for h in head_range]),
        }


class Attention(nn.Module):
    """Softmax attention: rows of queries, keys and values (source.rows, N) -> attended values (out.rows, N)."""

    rows: Tensor
    order: Tensor

    def __init__(self, shape: AttentionShape):
        super().__init__()
        self.shape = shape
        taken = [shape.rows[name].long().flatten() for name in _GATHERED]
        self.sizes = [len(rows) for rows in taken]
        self.register_buffer("rows", torch.cat(taken), persistent=False)
        self.register_buffer("order", shape.rows["out"].long().flatten().argsort(), persistent=False)
        self.log_weights = nn.Parameter(torch.zeros(shape.heads * shape.distances))
        """Logarithm of the weight of each channel's distances, (heads * channels,): gains, so one-dimensional."""

    def distance_weights(self) -> Tensor:
        """Weight of each channel's distances, (heads, channels)."""
        return self.log_weights.exp().view(self.shape.heads, self.shape.distances)

    def forward(self, e: Tensor, tokens: Tokens) -> Tensor:
        """Rows of queries, keys and values (source.rows, N) -> attended values (out.rows, N)."""
        weights = self.distance_weights()
        out = self._padded(e, weights, tokens)
        head = self.shape.out.head - 1
        top, planes = out.split((head, len(out) - head))
        return torch.cat([top, torch.ones_like(e[:1]), planes])

    def _padded(self, e: Tensor, weights: Tensor, tokens: Tokens) -> Tensor:
        shape = self.shape
        b, t, h = tokens.batch, tokens.length, shape.heads
        q, k, v, query, key = _Rows.apply(e, self.rows).split(self.sizes)
        q, k = q.view(h, shape.inner, b, t), k.view(shape.inner, b, t)
        v = v.view(shape.values, b, t).permute(1, 2, 0)
        device_type = "cuda" if e.is_cuda else "cpu"
        with torch.autocast(device_type, enabled=False):  # differences of squares: not in half precision
            wide = torch.promote_types(e.dtype, torch.float32)
            key = key.view(shape.distances, 4, b, t).to(wide)
            query = query.view(h, shape.distances, 4, b, t).to(wide)
            counted = key if tokens.mask is None else key * tokens.mask
            # Weighted mean of the keys: shifting both sides only improves the rounding far from the origin.
            center = (counted[:, :1] * counted[:, 1:]).sum(-1, keepdim=True)
            center = (center / (counted[:, :1].square().sum(-1, keepdim=True) + DISTANCE_EPS)).detach()
            phi = _distance_features(query, center, key=False) * weights.view(h, -1, 1, 1, 1)
            psi = _distance_features(key, center, key=True)
            q = torch.cat([q.to(wide), phi.flatten(1, 2)], 1).permute(2, 0, 3, 1).reshape(b, h * t, -1)
            k = torch.cat([k.to(wide), psi.flatten(0, 1)], 0).permute(1, 2, 0)
            scale = 1 / math.sqrt(shape.features)
            bias = None
            if tokens.mask is not None:
                bias = torch.zeros_like(k[..., 0]).masked_fill(~tokens.mask, -math.inf)[:, None]
            if t > SDPA_TOKENS:
                bias = bias if bias is None else bias.expand(b, h * t, t)
                y = functional.scaled_dot_product_attention(q, k, v.to(wide), attn_mask=bias, scale=scale)
            else:
                logits = torch.bmm(q * scale, k.mT)
                y = torch.bmm(torch.softmax(logits if bias is None else logits + bias, -1), v.to(wide))
        y = y.to(e.dtype).view(b, h, t, shape.values).permute(1, 3, 0, 2).reshape(h * shape.values, b * t)
        return _Rows.apply(y, self.order)


class _Rows(torch.autograd.Function):
    """Rows of a matrix, each at most once: the gradient copies them back, where index_select's would add."""

    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.size = x.shape[0]
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx, g: Tensor):
        (rows,) = ctx.saved_tensors
        return g.new_zeros(ctx.size, g.shape[1]).index_copy_(0, rows, g), None


def _distance_features(x: Tensor, center: Tensor, key: bool) -> Tensor:
    """(..., D, 4, B, T) trivectors (e123 first) -> (..., D, 5, B, T)."""
    w, ideal = x[..., :1, :, :], x[..., 1:, :, :]
    normaliser = w / (w * w + DISTANCE_EPS)
    t0 = w * normaliser
    t = ideal * normaliser - t0 * center
    square = (t * t).sum(-3, keepdim=True)
    if key:
        return torch.cat([-t0 * t0, -square, 2 * t0 * t], -3)
    return torch.cat([square, t0 * t0, t0 * t], -3)
