"""The arms that build the symmetry into the plain transformer: it sees vectors in learnt, equivariant frames.

One backbone, and only the frame differs: a sample's own (``transformer``), a random one (``transformer_aug``), a
canonical one (``transformer_aligned``), a learnt one of the sample (``transformer_frames``) or of each token
(``transformer_local``).
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor, nn

from eqscale.arms.base import Arm, Size
from eqscale.arms.inputs import (
    columns_of_numbers,
    in_one_call,
    numbers,
    places,
    plane_invariants,
    plane_invariants_width,
    pooled,
)
from eqscale.arms.plain import ALIGNED, plain_config
from eqscale.arms.recipe import fitted_recipes
from eqscale.arms.vectors import centred, require_origin, vectors, vectors_width
from eqscale.errors import InputError
from eqscale.models.flops import FlopCount, TrainingFlops
from eqscale.models.frames import Frames, FramesConfig, frames_training_flops
from eqscale.models.transformer import InFrames, Transformer, TransformerConfig, transformer_training_flops
from eqscale.roles import Role
from eqscale.tasks import Batch, Kind, Prepared, Schema, Task

_TURNED = tuple(kind for kind in Kind if kind is not Kind.INVARIANT)


class FramesModel(nn.Module):
    """The plain transformer in learnt frames: Batch -> predicted targets."""

    pseudovectors: Tensor

    def __init__(self, config: TransformerConfig, frames: FramesConfig, schema: Schema) -> None:
        super().__init__()
        learnt = Frames(frames)  # first, so that a seed still draws the weights that it drew for published runs
        self.net, self.frames = Transformer(config), learnt
        mirrored = [at + i for at in columns_of_numbers(schema, (Kind.PSEUDOVECTOR,)) for i in range(3)]
        self.register_buffer("pseudovectors", torch.tensor(mirrored, dtype=torch.long), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """Predict the targets of a batch, (B, T, width) or (B, width), in its own frame."""
        with torch.autocast(batch.mask.device.type, enabled=False):  # not coordinates in half precision
            true, invariants, x = self._seen(batch)
            matrices, _ = self.frames(true, invariants, batch.mask)
            x = torch.cat([self._mirrored(x, matrices), matrices.flatten(2)], -1)
        return pooled(self.net(x, batch.mask), batch)

    @torch.no_grad()
    def degenerate(self, batch: Batch) -> Tensor:
        """Tokens whose frame lacks an axis, (B, T): too symmetric for three directions."""
        true, invariants, _ = self._seen(batch)
        return self.frames(true, invariants, batch.mask)[1] & batch.mask

    def prepared(self, batch: Batch) -> Prepared | None:
        """What ``add_loss_gradient`` takes: what frames are made of, network inputs with room for frames, mask, target
        and weight. None where loss and gradient aren't kernel calls, as in a subclass, or with hooks.
        """
        if not in_one_call(self, self.net, FramesModel, batch) or not self.net.runs_on_kernels(batch.target):
            return None
        true, invariants, x = self._seen(batch)
        x = torch.cat([x, x.new_zeros(*x.shape[:2], 9)], -1)
        return Prepared((true, invariants, x, batch.mask, batch.target, batch.weight))

    def add_loss_gradient(self, given: Prepared, scale: float) -> Tensor:
        """The weighted squared error of samples times ``scale``, a scalar; its gradient is added to the parameters'.

        Frames are written into the room that ``given`` has for them.
        """
        true, invariants, x, mask, target, weight = (tensor.contiguous() for tensor in given.tensors)
        self.frames.write(true, invariants, mask, x[..., -9:])
        seen, of_seen = self._mirrored(x, x[..., -9:].unflatten(-1, (3, 3))), torch.zeros_like(x)
        loss = self.net.add_loss_gradient(seen, mask, target, weight, scale, of_seen)
        self.frames.add_gradient(true, invariants, mask, of_seen[..., -9:])
        return loss

    def _seen(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token, about the mean of the points: true vectors (B, T, K, 3), invariants (B, T, I), and what the
        network sees without frames, (B, T, n).
        """
        middle = centred(batch)
        true, _, invariants = vectors(middle, batch.schema.length)
        found = [numbers(middle), *plane_invariants(batch), *(places(batch) if self.net.config.distances else [])]
        return true, invariants, torch.cat(found, -1)

    def _mirrored(self, x: Tensor, matrices: Tensor) -> Tensor:
        """With pseudovectors reversed where a frame is left-handed, so that the network can turn them as vectors.

        They are zero where a frame lacks an axis, which leaves its hand open.
        """
        if not len(self.pseudovectors):
            return x
        hands = torch.linalg.det(matrices.detach()).round()[..., None]
        return x.index_copy(-1, self.pseudovectors, x.index_select(-1, self.pseudovectors) * hands)


def _configs(size: Size, task: Task, own: bool) -> tuple[TransformerConfig, FramesConfig]:
    schema = task.schema
    require_origin(schema)
    true, _, invariants = vectors_width(schema)
    if not true:
        raise InputError("learnt frames are made of true vectors; the task has no point, direction or plane")
    channels = size.width // size.heads
    in_frames = InFrames(
        columns_of_numbers(schema, _TURNED),
        # About half of a head, as in arXiv 2505.20280.
        head_vectors=max(1, round(channels / 6)) if own and channels >= 3 else 0,
        turns_output=schema.target.kind is Kind.DIRECTION,
    )
    config = dataclasses.replace(plain_config(size, task), frames=in_frames)
    return config, FramesConfig(true, invariants, size.width // 2, own)


def _build(size: Size, task: Task, own: bool) -> nn.Module:
    return FramesModel(*_configs(size, task, own), task.schema)


def _flops(size: Size, task: Task, own: bool) -> TrainingFlops:
    config, frames = _configs(size, task, own)
    parts = transformer_training_flops(config), frames_training_flops(frames)
    others = 2.0 * 3 * plane_invariants_width(task.schema)
    if not own:  # those of a sample count as turned once for all its tokens, so that published runs keep their steps
        others -= 36.0 * sum(f.per == "sample" and f.kind is not Kind.INVARIANT for f in task.schema.fields)
    return TrainingFlops(parts[0].nominal + parts[1].nominal, parts[0].executed + parts[1].executed + FlopCount(others))


def _arm(name: str, description: str, own: bool) -> Arm:
    recipes = fitted_recipes(name)
    # Its ladder is that of the arm that aligns, its nearest kin.
    return dataclasses.replace(
        ALIGNED,
        name=name,
        description=f"build it in: the plain transformer in {description}, exactly E(3)-equivariant",
        role=Role.BUILD_IN,
        build=functools.partial(_build, own=own),
        flops=functools.partial(_flops, own=own),
        recipe=recipes[0],
        alternatives=recipes[1:],
    )


ARMS = (
    _arm("transformer_frames", "a learnt frame of every sample", own=False),
    _arm("transformer_local", "a learnt frame of every token", own=True),
)
