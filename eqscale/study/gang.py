"""A trial on several devices: processes of one node, inside the trial's placement group, that train together."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable
from typing import Any

import ray
import torch.distributed as dist
from ray.exceptions import OutOfMemoryError, RayActorError, RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from eqscale.training.group import Group, join
from eqscale.training.memory import NEXT_ATTEMPT

Say = Callable[[dict[str, Any]], None]

_NEWS_SECONDS = 1.0
_CAUSE_SECONDS = 5.0  # until Ray notices that a process died, after which others report lost connections


class _Member:
    """One rank; it queues its news until asked for them."""

    def __init__(self) -> None:
        self._said: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def work(self, task: Callable[[Group, Say], Any], rank: int, world: int, port: int) -> Any:
        with join(rank, world, port) as group:
            return task(group, self._said.put)

    def news(self) -> list[dict[str, Any]]:
        """What was said since the last call; waits a while for the first of it."""
        found = []
        with contextlib.suppress(queue.Empty):
            found.append(self._said.get(timeout=_NEWS_SECONDS))
            while True:
                found.append(self._said.get_nowait())
        return found


def run_together(task: Callable[[Group, Say], Any], bundles: list[dict[str, float]], say: Say) -> Any:
    """Run ``task`` once in each bundle of this actor's placement group; returns what the first rank returns.

    The calling process doesn't train: it passes on the first rank's messages, and never waits in an exchange that
    a lost rank won't join. The ranks end when it does, however it ends.

    Args:
        task: called in each process with its place in the group and a function that sends a message.
        bundles: what each rank reserves, in the order of the bundles of the placement group.
        say: receives the first rank's messages.

    Raises:
        RuntimeError: if a rank fails or its process dies; the others are ended.
    """
    group, world = ray.util.get_current_placement_group(), len(bundles)
    assert group is not None
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    members: list[Any] = []
    try:
        for index, bundle in enumerate(bundles):
            options = {
                "num_cpus": bundle.get("CPU", 0),
                "num_gpus": bundle.get("GPU", 0),
                "scheduling_strategy": PlacementGroupSchedulingStrategy(group, index),
                "max_concurrency": 2,  # work, and news of it
            }
            members.append(ray.remote(_Member).options(**options).remote())
        work = [member.work.remote(task, rank, world, store.port) for rank, member in enumerate(members)]
        return _follow(work, members[0], say)
    finally:
        for member in members:
            ray.kill(member)


def _follow(work: list[ray.ObjectRef], first: Any, say: Say) -> Any:
    running = set(work)
    news = first.news.remote()
    while running:
        done, _ = ray.wait([news, *running])
        for ref in done:
            if ref != news:
                running.remove(ref)
                _check(ref, work, running)
                continue
            with contextlib.suppress(RayError):  # the loss of the first rank shows in its work
                for item in ray.get(news):
                    say(item)
            news = first.news.remote()
    for item in ray.get(news):
        say(item)
    return ray.get(work[0])


def _check(ended: ray.ObjectRef, work: list[ray.ObjectRef], running: set[ray.ObjectRef]) -> None:
    """Raise what made the ranks fail, if this one did: the others lose their connections, and may say so first."""
    if (error := _error(ended)) is None:
        return
    failures = [(ended, error)]
    if running and not _is_cause(error):
        others, _ = ray.wait(list(running), num_returns=len(running), timeout=_CAUSE_SECONDS)
        failures += [(ref, error) for ref in others if (error := _error(ref)) is not None]
    ref, error = next((failure for failure in failures if _is_cause(failure[1])), failures[0])
    rank = f"process {work.index(ref) + 1} of {len(work)}"
    if isinstance(error, RayActorError):
        raise RuntimeError(f"{rank} has died") from None
    raise RuntimeError(f"{rank}: {getattr(error, 'cause', None) or error}") from None


def _error(ref: ray.ObjectRef) -> Exception | None:
    try:
        ray.get(ref)
    except Exception as error:
        return error
    return None


def _is_cause(error: Exception) -> bool:
    return isinstance(error, (RayActorError, OutOfMemoryError)) or NEXT_ATTEMPT in str(error)
