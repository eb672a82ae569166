"""Step times of all shapes of a study, taken in one sitting for the axis of seconds (``eqscale time``)."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pandas as pd

from eqscale.report.step_times import SHAPE
from eqscale.tasks import Samples
from eqscale.tasks.base import OptionValue
from eqscale.tasks.dataset import open_stored
from eqscale.training.loop import time_steps
from eqscale.training.spec import RunSpec

ROUNDS = 3
"""Every shape is timed once a round, so that what slows the machine for a while slows them all."""


def open_shapes(specs: Iterable[RunSpec], data: Path) -> dict[RunSpec, tuple[Samples, Samples]]:
    """One run of each shape, the one with the most training systems, with its training and test samples.

    The run with the cheapest step comes first.

    Raises:
        InputError: the folder ``data`` lacks the data of a run.
    """

    @functools.cache  # shapes share their samples, which may be large
    def opened(
        split: str, task: str, digest: str, systems: int, options: tuple[tuple[str, OptionValue], ...]
    ) -> Samples:
        return open_stored(task, digest, data, split, systems=systems, **dict(options))

    def samples(spec: RunSpec, split: str, systems: int) -> Samples:
        return opened(split, spec.task, spec.data, systems, tuple(spec.options.items()))

    by_systems = sorted(specs, key=lambda spec: spec.train_systems)
    found = {(spec.arm, spec.size, spec.batch_size): spec for spec in by_systems}
    return {
        spec: (samples(spec, "train", spec.train_systems), samples(spec, "test", spec.test_systems))
        for spec in sorted(found.values(), key=lambda spec: spec.budget / spec.steps)
    }


def time_shapes(
    shapes: Mapping[RunSpec, tuple[Samples, Samples]], seconds: float, timed: Callable[[], None]
) -> pd.DataFrame:
    """Time every shape, ``ROUNDS`` times in turn.

    Args:
        shapes: see ``open_shapes``.
        seconds: how long to time a shape in each round, at least 20 steps.
        timed: called whenever a shape has been timed.

    Returns:
        Of each shape arm, width, depth, heads, batch_size, ``step_seconds`` (median over the rounds), ``spread``
        (highest minus lowest over the median) and ``hardware``.
    """
    times: dict[RunSpec, list[float]] = {spec: [] for spec in shapes}
    hardware = ""
    for _ in range(ROUNDS):
        for spec, samples in shapes.items():
            step_seconds, hardware = time_steps(spec, *samples, seconds)
            times[spec].append(step_seconds)
            timed()
    rows = []
    for spec, values in times.items():
        median = statistics.median(values)
        spread = round((max(values) - min(values)) / median, 3)
        size = (spec.size.width, spec.size.depth, spec.size.heads)
        rows.append((spec.arm, *size, spec.batch_size, float(f"{median:.4g}"), spread, hardware))
    return pd.DataFrame(rows, columns=[*SHAPE, "step_seconds", "spread", "hardware"])
