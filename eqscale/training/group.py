"""Processes that train one run together, each on a device of its own, with torch.distributed."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import traceback
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

# A rank that waits for a lost one is ended from outside, by whoever watches the run's signs of life.
_PATIENCE = datetime.timedelta(days=7)


@dataclasses.dataclass(frozen=True)
class Group:
    """A process's place among those that train a run; alone by default."""

    rank: int = 0
    world: int = 1

    @property
    def rows(self) -> slice:
        """This rank's share of a batch: every ``world``-th sample, as samples lie sorted by their tokens."""
        return slice(self.rank, None, self.world)

    def total(self, value: Tensor) -> Tensor:
        """Sum of ``value`` over the ranks, on each of them; all must call it at the same step."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def told(self, value: int) -> int:
        """The first rank's ``value``, on each of them."""
        if self.world == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]


@contextlib.contextmanager
def join(rank: int, world: int, port: int) -> Iterator[Group]:
    """Join the other ranks at a ``torch.distributed.TCPStore`` on this machine, and leave at the end.

    Uses NCCL on GPUs (each process must see exactly one), Gloo elsewhere. A rank that fails must end its process:
    the others wait for it as long as its connections are open, and should be ended, too.
    """
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_PATIENCE)
    try:
        yield Group(rank, world)
    except BaseException as error:
        # If an error's frames kept a model alive, the group would be destroyed with it, later: its destructor then
        # holds the interpreter lock and waits for threads that wait for that lock.
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        gc.collect()
        dist.destroy_process_group()
