"""The scheduling policy: which trial starts next, on how many devices. Pure; engine and simulator use it."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence

from eqscale.errors import InputError
from eqscale.training.spec import RunSpec

PENDING_TRIALS = 16
"""Trials that wait for devices at once; the first of them that fits starts."""

_WORTHWHILE = 1.6  # twice the devices must make a trial this much faster
# Factors t and powers p of a plan's target time; see ``plan``.
_TARGETS = [(t, p) for p in (0.0, 1.0, 1.5, 2.0) for t in (1.0, 0.85, 0.7, 0.6, 0.5, 0.35, 0.25, 0.1)]
_FINALISTS, _REHEARSALS, _ESTIMATE_ERROR = 12, 12, 0.1

Seconds = Callable[[RunSpec, float], float]
"""(run, devices) -> seconds the run takes on that many devices."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Devices of one kind; a trial on several devices stays on one node."""

    devices: int
    per_node: int

    def __post_init__(self) -> None:
        for name in ("devices", "per_node"):
            if getattr(self, name) < 1:
                raise InputError(f"a cluster needs at least one device, not {name} = {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class Allotment:
    """A trial and the devices it gets: a share of one, or whole ones."""

    spec: RunSpec
    devices: float


@dataclasses.dataclass(frozen=True)
class Placement(Allotment):
    """When an allotted trial ran, in seconds from the start."""

    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class _Taken:
    node: int
    devices: float
    shared: int = -1
    """Which shared device a share is of."""


class _Pool:
    """Free devices, node by node. Shares of a device are powers of a half, so they pack without gaps."""

    def __init__(self, cluster: Cluster) -> None:
        full, rest = divmod(cluster.devices, cluster.per_node)
        self._whole = [cluster.per_node] * full + [rest] * bool(rest)
        self._shared: dict[int, tuple[int, float]] = {}  # shared device -> its node, and what of it is free
        self._opened = 0

    def take(self, devices: float) -> _Taken | None:
        """The tightest fit: whole devices from the node with the fewest free, a share from the fullest device."""
        if devices < 1 and (fitting := [key for key, (_, free) in self._shared.items() if free >= devices]):
            key = min(fitting, key=lambda key: self._shared[key][1])
            node, free = self._shared[key]
            self._shared[key] = node, free - devices
            return _Taken(node, devices, key)
        if not (nodes := [node for node, whole in enumerate(self._whole) if whole >= devices]):
            return None
        node = min(nodes, key=self._whole.__getitem__)
        self._whole[node] -= math.ceil(devices)
        if devices >= 1:
            return _Taken(node, devices)
        self._opened += 1
        self._shared[self._opened] = node, 1 - devices
        return _Taken(node, devices, self._opened)

    def give_back(self, taken: _Taken) -> None:
        """Free what ``take`` returned."""
        if taken.devices >= 1:
            self._whole[taken.node] += int(taken.devices)
            return
        node, free = self._shared.pop(taken.shared)
        if free + taken.devices < 1:
            self._shared[taken.shared] = node, free + taken.devices
        else:
            self._whole[node] += 1


def longest_first(specs: Sequence[RunSpec], seconds: Callable[[RunSpec], float]) -> list[RunSpec]:
    """Order of trials on one device each: the longest first, so that the end is not one long trial alone."""
    return sorted(specs, key=seconds, reverse=True)


def wall_seconds(seconds: Sequence[float], workers: int) -> float:
    """Wall time of trials that start in the given order, one on each of the workers."""
    ends = [0.0] * workers
    for duration in seconds:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


def run_list(allotments: Sequence[Allotment], seconds: Seconds, cluster: Cluster) -> list[Placement]:
    """Run trials in virtual time as the engine runs them: whenever devices are free, the first of the
    next ``PENDING_TRIALS`` trials that fits starts.

    Args:
        allotments: trials in order.
        seconds: how long a trial takes.
        cluster: the devices.
    """
    pool, queue = _Pool(cluster), list(allotments)
    running: list[tuple[float, int, _Taken]] = []
    placements: list[Placement] = []
    now = 0.0
    while queue or running:
        position = 0
        while position < min(len(queue), PENDING_TRIALS):
            if (taken := pool.take(queue[position].devices)) is None:
                position += 1
                continue
            item = queue.pop(position)
            end = now + seconds(item.spec, item.devices)
            heapq.heappush(running, (end, len(placements), taken))
            placements.append(Placement(item.spec, item.devices, now, end))
        if not running:
            raise InputError(
                f"{queue[0].spec.name} wants {queue[0].devices:g} devices of one node; no node has as many"
            )
        now = running[0][0]
        while running and running[0][0] <= now:
            pool.give_back(heapq.heappop(running)[2])
    return placements


def plan(
    specs: Sequence[RunSpec],
    seconds: Seconds,
    cluster: Cluster,
    *,
    smallest: Callable[[RunSpec], float] = lambda spec: 1.0,
    largest: int = 1,
) -> list[Allotment]:
    """Order of the trials, and the devices each gets.

    With one device a trial at most it is longest-first. Otherwise it is moldable list scheduling (Turek, Wolf &
    Yu 1992): longest first, and each trial gets the fewest devices (``smallest``, then powers of two) with which
    it ends by the time at which the devices could have done everything that is left, if they shared it evenly;
    a longer trial would run on alone while the other devices idle. The target is re-estimated at each start, so
    that the last of a group of long trials get more devices than the first. With the even split of what is left, e,
    and that of everything, E, the target is t e (e/E)^p: p > 0 spends devices sparingly while there is time to make
    up for a late trial, and freely at the end, when nothing is left to fill a gap. t and p are those with the least
    mean wall time in simulations in which durations differ from their estimates at random.

    Args:
        specs: the trials.
        seconds: estimated time on a number of devices.
        cluster: the devices.
        smallest: share of a device that a trial needs at least (by its memory): 1, 1/2, 1/4..., or several.
        largest: most devices that a trial can use.

    Raises:
        InputError: if a trial needs more devices than a node has.
    """
    largest = min(largest, cluster.per_node)
    for spec in specs:
        if smallest(spec) > cluster.per_node:
            raise InputError(f"{spec.name} needs {smallest(spec):g} devices; a node has {cluster.per_node}")
    if largest == 1 or not specs:
        order = longest_first(specs, lambda spec: seconds(spec, smallest(spec)))
        return [Allotment(spec, smallest(spec)) for spec in order]
    limits = [2**k for k in range(1, largest.bit_length())]
    everything = sum(smallest(spec) * seconds(spec, smallest(spec)) for spec in specs) / cluster.devices
    tried = [_greedy(specs, seconds, cluster, smallest, 1, lambda even: even)]
    for limit, (t, p) in itertools.product(limits, _TARGETS):

        def target(even: float, t: float = t, p: float = p) -> float:
            return t * even * (even / everything) ** p

        tried.append(_greedy(specs, seconds, cluster, smallest, limit, target))

    def wall(allotments: list[Allotment], error: dict[RunSpec, float]) -> float:
        placements = run_list(allotments, lambda spec, devices: seconds(spec, devices) * error[spec], cluster)
        return max(placement.end for placement in placements)

    rng = random.Random(0)
    exact = dict.fromkeys(specs, 1.0)
    errors = [{spec: math.exp(rng.gauss(0, _ESTIMATE_ERROR)) for spec in specs} for _ in range(_REHEARSALS)]
    tried = sorted(tried, key=lambda allotments: wall(allotments, exact))[:_FINALISTS]
    return min(tried, key=lambda allotments: sum(wall(allotments, error) for error in errors))


def _greedy(
    specs: Sequence[RunSpec],
    seconds: Seconds,
    cluster: Cluster,
    smallest: Callable[[RunSpec], float],
    largest: int,
    target: Callable[[float], float],
) -> list[Allotment]:
    """One plan: the order in which trials start in virtual time, with the devices they get.

    ``target`` is the time in which a trial should end, given that of an even split of what is left.
    """
    pool = _Pool(cluster)
    work = {spec: smallest(spec) * seconds(spec, smallest(spec)) for spec in specs}
    queue = longest_first(specs, lambda spec: seconds(spec, smallest(spec)))
    waiting = sum(work.values())
    running: list[tuple[float, int, _Taken]] = []
    order: list[Allotment] = []
    now = 0.0
    while queue:
        left = waiting + sum((end - now) * taken.devices for end, _, taken in running)
        goal = target(left / cluster.devices)
        for position, spec in enumerate(queue[:PENDING_TRIALS]):
            devices = _devices(spec, seconds, goal, smallest(spec), largest)
            if (taken := pool.take(devices)) is not None:
                del queue[position]
                waiting -= work[spec]
                heapq.heappush(running, (now + seconds(spec, devices), len(order), taken))
                order.append(Allotment(spec, devices))
                break
        else:
            now, _, taken = heapq.heappop(running)
            pool.give_back(taken)
    return order


def _devices(spec: RunSpec, seconds: Seconds, target: float, smallest: float, largest: int) -> float:
    devices = smallest
    while seconds(spec, devices) > target:
        more = max(1.0, 2 * devices)
        if more > largest or seconds(spec, more) * _WORTHWHILE > seconds(spec, devices):
            break
        devices = more
    return devices
