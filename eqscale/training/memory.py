"""Training within memory: a batch that doesn't fit is computed in parts, and their gradients are summed."""

from __future__ import annotations

import gc
import operator
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import torch

from eqscale.storage import AnyPath, write_atomically
from eqscale.tasks import Batch, Prepared

T = TypeVar("T")
Given = TypeVar("Given", bound=Batch | Prepared)

_MESSAGES = ("can't allocate memory", "bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED")
_FILE = "micro_batch"

NEXT_ATTEMPT = "samples at once in the next attempt"
"""Ends the error of a rank that ran out of memory among others, and has noted that half as many may fit."""


def is_out_of_memory(error: BaseException) -> bool:
    """True for the exceptions by which PyTorch and Python say that memory has run out, on GPU or CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def parts(batch: Given, size: int) -> Iterator[Given]:
    """The batch in parts of up to ``size`` samples, padded as the whole; a batch that small is its one part."""
    if len(batch) <= size:
        yield batch
        return
    for start in range(0, len(batch), size):
        yield cast(Given, batch.map(operator.itemgetter(slice(start, start + size))))


def fitting(compute: Callable[[int], T], size: int, halved: Callable[[int, str], None]) -> T:
    """``compute(size)``, with ``size`` halved as long as memory runs out.

    Calls ``halved(new_size, reason)`` each time. Raises what ``compute`` raised if it fails for any other reason, or
    runs out of memory even with a size of 1.
    """
    while True:
        try:
            return compute(size)
        except (MemoryError, RuntimeError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        # Only here, outside the handler, has the traceback let go of the activations.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size //= 2
        halved(size, reason)


def read_micro_batch(checkpoints: AnyPath, batch_size: int) -> int:
    """Samples that an earlier attempt of this run found to fit, or the whole batch."""
    try:
        return min(max(1, int((checkpoints / _FILE).read_bytes())), batch_size)
    except (OSError, ValueError):
        return batch_size


def write_micro_batch(checkpoints: AnyPath, size: int) -> None:
    """Remember, beside the checkpoints, how many samples fit; raises OSError."""
    write_atomically(checkpoints / _FILE, str(size).encode())
