"""Checks of a network's inputs; an error is one line with the argument's name and both shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from eqscale.errors import InputError


def check_tokens(name: str, x: Tensor, tail: tuple[int, ...], like: Tensor) -> None:
    """Raise InputError unless ``x`` is (B >= 1, T >= 1, *tail) of the dtype and on the device of ``like``."""
    shape = tuple(x.shape)
    if x.ndim != 2 + len(tail) or shape[2:] != tail or 0 in shape[:2]:
        expected = ", ".join(map(str, ("B", "T", *tail)))
        raise InputError(f"{name}: expected ({expected}) with B, T >= 1, got {shape}")
    if (x.device, x.dtype) != (like.device, like.dtype):
        raise InputError(f"{name}: {x.dtype} on {x.device}, the network holds {like.dtype} on {like.device}")


def check_mask(mask: Tensor, batch: tuple[int, ...], device: torch.device) -> None:
    """Raise InputError unless ``mask`` is bool, (B, T) as the tokens and on their device, with a token a sample.

    Traced code skips the last check, which would break its graph.
    """
    if mask.shape != batch or mask.dtype != torch.bool:
        raise InputError(f"mask: expected bool {batch}, got {mask.dtype} {tuple(mask.shape)}")
    if mask.device != device:
        raise InputError(f"mask: on {mask.device}, the network is on {device}")
    if not torch.compiler.is_compiling() and not (filled := mask.any(1)).all():
        raise InputError(f"mask: sample {int(filled.logical_not().nonzero()[0])} of the batch has no token")
