"""Finds trials that hang: those that have shown no sign of life for too long."""

from __future__ import annotations

import time
from collections.abc import Callable

from eqscale.training.spec import RunSpec

SILENT_SECONDS = 600.0
"""Covers what a trial does without a sign: reading its data, compiling its network on a GPU."""

_GAP_SECONDS = 15.0  # a driver that looks every second, and hasn't for so long, stood still itself: all did, perhaps


def silence_limit(estimated_seconds: float, at_least: float = SILENT_SECONDS) -> float:
    """Seconds without a sign of life after which a trial hangs: a tenth of its estimated time, or more.

    A trial reports every point of its curve, every checkpoint (30 s) and, in long evaluations, every 30 s.
    Silence, unlike a limit on the whole time, never ends a trial that is merely slower than its estimate.
    """
    return max(at_least, estimated_seconds / 10)


class Watch:
    """The last signs of life of the running trials, and the furthest step that each has ever reached."""

    def __init__(self, limit: Callable[[RunSpec], float], clock: Callable[[], float] = time.monotonic) -> None:
        """``limit``: seconds of silence after which a run hangs; ``clock``: seconds from any origin."""
        self._limit, self._clock = limit, clock
        self._limits: dict[str, float] = {}  # of the running trials
        self._signs: dict[str, float] = {}
        self._furthest: dict[str, int] = {}
        self._looked = clock()

    def started(self, spec: RunSpec) -> None:
        """A trial begins, or begins again."""
        self._limits[spec.run_id], self._signs[spec.run_id] = self._limit(spec), self._clock()

    def sign(self, run_id: str, step: int) -> bool:
        """A trial reports a step; True if no attempt of this run had reached it before."""
        if run_id in self._limits:
            self._signs[run_id] = self._clock()
        before = self._furthest.get(run_id, 0)
        self._furthest[run_id] = max(step, before)
        return step > before

    def ended(self, run_id: str) -> None:
        """A trial has ended, or an attempt of it."""
        self._limits.pop(run_id, None)

    def hanging(self) -> dict[str, float]:
        """Identity -> seconds of silence of the trials that have just passed their limit; to be called every second.

        Time in which nobody looked, as on a laptop that was suspended, isn't the trials' silence.
        """
        now = self._clock()
        if (gap := now - self._looked) > _GAP_SECONDS:
            self._signs = {run_id: min(now, sign + gap) for run_id, sign in self._signs.items()}
        self._looked = now
        silent = {run_id: now - self._signs[run_id] for run_id in self._limits}
        found = {run_id: seconds for run_id, seconds in silent.items() if seconds > self._limits[run_id]}
        self._signs |= dict.fromkeys(found, now)  # should the kill fail, the next one comes a limit later
        return found
