"""Which trials hang: a trial that shows no sign of life for too long is given up by the driver."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from eqscale.training.spec import RunSpec

SILENT_SECONDS = 600.0
"""Covers what a trial does without a sign: reading its data, compiling its network on a GPU."""


def silence_limit(estimated_seconds: float, at_least: float = SILENT_SECONDS) -> float:
    """Seconds without a sign of life after which a trial hangs: a tenth of its estimated time, or more.

    A trial reports every point of its curve, every checkpoint (30 s) and, in long evaluations, every 30 s.
    Silence, unlike a limit on the whole time, never ends a trial that is merely slower than its estimate.
    """
    return max(at_least, estimated_seconds / 10)


@dataclasses.dataclass
class _Watched:
    limit: float
    sign: float


class Watch:
    """Times of the last signs of life of the running trials, and how far each has ever come."""

    def __init__(self, limit: Callable[[RunSpec], float], clock: Callable[[], float] = time.monotonic) -> None:
        """Watch trials.

        Args:
            limit: seconds of silence after which a run hangs.
            clock: seconds from any origin.
        """
        self._limit, self._clock = limit, clock
        self._running: dict[str, _Watched] = {}
        self._furthest: dict[str, int] = {}

    def started(self, spec: RunSpec) -> None:
        """A trial begins, or begins again."""
        self._running[spec.run_id] = _Watched(self._limit(spec), self._clock())

    def sign(self, run_id: str, step: int) -> bool:
        """A trial reports a step; True if no attempt of this run has come as far before."""
        if run_id in self._running:
            self._running[run_id].sign = self._clock()
        further = step > self._furthest.get(run_id, 0)
        self._furthest[run_id] = max(step, self._furthest.get(run_id, 0))
        return further

    def ended(self, run_id: str) -> None:
        """A trial has ended, or an attempt of it."""
        self._running.pop(run_id, None)

    def hanging(self) -> dict[str, float]:
        """Identity -> seconds of silence of the trials that have just passed their limit."""
        now = self._clock()
        found = {}
        for run_id, watched in self._running.items():
            if now - watched.sign > watched.limit:
                found[run_id] = now - watched.sign
                watched.sign = now  # should the kill fail, the next one comes a limit later
        return found
