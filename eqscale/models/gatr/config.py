"""Shape of a GATr, and the structure of its blocks and borders that follows from it."""

from __future__ import annotations

import dataclasses

from eqscale.errors import InputError
from eqscale.models.gatr.attention import AttentionShape
from eqscale.models.gatr.bilinear import Bilinear
from eqscale.models.gatr.layout import Layout
from eqscale.models.gatr.linear import LinearMap

SYMMETRIES = ("parity", "published")


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
    channels true, joins times e123 of the mean input multivector of a sample)."""

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
        c = config
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
            to_qkv=LinearMap(normed, attention.source),
            from_heads=LinearMap(attention.out, stream),
            to_factors=LinearMap(normed, products.inputs),
            from_products=LinearMap(products.outputs, hidden),
            to_stream=LinearMap(dataclasses.replace(hidden, ones=True), stream),
        )

    @property
    def linear(self) -> tuple[LinearMap, ...]:
        """The five linear maps in the order of computation."""
        return self.to_qkv, self.from_heads, self.to_factors, self.from_products, self.to_stream


def border_maps(config: GATrConfig) -> tuple[LinearMap, LinearMap]:
    """Linear maps from the inputs to the stream and from the stream to the outputs."""
    c = config
    source = Layout(c.true_in, c.pseudo_in, c.scalars_in, ones=True)
    stream = Layout(c.true, c.pseudo, c.scalars)
    target = Layout(c.true_out, c.pseudo_out, c.scalars_out)
    normed = dataclasses.replace(stream, ones=True)
    return LinearMap(source, stream), LinearMap(normed, target)
