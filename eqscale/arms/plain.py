"""The arms built on the plain transformer: learn the symmetry, with or without augmentation, or align it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from eqscale.arms.base import Arm, Size
from eqscale.arms.inputs import (
    in_one_call,
    numbers,
    numbers_width,
    places,
    plane_invariants,
    plane_invariants_width,
    pooled,
    tokens_have_places,
)
from eqscale.arms.recipe import fitted_recipes
from eqscale.models.flops import TrainingFlops
from eqscale.models.transformer import Transformer, TransformerConfig, transformer_training_flops
from eqscale.roles import Role
from eqscale.tasks import Batch, Kind, Prepared, Task

Frame = Callable[[Batch], tuple[Batch, Tensor]]
"""A batch -> the same batch in another frame, and the matrix there, (B, 3, 3)."""


class PlainModel(nn.Module):
    """Plain transformer on tokens: Batch -> predicted targets."""

    def __init__(self, config: TransformerConfig, frame: Frame | None = None, planes: bool = True) -> None:
        """A model.

        Args:
            config: shape of the network.
            frame: in which it sees a sample; None: the sample's own.
            planes: whether it also gets the invariants of planes that GATr gets.
        """
        super().__init__()
        self.net = Transformer(config)
        self.frame, self.planes = frame, planes

    def forward(self, batch: Batch) -> Tensor:
        """Predict the targets of a batch, in its own frame."""
        if self.frame is None:
            return pooled(self.net(self._features(batch, batch), batch.mask), batch)
        with torch.autocast(batch.mask.device.type, enabled=False):  # not coordinates in half precision
            turned, matrix = self.frame(batch)
        output = pooled(self.net(self._features(turned, batch), batch.mask), batch)
        if batch.schema.target.kind is Kind.INVARIANT:
            return output
        return (output @ matrix) if output.ndim == 3 else (output[:, None] @ matrix)[:, 0]  # back: R^T y

    def prepared(self, batch: Batch) -> Prepared | None:
        """What ``add_loss_gradient`` takes: network inputs, mask, target and weight, in the frame of the network.

        None where loss and gradient aren't one kernel call, as in a subclass, or with hooks.
        """
        if not in_one_call(self, self.net, PlainModel, batch) or not self.net.runs_on_kernels(batch.target):
            return None
        seen = batch if self.frame is None else self.frame(batch)[0]
        return Prepared((self._features(seen, batch), seen.mask, seen.target, seen.weight))

    def add_loss_gradient(self, given: Prepared, scale: float) -> Tensor:
        """The weighted squared error of samples times ``scale``, its gradient added to that of the parameters."""
        features, mask, target, weight = given.tensors
        return self.net.add_loss_gradient(features, mask, target, weight, scale)

    def _features(self, turned: Batch, batch: Batch) -> Tensor:
        found = [numbers(turned)]
        if self.planes:
            found += plane_invariants(batch)
        if self.net.config.distances:
            found += places(batch)
        return torch.cat(found, -1) if len(found) > 1 else found[0]


def plain_config(size: Size, task: Task, planes: bool = True) -> TransformerConfig:
    """Shape of the network, with or without the invariants of planes among its inputs."""
    return TransformerConfig(
        in_features=numbers_width(task.schema) + (plane_invariants_width(task.schema) if planes else 0),
        out_features=task.schema.target.width,
        width=size.width,
        depth=size.depth,
        heads=size.heads,
        distances=tokens_have_places(task.schema),
    )


def _config(size: Size, task: Task, aligned: bool) -> TransformerConfig:
    if aligned:
        task.require_canonical_frame()
    return plain_config(size, task, planes=not aligned)  # in a canonical frame they are sums of features


def _flops(size: Size, task: Task, aligned: bool) -> TrainingFlops:
    return transformer_training_flops(_config(size, task, aligned))


def _build(size: Size, task: Task, aligned: bool) -> nn.Module:
    return PlainModel(_config(size, task, aligned), task.align if aligned else None, planes=not aligned)


_HEADS = {8: 2, 10: 2, 12: 2, 14: 2, 16: 2, 20: 2, 24: 3, 30: 3, 36: 4, 42: 3, 52: 4, 64: 8, 80: 10, 96: 12, 112: 14}
"""By width; from 16 on, a head has 8 channels or more."""

# To about 1e9 parameters. The deepest that was searched has 8 blocks; beyond 1e5 parameters nothing was.
_LARGE = (
    *(Size(width, 8, _HEADS[width]) for width in (42, 52, 64, 80, 96, 112)),
    *(
        Size(width, depth, heads)
        for width, depth, heads in (
            (128, 8, 16), (160, 8, 16), (192, 8, 16), (224, 8, 16), (256, 8, 16), (320, 8, 20), (384, 8, 24),
            (448, 9, 28), (512, 10, 32), (640, 10, 40), (768, 10, 48), (896, 11, 56), (1024, 13, 64), (1280, 13, 80),
            (1536, 14, 96), (1792, 16, 112), (2048, 19, 128), (2304, 21, 144),
        )
    ),
)  # fmt: skip


def _ladder(*rungs: tuple[int, int]) -> tuple[Size, ...]:
    return (*(Size(width, depth, _HEADS[width]) for width, depth in rungs), *_LARGE)


# From about 1e3 parameters, with the depths that the search of shapes found (docs/training.md).
_LADDER = _ladder(
    (8, 1), (10, 1), (12, 1), (10, 2), (12, 2), (14, 2), (16, 2), (20, 2), (24, 2), (24, 3), (30, 3), (30, 4), (30, 6),
    (30, 8), (36, 8),
)  # fmt: skip
_ALIGNED_LADDER = _ladder(
    (8, 1), (10, 1), (12, 1), (10, 2), (12, 2), (14, 2), (16, 2), (20, 2), (20, 3), (20, 4), (24, 4), (24, 6), (24, 8),
    (30, 8), (36, 8),
)  # fmt: skip


def _arm(name: str, description: str, role: Role) -> Arm:
    aligned, recipes = role is Role.ALIGN, fitted_recipes(name)
    return Arm(
        name,
        description,
        role,
        functools.partial(_build, aligned=aligned),
        functools.partial(_flops, aligned=aligned),
        _ALIGNED_LADDER if aligned else _LADDER,
        recipes[0],
        augmented=role is Role.AUGMENT,
        packed=lambda size, device: Transformer.packs(size.width, device),
        alternatives=recipes[1:],
    )


_LEARN = "learn the symmetry from the data: plain pre-LayerNorm transformer"
_AUGMENT = "learn it from augmented data: a fresh group element per draw"
_ALIGN = "align it: the plain transformer on samples turned into a canonical frame"
ALIGNED = _arm("transformer_aligned", _ALIGN, Role.ALIGN)
ARMS = (_arm("transformer", _LEARN, Role.LEARN), _arm("transformer_aug", _AUGMENT, Role.AUGMENT), ALIGNED)
