"""The arms built on the plain transformer: learn the symmetry, with or without augmentation, or align it."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from eqscale.models.flops import TrainingFlops
from eqscale.models.transformer import Transformer, TransformerConfig, transformer_training_flops
from eqscale.rigid.batch import Batch
from eqscale.rigid.symmetry import align
from eqscale.roles import Role
from eqscale.training.arms.base import Arm, Size
from eqscale.training.arms.invariants import FLOOR_INVARIANTS, SPEED, floor_invariants
from eqscale.training.arms.recipe import fitted_recipe

_LENGTH, _ACCELERATION = 1.0, 9.81  # typical, m and m/s^2: every feature is of order one
TOKEN_FEATURES = 24
"""Length of the last dimension of ``token_features``."""


def token_features(batch: Batch) -> Tensor:
    """Everything known about a vertex and the scene as plain numbers of order one, (B, T, 24)."""
    T = batch.position.shape[1]
    scene = torch.cat(
        [
            batch.floor_normal,
            batch.floor_offset[:, None] / _LENGTH,
            batch.gravity / _ACCELERATION,
            batch.floor_material,
        ],
        -1,
    )
    return torch.cat(
        [
            (batch.position - batch.center) / _LENGTH,
            batch.center / _LENGTH,
            (batch.velocity - batch.center_velocity) / SPEED,
            batch.center_velocity / SPEED,
            batch.material,
            scene[:, None].expand(-1, T, -1),
        ],
        -1,
    )


class PlainModel(nn.Module):
    """Plain transformer on vertex tokens: Batch -> predicted targets (B, T, 3).

    In its own frame it also gets the invariants that GATr gets; in the upright frame they are sums of features.
    """

    def __init__(self, config: TransformerConfig, aligned: bool = False) -> None:
        super().__init__()
        self.net = Transformer(config)
        self.aligned = aligned

    def forward(self, batch: Batch) -> Tensor:
        """Predict the targets of a batch, in its own frame."""
        if not self.aligned:
            return self.net(torch.cat([token_features(batch), floor_invariants(batch)], -1), batch.mask)
        with torch.autocast(batch.position.device.type, enabled=False):  # not coordinates in half precision
            upright, rotation = align(batch)
        return self.net(token_features(upright), batch.mask) @ rotation  # back: R^T y, with rows as vectors


def _config(size: Size, aligned: bool) -> TransformerConfig:
    return TransformerConfig(
        in_features=TOKEN_FEATURES if aligned else TOKEN_FEATURES + FLOOR_INVARIANTS,
        out_features=3,
        width=size.width,
        depth=size.depth,
        heads=size.heads,
    )


def _flops(size: Size, aligned: bool = False) -> TrainingFlops:
    return transformer_training_flops(_config(size, aligned))


def _build(size: Size, aligned: bool = False) -> nn.Module:
    return PlainModel(_config(size, aligned), aligned)


_WIDTHS = {
    8: 1, 10: 1, 12: 1, 16: 2, 20: 2, 24: 3, 30: 3, 36: 4, 42: 3, 52: 4, 64: 8, 80: 10,
}  # fmt: skip
"""Width -> heads, at least 8 wide."""


def _rungs(depth: int, least: int, most: int) -> tuple[Size, ...]:
    return tuple(Size(width, depth, heads) for width, heads in _WIDTHS.items() if least <= width <= most)


_LARGE = tuple(
    Size(width, depth, heads)
    for width, depth, heads in (
        (80, 4, 10), (96, 4, 12), (112, 4, 14), (112, 5, 14), (128, 6, 16), (160, 6, 16), (192, 6, 16),
        (224, 7, 16), (256, 8, 16), (320, 8, 20), (384, 8, 24), (448, 9, 28), (512, 10, 32), (640, 10, 40),
        (768, 10, 48), (896, 11, 56), (1024, 13, 64), (1280, 13, 80), (1536, 14, 96), (1792, 16, 112),
        (2048, 19, 128), (2304, 21, 144),
    )
)  # fmt: skip

# About 1e3 to 1e9 parameters. How many blocks pay follows from the length of training: on short budgets each further
# block costs up to a quarter of the loss, on long ones too few do (docs/training.md).
_LADDER = _rungs(1, 8, 80) + _rungs(2, 64, 80) + _rungs(3, 80, 80) + _LARGE


def _deeper(two: float, three: float) -> tuple[tuple[float, tuple[Size, ...]], ...]:
    """Ladders from the budgets on, in executed FLOPs, at which two and three blocks pay."""
    return (two, _rungs(2, 10, 80) + _rungs(3, 80, 80) + _LARGE), (three, _rungs(3, 10, 80) + _LARGE)


ARMS = (
    Arm(
        "transformer",
        "learn the symmetry from the data: plain pre-LayerNorm transformer",
        Role.LEARN,
        _build,
        _flops,
        _LADDER,
        fitted_recipe("transformer"),
        deeper_ladders=_deeper(1e12, 1e13),
    ),
    Arm(
        "transformer_aug",
        "learn it from augmented data: a fresh group element per draw",
        Role.AUGMENT,
        _build,
        _flops,
        _LADDER,
        fitted_recipe("transformer_aug"),
        deeper_ladders=_deeper(1e12, 1e13),
        augmented=True,
    ),
    Arm(
        "transformer_aligned",
        "align it: the plain transformer on samples turned upright",
        Role.ALIGN,
        functools.partial(_build, aligned=True),
        functools.partial(_flops, aligned=True),
        _LADDER,
        fitted_recipe("transformer_aligned"),
        deeper_ladders=_deeper(3e11, 3e12),
    ),
)
