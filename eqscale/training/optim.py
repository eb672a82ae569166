"""Optimisers by name: how the parameters of a model are grouped, and what steps they take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import nn

from eqscale.errors import InputError
from eqscale.plugins import load_files

RATE_SCALE = "rate_scale"
"""Key of a parameter group: its learning rate over the run's. Without it the group takes the run's."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """One way to turn gradients into steps."""

    name: str
    """Identifier in specs, run tables and command lines."""
    description: str
    """One line for ``--help``."""
    build: Callable[[nn.Module, float, float], torch.optim.Optimizer]
    """(model, peak learning rate, weight decay) -> optimiser. Groups with the key ``rate_scale`` get that multiple of
    the scheduled rate."""
    states: int = 2
    """Numbers that it keeps for each parameter: for estimates of memory."""
    rate_factor: float = 1.0
    """Peak rate over that of AdamW, where an arm's recipe was searched with AdamW."""


def _decayed(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups: matrices decay; gains and biases don't."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _adamw(model: nn.Module, rate: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(_decayed(model, weight_decay), lr=rate, betas=(0.9, 0.95), fused=True)


_OPTIMIZERS: dict[str, Optimizer] = {}


def register(optimizer: Optimizer) -> Optimizer:
    """Make an optimiser known to every command under its name; registering a name twice is an error."""
    if optimizer.name in _OPTIMIZERS:
        raise InputError(f"an optimiser named {optimizer.name!r} is already registered")
    _OPTIMIZERS[optimizer.name] = optimizer
    return optimizer


ADAMW = register(Optimizer("adamw", "AdamW (Loshchilov and Hutter 2019), fused, betas .9 and .95", _adamw))


def get_optimizer(name: str) -> Optimizer:
    """Look an optimiser up by name; raises InputError, which lists the known ones."""
    if name not in _OPTIMIZERS:
        raise InputError(f"unknown optimiser {name!r}; choose from {', '.join(_OPTIMIZERS)}")
    return _OPTIMIZERS[name]


def optimizer_names() -> tuple[str, ...]:
    """Names of all registered optimisers."""
    return tuple(_OPTIMIZERS)


def load_optimizer_files(files: Sequence[str]) -> None:
    """Import files that register optimisers; raises InputError for one that can't be imported or registers none."""
    load_files(files, "optimizer", optimizer_names)
