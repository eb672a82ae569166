"""Frames of tokens, or of whole samples, from a small equivariant network: in them any network becomes equivariant."""

from __future__ import annotations

import dataclasses
import itertools

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
    own: bool
    """Whether each token has a frame of its own; else all tokens of a sample share one."""

    @property
    def inputs(self) -> int:
        """Numbers of which a token's weights are a function: invariants, and products of every pair of vectors."""
        return self.invariants + self.vectors * (self.vectors + 1) // 2

    @property
    def weights(self) -> int:
        """Weights of a token's vectors in the sums of its sample and, for frames of tokens, in its own."""
        return 3 * self.vectors * (2 if self.own else 1)


class Frames(nn.Module):
    """Vectors and invariants of a sample's tokens -> orthonormal frames that turn and mirror with the sample.

    Three sums of the vectors of all tokens, with weights that are functions of a token's invariants; to the frame of a
    token, three sums of its own vectors are added. Gram and Schmidt make them orthonormal, as in arXiv 2505.20280,
    where the sums are over pairs of tokens. The third vector only decides on which side of the first two the frame's
    third axis lies, so training changes the first two alone.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, config: FramesConfig) -> None:
        super().__init__()
        self.config = config
        self.hidden = nn.Linear(config.inputs, config.hidden)
        self.weights = nn.Linear(config.hidden, config.weights)
        for linear in (self.hidden, self.weights):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)
        rows, columns = zip(*itertools.combinations_with_replacement(range(config.vectors), 2), strict=True)
        self.register_buffer("rows", torch.tensor(rows), persistent=False)
        self.register_buffer("columns", torch.tensor(columns), persistent=False)

    def forward(self, vectors: Tensor, invariants: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Frames of tokens.

        Args:
            vectors: (B, T, K, 3).
            invariants: (B, T, I).
            mask: True for real tokens, (B, T); what the others hold must be finite.

        Returns:
            Orthogonal matrices (B, T, 3, 3), the axes of each frame as rows; and which are degenerate (B, T): axes that
            a sample leaves open are zero.
        """
        B, T, K = vectors.shape[:3]
        share = mask / mask.sum(1, keepdim=True, dtype=vectors.dtype)
        # Tokens last: on a CPU, rows of them are copied and multiplied at once, many small matrices one by one.
        rows = vectors.permute(2, 3, 0, 1).reshape(K, 3 * B * T)
        products = (rows.index_select(0, self.rows) * rows.index_select(0, self.columns)).view(-1, 3, B * T).sum(1)
        products = products * (1 + products.abs()).rsqrt()  # those of far points are large: of the order of a length
        seen = torch.cat([invariants, products.T.view(B, T, -1)], -1)
        weights = self.weights(F.silu(self.hidden(seen)))
        # (3, token and vector) for each sample, and for each token what it adds alone.
        of_all = (weights[..., : 3 * K] * share[..., None]).view(B, T, 3, K).transpose(1, 2).reshape(B, 3, T * K)
        lengths = vectors.detach().norm(dim=-1, keepdim=True)
        sums = torch.bmm(of_all, vectors.reshape(B, T * K, 3))[:, None]
        terms = torch.bmm(of_all.detach().abs(), lengths.view(B, T * K, 1))[:, None]
        if self.config.own:
            of_one = weights[..., 3 * K :].view(B, T, 3, K)
            sums, terms = sums + of_one @ vectors, terms + of_one.detach().abs() @ lengths
        matrices, degenerate = orthonormal(sums.flatten(0, 1), terms.flatten(0, 1))
        return matrices.view(B, -1, 3, 3).expand(B, T, 3, 3), degenerate.view(B, -1).expand(B, T)

    def write(self, vectors: Tensor, invariants: Tensor, mask: Tensor, matrices: Tensor) -> None:
        """Frames of real tokens in one kernel call; nothing for autograd.

        Args:
            vectors, invariants, mask: as of ``forward``, contiguous.
            matrices: (B, T, 9), the last columns of a contiguous tensor, which they are written to.
        """
        given, shape = native.pointers(self._own()), self._shape(matrices)
        native.call("frames", vectors, invariants, matrices, mask, shape, given)

    def add_gradient(self, vectors: Tensor, invariants: Tensor, mask: Tensor, of_matrices: Tensor) -> None:
        """Add to the parameters' gradients that of the matrices, which are as of ``write``."""
        given, shape = native.pointers(self._own()), self._shape(of_matrices)
        gradients = native.pointers(kernels.gradients_of(self._own()))
        native.call("frames_gradient", vectors, invariants, of_matrices, gradients, mask, shape, given)

    def _shape(self, matrices: Tensor) -> native.frames.Shape:
        c, (B, T) = self.config, matrices.shape[:2]
        return native.frames.Shape(B, T, c.vectors, c.invariants, c.hidden, c.own, matrices.stride(1))

    def _own(self) -> list[Tensor]:
        """``parameters()``, without the search for them, which takes as long as a kernel."""
        return [self.hidden.weight, self.hidden.bias, self.weights.weight, self.weights.bias]


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
    lengths = vectors.detach().norm(dim=-1, keepdim=True)
    rounding = 32 * eps * (lengths if terms is None else terms)
    length, reach = lengths[:, 0], lengths[:, 1]
    no_x = length <= rounding[:, 0]
    x = _normalised(first, no_x)
    across = torch.linalg.cross(x, second)
    height = across.detach().norm(dim=-1, keepdim=True)
    # What rounding turns the first axis by moves the second vector's part across it, and so on.
    of_across = rounding[:, 1] + reach * torch.where(no_x, 0.0, rounding[:, 0] / length)
    no_y = height <= torch.maximum(eps**0.5 * reach, of_across)
    normal = _normalised(across, no_y)
    of_side = rounding[:, 2] + lengths[:, 2] * torch.where(no_y, 0.0, of_across / height)
    # The third can only choose between the two sides of the plane.
    side = (third.detach() * normal.detach()).sum(-1, keepdim=True)
    side = torch.where(side.abs() <= of_side, 0.0, side).sign()
    return torch.stack([x, torch.linalg.cross(normal, x), side * normal], 1), (side == 0)[:, 0]


def _normalised(vector: Tensor, none: Tensor) -> Tensor:
    """The vector at length 1, zero where it is ``none``."""
    square = vector.square().sum(-1, keepdim=True)
    return vector * torch.where(none, 0.0, torch.where(none, 1.0, square).rsqrt())


def frames_training_flops(config: FramesConfig) -> TrainingFlops:
    """FLOPs of forward + backward for one sample with T tokens.

    Nominal: 6 per weight and token. Executed: the matrix products; inputs need no gradient.
    """
    first = config.inputs * config.hidden
    weights = first + config.hidden * config.weights
    sums = 4.0 * 3 * config.weights
    return TrainingFlops(nominal=FlopCount(6.0 * weights), executed=FlopCount(6.0 * weights - 2.0 * first + sums))
