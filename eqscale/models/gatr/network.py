"""GATr, the geometric algebra transformer (arXiv 2305.18415, 2311.04744), on the planar layout.

With ``symmetry="parity"`` every channel is typed true (planes) or pseudo (points, directions): the network
is then exactly equivariant under all of E(3), reflections included, from the embedded inputs to the read-out,
and needs no reference multivector for the join.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

from eqscale import native
from eqscale.algebra.blades import INDEX
from eqscale.errors import InputError
from eqscale.models.gatr.attention import Attention, AttentionShape, Tokens
from eqscale.models.gatr.bilinear import Bilinear, Products
from eqscale.models.gatr.layout import Layout
from eqscale.models.gatr.linear import Assembly, Linear, LinearMap, apply_linear
from eqscale.models.gatr.pointwise import Gate, Norm
from eqscale.models.inputs import check_mask, check_tokens

SYMMETRIES = ("parity", "published", "off")


@dataclasses.dataclass(frozen=True)
class GATrConfig:
    """Shape of a GATr. In inputs and outputs alike, true multivector channels come before pseudo ones."""

    true_in: int
    """True input channels: planes, embedded by ``embed_plane``."""
    pseudo_in: int
    """Pseudo input channels: points and directions."""
    scalars_in: int
    """Invariant input channels."""
    true_out: int
    """True output channels."""
    pseudo_out: int
    """Pseudo output channels."""
    scalars_out: int
    """Invariant output channels."""
    true: int
    """True hidden channels."""
    pseudo: int
    """Pseudo hidden channels; equal to ``true`` is fastest."""
    scalars: int
    """Scalar hidden channels."""
    blocks: int
    """Transformer blocks."""
    heads: int = 4
    """Query heads; keys and values are shared (multi-query)."""
    symmetry: str = "parity"
    """"parity": typed channels, exact under E(3). "published": the untyped formulation of the papers (all
    channels true, joins times e123 of the mean input multivector of a sample). "off": unconstrained 16 x 16 maps,
    unchanged products (control)."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 1 if field.name in ("blocks", "heads") else 0
            if isinstance(value, int) and value < least:
                raise InputError(f"GATrConfig.{field.name}: {value} is below {least}")
        if self.symmetry not in SYMMETRIES:
            raise InputError(f"GATrConfig.symmetry: {self.symmetry!r}, allowed are {', '.join(SYMMETRIES)}")
        if self.true + self.pseudo == 0 or self.true_in + self.pseudo_in == 0:
            raise InputError("GATrConfig: true + pseudo and true_in + pseudo_in must be at least 1")
        if self.true_out + self.pseudo_out + self.scalars_out == 0:
            raise InputError("GATrConfig: true_out + pseudo_out + scalars_out must be at least 1")
        if self.symmetry == "published" and self.pseudo + self.pseudo_in + self.pseudo_out:
            raise InputError("GATrConfig.symmetry: 'published' has no pseudo channels, count all of them as true")
        if self.symmetry != "published" and not (self.true and self.pseudo):
            raise InputError(f"GATrConfig: symmetry {self.symmetry!r} needs true >= 1 and pseudo >= 1")
        for name in ("true", "pseudo", "scalars"):
            width = 2 * getattr(self, name)
            if width > self.heads and width % self.heads:
                raise InputError(f"GATrConfig.{name}: 2 x {width // 2} channels do not divide by heads {self.heads}")

    def per_head(self, channels: int, least: int) -> int:
        """Channels of a head: attention is twice as wide as the stream (arXiv 2311.04744)."""
        return max(2 * channels // self.heads, least) if channels else 0


@dataclasses.dataclass(frozen=True)
class BlockMaps:
    """Structure of a block: its attention and products and the linear maps between them."""

    stream: Layout
    attention: AttentionShape
    products: Bilinear
    to_qkv: LinearMap
    from_heads: LinearMap
    to_factors: LinearMap
    from_products: LinearMap
    to_stream: LinearMap

    @classmethod
    def of(cls, config: GATrConfig) -> BlockMaps:
        """Structure of every block of a network."""
        c, symmetric = config, config.symmetry != "off"
        stream = Layout(c.true, c.pseudo, c.scalars)
        normed = dataclasses.replace(stream, ones=True)
        hidden = Layout(2 * c.true, 2 * c.pseudo, 2 * c.scalars)
        attention = AttentionShape(
            c.heads,
            c.per_head(c.true, 1),
            c.per_head(c.pseudo, 1),
            c.per_head(c.scalars, 4),
            distance_on_true=c.symmetry == "published",
        )
        products = Bilinear(c.true + c.pseudo, c.scalars, typed=c.symmetry != "published")
        return cls(
            stream,
            attention,
            products,
            to_qkv=LinearMap(normed, attention.source, symmetric),
            from_heads=LinearMap(attention.out, stream, symmetric),
            to_factors=LinearMap(normed, products.inputs, symmetric),
            from_products=LinearMap(products.outputs, hidden, symmetric),
            to_stream=LinearMap(dataclasses.replace(hidden, ones=True), stream, symmetric),
        )

    @property
    def linear(self) -> tuple[LinearMap, ...]:
        """The five linear maps in the order of computation."""
        return self.to_qkv, self.from_heads, self.to_factors, self.from_products, self.to_stream


def border_maps(config: GATrConfig) -> tuple[LinearMap, LinearMap]:
    """Linear maps from the inputs to the stream and from the stream to the outputs."""
    c, symmetric = config, config.symmetry != "off"
    source = Layout(c.true_in, c.pseudo_in, c.scalars_in, ones=True)
    stream = Layout(c.true, c.pseudo, c.scalars)
    target = Layout(c.true_out, c.pseudo_out, c.scalars_out)
    normed = dataclasses.replace(stream, ones=True)
    return LinearMap(source, stream, symmetric), LinearMap(normed, target, symmetric)


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

    On a CPU with a C++ compiler it runs on its own kernels (``eqscale.native``), which serve every shape
    and are built once per machine; otherwise on ATen operations. For devices without kernels,
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
        columns = [0] * source.rows
        for channel in range(source.channels):
            for component, row in enumerate(source.multivector(channel)):
                columns[row] = 16 * channel + component
        for i in range(source.scalars):
            columns[source.scalar(i)] = 16 * source.channels + i
        columns[source.ones_row] = 16 * source.channels + source.scalars
        rows = [row for channel in range(target.channels) for row in target.multivector(channel)]
        rows += [target.scalar(i) for i in range(target.scalars)]
        self.register_buffer("_columns", torch.tensor(columns), persistent=False)
        self.register_buffer("_rows", torch.tensor(rows), persistent=False)

    def forward(self, multivectors: Tensor, scalars: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Multivectors (B, T, C_in, 16), scalars (B, T, S_in), mask (B, T) -> (B, T, C_out, 16), (B, T, S_out).

        ``mask`` is True for real tokens; what the others hold does not matter, and their outputs are zero.

        Raises:
            InputError: a shape, dtype or device that does not fit, or a sample without tokens.
        """
        c = self.config
        self._check(multivectors, scalars, mask)
        b, t = multivectors.shape[:2]
        ones = torch.ones_like(multivectors[..., 0, :1])
        flat = torch.cat([multivectors.flatten(2), scalars, ones], -1).flatten(0, 1)
        tokens, packed = self._tokens(b, t, mask, flat)
        reference = None
        if c.symmetry == "published":
            e123 = flat[:, INDEX["e123"] : 16 * (c.true_in + c.pseudo_in) : 16].mean(-1).view(b, t)
            total = e123.sum(1) / t if mask is None else torch.where(mask, e123, 0).sum(1) / mask.sum(1)
            reference = total[:, None].expand(b, t).reshape(b * t).detach()
        if packed is not None:
            flat = flat.index_select(0, packed)
            reference = None if reference is None else reference.index_select(0, packed)
        elif mask is not None:
            flat = torch.where(mask.view(-1, 1), flat, 0)
        x = flat.t().index_select(0, self._columns)
        embed, *weights, read_out = self._assembly()
        x = apply_linear(x, embed, self.embed.map)
        for i, block in enumerate(self.blocks):
            x = block(x, weights[5 * i : 5 * i + 5], tokens, reference)
        out = apply_linear(self.final_norm(x), read_out, self.read_out.map).index_select(0, self._rows).t()
        if packed is not None:
            out = out.new_zeros(b * t, out.shape[1]).index_copy(0, packed, out)
        elif mask is not None:
            out = torch.where(mask.view(-1, 1), out, 0)
        channels = c.true_out + c.pseudo_out
        out = out.view(b, t, -1)
        return out[..., : 16 * channels].unflatten(-1, (channels, 16)), out[..., 16 * channels :]

    def _tokens(self, b: int, t: int, mask: Tensor | None, flat: Tensor) -> tuple[Tokens, Tensor | None]:
        """How tokens attend to each other and, if padding is dropped, flat indices (N,) of the real tokens."""
        if torch.compiler.is_compiling():
            return Tokens(b, t, mask), None
        on_kernels = native.available(flat)
        if mask is None:
            return Tokens(b, t, starts=torch.arange(0, b * t + 1, t) if on_kernels else None), None
        if not on_kernels:
            return Tokens(b, t, mask), None
        # Padding is dropped rather than computed: only attention needs to know which sample a token is of.
        starts = functional.pad(mask.sum(1).cumsum(0), (1, 0))
        return Tokens(b, t, mask, starts), mask.flatten().nonzero().squeeze(1)

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
