"""A study in virtual time: the engine's scheduling policy on hypothetical devices."""

from __future__ import annotations

import collections
import dataclasses
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from eqscale.arms import Size, arm_names
from eqscale.errors import InputError
from eqscale.study.estimate import CPU_GUESS, Estimator
from eqscale.study.schedule import Cluster, Seconds, plan, run_list
from eqscale.training.spec import RunSpec

GAP_SECONDS = 0.3
"""Assumed between two trials on a device; benchmarks/scheduling.py measured 0.16 (median) on two busy cores."""

_DRAWS = 10  # of the errors
_TIMED = ("arm", "status", "budget", "width", "depth", "heads", "steps", "batch_size", "seconds", "hardware")


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a study costs on a cluster; times in seconds, all means over the draws."""

    cluster: Cluster
    wall: float
    inside: float
    """Share of the paid device-seconds that lies inside trials."""
    useful: float
    """Share that one-device trials would have needed for the same work: less where gangs lose time to DDP."""
    longest: float
    """Expected time of the longest trial on the devices that it gets."""
    even: float
    """Time if the work of one-device trials could be split evenly over the devices."""
    gangs: dict[float, int]
    """Devices of a trial -> number of trials."""

    @property
    def device_hours(self) -> float:
        """Paid hours, idle ones included."""
        return self.cluster.devices * self.wall / 3600


def forecast(
    specs: Sequence[RunSpec], seconds: Seconds, cluster: Cluster, *, largest: int = 1, error: float = 0.0
) -> Forecast:
    """Plan a study from estimated times, then run it in virtual time.

    Args:
        specs: the trials.
        seconds: estimated time of a trial on a number of devices.
        cluster: the devices.
        largest: most devices of a trial.
        error: standard deviation of the logarithm of true over estimated times, drawn for each trial.
    """
    allotments = plan(specs, seconds, cluster, largest=largest)
    rng = random.Random(1)
    walls, inside, useful = [], [], []
    for _ in range(_DRAWS if error else 1):
        factor = {spec: math.exp(rng.gauss(0, error)) for spec in specs}

        def true_seconds(spec: RunSpec, devices: float, factor: dict[RunSpec, float] = factor) -> float:
            return seconds(spec, devices) * factor[spec] + GAP_SECONDS

        placements = run_list(allotments, true_seconds, cluster)
        wall = max(p.end for p in placements)
        walls.append(wall)
        inside.append(sum(p.devices * (p.end - p.start - GAP_SECONDS) for p in placements) / (wall * cluster.devices))
        useful.append(sum(seconds(spec, 1.0) * factor[spec] for spec in specs) / (wall * cluster.devices))
    gangs = collections.Counter(allotment.devices for allotment in allotments)
    return Forecast(
        cluster=cluster,
        wall=statistics.fmean(walls),
        inside=statistics.fmean(inside),
        useful=statistics.fmean(useful),
        longest=max(seconds(a.spec, a.devices) for a in allotments),
        even=sum(seconds(spec, 1.0) for spec in specs) / cluster.devices,
        gangs=dict(sorted(gangs.items())),
    )


def measured_throughput(table: Path) -> tuple[Estimator, str]:
    """Estimator that has learnt from the finished runs of a run table, and the hardware they ran on.

    Raises InputError if the table can't be read, lacks a column or has no finished run of a known arm.
    """
    if not table.is_file():
        raise InputError(f"there is no run table {str(table)!r}")
    try:
        runs = pd.read_parquet(table) if table.suffix == ".parquet" else pd.read_csv(table)
    except ValueError as error:
        raise InputError(f"run table {str(table)!r} can't be read: {str(error).splitlines()[0]}") from error
    missing = [column for column in _TIMED if column not in runs]
    if missing:
        raise InputError(f"run table {str(table)!r} lacks the column {missing[0]!r}")
    runs = runs[(runs["status"] == "finished") & runs["arm"].isin(arm_names())]
    if runs.empty:
        raise InputError(f"run table {str(table)!r} has no finished run of a known arm")
    hardware = sorted(set(runs["hardware"]))
    if len(hardware) > 1:
        raise InputError(
            f"run table {str(table)!r} mixes hardware ({', '.join(hardware)}): a throughput is of one kind"
        )
    estimate = Estimator(CPU_GUESS)
    # Only what sets the time of the training loop counts.
    free: dict[str, Any] = {"learning_rate": 1.0, "seed": 0, "data": ""}
    free |= {"test_systems": 1, "test_samples_per_system": 1}
    for row in runs.itertuples():
        spec = RunSpec(
            arm=row.arm,
            size=Size(int(row.width), int(row.depth), int(row.heads)),
            budget=float(row.budget),
            steps=int(row.steps),
            batch_size=int(row.batch_size),
            train_systems=int(row.batch_size),  # enough for a batch
            **free,
        )
        devices = getattr(row, "devices", 1)  # tables from before trials had several
        estimate.measure(spec, float(row.seconds), int(devices))
    return estimate, hardware[0]
