"""The arm that builds the symmetry into the plain transformer: it sees every sample in a learnt, equivariant frame.

One backbone, and only the frame differs: a sample's own (``transformer``), a random one (``transformer_aug``), a
canonical one (``transformer_aligned``), a learnt one. All tokens of a sample share it, so attention needs no change of
frame between tokens.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from eqscale.arms.base import Size
from eqscale.arms.inputs import in_one_call, plane_invariants_width, vectors_of_numbers
from eqscale.arms.plain import ALIGNED, PlainModel, plain_config
from eqscale.arms.recipe import fitted_recipes
from eqscale.arms.vectors import centred, require_origin, vectors, vectors_width
from eqscale.models.flops import FlopCount, TrainingFlops
from eqscale.models.frames import Frames, FramesConfig, Turned, frames_training_flops
from eqscale.models.transformer import TransformerConfig, transformer_training_flops
from eqscale.roles import Role
from eqscale.tasks import Batch, Kind, Prepared, Schema, Task
from eqscale.tasks.symmetry import transform


class LearnedFrame(nn.Module):
    """Batch -> the same batch about the mean of its points and along its frame, and the matrix there, (B, 3, 3)."""

    def __init__(self, config: FramesConfig) -> None:
        super().__init__()
        self.frames = Frames(config)

    def forward(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The batch in its frame; what is left of its position and orientation is rounding."""
        batch = centred(batch)
        matrix, _ = self._frames(batch)
        return transform(batch, matrix), matrix

    @torch.no_grad()
    def degenerate(self, batch: Batch) -> Tensor:
        """Samples whose frame lacks an axis, (B,): too symmetric for three directions."""
        return self._frames(centred(batch))[1]

    def _frames(self, batch: Batch) -> tuple[Tensor, Tensor]:
        true, _, invariants = vectors(batch, batch.schema.length)
        return self.frames(true, invariants, batch.mask)


class FramesModel(PlainModel):
    """The plain transformer in learnt frames."""

    frame: LearnedFrame

    def __init__(self, config: TransformerConfig, frame: LearnedFrame, schema: Schema) -> None:
        super().__init__(config, frame)
        self.columns = vectors_of_numbers(schema)

    def prepared(self, batch: Batch) -> Prepared | None:
        """As of ``PlainModel``, of the batch about its mean: what frames are made of, and what is turned into them."""
        schema = batch.schema
        turns = schema.target.kind is Kind.DIRECTION and not schema.of(Kind.PSEUDOVECTOR)  # all that the kernel knows
        if (
            not turns
            or not in_one_call(self, self.net, PlainModel, batch)
            or not self.net.runs_on_kernels(batch.target)
        ):
            return None
        middle = centred(batch)
        true, _, invariants = vectors(middle, schema.length)
        return Prepared((true, invariants, batch.mask, self._features(middle, batch), batch.target, batch.weight))

    def add_loss_gradient(self, given: Prepared, scale: float) -> Tensor:
        """As of ``PlainModel``, in three kernel calls."""
        true, invariants, mask, features, target, weight = (tensor.contiguous() for tensor in given.tensors)
        seen, frames = Turned(true, invariants, mask, features, target), self.frame.frames
        features, turned, axes = frames.turn(seen, self.columns)
        of_features, of_turned = torch.zeros_like(features), torch.zeros_like(turned)
        loss = self.net.add_loss_gradient(features, mask, turned, weight, scale, (of_features, of_turned), axes)
        frames.add_gradient(seen, self.columns, weight, scale, loss, of_features, of_turned)
        return loss


def _frames_config(size: Size, task: Task) -> FramesConfig:
    require_origin(task.schema)
    true, _, invariants = vectors_width(task.schema)
    return FramesConfig(true, invariants, size.width // 2)


def _build(size: Size, task: Task) -> nn.Module:
    return FramesModel(plain_config(size, task), LearnedFrame(_frames_config(size, task)), task.schema)


def _flops(size: Size, task: Task) -> TrainingFlops:
    config, frames = plain_config(size, task), frames_training_flops(_frames_config(size, task))
    network = transformer_training_flops(config)
    # The network's inputs need a gradient here. Fields of tokens are turned, outputs turned back.
    inputs = 2.0 * config.in_features * config.width + 2.0 * 3 * plane_invariants_width(task.schema)
    turned = 4.0 * 9 * _vectors_of_tokens(task.schema)
    back = 6.0 * 9 if task.schema.target.kind is Kind.DIRECTION and task.schema.target.per == "token" else 0.0
    return TrainingFlops(
        network.nominal + frames.nominal, network.executed + frames.executed + FlopCount(inputs + turned + back)
    )


def _vectors_of_tokens(schema: Schema) -> int:
    return sum(field.per == "token" and field.kind is not Kind.INVARIANT for field in schema.fields)


_RECIPES = fitted_recipes("transformer_frames")
# Its ladder is that of the arm that aligns, its nearest kin.
ARMS = (
    dataclasses.replace(
        ALIGNED,
        name="transformer_frames",
        description="build it in: the plain transformer in a learnt frame of every sample, exactly E(3)-equivariant",
        role=Role.BUILD_IN,
        build=_build,
        flops=_flops,
        recipe=_RECIPES[0],
        alternatives=_RECIPES[1:],
    ),
)
