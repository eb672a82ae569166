"""Networks without numbers: a plan counts their parameters and FLOPs, for many sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_INITIALISERS = {nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, nn.init.kaiming_normal_}
_FILLS = {Tensor.normal_, Tensor.uniform_}


class _NoNumbers(TorchFunctionMode):
    """Random numbers aren't drawn on no device (meta): it does nothing, and takes most of the time of building."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _INITIALISERS or func in _FILLS:
            filled = kwargs["tensor"] if func in _INITIALISERS else args[0]
            if filled.is_meta:
                return filled
        return func(*args, **kwargs)


@contextlib.contextmanager
def skeletons() -> Iterator[None]:
    """Modules that are built here have shapes, and neither memory nor numbers."""
    with torch.device("meta"), _NoNumbers():
        yield
