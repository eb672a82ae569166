"""The plain pre-norm transformer: the arm that has to learn the symmetry from data.

On a CPU with a C++ compiler the whole network, forward and backward, is one kernel (``eqscale.native``) up to a width
of 256; anywhere else, under autocast and in traced code it runs on ATen operations.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqscale import native
from eqscale.errors import InputError
from eqscale.models import distances, kernels
from eqscale.models.flops import FlopCount, TrainingFlops
from eqscale.models.inputs import check_mask, check_tokens

KERNEL_WIDTH = 256
"""Widest network that runs on kernels. Beyond it weights leave the cache from tile to tile, and ATen's large matrix
products are as fast (``benchmarks/models.py``, part ``steps``)."""


@dataclasses.dataclass(frozen=True)
class InFrames:
    """How a network sees each token's vectors in the frame of that token (Lippmann et al. 2024, arXiv 2405.15389)."""

    columns: tuple[int, ...]
    """Vectors among a token's features: the first of each one's three columns."""
    head_vectors: int
    """Vectors among the channels of a head, the first ones. They leave the frame for attention, and what it puts out
    goes into that of its token. 0 where tokens share a frame: it would change nothing."""
    turns_output: bool
    """Whether a prediction is a vector."""


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape of a plain transformer over a set of tokens (no positional encoding, no causal mask)."""

    in_features: int
    """Features of an input token."""
    out_features: int
    """Numbers predicted per token."""
    width: int
    """Residual width d."""
    depth: int
    """Number of blocks."""
    heads: int
    """Attention heads; must divide the width."""
    multi_query: bool = True
    """One key and value head shared by all query heads (Shazeer 2019), as in the paper's baseline."""
    mlp_ratio: int = 4
    """Hidden width of the MLP over d, of a GELU block."""
    norm: str = "layer"
    """"layer": LayerNorm; "rms": RMSNorm."""
    activation: str = "gelu"
    """"gelu", or "swiglu" (Shazeer 2020), two thirds as wide: about as many parameters."""
    distances: bool = False
    """Whether heads see them (``eqscale.models.distances``). Then three more numbers follow a token's features: where
    it is."""
    frames: InFrames | None = None
    """Then nine more numbers follow: the axes of the token's frame, as rows, zero where it lacks one."""

    def __post_init__(self) -> None:
        for name in ("in_features", "out_features", "width", "depth", "heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise InputError(f"transformer {name} must be at least 1, not {getattr(self, name)}")
        if self.width % self.heads:
            raise InputError(f"transformer width {self.width} is not divisible by {self.heads} heads")
        for name, allowed in (("norm", ("layer", "rms")), ("activation", ("gelu", "swiglu"))):
            if getattr(self, name) not in allowed:
                raise InputError(f"transformer {name} must be one of {', '.join(allowed)}, not {getattr(self, name)}")
        if self.frames:
            self._check_frames(self.frames)

    def _check_frames(self, frames: InFrames) -> None:
        """Raise InputError for vectors that don't lie within what they are among: kernels trust them."""
        head, last = self.width // self.heads, self.in_features - 3
        if not 0 <= frames.head_vectors <= head // 3:
            raise InputError(f"{frames.head_vectors} vectors in a head of {head} channels: at most {head // 3}")
        if outside := [column for column in frames.columns if not 0 <= column <= last]:
            raise InputError(f"a vector from column {outside[0]} of {self.in_features} features on: 0 to {last} fit")
        if frames.turns_output and self.out_features != 3:
            raise InputError(f"predictions of {self.out_features} numbers can't be turned: a vector has 3")

    @property
    def given(self) -> int:
        """Numbers of an input token: features, where it is, and its frame."""
        return self.in_features + (3 if self.distances else 0) + (9 if self.frames else 0)

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return 1 if self.multi_query else self.heads

    @property
    def hidden(self) -> int:
        """Hidden width of the MLP."""
        width = self.mlp_ratio * self.width
        return width if self.activation == "gelu" else round(2 * width / 3)

    @property
    def mlp_inputs(self) -> int:
        """Outputs of the first map of the MLP: with SwiGLU, gates and then values."""
        return self.hidden * (1 if self.activation == "gelu" else 2)


def _norm(config: TransformerConfig) -> nn.Module:
    return nn.LayerNorm(config.width) if config.norm == "layer" else nn.RMSNorm(config.width, eps=1e-5)


def _turned(x_BTC: Tensor, matrices_BT33: Tensor, groups: int, vectors: int) -> Tensor:
    """The channels with the first vectors of each of equal groups multiplied by each token's matrix."""
    B, T, C = x_BTC.shape
    x = x_BTC.view(B, T, groups, C // groups)
    turned = x[..., : 3 * vectors].reshape(B, T, groups * vectors, 3) @ matrices_BT33.mT
    return torch.cat([turned.view(B, T, groups, 3 * vectors), x[..., 3 * vectors :]], -1).view(B, T, C)


class Attention(nn.Module):
    """Multi-head or multi-query self-attention over a padded set of tokens."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.head_width = config.width // config.heads
        self.kv_heads = config.kv_heads
        self.vectors = config.frames.head_vectors if config.frames else 0
        self.qkv = nn.Linear(config.width, (config.heads + 2 * self.kv_heads) * self.head_width)
        self.out = nn.Linear(config.width, config.width)

    def forward(
        self, x_BTD: Tensor, bias_B1T: Tensor | None, pairs_BHTT: Tensor | None = None, axes_BT33: Tensor | None = None
    ) -> Tensor:
        """Attend: (B, T, width) -> (B, T, width).

        Args:
            x_BTD: the tokens.
            bias_B1T: -inf at padded keys.
            pairs_BHTT: bias of pairs, one of each head.
            axes_BT33: frames of the tokens.
        """
        B, T, D = x_BTD.shape
        H, G, d = self.heads, self.kv_heads, self.head_width
        qkv = self.qkv(x_BTD)
        if axes_BT33 is not None and self.vectors:
            qkv = _turned(qkv, axes_BT33.mT, H + 2 * G, self.vectors)
        q, k, v = qkv.split((H * d, G * d, G * d), dim=-1)
        if G == 1:
            # All heads share k and v, so heads are just more query rows: one small product a sample.
            q = q.reshape(B, T * H, d)
            logits = torch.bmm(q * d**-0.5, k.transpose(1, 2))
            if bias_B1T is not None:
                logits = logits + bias_B1T
            if pairs_BHTT is not None:
                logits = logits + pairs_BHTT.transpose(1, 2).reshape(B, T * H, T)
            y = torch.bmm(torch.softmax(logits, -1), v).view(B, T, D)
        else:
            q, k, v = (z.view(B, T, H, d).transpose(1, 2) for z in (q, k, v))
            mask = None if bias_B1T is None else bias_B1T[:, None]
            if pairs_BHTT is not None:
                mask = pairs_BHTT if mask is None else pairs_BHTT + mask
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(B, T, D)
        if axes_BT33 is not None and self.vectors:
            y = _turned(y, axes_BT33, H, self.vectors)
        return self.out(y)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)) (Xiong et al. 2020)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gated = config.activation == "swiglu"
        self.attention_norm = _norm(config)
        self.attention = Attention(config)
        self.mlp_norm = _norm(config)
        self.mlp_in = nn.Linear(config.width, config.mlp_inputs)
        self.mlp_out = nn.Linear(config.hidden, config.width)

    def forward(self, x_BTD: Tensor, *seen: Tensor | None) -> Tensor:
        """One block: (B, T, width) -> (B, T, width); what else attention sees is as of ``Attention``."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), *seen)
        u = self.mlp_in(self.mlp_norm(x_BTD))
        if self.gated:
            gate, value = u.chunk(2, -1)
            return x_BTD + self.mlp_out(F.silu(gate) * value)
        return x_BTD + self.mlp_out(F.gelu(u, approximate="tanh"))


@functools.lru_cache(maxsize=256)
def _shape(c: TransformerConfig, batch: int, tokens: int, dtype: torch.dtype) -> native.transformer.Shape:
    """Shape of a batch, and what the kernels need for it."""
    sizes = c.in_features, c.out_features, c.width, c.depth, c.heads, c.kv_heads, c.hidden
    kinds = c.activation == "swiglu", c.norm == "layer", 3 if c.distances else 0
    frames = c.frames or InFrames((), 0, False)
    columns = (ctypes.c_int64 * len(frames.columns))(*frames.columns)
    turned = 9 if c.frames else 0, len(columns), frames.head_vectors, frames.turns_output, ctypes.addressof(columns)
    shape = native.transformer.Shape(batch, tokens, *sizes, *kinds, *turned)
    shape.held = columns  # which it points to
    native.call("transformer_plan", torch.empty(0, dtype=dtype), shape)
    return shape


class Transformer(nn.Module):
    """Maps tokens (B, T, given) to predictions (B, T, out_features).

    Permutation-equivariant over tokens. Padded tokens (mask False) influence nothing.
    """

    turned: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.distances = distances.weights(config.depth, config.heads) if config.distances else None
        self.embed = nn.Linear(config.in_features, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = _norm(config)
        self.readout = nn.Linear(config.width, config.out_features)
        columns = [column + i for column in (config.frames.columns if config.frames else ()) for i in range(3)]
        self.register_buffer("turned", torch.tensor(columns, dtype=torch.long), persistent=False)
        # Where list(self.parameters()) finds them: its walk takes a tenth of a small network's step.
        owners = [module._parameters for module in self.modules()]
        self._places: list[tuple[dict[str, Any], str]] = [(own, k) for own in owners for k in own if own[k] is not None]
        self._initialise()

    def _initialise(self) -> None:
        """Fan-in normal weights; residual branches scaled by 1/sqrt(2 depth) (GPT-2), read-out small."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Block):
                for branch in (module.attention.out, module.mlp_out):
                    nn.init.normal_(branch.weight, std=(2 * self.config.depth * branch.in_features) ** -0.5)
        self.readout.weight.data.mul_(0.1)

    def forward(self, features_BTF: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Predict per token.

        Args:
            features_BTF: (B, T, given): token features; with ``distances``, three numbers that are where the token is,
                which no gradient flows into; with ``frames``, nine that are its frame.
            mask_BT: True for real tokens, (B, T); None if all are.

        Returns:
            (B, T, out_features); values at padded tokens are meaningless.

        Raises:
            InputError: a shape, dtype or device that does not fit, or a sample without tokens.
        """
        config, weight = self.config, self.embed.weight
        check_tokens("features", features_BTF, (config.given,), weight)
        if mask_BT is not None:
            check_mask(mask_BT, tuple(features_BTF.shape[:2]), weight.device)
        if self.runs_on_kernels(features_BTF):
            shape = _shape(config, *features_BTF.shape[:2], features_BTF.dtype)
            parameters = [own[name] for own, name in self._places]
            return kernels.run("transformer", shape, config.out_features, features_BTF, mask_BT, parameters)
        bias = None
        if mask_BT is not None:
            bias = torch.zeros_like(mask_BT, dtype=features_BTF.dtype).masked_fill_(~mask_BT, float("-inf"))[:, None]
        x, points, axes = features_BTF.split((config.in_features, 3 * config.distances, 9 * bool(config.frames)), -1)
        axes_BT33 = axes.unflatten(-1, (3, 3)) if config.frames else None
        if axes_BT33 is not None:
            with torch.autocast(x.device.type, enabled=False):  # not coordinates in half precision
                turned = x.index_select(-1, self.turned).unflatten(-1, (-1, 3)) @ axes_BT33.mT
                x = x.index_copy(-1, self.turned, turned.flatten(2))
        x = self.embed(x)
        pairs = distances.biases(self.distances, points, config.depth)
        for block, pairs_BHTT in zip(self.blocks, pairs, strict=True):
            x = block(x, bias, pairs_BHTT, axes_BT33)
        y = self.readout(self.norm(x))
        if config.frames and axes_BT33 is not None and config.frames.turns_output:
            with torch.autocast(x.device.type, enabled=False):
                y = _turned(y.to(axes_BT33.dtype), axes_BT33.mT, 1, 1)
        return y

    @staticmethod
    def packs(width: int, device: torch.device) -> bool:
        """Whether padding is dropped on this device rather than computed: true of the CPU kernels."""
        return width <= KERNEL_WIDTH and native.available(torch.empty(0, device=device))

    def runs_on_kernels(self, x: Tensor) -> bool:
        """Whether a forward pass of inputs like ``x`` would run on the CPU kernels."""
        fits = self.config.width <= KERNEL_WIDTH and native.available(x)
        return fits and not torch.is_autocast_enabled("cpu")

    def add_loss_gradient(
        self,
        features_BTF: Tensor,
        mask_BT: Tensor,
        target_BTO: Tensor,
        weight_BT: Tensor,
        scale: float,
        of_inputs: Tensor | None = None,
    ) -> Tensor:
        """As ``kernels.add_loss_gradient``, where ``runs_on_kernels``; raises InputError as ``forward`` does."""
        check_tokens("features", features_BTF, (self.config.given,), self.embed.weight)
        check_tokens("target", target_BTO, (self.config.out_features,), self.embed.weight)
        check_mask(mask_BT, tuple(features_BTF.shape[:2]), self.embed.weight.device)
        shape = _shape(self.config, *features_BTF.shape[:2], features_BTF.dtype)
        parameters = [own[name] for own, name in self._places]
        return kernels.add_loss_gradient(
            "transformer", shape, features_BTF, mask_BT, parameters, target_BTO, weight_BT, scale, of_inputs
        )


def transformer_training_flops(config: TransformerConfig) -> TrainingFlops:
    """FLOPs of forward + backward for one sample with T tokens.

    Nominal: 6 per matrix weight per token (2 forward, 4 backward), as the paper's authors count; attention
    scores, biases, norms and activations are left out. Executed: multiply-adds x 2 of every matrix product,
    attention included; the gradient with respect to the input features is not computed and not counted, unless frames
    get theirs through it.
    """
    d = config.width
    d_kv = config.kv_heads * (d // config.heads)
    per_block = d * (d + 2 * d_kv) + d * d + (config.mlp_inputs + config.hidden) * d
    embed = config.in_features * d
    weights = embed + config.depth * per_block + d * config.out_features
    attention = 3.0 * config.depth * 2 * 2 * d  # scores and values: 2 T^2 d multiply-adds forward, twice that backward
    if config.distances:
        attention += distances.training_flops(config.depth, config.heads)
    executed = 6.0 * weights - (0.0 if config.frames else 2.0 * embed)
    if config.frames:
        turned = 2 * (config.heads + config.kv_heads) * config.frames.head_vectors * config.depth
        # A product of a vector and a matrix is 18; backward there are two, of an input one.
        executed += 54.0 * (turned + config.frames.turns_output) + 36.0 * len(config.frames.columns)
    return TrainingFlops(nominal=FlopCount(6.0 * weights), executed=FlopCount(executed, attention))
