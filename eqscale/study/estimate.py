"""How long a run will take: a guess per step from depth and FLOPs, corrected by the runs that have ended."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable

from eqscale.training.spec import RunRecord, RunSpec

# One CPU core, eager PyTorch, small models: overhead of a block and of a step, and the rate beyond it.
_SECONDS_PER_STEP = 2e-3
_SECONDS_PER_BLOCK = 2e-3
_FLOPS_PER_SECOND = 1e10


def _first_guess(spec: RunSpec) -> float:
    overhead = _SECONDS_PER_STEP + _SECONDS_PER_BLOCK * spec.size.depth
    return spec.steps * overhead + spec.budget / _FLOPS_PER_SECOND


def estimator(finished: Iterable[RunRecord]) -> Callable[[RunSpec], float]:
    """Seconds a run will take, given the records of runs that have ended.

    The guess is scaled per arm by the median of measured over guessed seconds; arms without a finished run
    are scaled by the median over all.
    """
    ratios: dict[str, list[float]] = {}
    for record in finished:
        if record.status == "finished":
            seconds = record.seconds + record.evaluation_seconds
            ratios.setdefault(record.spec.arm, []).append(seconds / _first_guess(record.spec))
    everything = [ratio for values in ratios.values() for ratio in values]
    default = statistics.median(everything) if everything else 1.0
    factor = {arm: statistics.median(values) for arm, values in ratios.items()}
    return lambda spec: _first_guess(spec) * factor.get(spec.arm, default)
