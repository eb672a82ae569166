"""The plain pre-LayerNorm transformer: the arm that has to learn the symmetry from data."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqscale.errors import InputError
from eqscale.models.flops import FlopCount, TrainingFlops
from eqscale.models.inputs import check_mask, check_tokens


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
    """Hidden width of the MLP over d."""

    def __post_init__(self) -> None:
        for name in ("in_features", "out_features", "width", "depth", "heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise InputError(f"transformer {name} must be at least 1, not {getattr(self, name)}")
        if self.width % self.heads:
            raise InputError(f"transformer width {self.width} is not divisible by {self.heads} heads")


class Attention(nn.Module):
    """Multi-head or multi-query self-attention over a padded set of tokens."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.head_width = config.width // config.heads
        self.kv_heads = 1 if config.multi_query else config.heads
        self.qkv = nn.Linear(config.width, (config.heads + 2 * self.kv_heads) * self.head_width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x_BTD: Tensor, bias_B1T: Tensor | None) -> Tensor:
        """Attend: (B, T, width) -> (B, T, width); the bias is -inf at padded keys."""
        B, T, D = x_BTD.shape
        H, G, d = self.heads, self.kv_heads, self.head_width
        q, k, v = self.qkv(x_BTD).split((H * d, G * d, G * d), dim=-1)
        if G == 1:
            # All heads share k and v, so heads are just more query rows: one small product a sample.
            q = q.reshape(B, T * H, d)
            logits = torch.bmm(q * d**-0.5, k.transpose(1, 2))
            if bias_B1T is not None:
                logits = logits + bias_B1T
            y = torch.bmm(torch.softmax(logits, -1), v).view(B, T, D)
        else:
            q, k, v = (z.view(B, T, H, d).transpose(1, 2) for z in (q, k, v))
            mask = None if bias_B1T is None else bias_B1T[:, None]
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(B, T, D)
        return self.out(y)


class Block(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)) (Xiong et al. 2020)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp_in = nn.Linear(config.width, config.mlp_ratio * config.width)
        self.mlp_out = nn.Linear(config.mlp_ratio * config.width, config.width)

    def forward(self, x_BTD: Tensor, bias_B1T: Tensor | None) -> Tensor:
        """One block: (B, T, width) -> (B, T, width)."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), bias_B1T)
        return x_BTD + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x_BTD)), approximate="tanh"))


class Transformer(nn.Module):
    """Maps token features (B, T, in_features) to predictions (B, T, out_features).

    Permutation-equivariant over tokens. Padded tokens (mask False) influence nothing.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.in_features, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.readout = nn.Linear(config.width, config.out_features)
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
            features_BTF: token features, (B, T, in_features).
            mask_BT: True for real tokens, (B, T); None if all are.

        Returns:
            (B, T, out_features); values at padded tokens are meaningless.

        Raises:
            InputError: a shape, dtype or device that does not fit, or a sample without tokens.
        """
        config, own = self.config, self.embed.weight
        check_tokens("features", features_BTF, (config.in_features,), own)
        if mask_BT is not None:
            check_mask(mask_BT, tuple(features_BTF.shape[:2]), own.device)
        bias = None
        if mask_BT is not None:
            bias = torch.zeros_like(mask_BT, dtype=features_BTF.dtype).masked_fill_(~mask_BT, float("-inf"))[:, None]
        x = self.embed(features_BTF)
        for block in self.blocks:
            x = block(x, bias)
        return self.readout(self.norm(x))


def transformer_training_flops(config: TransformerConfig) -> TrainingFlops:
    """FLOPs of forward + backward for one sample with T tokens.

    Nominal: 6 per matrix weight per token (2 forward, 4 backward), as the paper's authors count; attention
    scores, biases, norms and activations are left out. Executed: multiply-adds x 2 of every matrix product,
    attention included; the gradient with respect to the input features is not computed and not counted.
    """
    d, kv = config.width, 1 if config.multi_query else config.heads
    d_kv = kv * (d // config.heads)
    per_block = d * (d + 2 * d_kv) + d * d + 2 * config.mlp_ratio * d * d
    embed = config.in_features * d
    weights = embed + config.depth * per_block + d * config.out_features
    attention = 3 * config.depth * 2 * 2 * d  # scores and values: 2 T^2 d multiply-adds forward, twice that backward
    return TrainingFlops(
        nominal=FlopCount(6.0 * weights), executed=FlopCount(6.0 * weights - 2.0 * embed, float(attention))
    )
