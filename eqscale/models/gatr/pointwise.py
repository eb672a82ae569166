"""Equivariant layer norm and gated GELU on the planar layout."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from eqscale import native
from eqscale.algebra.blades import EUCLIDEAN
from eqscale.models.gatr.layout import Layout, table

NORM_EPS = 0.01
"""Smallest mean square of the multivectors (arXiv 2311.04744)."""
_SCALAR_EPS = 1e-5


class Norm(nn.Module):
    """x / sqrt(max(mean over channels of <x, x>, 0.01)); plain layer norm, without affine, for the scalars.

    (stream.rows, N) -> the same with a row of ones.
    """

    def __init__(self, stream: Layout):
        super().__init__()
        self.stream = stream
        self.out = Layout(stream.true, stream.pseudo, stream.scalars, ones=True)
        euclidean = {row for c in range(stream.channels) for row in (stream.multivector(c)[i] for i in EUCLIDEAN)}
        rows = []
        for c in range(stream.channels):
            for a, b in zip(stream.multivector(c), self.out.multivector(c), strict=True):
                rows.append((a, b, int(a in euclidean)))
        scalars = table([(stream.scalar(i), self.out.scalar(i)) for i in range(stream.scalars)], 2)
        self.kernel_tables = table(sorted(rows), 3), len(rows), scalars, stream.scalars

    def forward(self, x: Tensor) -> Tensor:
        """Normalised activations with the row of ones."""
        if native.available(x):
            return _NativeNorm.apply(x, self)
        true, true_ideal, pseudo, pseudo_ideal, scalars, planes, pseudo_planes = self.stream.split(x)
        euclidean = [true, pseudo]
        for slab, channels in ((planes, self.stream.true), (pseudo_planes, self.stream.pseudo)):
            euclidean.append(slab.unflatten(0, (7, 2, channels))[:, 0].flatten(0, 1))
        mean = torch.stack([slab.square().sum(0) for slab in euclidean]).sum(0) / self.stream.channels
        factor = mean.clamp(min=NORM_EPS).rsqrt()
        if self.stream.scalars:
            variance, center = torch.var_mean(scalars, 0, correction=0)
            scalars = (scalars - center) * (variance + _SCALAR_EPS).rsqrt()
        head = [slab * factor for slab in (true, true_ideal, pseudo, pseudo_ideal)]
        return torch.cat([*head, scalars, torch.ones_like(x[:1]), planes * factor, pseudo_planes * factor])


class _NativeNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer):
        x, n = x.contiguous(), x.shape[1]
        out, scale = x.new_empty(layer.out.rows, n), x.new_empty(2, n)
        constants = layer.out.ones_row, layer.stream.channels, NORM_EPS, _SCALAR_EPS
        native.call("norm", x, out, scale, n, *layer.kernel_tables, *constants)
        ctx.save_for_backward(out, scale)
        ctx.layer = layer
        return out

    @staticmethod
    def backward(ctx, g):
        out, scale = ctx.saved_tensors
        layer, g = ctx.layer, g.contiguous()
        gx = g.new_empty(layer.stream.rows, g.shape[1])
        native.call("norm_gradient", out, scale, g, gx, g.shape[1], *layer.kernel_tables, layer.stream.channels)
        return gx, None


class Gate(nn.Module):
    """Gated GELU: each multivector times the GELU of its invariant component; GELU, in tanh form, of the scalars.

    The invariant component is 1 in true and e0123 in pseudo channels. (source.rows, N) -> with a row of ones.
    """

    def __init__(self, source: Layout):
        super().__init__()
        self.source = source
        self.out = Layout(source.true, source.pseudo, source.scalars, ones=True)
        channels = range(source.channels)
        rows = table([(*source.multivector(c), *self.out.multivector(c), source.invariant(c), 0) for c in channels])
        scalars = table([(source.scalar(i), self.out.scalar(i)) for i in range(source.scalars)], 2)
        self.kernel_tables = rows, source.channels, scalars, source.scalars

    def forward(self, x: Tensor) -> Tensor:
        """Activated features with the row of ones."""
        if native.available(x):
            return _NativeGate.apply(x, self)
        true, true_ideal, pseudo, pseudo_ideal, scalars, planes, pseudo_planes = self.source.split(x)
        # The invariants are 1 of true and e0123 of pseudo channels.
        gate, pseudo_gate, scalars = (
            functional.gelu(slab, approximate="tanh") for slab in (true, pseudo_ideal, scalars)
        )
        head = [true * gate, true_ideal * gate, pseudo * pseudo_gate, pseudo_ideal * pseudo_gate]
        gated = [
            (slab.unflatten(0, (14, len(by))) * by).flatten(0, 1)
            for slab, by in ((planes, gate), (pseudo_planes, pseudo_gate))
        ]
        return torch.cat([*head, scalars, torch.ones_like(x[:1]), *gated])


class _NativeGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer):
        x, n = x.contiguous(), x.shape[1]
        out = x.new_empty(layer.out.rows, n)
        native.call("gate", x, out, n, *layer.kernel_tables, layer.out.ones_row)
        ctx.save_for_backward(x)
        ctx.layer = layer
        return out

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        g, gx = g.contiguous(), torch.empty_like(x)
        native.call("gate_gradient", x, g, gx, x.shape[1], *ctx.layer.kernel_tables)
        return gx, None
