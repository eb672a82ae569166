"""Planar layout: activations as (rows, N), one row per component of a channel, the N tokens contiguous.

G(3,0,1) is G(3) times the dual numbers: a multivector is a + e0 b with a, b in G(3). Rows of a layout are
- the head: [a, b of the scalar-like blade of the true channels | the same of the pseudo channels | scalar channels
  | optionally one row of ones, which turns biases into weights],
- seven planes of the true channels, [a | b] each, one per remaining blade of G(3),
- seven planes of the pseudo channels.
The scalar-like blade is 1 (with e0) for true channels and e123 (with e0123) for pseudo channels: under E(3)
they transform alike. An equivariant linear map is then one matrix product for the head and one batched
product for the planes, and every component of a channel group is a contiguous slab.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from eqscale.algebra.blades import EUCLIDEAN, IDEAL

# Positions in EUCLIDEAN of the blade of the head, then of the seven planes.
BLADE_ORDER = {True: (0, 1, 2, 3, 4, 5, 6, 7), False: (7, 1, 2, 3, 4, 5, 6, 0)}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which row holds what, for ``true`` + ``pseudo`` multivector channels and ``scalars``."""

    true: int
    pseudo: int
    scalars: int
    ones: bool = False

    @property
    def channels(self) -> int:
        """Number of multivector channels."""
        return self.true + self.pseudo

    @property
    def head(self) -> int:
        """Rows of the head."""
        return 2 * self.channels + self.scalars + self.ones

    @property
    def rows(self) -> int:
        """All rows."""
        return self.head + 14 * self.channels

    @property
    def ones_row(self) -> int:
        """Row of ones."""
        return self.head - 1

    def scalar(self, index: int) -> int:
        """Row of a scalar channel."""
        return 2 * self.channels + index

    def is_true(self, channel: int) -> bool:
        """Parity of a channel; true channels come first."""
        return channel < self.true

    @functools.lru_cache(maxsize=4096)  # noqa: B019 (frozen, few instances)
    def multivector(self, channel: int) -> tuple[int, ...]:
        """Rows of the 16 components of a channel, in the order of ``eqscale.algebra.blades``."""
        true = self.is_true(channel)
        count, first = (self.true, 0) if true else (self.pseudo, 2 * self.true)
        c = channel if true else channel - self.true
        planes = self.head + (0 if true else 14 * self.true)
        rows = [0] * 16
        for position, blade in enumerate(BLADE_ORDER[true]):
            start = first if position == 0 else planes + (position - 1) * 2 * count
            rows[EUCLIDEAN[blade]] = start + c
            rows[IDEAL[blade]] = start + count + c
        return tuple(rows)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Slabs of activations: a and b of the true head, a and b of the pseudo head, scalars, planes of the true
        and of the pseudo channels.

        One operation: the gradient of every slice on its own would fill all rows.
        """
        t, p = self.true, self.pseudo
        return x.split((t, t, p, p, self.scalars + self.ones, 14 * t, 14 * p))

    def flat(self) -> Tensor:
        """Rows in the order (components of all multivectors | scalars | row of ones), int64."""
        rows = [row for channel in range(self.channels) for row in self.multivector(channel)]
        return torch.tensor([*rows, *range(2 * self.channels, self.head)])

    def invariant(self, channel: int) -> int:
        """Row of the true scalar of a channel: component 1 (true) or e0123 (pseudo)."""
        return self.multivector(channel)[0 if self.is_true(channel) else 15]


def table(rows: list | tuple, columns: int | None = None) -> Tensor:
    """Row numbers as an int32 tensor, (-1, columns) if given."""
    out = torch.tensor(rows, dtype=torch.int32)
    return out if columns is None else out.reshape(-1, columns)
