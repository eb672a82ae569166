"""GATr, the geometric algebra transformer (arXiv 2305.18415, 2311.04744), on the planar layout.

With ``symmetry="parity"`` every channel is typed true (planes) or pseudo (points, directions): the network
is then exactly equivariant under all of E(3), reflections included, from the embedded inputs to the read-out,
and needs no reference multivector for the join.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from eqscale import native
from eqscale.algebra.blades import INDEX
from eqscale.errors import InputError
from eqscale.models.gatr import fused
from eqscale.models.gatr.attention import Attention, Tokens
from eqscale.models.gatr.bilinear import Products
from eqscale.models.gatr.config import BlockMaps, GATrConfig, border_maps
from eqscale.models.gatr.linear import Assembly, Linear, apply_linear
from eqscale.models.gatr.pointwise import Gate, Norm
from eqscale.models.inputs import check_mask, check_tokens


class Block(nn.Module):
    """Pre-norm attention and pre-norm geometric MLP, each with a residual connection."""

    def __init__(self, maps: BlockMaps):
        super().__init__()
        self.norm = Norm(maps.stream)
        self.attention = Attention(maps.attention)
        self.products = Products(maps.products, self.norm.out)
        self.gate = Gate(maps.from_products.target)
        self.to_qkv = Linear(maps.to_qkv)
        self.from_heads = Linear(maps.from_heads, gain=0.1)
        self.to_factors = Linear(maps.to_factors)
        self.from_products = Linear(maps.from_products)
        self.to_stream = Linear(maps.to_stream)
        # The right factor of a geometric product starts near 1 (e0123 in pseudo channels): the product passes its left
        # factor on.
        self.to_factors.shift_invariants(maps.products.right_factors)
        # GELU(0) = 0: with closed gates the branch starts with a tenth of the stream, and some seeds stay on a plateau
        # for hundreds of steps.
        self.from_products.shift_invariants(range(maps.from_products.target.channels))

    def linears(self) -> list[Linear]:
        """The linear maps in the order of their weights in :meth:`forward`."""
        return [self.to_qkv, self.from_heads, self.to_factors, self.from_products, self.to_stream]

    def forward(self, x: Tensor, weights: list[tuple[Tensor, ...]], tokens: Tokens, reference: Tensor | None) -> Tensor:
        """(rows, N) -> (rows, N); ``weights`` are the assembled weights of :meth:`linears`."""
        to_qkv, from_heads, to_factors, from_products, to_stream = weights
        attended = self.attention(apply_linear(self.norm(x), to_qkv, self.to_qkv.map), tokens)
        x = apply_linear(attended, from_heads, self.from_heads.map, residual=x)
        y = self.norm(x)
        products = self.products(apply_linear(y, to_factors, self.to_factors.map), y, reference)
        hidden = self.gate(apply_linear(products, from_products, self.from_products.map))
        return apply_linear(hidden, to_stream, self.to_stream.map, residual=x)


class GATr(nn.Module):
    """Geometric algebra transformer; the public ``(..., C, 16)`` format lives only at its borders.

    On a CPU with a C++ compiler all of it is one operation of its own kernels (``eqscale.models.gatr.fused``), which
    serve every shape and are built once per machine; otherwise it runs on ATen operations. For devices without kernels,
    ``torch.compile(net, dynamic=True, fullgraph=True)`` traces it into one graph.
    """

    _columns: Tensor
    _rows: Tensor

    def __init__(self, config: GATrConfig):
        super().__init__()
        self.config = c = config
        embed, read_out = border_maps(c)
        source, stream, target = embed.source, embed.target, read_out.target
        self.embed = Linear(embed)
        maps = BlockMaps.of(c)
        blocks = [Block(maps) for _ in range(c.blocks)]
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = Norm(stream)
        self.read_out = Linear(read_out)
        self._assembly = Assembly([self.embed, *(m for b in blocks for m in b.linears()), self.read_out])
        # Columns of (multivectors | scalars | 1) that make up the rows of the input layout, and back.
        self.register_buffer("_columns", source.flat().argsort(), persistent=False)
        self.register_buffer("_rows", target.flat(), persistent=False)

    def forward(self, multivectors: Tensor, scalars: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Multivectors (B, T, C_in, 16), scalars (B, T, S_in), mask (B, T) -> (B, T, C_out, 16), (B, T, S_out).

        ``mask`` is True for real tokens; what the others hold does not matter, and their outputs are zero.

        Raises:
            InputError: a shape, dtype or device that does not fit, or a sample without tokens.
        """
        self._check(multivectors, scalars, mask)
        reference = self._reference(multivectors, mask) if self.config.symmetry == "published" else None
        if native.available(multivectors):
            out = fused.run(self.config, multivectors, scalars, mask, reference, self._own())
        else:
            out = self._on_aten(multivectors, scalars, mask, reference)
        channels = self.config.true_out + self.config.pseudo_out
        return out[..., : 16 * channels].unflatten(-1, (channels, 16)), out[..., 16 * channels :]

    def add_loss_gradient(
        self, multivectors: Tensor, scalars: Tensor, mask: Tensor, read: tuple[Tensor, Tensor], point: Tensor,
        target: Tensor, weight: Tensor, scale: float,
    ) -> Tensor:  # fmt: skip
        """As ``fused.add_loss_gradient``, where there are kernels; raises InputError as ``forward`` does."""
        self._check(multivectors, scalars, mask)
        for name, value in (("point", point), ("target", target)):
            check_tokens(name, value, (3,), self.embed.bias)
        reference = self._reference(multivectors, mask) if self.config.symmetry == "published" else None
        given = self.config, multivectors, scalars, mask, reference, self._own()
        return fused.add_loss_gradient(*given, read, point, target, weight, scale)

    def _own(self) -> list[Tensor]:
        """The parameters in the kernels' order."""
        return self._assembly.parameters() + [cast(Block, block).attention.log_weights for block in self.blocks]

    @staticmethod
    def _reference(multivectors: Tensor, mask: Tensor | None) -> Tensor:
        """e123 of the mean input multivector of each sample, for each token: (B, T)."""
        e123 = multivectors[..., INDEX["e123"]].mean(-1)
        mean = e123.mean(1) if mask is None else torch.where(mask, e123, 0).sum(1) / mask.sum(1)
        return mean.detach()[:, None].expand_as(e123).contiguous()

    def _on_aten(
        self, multivectors: Tensor, scalars: Tensor, mask: Tensor | None, reference: Tensor | None
    ) -> Tensor:  # fmt: skip
        """Outputs (B, T, 16 C_out + S_out), padding computed like tokens."""
        b, t = multivectors.shape[:2]
        ones = torch.ones_like(multivectors[..., 0, :1])
        flat = torch.cat([multivectors.flatten(2), scalars, ones], -1)
        if mask is not None:
            flat = torch.where(mask[..., None], flat, 0)
        x = flat.flatten(0, 1).t().index_select(0, self._columns)
        tokens, reference = Tokens(b, t, mask), None if reference is None else reference.flatten()
        embed, *weights, read_out = self._assembly()
        x = apply_linear(x, embed, self.embed.map)
        for i, block in enumerate(self.blocks):
            x = block(x, weights[5 * i : 5 * i + 5], tokens, reference)
        out = apply_linear(self.final_norm(x), read_out, self.read_out.map).index_select(0, self._rows).t()
        out = out.view(b, t, -1)
        return out if mask is None else torch.where(mask[..., None], out, 0)

    @staticmethod
    def packs(device: torch.device) -> bool:
        """Whether padding is dropped on this device rather than computed: true of the CPU kernels."""
        return native.available(torch.empty(0, device=device))

    def _check(self, multivectors: Tensor, scalars: Tensor, mask: Tensor | None) -> None:
        c, own = self.config, self.embed.bias
        check_tokens("multivectors", multivectors, (c.true_in + c.pseudo_in, 16), own)
        batch = tuple(multivectors.shape[:2])
        if scalars.shape != (*batch, c.scalars_in):
            raise InputError(f"scalars: expected {(*batch, c.scalars_in)}, got {tuple(scalars.shape)}")
        check_tokens("scalars", scalars, (c.scalars_in,), own)
        if mask is not None:
            check_mask(mask, batch, own.device)
