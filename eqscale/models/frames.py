"""A frame for each sample from a small equivariant network, so that any network becomes equivariant in it."""

from __future__ import annotations

import ctypes
import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqscale import native
from eqscale.models import kernels
from eqscale.models.flops import FlopCount, TrainingFlops


@dataclasses.dataclass(frozen=True)
class FramesConfig:
    """Shape of a network of frames."""

    vectors: int
    """True vectors of a token."""
    invariants: int
    """Invariants of a token, beside the products of its vectors."""
    hidden: int
    """Hidden units of a token."""

    @property
    def inputs(self) -> int:
        """Numbers of which a token's weights are a function: invariants, and products of every pair of vectors."""
        return self.invariants + self.vectors * (self.vectors + 1) // 2


class Frames(nn.Module):
    """Vectors and invariants of a sample's tokens -> an orthonormal frame that turns and mirrors with the sample.

    Three sums of the tokens' vectors, with weights that are functions of the token's invariants, made orthonormal by
    Gram and Schmidt (as arXiv 2505.20280 does for each token). The third only decides on which side of the first two
    the frame's third axis lies, so training changes the first two alone.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, config: FramesConfig) -> None:
        super().__init__()
        self.config = config
        self.hidden = nn.Linear(config.inputs, config.hidden)
        self.weights = nn.Linear(config.hidden, 3 * config.vectors)
        for linear in (self.hidden, self.weights):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)
        rows, columns = torch.triu_indices(config.vectors, config.vectors)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, vectors: Tensor, invariants: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Frames of samples.

        Args:
            vectors: (B, T, K, 3).
            invariants: (B, T, I).
            mask: True for real tokens, (B, T); what the others hold must be finite.

        Returns:
            Orthogonal matrices (B, 3, 3), the axes of the frame as rows; and which are degenerate (B,): axes that a
            sample leaves open are zero.
        """
        B, T, K = vectors.shape[:3]
        share = mask / mask.sum(1, keepdim=True, dtype=vectors.dtype)
        # Tokens last: on a CPU, rows of them are copied and multiplied at once, many small matrices one by one.
        rows = vectors.permute(2, 3, 0, 1).reshape(K, 3 * B * T)
        products = (rows.index_select(0, self.rows) * rows.index_select(0, self.columns)).view(-1, 3, B * T).sum(1)
        products = products * (1 + products.abs()).rsqrt()  # those of far points are large: of the order of a length
        seen = torch.cat([invariants, products.T.view(B, T, -1)], -1)
        weights = self.weights(F.silu(self.hidden(seen))) * share[..., None]
        weights = weights.view(B, T, 3, K).transpose(1, 2).reshape(B, 3, T * K)
        vectors = vectors.reshape(B, T * K, 3)
        terms = (weights.detach().abs() * vectors.detach().norm(dim=-1)[:, None]).sum(-1, keepdim=True)
        return orthonormal(torch.bmm(weights, vectors), terms)

    def turn(self, seen: Turned, columns: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Features and targets turned into the frames, in one kernel call; nothing for autograd.

        Returns:
            Both as given, with the vectors of real tokens turned (padded ones hold anything), and 1 for each axis that
            a frame has, 0 for one that it lacks, (B, 3).
        """
        turned, target = torch.empty_like(seen.features), torch.empty_like(seen.target)
        axes = seen.target.new_empty(len(seen.target), 3)
        self._call("frames", seen, columns, turned, target, axes)
        return turned, target, axes

    def add_gradient(
        self, seen: Turned, columns: tuple[int, ...], weight: Tensor, scale: float, loss: Tensor, features: Tensor,
        target: Tensor,
    ) -> None:  # fmt: skip
        """Add to the parameters' gradients and to the loss, once that along the frames' axes is known.

        Args:
            seen, columns: as of ``turn``.
            weight: of each token's squared error, (B, T).
            scale: factor of the loss.
            loss: gains what targets have along no axis of their frame, which is missed whatever is predicted.
            features, target: gradients of what ``turn`` returned.
        """
        given = weight, scale, loss, features, target, native.pointers(kernels.gradients_of(self._own()))
        self._call("frames_gradient", seen, columns, *given)

    def _call(self, name: str, seen: Turned, columns: tuple[int, ...], *others: Tensor | ctypes.Array | float) -> None:
        given = [seen.vectors, seen.invariants, seen.features, seen.target]
        config, (B, T, F) = self.config, seen.features.shape
        shape = native.frames.Shape(B, T, config.vectors, config.invariants, config.hidden, F, len(columns))
        parameters = native.pointers(self._own())
        places = (ctypes.c_int64 * len(columns))(*columns)
        native.call(name, *given, *others, places, seen.mask, shape, parameters)

    def _own(self) -> list[Tensor]:
        """``parameters()``, without the search for them, which takes as long as a kernel."""
        return [self.hidden.weight, self.hidden.bias, self.weights.weight, self.weights.bias]


@dataclasses.dataclass(frozen=True)
class Turned:
    """What kernels turn into frames; all contiguous."""

    vectors: Tensor
    """As of ``Frames``, (B, T, K, 3)."""
    invariants: Tensor
    """As of ``Frames``, (B, T, I)."""
    mask: Tensor
    """True for real tokens, (B, T)."""
    features: Tensor
    """Inputs of a network, (B, T, F)."""
    target: Tensor
    """(B, T, 3)."""


def orthonormal(vectors: Tensor, terms: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Gram-Schmidt of the rows of (B, 3, 3): an orthogonal matrix each, and which lack an axis, (B,).

    Where only rounding is left of a row, its axis and those after it are zero. Choosing one would break the symmetry: a
    flat sample is its own mirror image, and in a molecule of two like atoms the sum of both vectors is zero.

    Args:
        vectors: the rows.
        terms: sum of the lengths of the vectors that were summed up to each row, (B, 3, 1), which sets its rounding;
            None: the row's own length.
    """
    first, second, third = vectors.unbind(1)
    eps = torch.finfo(vectors.dtype).eps
    rounding = 32 * eps * (vectors.detach().norm(dim=-1, keepdim=True) if terms is None else terms)
    no_x = first.detach().norm(dim=-1, keepdim=True) <= rounding[:, 0]
    x = _normalised(first, no_x)
    across = torch.linalg.cross(x, second)
    least = torch.maximum(eps**0.5 * second.detach().norm(dim=-1, keepdim=True), rounding[:, 1])
    no_y = across.detach().norm(dim=-1, keepdim=True) <= least
    normal = _normalised(across, no_y)
    # The third can only choose between the two sides of the plane.
    side = (third.detach() * normal.detach()).sum(-1, keepdim=True)
    side = torch.where(side.abs() <= rounding[:, 2], 0.0, side).sign()
    return torch.stack([x, torch.linalg.cross(normal, x), side * normal], 1), (side == 0)[:, 0]


def _normalised(vector: Tensor, none: Tensor) -> Tensor:
    """The vector at length 1, zero where it is ``none``."""
    square = vector.square().sum(-1, keepdim=True)
    return vector * torch.where(none, 0.0, torch.where(none, 1.0, square).rsqrt())


def frames_training_flops(config: FramesConfig) -> TrainingFlops:
    """FLOPs of forward + backward for one sample with T tokens.

    Nominal: 6 per weight and token. Executed: the matrix products; inputs need no gradient.
    """
    K, first = config.vectors, config.inputs * config.hidden
    weights = first + config.hidden * 3 * K
    return TrainingFlops(
        nominal=FlopCount(6.0 * weights), executed=FlopCount(6.0 * weights - 2.0 * first + 4.0 * 9 * K)
    )
