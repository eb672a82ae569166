"""A transformer on invariants, true vectors and pseudovectors: GATr without multivectors.

Vectors are mixed by plain matrices, multiplied by dot and cross products, and attend by their dot products, as in
L-GATr-slim (arXiv 2512.17011), here for O(3). Types keep it exact under reflections too: dot products of equal types
are invariants, cross products of equal types pseudovectors, of different types true vectors.

Activations are planar: channels first, tokens contiguous, so that a map of vectors is one matrix product. On a CPU with
a C++ compiler the whole network, forward and backward, is one kernel (``eqscale.native``).
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqscale import native
from eqscale.errors import InputError
from eqscale.models import distances, kernels
from eqscale.models.flops import FlopCount, TrainingFlops
from eqscale.models.inputs import check_mask, check_tokens

NORM_EPS = 0.01
"""Smallest mean square of the vectors, as in GATr's norm (arXiv 2311.04744)."""
SCALAR_EPS = 1e-5


class Channels(NamedTuple):
    """Channels of an activation by type."""

    scalars: int
    true: int
    pseudo: int

    @property
    def numbers(self) -> int:
        """Numbers of a token."""
        return self.scalars + 3 * (self.true + self.pseudo)


class Features(NamedTuple):
    """Activations of N tokens."""

    scalars: Tensor
    """(scalars, N)."""
    true: Tensor
    """(true, 3 N): the x of all tokens, then their y, then their z."""
    pseudo: Tensor
    """(pseudo, 3 N)."""

    def __add__(self, other: Features) -> Features:  # type: ignore[override]
        return Features(*(a + b for a, b in zip(self, other, strict=True)))


@dataclasses.dataclass(frozen=True)
class SlimConfig:
    """Shape of a slim GATr."""

    inputs: Channels
    outputs: Channels
    scalars: int
    """Scalar hidden channels."""
    vectors: int
    """Hidden channels of true vectors, and as many of pseudovectors."""
    blocks: int
    heads: int
    """Query heads; keys and values are shared (multi-query)."""
    distances: bool = False
    """Whether heads see them (``eqscale.models.distances``)."""

    def __post_init__(self) -> None:
        for name in ("scalars", "vectors", "blocks", "heads"):
            if getattr(self, name) < 1:
                raise InputError(f"SlimConfig.{name}: {getattr(self, name)} is below 1")
        if min(*self.inputs, *self.outputs) < 0 or not any(self.inputs) or not any(self.outputs):
            raise InputError("SlimConfig: inputs and outputs need a channel, and none below 0")

    @property
    def stream(self) -> Channels:
        """Channels of the residual stream."""
        return Channels(self.scalars, self.vectors, self.vectors)

    @property
    def head(self) -> Channels:
        """Channels of a head: together as wide as the stream."""
        return Channels(*(math.ceil(channels / self.heads) for channels in self.stream))

    def of_heads(self, heads: int) -> Channels:
        """Channels of some heads."""
        return Channels(*(heads * channels for channels in self.head))

    @property
    def factors(self) -> Channels:
        """Channels before the products: hidden scalars and gates of vectors; left and right factors."""
        return Channels(2 * self.scalars + 2 * self.vectors, 2 * self.vectors, 2 * self.vectors)

    @property
    def products(self) -> Channels:
        """Channels after them: hidden scalars and dot products; gated left factors and cross products."""
        return Channels(2 * self.scalars + 2 * self.vectors, 3 * self.vectors, 3 * self.vectors)

    @property
    def maps(self) -> tuple[tuple[Channels, Channels], ...]:
        """Sources and targets of the four linear maps of a block."""
        return (
            (self.stream, self.of_heads(self.heads + 2)),
            (self.of_heads(self.heads), self.stream),
            (self.stream, self.factors),
            (self.products, self.stream),
        )


class Linear(nn.Module):
    """Maps between channels of equal type; a bias for the scalars."""

    scalars: Tensor | None
    true: Tensor | None
    pseudo: Tensor | None

    def __init__(self, source: Channels, target: Channels, gain: float = 1.0) -> None:
        super().__init__()
        for name, columns, rows in zip(Channels._fields, source, target, strict=True):
            weight = None
            if rows and columns:
                weight = nn.Parameter(torch.randn(rows, columns) * (gain * columns**-0.5))
            self.register_parameter(name, weight)
        self.bias = nn.Parameter(torch.zeros(target.scalars)) if target.scalars else None
        self.target = target

    def pieces(self) -> tuple[Tensor | None, ...]:
        """Its parameters, None where it has none: weights of scalars, true vectors and pseudovectors, bias."""
        return self.scalars, self.true, self.pseudo, self.bias

    def forward(self, x: Features) -> Features:
        """Features of the source -> features of the target."""
        N = x.scalars.shape[1]
        scalars = x.scalars.new_zeros(self.target.scalars, N) if self.bias is None else self.bias[:, None]
        if self.scalars is not None:
            scalars = torch.addmm(scalars, self.scalars, x.scalars)
        scalars = scalars.expand(-1, N)
        true, pseudo = (
            value.new_zeros(channels, 3 * N) if weight is None else weight @ value
            for weight, value, channels in zip((self.true, self.pseudo), x[1:], self.target[1:], strict=True)
        )
        return Features(scalars, true, pseudo)


class Block(nn.Module):
    """Pre-norm attention and pre-norm products, each with a residual connection."""

    def __init__(self, config: SlimConfig) -> None:
        super().__init__()
        self.config = config
        to_qkv, from_heads, to_factors, from_products = config.maps
        gain = (2 * config.blocks) ** -0.5
        self.to_qkv = Linear(*to_qkv)
        self.from_heads = Linear(*from_heads, gain)
        self.to_factors = Linear(*to_factors)
        self.from_products = Linear(*from_products, gain)
        assert self.to_factors.bias is not None
        nn.init.ones_(self.to_factors.bias[2 * config.scalars :].data)  # open gates

    def forward(
        self, x: Features, shape: tuple[int, int], bias: Tensor | None, pairs: Tensor | None = None
    ) -> Features:
        """One block; N tokens are ``shape`` (B, T).

        The bias (B, 1, T) is -inf at padded keys, that of pairs, (B, H, T, T), one of each head.
        """
        x = x + self.from_heads(self._attend(self.to_qkv(norm(x)), shape, bias, pairs))
        return x + self.from_products(self._multiply(self.to_factors(norm(x))))

    def _attend(self, x: Features, shape: tuple[int, int], bias: Tensor | None, pairs: Tensor | None) -> Features:
        """Softmax attention by dot products of scalars and vectors; all heads share keys and values."""
        H, head, (B, T) = self.config.heads, self.config.head, shape
        rows = torch.cat([part.reshape(H + 2, -1, B, T) for part in x], 1)
        q, k, v = rows.split((H, 1, 1))
        q = q.permute(2, 0, 3, 1).reshape(B, H * T, head.numbers)
        logits = torch.bmm(q * head.numbers**-0.5, k[0].transpose(0, 1))
        if bias is not None:
            logits = logits + bias
        if pairs is not None:
            logits = logits + pairs.reshape(B, H * T, T)
        y = torch.bmm(torch.softmax(logits, -1), v[0].permute(1, 2, 0))
        y = y.view(B, H, T, head.numbers).permute(1, 3, 0, 2)
        scalars, true, pseudo = y.split((head.scalars, 3 * head.true, 3 * head.pseudo), 1)
        N = B * T
        return Features(scalars.reshape(-1, N), true.reshape(-1, 3 * N), pseudo.reshape(-1, 3 * N))

    def _multiply(self, x: Features) -> Features:
        """GELU of hidden scalars, gated vectors, and dot and cross products of left and right factors."""
        C, N = self.config.vectors, x.scalars.shape[1]
        hidden = F.gelu(x.scalars, approximate="tanh")
        true, pseudo = x.true.view(2, C, 3, N), x.pseudo.view(2, C, 3, N)
        left = torch.cat([true[0], pseudo[0]])
        straight = torch.cat([true[1], pseudo[1]])
        crossed = torch.cat([pseudo[1], true[1]])
        dots = (left * straight).sum(1) * 3**-0.5
        to_pseudo, to_true = torch.linalg.cross(left, straight, dim=1), torch.linalg.cross(left, crossed, dim=1)
        gated = left * hidden[-2 * C :, None]
        return Features(
            torch.cat([hidden[: -2 * C], dots]),
            torch.cat([gated[:C], to_true]).view(3 * C, 3 * N),
            torch.cat([gated[C:], to_pseudo]).view(3 * C, 3 * N),
        )


def norm(x: Features) -> Features:
    """Layer norm without gains of the scalars; vectors over the root mean square of their lengths, at least 0.1."""
    variance, center = torch.var_mean(x.scalars, 0, correction=0)
    scalars = (x.scalars - center) * (variance + SCALAR_EPS).rsqrt()
    square = (x.true.square().sum(0) + x.pseudo.square().sum(0)).view(3, -1).sum(0)
    factor = (square / (len(x.true) + len(x.pseudo))).clamp(min=NORM_EPS).rsqrt().repeat(3)
    return Features(scalars, x.true * factor, x.pseudo * factor)


@functools.lru_cache(maxsize=256)
def _shape(c: SlimConfig, batch: int, tokens: int, dtype: torch.dtype) -> native.slim.Shape:
    """Shape of a batch, and what the kernels need for it."""
    three = ctypes.c_int64 * 3
    shape = native.slim.Shape(
        *(batch, tokens, three(*c.inputs), three(*c.outputs), c.scalars, c.vectors, c.blocks, c.heads, three(*c.head)),
        3 if c.distances else 0,
    )
    native.call("slim_plan", torch.empty(0, dtype=dtype), shape)
    return shape


class Slim(nn.Module):
    """Invariants and vectors of tokens -> invariants and vectors; exactly equivariant under O(3) and permutations."""

    def __init__(self, config: SlimConfig) -> None:
        super().__init__()
        self.config = config
        self.distances = distances.weights(config.blocks, config.heads) if config.distances else None
        self.embed = Linear(config.inputs, config.stream)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.read_out = Linear(config.stream, config.outputs, gain=0.1)
        self._linears = [module for module in self.modules() if isinstance(module, Linear)]

    def forward(
        self, scalars: Tensor, true: Tensor, pseudo: Tensor, mask: Tensor | None = None, points: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict per token.

        Args:
            scalars: (B, T, inputs.scalars).
            true: true vectors, (B, T, inputs.true, 3).
            pseudo: pseudovectors, (B, T, inputs.pseudo, 3).
            mask: True for real tokens, (B, T); None if all are. What the others hold must be finite.
            points: where tokens are, (B, T, 3), if the network sees distances. No gradient flows into them.

        Returns:
            (B, T, outputs.scalars), (B, T, outputs.true, 3), (B, T, outputs.pseudo, 3); meaningless at padded tokens.

        Raises:
            InputError: a shape, dtype or device that does not fit, or a sample without tokens.
        """
        x = self.joined(scalars, true, pseudo, mask, points)
        c, (B, T) = self.config, true.shape[:2]
        if self.runs_on_kernels(true):
            y = kernels.run("slim", _shape(c, B, T, x.dtype), c.outputs.numbers, x, mask, self._pieces())
            invariants, *vectors = y.split((c.outputs.scalars, 3 * c.outputs.true, 3 * c.outputs.pseudo), -1)
            return invariants, *(part.reshape(B, T, part.shape[-1] // 3, 3) for part in vectors)
        bias = None
        if mask is not None:
            bias = torch.zeros_like(mask, dtype=true.dtype).masked_fill_(~mask, -math.inf)[:, None]
        features = self.embed(Features(scalars.flatten(0, 1).t(), _planar(true), _planar(pseudo)))
        for block, pairs in zip(self.blocks, distances.biases(self.distances, x[..., -3:], c.blocks), strict=True):
            features = block(features, (B, T), bias, pairs)
        features = self.read_out(norm(features))
        directions = (part.view(len(part), 3, B, T).permute(2, 3, 0, 1) for part in features[1:])
        return features.scalars.t().reshape(B, T, c.outputs.scalars), *directions

    def runs_on_kernels(self, x: Tensor) -> bool:
        """Whether a forward pass of inputs like ``x`` would run on the CPU kernels."""
        return native.available(x) and not torch.is_autocast_enabled("cpu")

    def add_loss_gradient(self, x: Tensor, mask: Tensor, target: Tensor, weight: Tensor, scale: float) -> Tensor:
        """As ``kernels.add_loss_gradient``, where ``runs_on_kernels``; raises InputError as ``forward`` does.

        x: as of ``joined``. Targets are (B, T, outputs.numbers): scalars, true vectors, pseudovectors.
        """
        own = next(self.parameters())
        check_tokens("x", x, (self.config.inputs.numbers + 3 * self.config.distances,), own)
        check_tokens("target", target, (self.config.outputs.numbers,), own)
        check_mask(mask, tuple(x.shape[:2]), own.device)
        shape = _shape(self.config, *x.shape[:2], x.dtype)
        return kernels.add_loss_gradient("slim", shape, x, mask, self._pieces(), target, weight, scale)

    def joined(
        self, scalars: Tensor, true: Tensor, pseudo: Tensor, mask: Tensor | None, points: Tensor | None
    ) -> Tensor:
        """The inputs side by side, (B, T, numbers); arguments and errors as of ``forward``."""
        c, own = self.config, next(self.parameters())
        if (points is not None) != c.distances:
            raise InputError(
                f"points: needed if, and only if, the network sees distances; SlimConfig.distances is {c.distances}"
            )
        check_tokens("true", true, (c.inputs.true, 3), own)
        others = [("scalars", scalars, (c.inputs.scalars,)), ("pseudo", pseudo, (c.inputs.pseudo, 3))]
        if points is not None:
            others.append(("points", points, (3,)))
        for name, part, tail in others:
            check_tokens(name, part, tail, own)
            if part.shape[:2] != true.shape[:2]:
                raise InputError(f"{name}: tokens {tuple(part.shape[:2])}, true vectors have {tuple(true.shape[:2])}")
        if mask is not None:
            check_mask(mask, tuple(true.shape[:2]), own.device)
        return torch.cat([scalars, true.flatten(2), pseudo.flatten(2), *([] if points is None else [points])], -1)

    def _pieces(self) -> list[Tensor | None]:
        own = [] if self.distances is None else [self.distances]
        return own + [piece for linear in self._linears for piece in linear.pieces()]

    @staticmethod
    def packs(device: torch.device) -> bool:
        """Whether padding is dropped on this device rather than computed: true of the CPU kernels."""
        return native.available(torch.empty(0, device=device))


def _planar(vectors: Tensor) -> Tensor:
    """(B, T, K, 3) -> (K, 3 B T)."""
    B, T, K = vectors.shape[:3]
    return vectors.permute(2, 3, 0, 1).reshape(K, 3 * B * T)


def slim_training_flops(config: SlimConfig) -> TrainingFlops:
    """FLOPs of forward + backward for one sample with T computed tokens, padding included.

    Nominal: 6 per weight and token, a pair of vector channels counted as a dense 3 x 3 block, as GATr's pairs are.
    Executed: matrix products and attention, the gradient of the inputs left out; and the dot and cross products, 3 and
    6 multiply-adds, twice that backward.
    """
    maps = config.blocks * config.maps
    borders = (config.inputs, config.stream), (config.stream, config.outputs)
    nominal = 6.0 * sum(_weights(*pair, of_vectors=9) for pair in (*borders, *maps))
    executed = 6.0 * sum(_weights(*pair, of_vectors=3) for pair in (*borders, *maps))
    executed -= 2.0 * _weights(*borders[0], of_vectors=3)
    executed += 6.0 * config.blocks * config.vectors * (2 * 3 + 4 * 6)
    pairs = 6.0 * config.blocks * 2 * config.heads * config.head.numbers
    if config.distances:
        pairs += distances.training_flops(config.blocks, config.heads)
    return TrainingFlops(nominal=FlopCount(nominal), executed=FlopCount(executed, pairs))


def _weights(source: Channels, target: Channels, of_vectors: int) -> int:
    return source.scalars * target.scalars + of_vectors * (source.true * target.true + source.pseudo * target.pseudo)
