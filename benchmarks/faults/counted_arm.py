"""The arm ``counted``: the plain transformer, which counts the steps that it really takes, and fails when told to.

Environment: FAULTS_FOLDER receives the counters and the marks of the faults; FAULTS_KIND names faults, with
commas; "hang" and "kill" happen FAULTS_TIMES times each over all processes; FAULTS_PARAMETERS restricts them to
runs of that many parameters.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import nn

from eqscale.arms import Size, get_arm, register
from eqscale.tasks import Batch, Task

PLAIN = get_arm("transformer")
STEP_OF_FAULT = 40
MEMORY = 2**30
PER_SAMPLE = 2**28

_counters: dict[int, np.memmap] = {}


def counter(parameters: int) -> np.memmap:
    """Steps of this process with models of that size, in a file that outlives the process."""
    if parameters not in _counters:
        path = Path(os.environ["FAULTS_FOLDER"]) / f"steps-{parameters}-{os.getpid()}"
        _counters[parameters] = np.memmap(path, np.int64, "r+" if path.exists() else "w+", shape=(1,))
    return _counters[parameters]


def claim(kind: str) -> bool:
    """Whether this fault may still happen."""
    for k in range(int(os.environ.get("FAULTS_TIMES", "1"))):
        try:
            (Path(os.environ["FAULTS_FOLDER"]) / f"{kind}-{k}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return True
    return False


def hang() -> None:
    """Sleep in native code without letting go of the interpreter: no thread of this process runs on."""
    ctypes.PyDLL(None).sleep(1_000_000)


def exhaust(samples: int) -> None:
    """Ask the allocator for memory in proportion to the samples, with little left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MEMORY, hard))
    try:
        torch.empty(samples * PER_SAMPLE, dtype=torch.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def overfill(samples: int) -> None:
    """Fill real memory in proportion to the samples, until Ray notices."""
    if samples > 4:
        held = [torch.ones(PER_SAMPLE, dtype=torch.uint8) for _ in range(samples)]
        time.sleep(20)
        del held


def before_forward(model: nn.Module, arguments: tuple[Batch, ...]) -> None:
    if not torch.is_grad_enabled():
        return
    parameters = sum(p.numel() for p in model.parameters())
    count = counter(parameters)
    count[0] += 1
    kinds = os.environ.get("FAULTS_KIND", "").split(",")
    if int(os.environ.get("FAULTS_PARAMETERS", "0")) not in (0, parameters):
        return
    samples = len(arguments[0])
    if "exhaust" in kinds:
        exhaust(samples)
    if "overfill" in kinds:
        overfill(samples)
    if count[0] >= STEP_OF_FAULT:
        if "hang" in kinds and claim("hang"):
            hang()
        if "kill" in kinds and claim("kill"):
            os.kill(os.getpid(), signal.SIGKILL)


def build(size: Size, task: Task) -> nn.Module:
    model = PLAIN.build(size, task)
    model.register_forward_pre_hook(before_forward)
    return model


register(dataclasses.replace(PLAIN, name="counted", description="plain transformer, counted", build=build))
