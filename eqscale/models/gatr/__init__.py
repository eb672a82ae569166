"""GATr on a planar layout: E(3)-equivariant transformer with parity-typed multivector channels."""

from eqscale.models.gatr.config import GATrConfig
from eqscale.models.gatr.flops import gatr_training_flops
from eqscale.models.gatr.network import GATr

__all__ = ["GATr", "GATrConfig", "gatr_training_flops"]
