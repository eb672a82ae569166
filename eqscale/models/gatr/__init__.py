"""GATr on a planar layout: E(3)-equivariant transformer with parity-typed multivector channels."""

from eqscale.models.gatr.network import GATr, GATrConfig

__all__ = ["GATr", "GATrConfig"]
