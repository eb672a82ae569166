"""The whole network as one differentiable operation of the C++ kernels (``eqscale/native/gatr.cpp``).

It runs a few samples at a time through all blocks, so that activations stay in the cache; of them it keeps for the
backward pass what norms and attention put out, and computes the rest again. Padding is never computed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors

from eqscale import native
from eqscale.algebra.blades import EUCLIDEAN
from eqscale.models import kernels
from eqscale.models.gatr.attention import DISTANCE_EPS
from eqscale.models.gatr.config import BlockMaps, GATrConfig, border_maps
from eqscale.models.gatr.layout import Layout, table
from eqscale.models.gatr.linear import LinearMap
from eqscale.models.gatr.pointwise import NORM_EPS, SCALAR_EPS
from eqscale.native import gatr as interface

TILE = 128
"""Tokens of a tile, at least one sample: enough for long vectors, few enough for the cache."""
_LINE = 16  # rows begin at whole lines of the cache: 16 floats


@dataclasses.dataclass(frozen=True)
class _Tables:
    """What the kernels know of a network."""

    network: interface.Network
    alive: tuple[Tensor, ...]
    """Tensors that ``network`` points into."""


def run(
    config: GATrConfig, multivectors: Tensor, scalars: Tensor, mask: Tensor | None, reference: Tensor | None,
    parameters: list[Tensor],
) -> Tensor:  # fmt: skip
    """Multivectors (B, T, C_in, 16), scalars (B, T, S_in) -> outputs (B, T, 16 C_out + S_out).

    Args:
        config: the network.
        multivectors: of true, then of pseudo channels.
        scalars: invariant inputs.
        mask: (B, T), True for real tokens; the others' outputs are zero. None: all are.
        reference: (B, T) factors of the joins, or None.
        parameters: of the linear maps in the order of computation, then the distances' weights of all blocks.
    """
    keep = torch.is_grad_enabled()
    return _Network.apply(config, multivectors, scalars, mask, reference, keep, *parameters)


class _Network(torch.autograd.Function):
    @staticmethod
    def forward(ctx, config, multivectors, scalars, mask, reference, keep, *parameters):
        tables, batch = _tables(config), _batch(multivectors)
        network, (b, t) = tables.network, multivectors.shape[:2]
        multivectors, scalars = multivectors.contiguous(), scalars.contiguous()
        bank = _joined(parameters)
        kept = multivectors.new_empty(math.ceil(b / batch.per_tile), network.kept_rows, batch.ld) if keep else None
        out = multivectors.new_zeros(b, t, network.outputs)
        mask = None if mask is None else mask.contiguous()
        native.call("gatr", multivectors, scalars, bank, reference, kept, out, mask, network, batch)
        ctx.save_for_backward(multivectors, scalars, mask, reference, bank, kept, *parameters)
        ctx.tables, ctx.batch = tables, batch
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        multivectors, scalars, mask, reference, bank, kept, *parameters = ctx.saved_tensors
        gmultivectors = torch.zeros_like(multivectors) if ctx.needs_input_grad[1] else None
        gscalars = torch.zeros_like(scalars) if ctx.needs_input_grad[2] else None
        gbank, inputs = torch.zeros_like(bank), (gmultivectors, gscalars)
        native.call(
            "gatr_gradient", g.contiguous(), bank, reference, kept, gbank, *inputs, mask, ctx.tables.network, ctx.batch
        )
        return None, *inputs, None, None, None, *_unflatten_dense_tensors(gbank, parameters)


def add_loss_gradient(
    config: GATrConfig, multivectors: Tensor, scalars: Tensor, mask: Tensor, reference: Tensor | None,
    parameters: list[Tensor], read: tuple[Tensor, Tensor], point: Tensor, target: Tensor, weight: Tensor, scale: float,
) -> Tensor:  # fmt: skip
    """The loss, whose gradient is added to that of the parameters, in one kernel call.

    Every tile of samples goes forward and back before the next one, so that what it keeps stays in the cache.

    Args:
        config, multivectors, scalars, mask, reference, parameters: as of ``run``.
        read: (outputs, 3) and (outputs,); a token's outputs y predict y read[0] + (y read[1]) point.
        point: (B, T, 3).
        target: (B, T, 3).
        weight: weight of each token's squared error, (B, T).
        scale: factor of the loss.

    Returns:
        The weighted sum of squared errors of real tokens times ``scale``, a scalar.
    """
    bank = _joined(parameters)
    loss, gbank = bank.new_empty(()), torch.zeros_like(bank)
    native.call(
        "gatr_loss",
        *(multivectors.contiguous(), scalars.contiguous(), bank, reference),
        *(value.contiguous() for value in (*read, point, target, weight)),
        *(scale, loss, gbank, mask.contiguous(), _tables(config).network, _batch(multivectors)),
    )
    gradients = native.pointers(kernels.gradients_of(parameters))
    native.call("add_pieces", gbank, gradients, native.sizes(parameters), len(parameters))
    return loss


def _joined(parameters: Sequence[Tensor]) -> Tensor:
    """All parameters one after the other, (numbers,)."""
    bank = parameters[0].new_empty(sum(p.numel() for p in parameters))
    native.call("join", bank, native.pointers(parameters), native.sizes(parameters), len(parameters))
    return bank


def _batch(multivectors: Tensor) -> interface.Batch:
    """How the kernels cut a batch into tiles."""
    b, t = multivectors.shape[:2]
    per_tile = max(1, min(TILE // t, math.ceil(b / torch.get_num_threads())))
    lines = math.ceil(per_tile * t / _LINE) | 1  # odd: rows at round distances would share sets of the cache
    return interface.Batch(b, t, per_tile, lines * _LINE)


@functools.lru_cache(maxsize=64)
def _tables(config: GATrConfig) -> _Tables:
    alive: list[Tensor] = []

    def at(rows: Tensor) -> int:
        alive.append(rows.to(torch.int32).contiguous())
        return alive[-1].data_ptr()

    (embed, read_out), maps = border_maps(config), BlockMaps.of(config)
    stream, normed, hidden, gated = maps.stream, maps.to_qkv.source, maps.from_products.target, maps.to_stream.source
    products, attention = maps.products, maps.attention
    index: list[Tensor] = []  # of the weights, in the bank of parameters; -1 = no weight
    parameters = 0

    def linear(linear_map: LinearMap, first: int) -> interface.Map:
        nonlocal parameters
        rows, own = _products(linear_map)
        index.append(torch.where(own > 0, own - 1 + parameters, -1))
        parameters += sum(map(math.prod, linear_map.parameter_shapes.values()))
        return interface.Map(at(rows), len(rows), first)

    def weights() -> int:
        return sum(map(len, index))

    borders = {"embed": linear(embed, 0)}
    first_block, before = weights(), parameters
    inner = {
        name: linear(getattr(maps, name), weights() - first_block)
        for name in ("to_qkv", "from_heads", "to_factors", "from_products", "to_stream")
    }
    of_block, step = torch.cat(index[1:]), parameters - before
    index += [torch.where(of_block >= 0, of_block + i * step, -1) for i in range(1, config.blocks)]
    parameters += (config.blocks - 1) * step
    borders["read_out"] = linear(read_out, weights())
    gains = parameters + torch.arange(config.blocks * attention.heads * attention.distances)

    def scalars(source: Layout, target: Layout) -> int:
        return at(table([(source.scalar(i), target.scalar(i)) for i in range(target.scalars)], 2))

    both = [(stream.multivector(c), normed.multivector(c)) for c in range(stream.channels)]
    norm_rows = sorted((a[i], b[i], int(i in EUCLIDEAN)) for a, b in both for i in range(16))
    gate_rows = [
        (*hidden.multivector(c), *gated.multivector(c), hidden.invariant(c)) for c in range(hidden.channels)
    ]  # fmt: skip
    block_rows = 2 * (normed.rows + 2) + attention.out.rows
    network = interface.Network(
        **borders,
        **inner,
        norm=interface.Norm(
            *(at(table(norm_rows)), scalars(stream, normed), len(norm_rows), stream.scalars, stream.channels),
            *(normed.ones_row, NORM_EPS, SCALAR_EPS),
        ),
        attention=interface.Attention(
            **{name: at(rows) for name, rows in attention.rows.items()},
            **{name: getattr(attention, name) for name in ("heads", "inner", "distances", "values")},
            ones_row=attention.out.ones_row,
            eps=DISTANCE_EPS,
        ),
        bilinear=interface.Bilinear(
            *(at(products.rows), scalars(normed, products.outputs), products.channels, products.scalars),
            products.outputs.ones_row,
        ),
        gate=interface.Gate(
            *(at(table(gate_rows)), scalars(hidden, gated), hidden.channels, hidden.scalars, gated.ones_row)
        ),
        source=embed.source.rows,
        stream=stream.rows,
        normed=normed.rows,
        qkv=attention.source.rows,
        attended=attention.out.rows,
        factors=products.inputs.rows,
        products=products.outputs.rows,
        hidden=hidden.rows,
        gated=gated.rows,
        target=read_out.target.rows,
        columns=at(embed.source.flat().argsort()),
        out_rows=at(read_out.target.flat()),
        channels_in=embed.source.channels,
        scalars_in=embed.source.scalars,
        outputs=read_out.target.rows,
        blocks=config.blocks,
        first_block=first_block,
        block_weights=len(of_block),
        weights=weights(),
        index=at(torch.cat(index)),
        gain_index=at(gains),
        block_rows=block_rows,
        kept_rows=embed.source.rows + config.blocks * block_rows + normed.rows + 2,
    )
    return _Tables(network, tuple(alive))


def _products(linear_map: LinearMap) -> tuple[Tensor, Tensor]:
    """Dense products that make up a map, as the kernels take them, and the parameter of each of their weights.

    Without the zeros that the blocks have beside the rows' first and last weights; planes of a grade share theirs.
    """
    matrix = linear_map.matrix()
    rows: list[list[int]] = []
    index: list[Tensor] = []
    first = 0
    for b in linear_map.blocks:
        planes = [matrix[b.out + i * b.m :, b.inp + i * b.k :][: b.m, : b.k] for i in range(b.batch)]
        plane = 0
        while plane < b.batch:
            weights = planes[plane]
            count = next((i for i, p in enumerate(planes[plane:]) if not torch.equal(p, weights)), b.batch - plane)
            filled = [row.nonzero().flatten().tolist() or [0, -1] for row in weights]
            spans = [(columns[0], columns[-1] + 1) for columns in filled]
            out, inp = b.out + plane * b.m, b.inp + plane * b.k
            for m, (lo, hi) in enumerate(spans):
                if m and spans[m - 1] == (lo, hi):
                    rows[-1][2] += 1
                else:
                    rows.append([out + m, inp + lo, 1, hi - lo, count, b.m, b.k, first])
                index.append(weights[m, lo:hi])
                first += hi - lo
            plane += count
    return table(rows, 8), torch.cat(index)
