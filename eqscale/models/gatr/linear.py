"""Equivariant linear maps on the planar layout: one matrix product for the head, one batched for the planes.

Between channels of equal parity all Pin(3,0,1)-equivariant maps are five gains of the grades and four
multiplications by e0 (arXiv 2305.18415, proposition 2). Scalar channels exchange with the invariant
components of the multivectors: 1 of true, e0123 (and, as a source, e123) of pseudo channels. The seven
equivariant maps between channels of different parity (multiplications of grades 0 to 3 by e0123; e123 and
e0123 to 1, e0123 to e0) are left out: they would fill blocks that typing leaves empty.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from eqscale.algebra.blades import EUCLIDEAN, GRADES, IDEAL, INDEX
from eqscale.models.gatr.layout import Layout

MAPS = 9
"""Free parameters of a pair of channels: w of grades 0-4, then v (multiply by e0) of grades 0-3."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A batch of dense products: rows [out, out + batch m) from [inp, inp + batch k), weights (batch, m, k)."""

    out: int
    inp: int
    batch: int
    m: int
    k: int

    @property
    def size(self) -> int:
        """Number of assembled weights."""
        return self.batch * self.m * self.k


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """Structure of one linear map between two layouts; ``source`` must have its row of ones (the bias)."""

    source: Layout
    target: Layout

    @functools.cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The dense products."""
        s, t = self.source, self.target
        head = Block(0, 0, 1, t.head, s.head)
        planes_true = Block(t.head, s.head, 7, 2 * t.true, 2 * s.true)
        planes_pseudo = Block(t.head + 14 * t.true, s.head + 14 * s.true, 7, 2 * t.pseudo, 2 * s.pseudo)
        if t.true == t.pseudo and s.true == s.pseudo:
            return head, dataclasses.replace(planes_true, batch=14)
        return tuple(b for b in (head, planes_true, planes_pseudo) if b.m)

    @functools.cached_property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameters: multivector maps per parity, scalars into and out of the rest, bias."""
        s, t = self.source, self.target
        return {
            "true": (t.true, s.true, MAPS),
            "pseudo": (t.pseudo, s.pseudo, MAPS),
            "from_scalars": (t.channels + t.scalars, s.scalars),
            "to_scalars": (t.scalars, s.true + 2 * s.pseudo),
            "bias": (t.channels + t.scalars,),
        }

    def matrix(self) -> Tensor:
        """(target rows, source rows): which parameter each weight is, 1-based, 0 = no weight; int64.

        Parameters are numbered along the concatenation of ``parameter_shapes``.
        """
        s, t = self.source, self.target
        number, first = {}, 1
        for name, shape in self.parameter_shapes.items():
            number[name] = torch.arange(first, first + math.prod(shape)).reshape(shape)
            first += math.prod(shape)
        full = torch.zeros(t.rows, s.rows, dtype=torch.int64)
        for true in (True, False):
            outs = [c for c in range(t.channels) if t.is_true(c) == true]
            ins = [c for c in range(s.channels) if s.is_true(c) == true]
            maps = number["true" if true else "pseudo"]
            if not outs or not ins:
                continue
            out_rows = torch.tensor([t.multivector(c) for c in outs])
            in_rows = torch.tensor([s.multivector(c) for c in ins])
            for component in range(16):
                full[out_rows[:, None, component], in_rows[None, :, component]] = maps[..., GRADES[component]]
            for a, b in zip(EUCLIDEAN, IDEAL, strict=True):
                full[out_rows[:, None, b], in_rows[None, :, a]] = maps[..., 5 + GRADES[a]]
        scalars_in = [s.scalar(i) for i in range(s.scalars)]
        scalars_out = [t.scalar(i) for i in range(t.scalars)]
        bias_rows = [t.invariant(c) for c in range(t.channels)] + scalars_out
        full[torch.tensor(bias_rows)[:, None], torch.tensor(scalars_in, dtype=torch.int64)] = number["from_scalars"]
        read = [s.invariant(c) for c in range(s.channels)]
        read += [s.multivector(c)[INDEX["e123"]] for c in range(s.true, s.channels)]
        full[torch.tensor(scalars_out, dtype=torch.int64)[:, None], torch.tensor(read)] = number["to_scalars"]
        full[torch.tensor(bias_rows), s.ones_row] = number["bias"]
        return full

    @functools.cached_property
    def index(self) -> Tensor:
        """Entries of the matrix that the blocks hold, in their order; on the CPU."""
        with torch.device("cpu"):
            full, pieces = self.matrix(), []
        for block in self.blocks:
            for i in range(block.batch):
                out, inp = block.out + i * block.m, block.inp + i * block.k
                pieces.append(full[out : out + block.m, inp : inp + block.k].flatten())
        return torch.cat(pieces)


class Linear(nn.Module):
    """Parameters of one :class:`LinearMap`; the network assembles the weights of all maps at once."""

    bias: Tensor

    def __init__(self, linear_map: LinearMap, *, gain: float = 1.0):
        super().__init__()
        self.map = linear_map
        for name, shape in linear_map.parameter_shapes.items():
            if math.prod(shape):
                self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.reset(gain)

    @torch.no_grad()
    def reset(self, gain: float) -> None:
        """Uniform initialisation with the fan-in of the map, as GATr's (arXiv 2311.04744, appendix)."""
        s, channels = self.map.source, self.map.target.channels
        half = math.sqrt(0.5)
        # Components with two sources (a grade and e0 times a lower one, or a scalar) share the variance.
        gains = torch.tensor([half if s.scalars else 1.0, 1.0, 1.0, half, half, half, half, half, half])
        to_scalars = math.sqrt(s.scalars + s.true + 2 * s.pseudo + 1)
        for name, parameter in self.named_parameters():
            parameter.uniform_(-gain, gain)
            if name in ("true", "pseudo"):
                parameter.mul_(gains / math.sqrt(parameter.shape[1]))
            elif name == "to_scalars":
                parameter.div_(to_scalars)
            else:  # from_scalars and bias: first the rows of multivectors, then those of scalars
                parameter[:channels].mul_(half / math.sqrt(s.scalars + 1))
                parameter[channels:].div_(to_scalars)

    @torch.no_grad()
    def shift_invariants(self, channels: Iterable[int]) -> None:
        """Add 1 to the biases of the invariant components of some target channels."""
        for channel in channels:
            self.bias[channel] += 1.0


class Assembly:
    """Gathers the weights of many linear maps from their parameters in one operation."""

    def __init__(self, linears: list[Linear]):
        self.linears = linears
        self.blocks = [block for linear in linears for block in linear.map.blocks]
        self.sizes = [block.size for block in self.blocks]
        self.shapes = [(b.m, b.k) if b.batch == 1 else (b.batch, b.m, b.k) for b in self.blocks]
        self.index = torch.empty(sum(self.sizes), dtype=torch.int64)
        if not self.index.is_meta:  # of a skeleton, whose index would take most of the time of a plan
            torch.cat(list(self._entries()), out=self.index)

    def _entries(self) -> Iterator[Tensor]:
        """Of each map, which parameter of all each weight is; 0: none."""
        first = 0
        for linear in self.linears:
            own = linear.map.index
            yield torch.where(own > 0, own + first, 0)
            first += sum(math.prod(shape) for shape in linear.map.parameter_shapes.values())

    def parameters(self) -> list[Tensor]:
        """Parameters of all maps, in order."""
        return [p for linear in self.linears for p in linear._parameters.values() if p is not None]

    def __call__(self) -> list[tuple[Tensor, ...]]:
        """Weights of each linear map, one tensor (batch, m, k) or (m, k) per block."""
        parameters = self.parameters()
        if self.index.device != parameters[0].device:
            self.index = self.index.to(parameters[0].device)
        traced = torch.compiler.is_compiling()
        weights = iter(self.gather(*parameters) if traced else _Gather.apply(self, *parameters))
        return [tuple(next(weights) for _ in linear.map.blocks) for linear in self.linears]

    def gather(self, *parameters: Tensor) -> list[Tensor]:
        """Weights of each block."""
        bank = torch.cat([parameters[0].new_zeros(1), *(p.flatten() for p in parameters)])
        pieces = bank.index_select(0, self.index).split(self.sizes)
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]


class _Gather(torch.autograd.Function):
    """One autograd node for all: hundreds of parameters and weights with a node each would slow a small network."""

    @staticmethod
    def forward(ctx, assembly: Assembly, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.assembly, ctx.shapes = assembly, [p.shape for p in parameters]
        return tuple(assembly.gather(*parameters))

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        sizes = [1, *map(math.prod, ctx.shapes)]
        flat = torch.cat([g.flatten() for g in gradients])
        bank = flat.new_zeros(sum(sizes)).index_add_(0, ctx.assembly.index, flat)
        pieces = bank.split(sizes)[1:]
        return None, *map(torch.Tensor.view, pieces, ctx.shapes)


def apply_linear(
    x: Tensor, weights: tuple[Tensor, ...], linear_map: LinearMap, residual: Tensor | None = None
) -> Tensor:
    """Linear map of planar activations (source rows, N) -> (target rows, N), plus ``residual``."""
    if torch.compiler.is_compiling():
        parts = []
        for block, w in zip(linear_map.blocks, weights, strict=True):
            part = x[block.inp : block.inp + block.batch * block.k]
            if block.batch == 1:
                parts.append(w @ part)
            else:
                parts.append(torch.bmm(w, part.unflatten(0, (block.batch, block.k))).flatten(0, 1))
        out = torch.cat(parts) if len(parts) > 1 else parts[0]
        return out if residual is None else out + residual
    return _Linear.apply(x, residual, linear_map, *weights)


def _part(x: Tensor, first: int, batch: int, size: int) -> Tensor:
    part = x[first : first + batch * size]
    return part if batch == 1 else part.view(batch, size, x.shape[1])  # also of no channels


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, linear_map, *weights):
        out = x.new_empty(linear_map.target.rows, x.shape[1])
        for b, w in zip(linear_map.blocks, weights, strict=True):
            source, target = _part(x, b.inp, b.batch, b.k), _part(out, b.out, b.batch, b.m)
            if residual is None:
                (torch.mm if b.batch == 1 else torch.bmm)(w, source, out=target)
            else:
                add = torch.addmm if b.batch == 1 else torch.baddbmm
                add(_part(residual, b.out, b.batch, b.m), w, source, out=target)
        ctx.save_for_backward(x, *weights)
        ctx.linear_map, ctx.has_residual = linear_map, residual is not None
        return out

    @staticmethod
    def backward(ctx, g):
        x, *weights = ctx.saved_tensors
        g = g.contiguous()
        gx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        gw = []
        if gx is not None and sum(b.batch * b.k for b in ctx.linear_map.blocks) < x.shape[0]:
            gx.zero_()  # channels of a parity that the target does not have
        for b, w in zip(ctx.linear_map.blocks, weights, strict=True):
            gt = _part(g, b.out, b.batch, b.m)
            multiply = torch.mm if b.batch == 1 else torch.bmm
            if gx is not None:
                multiply(w.mT, gt, out=_part(gx, b.inp, b.batch, b.k))
            gw.append(multiply(gt, _part(x, b.inp, b.batch, b.k).mT))
        return gx, g if ctx.has_residual else None, None, *gw
