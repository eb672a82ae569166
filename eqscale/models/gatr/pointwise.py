"""Equivariant layer norm and gated GELU on the planar layout."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from eqscale.models.gatr.layout import Layout

NORM_EPS = 0.01
"""Smallest mean square of the multivectors (arXiv 2311.04744)."""
SCALAR_EPS = 1e-5


class Norm(nn.Module):
    """x / sqrt(max(mean over channels of <x, x>, 0.01)); plain layer norm, without affine, for the scalars.

    (stream.rows, N) -> the same with a row of ones.
    """

    def __init__(self, stream: Layout):
        super().__init__()
        self.stream = stream
        self.out = Layout(stream.true, stream.pseudo, stream.scalars, ones=True)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised activations with the row of ones."""
        true, true_ideal, pseudo, pseudo_ideal, scalars, planes, pseudo_planes = self.stream.split(x)
        euclidean = [true, pseudo]
        for slab, channels in ((planes, self.stream.true), (pseudo_planes, self.stream.pseudo)):
            euclidean.append(slab.unflatten(0, (7, 2, channels))[:, 0].flatten(0, 1))
        mean = torch.stack([slab.square().sum(0) for slab in euclidean]).sum(0) / self.stream.channels
        factor = mean.clamp(min=NORM_EPS).rsqrt()
        if self.stream.scalars:
            variance, center = torch.var_mean(scalars, 0, correction=0)
            scalars = (scalars - center) * (variance + SCALAR_EPS).rsqrt()
        head = [slab * factor for slab in (true, true_ideal, pseudo, pseudo_ideal)]
        return torch.cat([*head, scalars, torch.ones_like(x[:1]), planes * factor, pseudo_planes * factor])


class Gate(nn.Module):
    """Gated GELU: each multivector times the GELU of its invariant component; GELU, in tanh form, of the scalars.

    The invariant component is 1 in true and e0123 in pseudo channels. (source.rows, N) -> with a row of ones.
    """

    def __init__(self, source: Layout):
        super().__init__()
        self.source = source
        self.out = Layout(source.true, source.pseudo, source.scalars, ones=True)

    def forward(self, x: Tensor) -> Tensor:
        """Activated features with the row of ones."""
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
