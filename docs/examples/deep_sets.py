"""An arm from a file: Deep Sets (Zaheer et al. 2017), vertices that only see the mean of all others."""

import torch
from eqscale.rigid.batch import Batch
from eqscale.training.arms import Arm, Recipe, Role, Size, register
from eqscale.training.arms.plain import TOKEN_FEATURES, token_features
from torch import Tensor, nn

from eqscale.models.flops import FlopCount, TrainingFlops


class DeepSets(nn.Module):
    """Batch -> predicted targets (B, T, 3)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed = nn.Linear(TOKEN_FEATURES, size.width)
        self.layers = nn.ModuleList(nn.Linear(2 * size.width, size.width) for _ in range(size.depth))
        self.readout = nn.Linear(size.width, 3)

    def forward(self, batch: Batch) -> Tensor:
        """Predict the targets of a batch, in its own frame."""
        mask = batch.mask[..., None]
        x = self.embed(token_features(batch))
        for layer in self.layers:
            mean = (x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
            x = x + torch.relu(layer(torch.cat([x, mean.expand_as(x)], -1)))
        return self.readout(x)


def flops(size: Size) -> TrainingFlops:
    """Six per weight and token: two forward, four backward; no gradient for the input features."""
    embed = TOKEN_FEATURES * size.width
    weights = embed + size.depth * 2 * size.width**2 + 3 * size.width
    return TrainingFlops(nominal=FlopCount(6.0 * weights), executed=FlopCount(6.0 * weights - 2.0 * embed))


register(
    Arm(
        name="deep_sets",
        description="learn it without attention: Deep Sets",
        role=Role.LEARN,
        build=DeepSets,
        flops=flops,
        ladder=tuple(
            Size(width, depth, 1) for width, depth in ((8, 2), (12, 2), (16, 3), (24, 3), (32, 4), (48, 4))
        ),
        recipe=Recipe(rate=8e-3),
    )
)
