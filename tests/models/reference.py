"""GATr written down literally: dense 16-component multivectors, einsums, masks instead of packing. Slow
and plain."""

import math

import torch
from torch import Tensor

from eqscale import algebra as ga
from eqscale.algebra.blades import GRADES, INDEX
from eqscale.models.gatr import GATr
from eqscale.models.gatr.attention import DISTANCE_EPS
from eqscale.models.gatr.linear import Linear

E0 = torch.zeros(16, dtype=torch.float64)
E0[INDEX["e0"]] = 1.0


def basis_maps() -> Tensor:
    """The nine equivariant maps (9, 16, 16): projections on the grades, then e0 times grades 0 to 3."""
    identity = torch.eye(16, dtype=torch.float64)
    project = [torch.diag(torch.tensor([float(g == k) for g in GRADES], dtype=torch.float64)) for k in range(5)]
    times_e0 = ga.geometric_product(E0, identity).T  # columns are images of the blades
    return torch.stack(project + [times_e0 @ project[k] for k in range(4)])


def linear(layer: Linear, mv: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    source, target = layer.map.source, layer.map.target
    bias = layer.bias
    out = mv.new_zeros(*mv.shape[:-2], target.channels, 16)
    if target.true and source.true:
        out[..., : target.true, :] = torch.einsum(
            "oib,bkl,...il->...ok", layer.true, basis_maps(), mv[..., : source.true, :]
        )
    if target.pseudo and source.pseudo:
        out[..., target.true :, :] = torch.einsum(
            "oib,bkl,...il->...ok", layer.pseudo, basis_maps(), mv[..., source.true :, :]
        )
    invariant = bias + (s @ layer.from_scalars.T if source.scalars else 0)
    out[..., : target.true, 0] += invariant[..., : target.true]
    out[..., target.true :, 15] += invariant[..., target.true : target.channels]
    scalars = invariant[..., target.channels :]
    if target.scalars:
        e123 = mv[..., source.true :, INDEX["e123"]]
        read = torch.cat([mv[..., : source.true, 0], mv[..., source.true :, 15], e123], -1)
        scalars = scalars + read @ layer.to_scalars.T
    return out, scalars.expand(*mv.shape[:-2], -1)


def norm(mv: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    square = ga.inner_product(mv, mv).mean(-1)
    mv = mv / square.clamp(min=0.01).sqrt()[..., None, None]
    if s.shape[-1]:
        s = torch.nn.functional.layer_norm(s, s.shape[-1:])
    return mv, s


def gelu(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


def point(mv: Tensor) -> tuple[Tensor, Tensor]:
    w = mv[..., INDEX["e123"]]
    normaliser = w / (w * w + DISTANCE_EPS)
    return w * normaliser, ga.extract_direction(mv) * normaliser[..., None]


def attention(layer, mv: Tensor, s: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    shape = layer.shape
    groups = shape.heads + 2
    heads = shape.heads
    true = mv[..., : groups * shape.true, :].unflatten(-2, (groups, shape.true))
    pseudo = mv[..., groups * shape.true :, :].unflatten(-2, (groups, shape.pseudo))
    scalars = s.unflatten(-1, (groups, shape.scalars))
    mv = torch.cat([true, pseudo], -2)  # (B, T, groups, channels, 16)
    distance = slice(0, shape.true) if shape.distance_on_true else slice(shape.true, None)
    logits = torch.einsum("bqhs,bks->bhqk", scalars[..., :heads, :], scalars[..., heads, :])
    out_mv, out_s = [], []
    for h in range(heads):
        q, k = mv[:, :, None, h], mv[:, None, :, heads]
        inner = ga.inner_product(q, k).sum(-1)
        e123 = INDEX["e123"]
        inner = inner - (q[..., distance, e123] * k[..., distance, e123]).sum(-1)
        (wq, tq), (wk, tk) = point(q[..., distance, :]), point(k[..., distance, :])
        square = (wk[..., None] * tq - wq[..., None] * tk).square().sum(-1)
        logit = (logits[:, h] + inner - (square * layer.distance_weights()[h]).sum(-1)) / math.sqrt(shape.features)
        p = torch.softmax(logit.masked_fill(~mask[:, None, :], -math.inf), -1)
        out_mv.append(torch.einsum("bqk,bkcx->bqcx", p, mv[:, :, heads + 1]))
        out_s.append(torch.einsum("bqk,bks->bqs", p, scalars[:, :, heads + 1]))
    out = torch.stack(out_mv, 2)
    ordered = [out[..., : shape.true, :].flatten(2, 3), out[..., shape.true :, :].flatten(2, 3)]
    return torch.cat(ordered, 2), torch.cat(out_s, -1)


def products(plan, factors: Tensor, reference: Tensor | None) -> Tensor:
    out = factors.new_zeros(*factors.shape[:-2], plan.outputs.channels, 16)
    for i, (left, right, to) in enumerate(plan.channel_numbers):
        x, y = factors[..., left, :], factors[..., right, :]
        if i < plan.channels:
            out[..., to, :] = ga.geometric_product(x, y)
        else:
            out[..., to, :] = ga.join(x, y) * (1 if reference is None else reference)
    return out


def gate(true: int, mv: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    gates = torch.cat([mv[..., :true, 0], mv[..., true:, 15]], -1)
    return mv * gelu(gates)[..., None], gelu(s)


def network(net: GATr, mv: Tensor, s: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The function of ``net`` (its parameters in float64), outputs of padding zero.

    As in the network, the reference multivector of the join counts as a constant.
    """
    c = net.config
    reference = None
    if c.symmetry == "published":
        mean = [mv[b][mask[b]].detach().mean((0, 1))[INDEX["e123"]] for b in range(len(mv))]
        reference = torch.stack(mean)[:, None, None]
    mv, s = linear(net.embed, mv, s)
    for block in net.blocks:
        x, t = norm(mv, s)
        x, t = attention(block.attention, *linear(block.to_qkv, x, t), mask)
        x, t = linear(block.from_heads, x, t)
        mv, s = mv + x, s + t
        x, t = norm(mv, s)
        factors, _ = linear(block.to_factors, x, t)
        x, t = linear(block.from_products, products(block.products.plan, factors, reference), t)
        x, t = linear(block.to_stream, *gate(block.to_stream.map.source.true, x, t))
        mv, s = mv + x, s + t
    mv, s = linear(net.read_out, *norm(mv, s))
    return mv * mask[..., None, None], s * mask[..., None]
