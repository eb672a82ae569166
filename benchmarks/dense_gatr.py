"""GATr in the dense formulation of its papers, and that of other packages: what the planar layout is measured against.

Channels-last multivectors (..., C, 16); the nine maps of every channel pair expanded to a dense 16 x 16
block and one matmul; products as einsums with 16 x 16 x 16 tables; keys and values expanded over the heads
for SDPA. It takes the parameters of an untyped :class:`eqscale.models.gatr.GATr` and computes the same
function.
"""

import importlib.util
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from eqscale.algebra import blades
from eqscale.algebra.primitives import dense_table
from eqscale.models.gatr import GATr
from eqscale.models.gatr.attention import DISTANCE_EPS
from eqscale.models.gatr.linear import Linear
from eqscale.models.gatr.pointwise import NORM_EPS

_E123 = blades.INDEX["e123"]
_IDEAL = [blades.INDEX[name] for name in ("e023", "e013", "e012")]
_INNER = [i for i in blades.EUCLIDEAN if i != _E123]


def _basis(dtype: torch.dtype) -> Tensor:
    """(9, 16, 16) = maps [b, out, in]: five grade projections, e0 times grades 0 to 3."""
    maps = torch.zeros(9, 16, 16, dtype=dtype)
    for i, grade in enumerate(blades.GRADES):
        maps[grade, i, i] = 1
    for a, b in zip(blades.EUCLIDEAN, blades.IDEAL, strict=True):
        maps[5 + blades.GRADES[a], b, a] = 1
    return maps


class DenseGATr(nn.Module):
    """The function of ``net`` (symmetry "published"), densely."""

    def __init__(self, net: GATr):
        super().__init__()
        self.net = net
        dtype = next(net.parameters()).dtype
        self.register_buffer("basis", _basis(dtype))
        self.register_buffer("gp", dense_table(blades.GEOMETRIC_PRODUCT, dtype, torch.device("cpu")))
        self.register_buffer("join", dense_table(blades.JOIN, dtype, torch.device("cpu")))

    def linear(self, layer: Linear, mv: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Multivectors (..., C, 16) and scalars (..., S)."""
        channels = layer.map.target.channels
        weight = torch.einsum("oib,bkl->oikl", layer.true, self.basis)
        out = torch.einsum("oikl,...il->...ok", weight, mv)
        invariant = functional.linear(s, layer.from_scalars, layer.bias)
        first = out[..., 0] + invariant[..., :channels]
        out = torch.cat([first[..., None], out[..., 1:]], -1)
        scalars = invariant[..., channels:]
        if layer.map.target.scalars:
            scalars = scalars + functional.linear(mv[..., 0], layer.to_scalars)
        return out, scalars

    def norm(self, mv: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Equivariant layer norm."""
        square = mv[..., list(blades.EUCLIDEAN)].square().sum(-1).mean(-1)
        return mv / square.clamp(min=NORM_EPS).sqrt()[..., None, None], functional.layer_norm(s, s.shape[-1:])

    def attention(self, layer, mv: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Heads over expanded keys and values."""
        shape = layer.shape
        b, t = mv.shape[:2]
        mv = mv.unflatten(2, (shape.heads + 2, shape.true)).transpose(1, 2)
        s = s.unflatten(2, (shape.heads + 2, shape.scalars)).transpose(1, 2)
        h = shape.heads
        point = mv[:, : h + 1]
        w = point[..., _E123]
        normaliser = w / (w * w + DISTANCE_EPS)
        t0, ti = (w * normaliser)[..., None], point[..., _IDEAL] * normaliser[..., None]
        square = ti.square().sum(-1, keepdim=True)
        phi = torch.cat([square, t0 * t0, t0 * ti], -1)[:, :h] * layer.distance_weights()[:, None, :, None]
        psi = torch.cat([-t0 * t0, -square, 2 * t0 * ti], -1)[:, h:]
        inner = point[..., _INNER].flatten(3)
        pad = -shape.features % 8, -shape.values % 8
        # SDPA divides by the root of the padded length.
        rescale = math.sqrt((shape.features + pad[0]) / shape.features)
        q = functional.pad(torch.cat([inner[:, :h], phi.flatten(3), s[:, :h]], -1) * rescale, (0, pad[0]))
        k = functional.pad(torch.cat([inner[:, h:], psi.flatten(3), s[:, h : h + 1]], -1), (0, pad[0]))
        v = functional.pad(torch.cat([mv[:, h + 1 :].flatten(3), s[:, h + 1 :]], -1), (0, pad[1]))
        k, v = k.expand(b, h, t, -1), v.expand(b, h, t, -1)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        y, scalars = y[..., : 16 * shape.true], y[..., 16 * shape.true : shape.values]
        return y.unflatten(-1, (shape.true, 16)).flatten(2, 3), scalars.flatten(2)

    def products(self, plan, factors: Tensor, reference: Tensor) -> Tensor:
        """Geometric products and joins, one einsum each."""
        left, right, _ = map(list, zip(*plan.channel_numbers, strict=True))
        c = plan.channels
        gp = torch.einsum("kij,...i,...j->...k", self.gp, factors[..., left[:c], :], factors[..., right[:c], :])
        join = torch.einsum("kij,...i,...j->...k", self.join, factors[..., left[c:], :], factors[..., right[c:], :])
        return torch.cat([gp, join * reference], -2)

    def forward(self, mv: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Multivectors (B, T, C, 16), scalars (B, T, S) -> the same kinds."""
        net = self.net
        reference = mv[..., _E123].mean((1, 2))[:, None, None, None].detach()
        mv, s = self.linear(net.embed, mv, s)
        for block in net.blocks:
            x, t = self.attention(block.attention, *self.linear(block.to_qkv, *self.norm(mv, s)))
            x, t = self.linear(block.from_heads, x, t)
            mv, s = mv + x, s + t
            x, t = self.norm(mv, s)
            factors, _ = self.linear(block.to_factors, x, t)
            x, t = self.linear(block.from_products, self.products(block.products.plan, factors, reference), t)
            gate = functional.gelu(x[..., :1], approximate="tanh")
            x, t = self.linear(block.to_stream, x * gate, functional.gelu(t, approximate="tanh"))
            mv, s = mv + x, s + t
        return self.linear(net.read_out, *self.norm(mv, s))


def other_packages(c: int, s: int, blocks: int, heads: int, tokens: int) -> dict[str, nn.Module]:
    """Networks of equal size by the packages that are installed, from one channel and scalar to one of each."""
    found: dict[str, nn.Module] = {}
    if importlib.util.find_spec("ezgatr"):
        from ezgatr.nets.mv_only_gatr import MVOnlyGATrConfig, MVOnlyGATrModel

        # Every head of ezgatr has full width: two of them cost about what the others spend. It has no scalars.
        config = MVOnlyGATrConfig(
            num_layers=blocks, size_context=max(tokens, 32), size_channels_hidden=c, size_channels_intermediate=c,
            attn_num_heads=2, attn_is_causal=False,
        )  # fmt: skip
        found["ezgatr"] = MVOnlyGATrModel(config)
    if importlib.util.find_spec("lgatr"):
        from lgatr import LGATr

        shape = {"in_mv_channels": 1, "out_mv_channels": 1, "hidden_mv_channels": c}
        shape |= {"in_s_channels": 1, "out_s_channels": 1, "hidden_s_channels": s, "num_blocks": blocks}
        attention = {"num_heads": heads, "multi_query": True, "attn_ratio": 2}
        found["lgatr"] = LGATr(**shape, attention=attention, mlp={"mlp_ratio": 2})
    return found
