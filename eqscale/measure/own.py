"""Checks of an arm or a task of one's own before any compute is spent: ``eqscale check-arm`` and ``check-task``."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eqscale import native
from eqscale.arms import Arm, Role, Size, TokenCounts
from eqscale.errors import InputError
from eqscale.tasks import Batch, Kind, Samples, Task
from eqscale.tasks.metrics import equivariance

SYSTEMS = 32
"""Systems that a check makes, in memory."""

_EXACT = 1e-4
"""Largest relative equivariance error that counts as round-off of float32."""
_SAME_FLOPS = 0.02
_LARGEST = 1e6  # parameters of the largest model that is built
_ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was checked."""

    what: str
    found: str
    right: bool | None
    """None: worth knowing, neither right nor wrong."""
    wanted: str = ""


def check_arm(arm: Arm, task: Task) -> list[Check]:
    """Check ladder, shape, FLOPs, padding, symmetry and step time of an arm, with untrained models on a task.

    Raises:
        InputError: the arm has no size that can be built here.
    """
    samples = _samples(task)
    batch = samples.batch(np.arange(SYSTEMS))
    counts = [arm.parameters(size, task) for size in arm.ladder]
    small = [size for size, count in zip(arm.ladder, counts, strict=True) if count <= _LARGEST]
    if not small:
        raise InputError(f"arm {arm.name!r}: no size of its ladder has at most {_LARGEST:.0e} parameters")
    rising = all(low < high for low, high in itertools.pairwise(counts))
    checks = [
        Check("ladder", f"{len(counts)} sizes, {counts[0]:,} to {counts[-1]:,} parameters", rising, "parameters rise")
    ]
    torch.manual_seed(0)
    model = arm.build(small[0], task)
    with torch.no_grad(), native.switched_off():
        shape = tuple(model(batch).shape)
    wanted = tuple(batch.target.shape)
    checks.append(Check("shape of a prediction", str(shape), shape == wanted, str(wanted)))
    if shape != wanted:
        return checks
    checks += [_check_flops(arm, size, task, batch) for size in dict.fromkeys((small[0], small[-1]))]
    return [*checks, _check_padding(model, batch), *_check_symmetry(arm, model, task, samples), _time(model, batch)]


def _samples(task: Task) -> Samples:
    options = task.check_options({})
    records = task.records(options, 0, "train", 0, SYSTEMS)
    return task.open(options, [records], task.statistics(options, records))


def _check_flops(arm: Arm, size: Size, task: Task, batch: Batch) -> Check:
    torch.manual_seed(0)
    model = arm.build(size, task)
    with native.switched_off(), FlopCounterMode(display=False) as counter:
        model(batch).sum().backward()
    B, T = batch.mask.shape
    real = batch.mask.sum(1)
    tokens = TokenCounts(float(real.sum()), float((real * real).sum()), float(B * T), float(B * T * T))
    what, counted = f"executed FLOPs at {size}", counter.get_total_flops()
    if not counted:
        return Check(what, "not checked: PyTorch counts none", None)
    ratio = arm.executed_flops(size, task, tokens, torch.device("cpu")) / counted
    return Check(what, f"{ratio:.3f} of what PyTorch counts", abs(ratio - 1) <= _SAME_FLOPS, f"1 ± {_SAME_FLOPS:g}")


def _check_padding(model: nn.Module, batch: Batch) -> Check:
    padding = ~batch.mask[..., None]
    if not padding.any():
        return Check("padding", "the samples have none", None)
    damaged = batch.replace(
        **{f.name: batch[f.name].masked_fill(padding, 7.0) for f in batch.schema.fields if f.per == "token"}
    )
    with torch.no_grad(), native.switched_off():
        first, second = model(batch), model(damaged)
    real = batch.mask if batch.schema.target.per == "token" else slice(None)
    gap = float((first - second)[real].abs().max() / first[real].abs().max())
    return Check("change by what padding holds", f"{gap:.1e}", gap < 1e-5, "0")


def _check_symmetry(arm: Arm, model: nn.Module, task: Task, samples: Samples) -> list[Check]:
    with torch.no_grad(), native.switched_off():
        errors = equivariance(model, samples, np.arange(SYSTEMS), task.elements(samples.options), task.classes())
    built_in = arm.role == Role.BUILD_IN
    return [
        Check(
            f"symmetry error, {name.removeprefix('equivariance_')}",
            f"{error:.1e}",
            error < _EXACT if built_in else None,
            "round-off, as its role is build_in" if built_in else "",
        )
        for name, error in errors.items()
        if name != "equivariance_loss_share"
    ]


def _time(model: nn.Module, batch: Batch) -> Check:
    seconds = []
    for _ in range(_ROUNDS):
        begin = time.process_time()
        model(batch).square().sum().backward()
        seconds.append(time.process_time() - begin)
    return Check(
        f"forward and backward of {SYSTEMS} samples", f"{1e3 * statistics.median(seconds):.1f} ms of CPU", None
    )


def check_task(task: Task) -> list[Check]:
    """Check that a task's systems are reproducible, its splits apart, its fields of order one, its labels symmetric.

    Raises:
        InputError: its arrays don't fit its declaration.
    """
    options = task.check_options({})
    begin = time.process_time()
    records = task.records(options, 0, "train", 0, SYSTEMS)
    seconds = (time.process_time() - begin) / SYSTEMS
    part = task.records(options, 0, "train", 3, 8)
    other = task.records(options, 0, "test", 0, SYSTEMS)
    tokens = records["tokens"]
    checks = [
        Check("tokens of a sample", f"{tokens.min()} to {tokens.max()}", None),
        Check("systems 3 to 7 made alone", *_alike(part, records[3:8], "the same numbers", "other numbers")),
        Check("test systems", *_alike(other, records, "those of training", "others than those of training", False)),
        Check("making a system", f"{1e3 * seconds:.3g} ms of CPU", None),
    ]
    real = np.arange(task.max_tokens(options)) < tokens[:, None]
    for field in task.schema.fields:
        if field.kind not in (Kind.DIRECTION, Kind.PSEUDOVECTOR, Kind.INVARIANT):
            continue
        values = records[field.name][real] if field.per == "token" else records[field.name]
        size = float(np.sqrt(np.square(values, dtype=float).sum(-1).mean())) / field.scale
        checks.append(Check(f"size of {field.name} over its scale", f"{size:.2g}", 0.05 < size < 20, "about 1"))
    samples = task.open(options, [records], task.statistics(options, records))
    group = f"labels under {task.group.name}"
    if task.relabel(options, samples.batch(np.arange(SYSTEMS), dtype=torch.float64)) is None:
        return [*checks, Check(group, "not checked: the task has no relabel", None)]
    try:
        task.check_labels(options, 0)
    except InputError as error:
        return [*checks, Check(group, str(error), False, "unchanged")]
    return [*checks, Check(group, f"unchanged to {task.symmetry_tolerance:g}", True)]


def _alike(one: np.ndarray, two: np.ndarray, same: str, different: str, alike: bool = True) -> tuple[str, bool, str]:
    """What was found, whether it is right, and what is."""
    equal = one.tobytes() == two.tobytes()
    return same if equal else different, equal == alike, same if alike else different
