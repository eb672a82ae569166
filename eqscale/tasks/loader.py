"""Batches for a trainer, built ahead of it on a GPU and in step with it on a CPU."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
from collections.abc import Generator, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch

from eqscale.tasks.fields import Batch
from eqscale.tasks.samples import Samples

T = TypeVar("T")

_DEPTH = 3
"""Batches made ahead: enough to ride out a slow disk read, little pinned memory."""

_TOGETHER = 512
"""Samples assembled at once (``Samples.batches``); fewer cost more calls, more no longer fit the CPU's cache."""


def batches(
    samples: Samples,
    order: Iterable[np.ndarray],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Generator[Batch, None, None]:
    """The batches of the index arrays in ``order``, on the device, in that order.

    On a GPU a thread builds them ahead in pinned memory and copies without blocking. On a CPU the trainer's
    own threads need the cores, and a second thread would only take turns with them.
    """
    built = _assemble(samples, order, dtype)
    if torch.device(device).type == "cpu":
        yield from built
        return
    for batch in ahead((batch.map(torch.Tensor.pin_memory) for batch in built), _DEPTH):
        yield batch.to(device, non_blocking=True)


def _assemble(samples: Samples, order: Iterable[np.ndarray], dtype: torch.dtype) -> Iterator[Batch]:
    """The batches of the index arrays; several small ones are assembled together, with the same bits."""
    order = iter(order)
    for indices in order:
        group = [indices]
        if len(indices):
            group += itertools.islice(order, max(0, _TOGETHER // len(indices) - 1))
        yield from samples.batches(group, dtype=dtype)


def ahead(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """The items, in order, made up to ``depth`` ahead by a thread; its exceptions are raised here.

    The thread ends when the generator is exhausted or closed.
    """
    iterator, end = iter(items), object()
    pool = concurrent.futures.ThreadPoolExecutor(1)
    made: collections.deque[concurrent.futures.Future[Any]]
    try:
        made = collections.deque(pool.submit(next, iterator, end) for _ in range(depth + 1))
        while (item := made.popleft().result()) is not end:
            made.append(pool.submit(next, iterator, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
