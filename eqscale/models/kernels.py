"""A whole network as one operation of its CPU kernels (``eqscale.native``)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from eqscale import native
from eqscale.errors import InputError


class _Memory:
    """What a forward pass keeps for its backward pass; the next one gets it once the graph is gone.

    Fresh pages from the operating system cost more than the arithmetic of a small network.
    """

    _free: ClassVar[list[Tensor]] = []

    def __init__(self, numbers: int, like: Tensor) -> None:
        tensor = self._free.pop() if self._free else like.new_empty(0)
        fits = tensor.dtype == like.dtype and numbers <= tensor.numel() <= 4 * numbers
        self.tensor = tensor if fits else like.new_empty(numbers)

    def __del__(self) -> None:
        self._free[:] = [self.tensor]


class _OnKernels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        name: str,
        shape: ctypes.Structure,
        out_features: int,
        keep: bool,
        x: Tensor,
        mask: Tensor | None,
        *parameters: Tensor | None,
    ) -> Tensor:
        ctx.name, ctx.shape, ctx.pointers = name, shape, native.pointers(parameters)
        ctx.kept = _Memory(shape.kept, x) if keep else None
        ctx.save_for_backward(x, mask, *parameters)
        y = x.new_zeros(*x.shape[:2], out_features)
        native.call(name, x, y, ctx.kept.tensor if keep else None, mask, shape, ctx.pointers)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, mask, *parameters = ctx.saved_tensors
        gx = torch.zeros_like(x) if ctx.needs_input_grad[4] else None
        flat = x.new_zeros(sum(p.numel() for p in parameters if p is not None))
        pieces = iter(flat.split([p.numel() for p in parameters if p is not None]))
        gradients = [None if p is None else next(pieces).view_as(p) for p in parameters]
        kept = ctx.kept.tensor
        native.call(
            *(f"{ctx.name}_gradient", x, gy.contiguous(), gx, native.pointers(gradients)),
            *(kept, mask, ctx.shape, ctx.pointers),
        )
        return None, None, None, None, gx, None, *gradients


def run(
    name: str,
    shape: ctypes.Structure,
    out_features: int,
    x: Tensor,
    mask: Tensor | None,
    parameters: Sequence[Tensor | None],
) -> Tensor:
    """Predictions (B, T, out_features) of a network, differentiable once.

    Args:
        name: of the kernel, which has a twin ``NAME_gradient``.
        shape: what the kernel knows of network and batch, with ``kept``: numbers kept for the backward pass.
        out_features: numbers predicted per token.
        x: (B, T, features).
        mask: True for real tokens, (B, T); the others' predictions are zero. None: all are.
        parameters: in the kernel's order, None where the network lacks one.
    """
    x, mask = x.contiguous(), None if mask is None else mask.contiguous()
    parameters = [None if p is None else p.contiguous() for p in parameters]
    needed = (z is not None and z.requires_grad for z in (x, *parameters))
    keep = torch.is_grad_enabled() and any(needed)
    return _OnKernels.apply(name, shape, out_features, keep, x, mask, *parameters)


def gradients_of(parameters: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients of parameters, to add to; zeros where they have none yet, None for None."""
    for parameter in parameters:
        if parameter is not None and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [None if parameter is None else parameter.grad for parameter in parameters]


def add_loss_gradient(
    name: str,
    shape: ctypes.Structure,
    x: Tensor,
    mask: Tensor,
    parameters: Sequence[Tensor | None],
    target: Tensor,
    weight: Tensor,
    scale: float,
    of_inputs: Tensor | None = None,
) -> Tensor:
    """The loss of a network, whose gradient is added to that of the parameters.

    Every tile of samples goes forward and back before the next one, so that what it keeps stays in the cache.

    Args:
        name: of the kernel, which has a twin ``NAME_loss``.
        shape: what the kernel knows of network and batch.
        x: (B, T, features).
        mask: True for real tokens, (B, T).
        parameters: in the kernel's order, None where the network lacks one.
        target: targets, (B, T, predictions of a token).
        weight: weight of each token's squared error, (B, T).
        scale: factor of the loss.
        of_inputs: zeros that the gradient of x is written to, if it is wanted.

    Returns:
        The weighted sum of squared errors of real tokens times ``scale``, a scalar.

    Raises:
        InputError: not one weight for each token.
    """
    if weight.shape != mask.shape:
        raise InputError(f"weight: expected {tuple(mask.shape)}, got {tuple(weight.shape)}")
    loss = x.new_empty(())
    native.call(
        f"{name}_loss",
        *(value.contiguous() for value in (x, target, weight)),
        *(scale, loss, of_inputs),
        *(native.pointers(gradients_of(parameters)), mask.contiguous()),
        *(shape, native.pointers(parameters)),
    )
    return loss
