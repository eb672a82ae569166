"""Optimisers by name: how the parameters of a model are grouped, and what steps they take."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eqscale import native
from eqscale.arms import Arm, Size
from eqscale.errors import InputError
from eqscale.models.skeleton import skeletons
from eqscale.plugins import load_files
from eqscale.tasks import Task

_SQUARES = 0.95
"""Share of the past in AdamW's average of squared gradients."""

RATE_SCALE = "rate_scale"
"""Key of a parameter group: its learning rate over the run's. Without it the group takes the run's."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """One way to turn gradients into steps."""

    name: str
    """Identifier in specs, run tables and command lines."""
    description: str
    """One line for ``--help``."""
    build: Callable[[nn.Module, float, float, float], torch.optim.Optimizer]
    """(model, peak learning rate, weight decay, momentum) -> optimiser. Groups with the key ``rate_scale`` get that
    multiple of the scheduled rate."""
    states: int = 2
    """Numbers that it keeps for each parameter: for estimates of memory."""
    rate_factor: float = 1.0
    """Peak rate over that of AdamW, where an arm's recipe was searched with AdamW."""
    momentum: float = 0.9
    """Share of the past in the average of gradients, where an arm's recipe doesn't say."""
    flops: Callable[[nn.Module], float] | None = None
    """Model -> FLOPs of its matrix products in one step; None if it has none. The model may have no storage (meta)."""


def flatten(parameters: Sequence[nn.Parameter]) -> Tensor:
    """One tensor (n,) that holds parameters of one type, one after the other, and whose gradient holds theirs.

    The parameters become views of it and their gradients views of its gradient, so that an optimiser updates, clips and
    zeroes all of them with one operation instead of one each. Gradients must be zeroed in place from then on.
    """
    flat = torch.cat([p.detach().flatten() for p in parameters])
    flat.grad = torch.zeros_like(flat)
    sizes = [p.numel() for p in parameters]
    for p, value, gradient in zip(parameters, flat.split(sizes), flat.grad.split(sizes), strict=True):
        p.data, p.grad = value.view(p.shape), gradient.view(p.shape)
    return flat


def clip_gradients(tensors: Sequence[Tensor], most: float) -> None:
    """``torch.nn.utils.clip_grad_norm_`` without its sorting by device, which takes longer than a few flat tensors."""
    gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
    if all(g.dtype == gradients[0].dtype and g.is_contiguous() and native.available(g) for g in gradients):
        norm = gradients[0].new_empty(())
        native.call("clip", norm, native.pointers(gradients), native.sizes(gradients), len(gradients), most)
        return
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (most / (norm + 1e-6)).clamp(max=1.0))


def _without_hooks(step: Callable[..., None]) -> Callable[..., None]:
    """Mark a ``step`` as wrapped already, so that PyTorch leaves out its profiler and hooks, which take as long."""
    step.hooked = True  # type: ignore[attr-defined]
    return step


class _AdamW(torch.optim.AdamW):
    """AdamW on a kernel, or by PyTorch's fused operation: the rest of ``step`` takes longer than a few flat tensors."""

    @_without_hooks
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters."""
        for group in self.param_groups:
            rate, (beta1, beta2), eps, decay = group["lr"], group["betas"], group["eps"], group["weight_decay"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
                    state["step"] = torch.zeros((), device=p.device)
                average, square, step = state["exp_avg"], state["exp_avg_sq"], state["step"]
                step += 1
                if native.available(p):
                    count = step.item()
                    native.call(
                        *("adamw", p, p.grad, average, square, p.numel(), beta1, beta2, 1 - rate * decay),
                        *(rate / (1 - beta1**count), (1 - beta2**count) ** 0.5, eps),
                    )
                    continue
                torch._fused_adamw_(
                    *([p], [p.grad], [average], [square], [], [step]),
                    lr=rate,
                    beta1=beta1,
                    beta2=beta2,
                    weight_decay=decay,
                    eps=eps,
                    amsgrad=False,
                    maximize=False,
                )


def _decayed(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups, one flat tensor each: matrices decay; gains and biases don't."""
    parts: dict[tuple[bool, torch.dtype], list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            parts.setdefault((parameter.ndim < 2, parameter.dtype), []).append(parameter)
    return [
        {"params": [flatten(parts[key])], "weight_decay": 0.0 if key[0] else weight_decay}
        for key in sorted(parts, key=lambda key: key[0])
    ]


def _adamw(model: nn.Module, rate: float, weight_decay: float, momentum: float) -> torch.optim.Optimizer:
    groups = _decayed(model.parameters(), weight_decay)
    return _AdamW(groups, lr=rate, betas=(momentum, _SQUARES), fused=True)


_NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5
"""Coefficients a, b, c of each iteration X <- a X + (b X X^T + c (X X^T)^2) X (Jordan et al. 2024)."""


_ROOT_MEAN_SQUARE = 0.2
"""Of an update's entries at a rate of 1, about that of AdamW's (Liu et al. 2025, arXiv 2502.16982)."""


def orthogonalise(matrices: Tensor) -> Tensor:
    """Matrices (n, rows, columns) with the same singular vectors and singular values near 1 (about 0.7 to 1.2).

    Five Newton-Schulz iterations, in bfloat16 on a GPU that has it. Singular values below about 1/300 of the
    matrix's norm grow, but stay below that range.
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if matrices.device.type == "cuda" and torch.cuda.is_bf16_supported():
        x = x.bfloat16()
    for a, b, c in _NEWTON_SCHULZ:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(matrices)


def orthogonalise_flops(rows: int, columns: int) -> float:
    """FLOPs of ``orthogonalise`` for one matrix: its products, a multiply-add counted as two."""
    least, most = sorted((rows, columns))
    return len(_NEWTON_SCHULZ) * 2.0 * (2 * least * least * most + least**3)


def hidden_maps(model: nn.Module) -> list[nn.Parameter]:
    """The maps between hidden channels: trained weights of two and more dimensions inside ``blocks``.

    Weights (out, in, ...) are one matrix for every index beyond the second: a map of GATr has one for each of its free
    components of a channel pair.
    """
    named = [(name.split("."), p) for name, p in model.named_parameters()]
    return [p for path, p in named if "blocks" in path and p.ndim >= 2 and p.requires_grad]


@functools.lru_cache(maxsize=64)
def _tables(maps: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """For the kernel: shapes of the maps, coefficients of the iterations."""
    return torch.tensor(maps, dtype=torch.int32), torch.tensor(_NEWTON_SCHULZ, dtype=dtype)


class Muon(torch.optim.Optimizer):
    """Muon for the hidden maps of a model, AdamW for everything else.

    A hidden map moves along its momentum (Nesterov) with all singular values set to about 1 (Jordan et al. 2024),
    scaled to the size of AdamW's updates, so that rates of one are a first guess for the other. The maps lie in one
    flat tensor, by shape; matrices of one shape are orthogonalised in one batched call, on a CPU all in one.
    """

    def __init__(self, model: nn.Module, rate: float, weight_decay: float, momentum: float) -> None:
        hidden = hidden_maps(model)
        if not hidden:
            raise InputError("this model has no hidden maps for muon, i.e. no weights of two dimensions in `blocks`")
        hidden.sort(key=lambda parameter: parameter.shape)
        shapes = collections.Counter(parameter.shape for parameter in hidden)
        maps = {
            "params": [flatten(hidden)],
            "weight_decay": weight_decay,
            "maps": [(count, *shape[:2], math.prod(shape[2:])) for shape, count in shapes.items()],
        }
        kept = {id(parameter) for parameter in hidden}
        rest = _decayed((p for p in model.parameters() if id(p) not in kept), weight_decay)
        super().__init__([maps, *rest], {"lr": rate, "momentum": momentum})
        self._adamw = _AdamW(rest, lr=rate, betas=(ADAMW.momentum, _SQUARES), fused=True)
        self._share()

    def _share(self) -> None:
        """Give AdamW the groups and the state of this optimiser, so that rates and checkpoints live in one place."""
        self._adamw.param_groups = self.param_groups[1:]
        self._adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave."""
        super().load_state_dict(state_dict)
        self._share()

    @_without_hooks
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters."""
        self._adamw.step()
        hidden = self.param_groups[0]
        (flat,) = hidden["params"]
        if flat not in self.state:
            self.state[flat] = {"momentum": torch.zeros_like(flat)}
        average, momentum = self.state[flat]["momentum"], hidden["momentum"]
        kept, rate = 1 - hidden["lr"] * hidden["weight_decay"], _ROOT_MEAN_SQUARE * hidden["lr"]
        if native.available(flat):
            shapes, coefficients = _tables(tuple(hidden["maps"]), flat.dtype)
            native.call(
                "muon",
                flat,
                flat.grad,
                average,
                shapes,
                len(shapes),
                coefficients,
                len(coefficients),
                momentum,
                kept,
                rate,
            )
            return
        average.lerp_(flat.grad, 1 - momentum)
        update = flat.grad.lerp(average, momentum)
        flat.mul_(kept)
        sizes = [math.prod(shape) for shape in hidden["maps"]]
        for (count, rows, columns, slices), weights, part in zip(
            hidden["maps"], flat.split(sizes), update.split(sizes), strict=True
        ):
            # (maps, rows, columns, slices) -> (maps x slices, rows, columns)
            matrices = part.view(count, rows, columns, slices).permute(0, 3, 1, 2).reshape(-1, rows, columns)
            moved = orthogonalise(matrices).view(count, slices, rows, columns).permute(0, 2, 3, 1).reshape(-1)
            weights.sub_(moved, alpha=rate * max(rows, columns) ** 0.5)


_OPTIMIZERS: dict[str, Optimizer] = {}


def register(optimizer: Optimizer) -> Optimizer:
    """Make an optimiser known to every command under its name; registering a name twice is an error."""
    if optimizer.name in _OPTIMIZERS:
        raise InputError(f"an optimiser named {optimizer.name!r} is already registered")
    _OPTIMIZERS[optimizer.name] = optimizer
    return optimizer


def _muon_flops(model: nn.Module) -> float:
    return sum(p[0, 0].numel() * orthogonalise_flops(*p.shape[:2]) for p in hidden_maps(model))


ADAMW = register(Optimizer("adamw", "AdamW (Loshchilov and Hutter 2019), second beta .95", _adamw))
register(
    Optimizer(
        "muon",
        "Muon (Jordan et al. 2024) for maps between hidden channels, AdamW for the rest",
        Muon,
        momentum=0.95,
        flops=_muon_flops,
    )
)


class UnknownOptimizer(InputError):
    """No optimiser of this name is registered."""


def get_optimizer(name: str) -> Optimizer:
    """Look an optimiser up by name; raises UnknownOptimizer, which lists the known ones."""
    if name not in _OPTIMIZERS:
        raise UnknownOptimizer(f"unknown optimiser {name!r}; choose from {', '.join(_OPTIMIZERS)}")
    return _OPTIMIZERS[name]


@functools.lru_cache(maxsize=1024)
def step_flops(name: str, arm: Arm, size: Size, task: Task) -> float:
    """FLOPs of the matrix products in one step of an optimiser, whatever the batch."""
    flops = get_optimizer(name).flops
    if flops is None:
        return 0.0
    with skeletons():
        return flops(arm.build(size, task))


def optimizer_names() -> tuple[str, ...]:
    """Names of all registered optimisers."""
    return tuple(_OPTIMIZERS)


def load_optimizer_files(files: Sequence[str]) -> None:
    """Import files that register optimisers; raises InputError for one that can't be imported or registers none."""
    load_files(files, "optimizer", optimizer_names)
