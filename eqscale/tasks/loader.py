"""Batches for a trainer, built ahead of it on a GPU and in step with it on a CPU."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch

from eqscale.tasks.fields import Batch, Prepared
from eqscale.tasks.samples import Samples

T = TypeVar("T")

_DEPTH = 3
"""Batches made ahead: enough to ride out a slow disk read, little pinned memory."""

TOGETHER = 512
"""Samples assembled at once; fewer cost more calls, more no longer fit the CPU's cache."""

Prepare = Callable[[Batch, range], Batch | Prepared]
"""The batches of those steps, one after the other in one batch -> what a trainer makes of them before it steps."""


def batches(
    samples: Samples,
    draw: Callable[[int], np.ndarray],
    steps: range,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    prepare: Prepare = lambda batch, steps: batch,
) -> Generator[Batch | Prepared, None, None]:
    """The batches of training steps, on the device, each padded to its longest sample.

    On a GPU a thread builds them ahead in pinned memory and copies without blocking. On a CPU the trainer's
    own threads need the cores, and a second thread would only take turns with them.

    Args:
        samples: what they are drawn from.
        draw: indices of the samples drawn at a step, as many at each.
        steps: one after the other.
        device: where they go.
        dtype: of their floats.
        prepare: called on the CPU, for the batches of several steps at once.
    """
    built = _assemble(samples, draw, steps, dtype, prepare)
    if torch.device(device).type == "cpu":
        yield from built
        return
    for batch in ahead((batch.map(torch.Tensor.pin_memory) for batch in built), _DEPTH):
        yield batch.map(lambda tensor: tensor.to(device, non_blocking=True))


def _assemble(
    samples: Samples, draw: Callable[[int], np.ndarray], steps: range, dtype: torch.dtype, prepare: Prepare
) -> Iterator[Batch | Prepared]:
    if not steps:
        return
    size = len(draw(steps.start))
    together = max(1, TOGETHER // size)
    # From multiples on: a run that is resumed in between has the bits of one that wasn't.
    for start in range(steps.start // together * together, steps.stop, together):
        group = range(start, min(start + together, steps.stop))
        whole = samples.batch(np.concatenate([draw(step) for step in group]), dtype=dtype)
        longest = whole.mask.sum(1).view(-1, size).amax(1).tolist()
        made = prepare(whole, group).split(size, longest)
        yield from itertools.islice(made, max(0, steps.start - start), None)


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
