"""Memory that a network's kernels keep from a forward pass to its backward pass."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor


class Memory:
    """What a forward pass keeps for its backward pass; the next one gets it once the graph is gone.

    Fresh pages from the operating system cost more than the arithmetic of a small network.
    """

    _free: ClassVar[list[Tensor]] = []

    def __init__(self, numbers: int, like: Tensor) -> None:
        tensor = self._free.pop() if self._free else like.new_empty(0)
        fits = tensor.dtype == like.dtype and numbers <= tensor.numel() <= 4 * numbers
        self.tensor = tensor if fits else like.new_empty(numbers)

    def __del__(self) -> None:
        self._free[:] = [self.tensor]
