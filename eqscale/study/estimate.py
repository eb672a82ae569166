"""How long a run will take: a guess from its steps, depth and FLOPs, which runs that have ended correct."""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
from collections.abc import Iterable

import numpy as np
from scipy.optimize import nnls

from eqscale.training.loop import CURVE_POINTS, CURVE_SAMPLES
from eqscale.training.spec import RunRecord, RunSpec

DDP_EFFICIENCY = 0.95
"""Assumed: a trial on twice the GPUs computes 2 x 0.95 times as fast. Not measured here."""

GPU_UTILISATION = 0.35
"""Assumed share of the peak that training reaches."""

# Dense FP32 peaks in FLOP/s, from NVIDIA's data sheets; where training uses bfloat16 it will be faster by a factor
# that has not been measured.
GPU_PEAKS = {
    "T4": 8.1e12,
    "V100": 15.7e12,
    "A10G": 31.2e12,
    "L4": 30.3e12,
    "A100": 19.5e12,
    "L40S": 91.6e12,
    "H100": 67e12,
    "H200": 67e12,
}

_METRIC_SECONDS = 1e-4  # metrics of an evaluated sample, on one CPU core
_PRIOR_WEIGHT = 0.03  # of the guess against one run that has ended


@dataclasses.dataclass(frozen=True)
class Throughput:
    """What the time of a run is made of."""

    step: float
    """Seconds of overhead in a step."""
    block: float
    """Seconds of overhead in a step for each block of the network."""
    flop: float
    """Seconds a FLOP."""

    def training(self, spec: RunSpec, devices: float = 1.0) -> float:
        """Seconds in the training loop; several devices share the FLOPs, but not the overhead of a step."""
        steps, blocks, flops = _features(spec, devices)
        return self.step * steps + self.block * blocks + self.flop * flops

    def seconds(self, spec: RunSpec, devices: float = 1.0) -> float:
        """Seconds of a run with its evaluations: forward passes at a third of a training step, on one device."""
        at_curve_points = CURVE_POINTS * min(CURVE_SAMPLES, spec.test_systems)
        samples = at_curve_points + spec.test_systems * spec.test_samples_per_system
        forward = self.training(spec) / (3 * spec.steps * spec.batch_size)
        return self.training(spec, devices) + (forward + _METRIC_SECONDS) * samples


CPU_GUESS = Throughput(step=6e-4, block=6e-4, flop=2.5e-11)
"""One core with this package's kernels, small models: within a factor of two of each run of ``results/quick``."""


def gpu_guess(flops_per_second: float) -> Throughput:
    """A GPU that executes so many FLOP/s of a large model, with launch overheads as of compiled kernels."""
    return Throughput(step=2e-3, block=5e-4, flop=1 / flops_per_second)


def device_guess(names: Iterable[str]) -> Throughput:
    """The guess for the slowest of the named GPUs, e.g. "A100" or "NVIDIA A100-SXM4-80GB"; CPU without any."""
    words = [set(re.split(r"[^A-Za-z0-9]+", name.upper())) for name in names]
    peaks = [peak for model, peak in GPU_PEAKS.items() if any(model in word for word in words)]
    if not words:
        return CPU_GUESS
    return gpu_guess(GPU_UTILISATION * min(peaks, default=min(GPU_PEAKS.values())))


def _features(spec: RunSpec, devices: float) -> tuple[float, float, float]:
    """Steps, steps times blocks, and FLOPs of a device, with what it loses to the exchange of gradients."""
    share = 1.0
    if devices > 1:
        largest = math.ceil(spec.batch_size / devices) / spec.batch_size  # a batch is cut by whole samples
        share = largest / DDP_EFFICIENCY ** math.log2(devices)
    return spec.steps, spec.steps * spec.size.depth, spec.budget * share


class Estimator:
    """Seconds a run will take on a number of devices; better with every record that is added."""

    def __init__(self, guess: Throughput = CPU_GUESS, ended: Iterable[RunRecord] = ()) -> None:
        self._guess = guess
        self._measured: dict[str, list[_Run]] = {}
        self._fitted: dict[str, Throughput] = {}
        for record in ended:
            self.add(record)

    def assume(self, guess: Throughput) -> None:
        """Change the guess, e.g. once it is known which devices there are."""
        self._guess = guess
        self._fitted.clear()

    def add(self, record: RunRecord) -> None:
        """Learn from a run that has ended; one that diverged says nothing, as its time is cut short."""
        if record.status == "finished":
            self.measure(record.spec, record.seconds, record.devices)

    def measure(self, spec: RunSpec, seconds: float, devices: int = 1) -> None:
        """Learn that a run spent so many device-seconds in the training loop."""
        self._measured.setdefault(spec.arm, []).append((spec, seconds / devices, devices))
        self._fitted.clear()

    def throughput(self, arm: str) -> Throughput:
        """Non-negative least squares in relative errors on the arm's runs, held by the guess.

        The guess is first scaled by the median of measured over guessed seconds: of the arm, or of all arms
        if the arm has no run yet.
        """
        if arm not in self._fitted:
            runs = self._measured.get(arm, [])
            others = [run for measured in self._measured.values() for run in measured]
            ratios = [seconds / self._guess.training(spec, k) for spec, seconds, k in runs or others]
            slower = statistics.median(ratios) if ratios else 1.0
            guess = Throughput(*(slower * value for value in dataclasses.astuple(self._guess)))
            self._fitted[arm] = _fit(runs, guess)
        return self._fitted[arm]

    def __call__(self, spec: RunSpec, devices: float = 1.0) -> float:
        """Estimated seconds of a run."""
        return self.throughput(spec.arm).seconds(spec, devices)

    def left(self, spec: RunSpec, step: int, seconds: float, devices: float = 1.0) -> float:
        """Estimated seconds left of a run that has done ``step`` steps in ``seconds`` device-seconds of training."""
        if step < 1:
            return self(spec, devices)
        evaluations = self(spec, devices) - self.throughput(spec.arm).training(spec, devices)
        return (seconds / max(1.0, devices) * spec.steps / step + evaluations) * (1 - step / spec.steps)


_Run = tuple[RunSpec, float, int]
"""A run, its seconds in the training loop, and its devices."""


def _fit(runs: list[_Run], guess: Throughput) -> Throughput:
    if not runs:
        return guess
    # Unknowns are the coefficients over their guesses, so that 1 is the guess for each.
    prior = np.array(dataclasses.astuple(guess))
    features = np.array([_features(spec, devices) for spec, _, devices in runs]) * prior
    seconds = np.array([seconds for _, seconds, _ in runs])
    rows = np.vstack([features / seconds[:, None], math.sqrt(_PRIOR_WEIGHT) * np.eye(3)])
    factors, _ = nnls(rows, np.concatenate([np.ones(len(runs)), np.full(3, math.sqrt(_PRIOR_WEIGHT))]))
    return Throughput(*(float(value) for value in prior * factors))
