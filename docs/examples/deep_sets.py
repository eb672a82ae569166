"""An arm from a file: Deep Sets (Zaheer et al. 2017), tokens that only see the mean of all others."""

import torch
from torch import Tensor, nn

from eqscale.arms import Arm, Recipe, Role, Size, register
from eqscale.arms.inputs import numbers, numbers_width, pooled
from eqscale.models.flops import FlopCount, TrainingFlops
from eqscale.tasks import Batch, Task


class DeepSets(nn.Module):
    """Batch -> predicted targets, for any task."""

    def __init__(self, size: Size, task: Task) -> None:
        super().__init__()
        self.embed = nn.Linear(numbers_width(task.schema), size.width)
        self.layers = nn.ModuleList(nn.Linear(2 * size.width, size.width) for _ in range(size.depth))
        self.readout = nn.Linear(size.width, task.schema.target.width)

    def forward(self, batch: Batch) -> Tensor:
        """Predict the targets of a batch, in its own frame."""
        mask = batch.mask[..., None]
        x = self.embed(numbers(batch))
        for layer in self.layers:
            mean = (x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
            x = x + torch.relu(layer(torch.cat([x, mean.expand_as(x)], -1)))
        return pooled(self.readout(x), batch)


def flops(size: Size, task: Task) -> TrainingFlops:
    """Six per weight and token: two forward, four backward; no gradient for the input features."""
    embed = numbers_width(task.schema) * size.width
    weights = embed + size.depth * 2 * size.width**2 + task.schema.target.width * size.width
    return TrainingFlops(nominal=FlopCount(6.0 * weights), executed=FlopCount(6.0 * weights - 2.0 * embed))


register(
    Arm(
        name="deep_sets",
        description="learn it without attention: Deep Sets",
        role=Role.LEARN,
        build=DeepSets,
        flops=flops,
        ladder=tuple(Size(width, depth, 1) for width, depth in ((8, 2), (12, 2), (16, 3), (24, 3), (32, 4), (48, 4))),
        recipe=Recipe(rate=8e-3),
    )
)
