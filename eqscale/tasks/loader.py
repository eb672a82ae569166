"""Batches for a trainer, built ahead of it on a GPU and in step with it on a CPU."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

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
    pinned = map(_pin, built)
    for batch in ahead(pinned, _DEPTH):
        yield batch.to(device, non_blocking=True)


def _assemble(samples: Samples, order: Iterable[np.ndarray], dtype: torch.dtype) -> Iterator[Batch]:
    """The batches of the index arrays; several small ones are assembled together, with the same bits."""
    order = iter(order)
    for indices in order:
        group = [indices]
        if len(indices):
            group += itertools.islice(order, max(0, _TOGETHER // len(indices) - 1))
        yield from samples.batches(group, dtype=dtype)


def _pin(batch: Batch) -> Batch:
    return batch.map(torch.Tensor.pin_memory)


def ahead(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """The items, in order, made up to ``depth`` ahead by a thread; its exceptions are raised here.

    The thread ends when the generator is exhausted or closed.
    """
    slots: queue.Queue = queue.Queue(depth)
    closed = threading.Event()
    end = object()

    def hand_over(message: tuple[object, BaseException | None]) -> bool:
        while not closed.is_set():
            try:
                slots.put(message, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not hand_over((item, None)):
                    return
            hand_over((end, None))
        except BaseException as error:
            hand_over((end, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = slots.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        closed.set()
        thread.join()
