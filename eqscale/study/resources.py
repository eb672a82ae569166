"""How much of a GPU a run needs: small runs share one, by estimated memory."""

from __future__ import annotations

import dataclasses
import functools
import math

import torch
from torch import nn

from eqscale import native
from eqscale.arms import Size, get_arm
from eqscale.errors import InputError
from eqscale.tasks import Batch, Task, get_task
from eqscale.training.optim import get_optimizer
from eqscale.training.spec import RunSpec

SHARES = (1.0, 0.5, 0.25)
"""Shares of a GPU that are given out: few, because a worker process is reused by trials of the same share."""

_STATES = 2  # weights and gradients, in float32, beside what the optimiser keeps
_CONTEXT_BYTES = 0.8e9  # CUDA context and library workspaces of one process
_USABLE = 0.9  # of a GPU's memory; the rest is lost to fragmentation
_MARGIN = 1.5  # on the estimated activations: temporaries of the backward pass, which are not counted
_BUSY_FLOPS = 2e11  # a step with more work than this keeps a GPU busy by itself: sharing would gain nothing
_PROBE_SAMPLES = 2
_PROBE_TOKENS = (16, 48)
_PROBE_COST = 2e6  # FLOPs per token up to which an arm's sizes are probed


@functools.cache
def activation_bytes_per_token(arm_name: str, size: Size, task_name: str) -> float:
    """Bytes that the forward pass of one token keeps for the backward pass, with attention to some tens of tokens.

    Measured on the CPU with the smallest and the largest small size of the arm's ladder, and carried on along the line
    through both in width times depth: tensors of a block have as many numbers as the residual stream, or a multiple;
    others, such as the distances of tokens, are kept once.
    """
    arm, task = get_arm(arm_name), get_task(task_name)
    affordable = [s for s in arm.ladder if arm.flops(s, task).executed.per_token <= _PROBE_COST]
    least, probe = arm.ladder[0], max(affordable or arm.ladder[:1], key=_numbers)
    if _numbers(size) <= _numbers(probe):
        return _kept_bytes(arm_name, size, task)
    kept = _kept_bytes(arm_name, probe, task)
    if _numbers(probe) == _numbers(least):
        return kept * _numbers(size) / _numbers(probe)
    slope = (kept - _kept_bytes(arm_name, least, task)) / (_numbers(probe) - _numbers(least))
    return kept + slope * (_numbers(size) - _numbers(probe))


def _numbers(size: Size) -> int:
    return size.width * size.depth


def _kept_bytes(arm_name: str, size: Size, task: Task) -> float:
    """Bytes that a forward pass keeps for each further token; what doesn't grow with them, as weights, is not."""
    with torch.random.fork_rng(devices=[]):
        model = get_arm(arm_name).build(size, task)
    few, many = (_kept(model, _random_batch(task, _PROBE_SAMPLES, tokens)) for tokens in _PROBE_TOKENS)
    return (many - few) / (_PROBE_SAMPLES * (_PROBE_TOKENS[1] - _PROBE_TOKENS[0]))


def _kept(model: nn.Module, batch: Batch) -> int:
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with native.switched_off(), hooks:  # a GPU runs ATen's operations, which keep more
        model(batch)
    return sum(storage.nbytes() for storage in kept.values())


def _random_batch(task: Task, B: int, T: int) -> Batch:
    schema, random = task.schema, torch.Generator().manual_seed(0)
    lead = {"token": (B, T), "sample": (B,)}
    values = {f.name: torch.randn(*lead[f.per], f.width, generator=random) for f in schema.fields}
    per = lead[schema.target.per]
    return Batch(
        schema=schema,
        values=values,
        mask=torch.ones(B, T, dtype=torch.bool),
        target=torch.zeros(*per, schema.target.width),
        weight=torch.ones(per),
        system=torch.zeros(B, dtype=torch.int64),
    )


@dataclasses.dataclass(frozen=True)
class MemoryNeed:
    """Estimated bytes of a training run on one GPU."""

    states: float
    """Weights, gradients and optimiser, whatever the batch."""
    activations: float
    """Of a whole batch at its longest; computed in parts they need less."""

    @property
    def total(self) -> float:
        """All of it, with the CUDA context."""
        return self.states + self.activations + _CONTEXT_BYTES


def memory_need(spec: RunSpec, tokens: int) -> MemoryNeed:
    """Memory of a run whose samples have up to ``tokens`` tokens."""
    arm = get_arm(spec.arm)
    per_token = activation_bytes_per_token(spec.arm, spec.size, spec.task)
    return MemoryNeed(
        states=4.0 * (_STATES + get_optimizer(spec.optimizer).states) * arm.parameters(spec.size, get_task(spec.task)),
        activations=_MARGIN * per_token * tokens * spec.batch_size,
    )


def gpu_share(spec: RunSpec, tokens: int, device_bytes: float) -> float:
    """Share of a GPU for one run: the smallest of ``SHARES`` whose part of the memory holds it.

    Sharing pays where a step is too short to keep a GPU busy; longer ones get a GPU of their own. A batch that
    doesn't fit is computed in parts by the training loop, so that only the states must.

    Args:
        spec: the run.
        tokens: most tokens of a sample.
        device_bytes: memory of a GPU.

    Raises:
        InputError: if weights, gradients and optimiser alone exceed the GPU.
    """
    need = memory_need(spec, tokens)
    if need.states + _CONTEXT_BYTES > _USABLE * device_bytes:
        raise InputError(
            f"run {spec.name} needs {need.states / 1e9:.1f} GB for weights, gradients and optimiser alone; the "
            f"GPUs have {device_bytes / 1e9:.1f} GB: use larger ones, or lower the largest of --budgets"
        )
    if spec.budget / spec.steps > _BUSY_FLOPS:
        return 1.0
    fitting = math.floor(_USABLE * device_bytes / need.total)
    return min((share for share in SHARES if 1 / share <= fitting), default=1.0)
