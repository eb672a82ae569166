"""Geometric products and joins of channels, with an explicit backward pass that saves only the inputs.

Straight-line code over component slabs: in-place ATen operations, and under ``torch.compile`` the same terms as
traceable expressions, which Inductor fuses.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from eqscale.algebra.blades import BY_OUTPUT
from eqscale.models.gatr.layout import Layout, table

# Parities (left, right) of successive products: balanced in both parities after every second one.
_GP_CYCLE = ((False, False), (True, False), (True, True), (False, True))
_JOIN_CYCLE = ((True, False), (True, True), (False, True), (False, False))


@dataclasses.dataclass(frozen=True)
class Bilinear:
    """``channels`` geometric products and as many joins; ``scalars`` pass by.

    Typed: parities of the factors run through all four combinations; a geometric product has the product of
    the parities, a join minus that. Untyped: every channel counts as true.
    """

    channels: int
    scalars: int
    typed: bool

    @functools.cached_property
    def factors(self) -> list[tuple[bool, bool, bool]]:
        """(left is true, right is true, output is true) of each product, geometric products first."""
        if not self.typed:
            return [(True, True, True)] * (2 * self.channels)
        products, joins = ([cycle[i % 4] for i in range(self.channels)] for cycle in (_GP_CYCLE, _JOIN_CYCLE))
        return [(x, y, x == y) for x, y in products] + [(x, y, x != y) for x, y in joins]

    @functools.cached_property
    def inputs(self) -> Layout:
        """Layout of the factors (no scalars)."""
        true = sum(left + right for left, right, _ in self.factors)
        return Layout(true, 4 * self.channels - true, 0)

    @functools.cached_property
    def outputs(self) -> Layout:
        """Layout of the products with the scalars that pass by and the row of ones."""
        true = sum(out for _, _, out in self.factors)
        return Layout(true, 2 * self.channels - true, self.scalars, ones=True)

    @functools.cached_property
    def right_factors(self) -> list[int]:
        """Channels of ``inputs`` that are right factors of geometric products."""
        return [right for _, right, _ in self.channel_numbers[: self.channels]]

    @functools.cached_property
    def channel_numbers(self) -> list[tuple[int, int, int]]:
        """Channels (left, right) of ``inputs`` and (out) of ``outputs`` of each product."""

        def by_parity(layout: Layout) -> dict[bool, Iterator[int]]:
            return {True: itertools.count(), False: itertools.count(layout.true)}

        inputs, outputs = by_parity(self.inputs), by_parity(self.outputs)
        return [(next(inputs[left]), next(inputs[right]), next(outputs[out])) for left, right, out in self.factors]

    @functools.cached_property
    def rows(self) -> Tensor:
        """(products, 48): 16 rows of the left factor, 16 of the right, 16 of the output; int32."""
        return table(
            [
                (*self.inputs.multivector(left), *self.inputs.multivector(right), *self.outputs.multivector(out))
                for left, right, out in self.channel_numbers
            ]
        )


class Products(nn.Module):
    """Products of a :class:`Bilinear` plan; the scalars of another activation join the output."""

    gather: Tensor
    scatter: Tensor
    order: Tensor
    rank: Tensor
    tables: Tensor

    def __init__(self, plan: Bilinear, passed: Layout):
        super().__init__()
        self.plan, self.passed = plan, passed
        rows, c = plan.rows.long(), plan.channels
        # Slabs (4, 16, c): left and right factors of geometric products, left and right factors of joins.
        gather = torch.stack([rows[:c, :16], rows[:c, 16:32], rows[c:, :16], rows[c:, 16:32]]).transpose(1, 2).flatten()
        order = torch.stack([rows[:c, 32:], rows[c:, 32:]]).transpose(1, 2).flatten().argsort()
        tables = torch.tensor([_padded_table(terms) for terms in BY_OUTPUT.values()])
        buffers = {"gather": gather, "scatter": gather.argsort(), "order": order, "rank": order.argsort()}
        for name, buffer in (*buffers.items(), ("tables", tables)):
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, z: Tensor, passed: Tensor, reference: Tensor | None = None) -> Tensor:
        """Factors ``z`` (plan.inputs.rows, N), scalars of ``passed`` -> (plan.outputs.rows, N).

        ``reference`` (N,) multiplies the joins.
        """
        products = _Products.apply(z, reference, self.gather, self.scatter, self.order, self.rank, self.tables)
        first, head = self.passed.scalar(0), 2 * self.plan.outputs.channels
        scalars = passed[first : first + self.plan.scalars]
        top, planes = products.split((head, len(products) - head))
        return torch.cat([top, scalars, torch.ones_like(z[:1]), planes])


def _padded_table(terms: list[list[tuple[int, int, int]]]) -> list[tuple[int, ...]]:
    """Left factor, right factor and sign of 16 outputs x 16 terms, flat; missing terms have sign 0."""
    padded = [row + [(0, 0, 0)] * (16 - len(row)) for row in terms]
    return list(zip(*(term for row in padded for term in row), strict=True))


def _product(name: str, x: Tensor, y: Tensor, tables: Tensor) -> Tensor:
    """Products of slabs x, y (16, C, N)."""
    if torch.compiler.is_compiling():
        # Short to trace; Inductor fuses gathers, products and the sum into one kernel.
        i, j, sign = tables[list(BY_OUTPUT).index(name)]
        products = x.index_select(0, i) * y.index_select(0, j) * sign.to(x.dtype)[:, None, None]
        return products.unflatten(0, (16, 16)).sum(1)
    out = torch.empty_like(x)
    xs, ys = x.unbind(), y.unbind()  # once: indexing in every term costs as much as its arithmetic
    for slab, terms in zip(out.unbind(), BY_OUTPUT[name], strict=True):
        i, j, sign = terms[0]
        torch.mul(xs[i], ys[j], out=slab)
        if sign < 0:
            slab.neg_()
        for i, j, sign in terms[1:]:
            slab.addcmul_(xs[i], ys[j], value=sign)
    return out


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, reference, gather, scatter, order, rank, tables):
        ctx.save_for_backward(z, reference, gather, scatter, rank, tables)
        left, right, join_left, join_right = z.index_select(0, gather).unflatten(0, (4, 16, -1))
        if reference is not None:
            join_right = join_right * reference
        products = torch.cat([_product("gp", left, right, tables), _product("join", join_left, join_right, tables)])
        return products.flatten(0, 1).index_select(0, order)

    @staticmethod
    def backward(ctx, g):
        z, reference, gather, scatter, rank, tables = ctx.saved_tensors
        left, right, join_left, join_right = z.index_select(0, gather).unflatten(0, (4, 16, -1))
        g_gp, g_join = g.index_select(0, rank).unflatten(0, (2, 16, -1))
        if reference is not None:
            g_join = g_join * reference
        gradients = (
            _product("gp_x", g_gp, right, tables),
            _product("gp_y", g_gp, left, tables),
            _product("join_x", g_join, join_right, tables),
            _product("join_y", g_join, join_left, tables),
        )
        gz = torch.cat(gradients).flatten(0, 1).index_select(0, scatter)
        return gz, None, None, None, None, None, None
