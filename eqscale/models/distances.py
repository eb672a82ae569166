"""Heads that see how far apart two tokens are, as in Graphormer (Ying et al. 2021, arXiv 2106.05234).

A head adds to the logit of a query and a key a learnt sum of Gaussians of their distance. That is exact under every
motion, whatever the rest of the network is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

RADII = (0.1, 0.3, 1.0, 3.0)
"""Of the Gaussians."""


def weights(blocks: int, heads: int) -> nn.Parameter:
    """Weights of the Gaussians, (blocks, Gaussians, heads): zero, so that a new network sees no distances.

    Not in a block: they are no map between channels, so none for Muon.
    """
    return nn.Parameter(torch.zeros(blocks, len(RADII), heads))


def biases(weights: Tensor | None, points: Tensor, blocks: int) -> Sequence[Tensor | None]:
    """What the heads of each block add to the logits of pairs of tokens, (B, H, T, T); None without weights.

    Points are (B, T, 3); no gradient flows into them.
    """
    if weights is None:
        return [None] * blocks
    points = points.detach()
    square = (points[:, :, None] - points[:, None]).square().sum(-1, keepdim=True)
    radii = torch.tensor(RADII, dtype=points.dtype, device=points.device)
    bells = torch.exp(-0.5 * square / radii.square())
    return [(bells @ weight).permute(0, 3, 1, 2) for weight in weights]


def training_flops(blocks: int, heads: int) -> float:
    """Executed FLOPs of forward + backward for a pair of tokens; points get no gradient."""
    return 2.0 * blocks * 2 * len(RADII) * heads
