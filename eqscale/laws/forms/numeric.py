"""Derivatives and optima of a law of which only the value is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from eqscale.laws.cost import CostModel
    from eqscale.laws.forms.base import Coefficients, Form

Array = np.ndarray
Value = Callable[[Array, Any], Array]
"""Internal parameters (b, p) and features to losses (b, m)."""

SPAN = (-60.0, 140.0)
"""log N within which optima are looked for."""


def jacobian(value: Value, theta: Array, x: Any) -> Array:
    """Derivatives by the parameters, (b, p, m), by complex steps: exact, if ``value`` takes complex numbers."""
    b, p = theta.shape
    step = 1e-30
    stepped = theta[:, None] + 1j * step * np.eye(p)
    return (value(stepped.reshape(b * p, p), x).imag / step).reshape(b, p, -1)


def curvature(value: Value, theta: Array, x: Any, q: Array) -> Array:
    """Σ over runs of q (b, m) times the second derivatives, (b, p, p), by differences of exact derivatives."""
    step, b = 1e-6, len(theta)
    h = np.empty((b, theta.shape[1], theta.shape[1]))
    for i, unit in enumerate(step * np.eye(theta.shape[1])):
        jac = jacobian(value, np.concatenate([theta + unit, theta - unit]), x)
        h[:, i] = np.einsum("bpm,bm->bp", jac[:b] - jac[b:], q) / (2 * step)
    return 0.5 * (h + h.transpose(0, 2, 1))


def bisect(rising: Callable[[Array], Array], left: Array, right: Array, steps: int) -> Array:
    """Where ``rising`` turns from true to false between ``left`` and ``right``, element by element."""
    for _ in range(steps):
        middle = 0.5 * (left + right)
        further = rising(middle)
        left, right = np.where(further, middle, left), np.where(further, right, middle)
    return 0.5 * (left + right)


def optimal_log_n(form: Form, c: Coefficients, cost: CostModel, log_c: Array) -> Array:
    """log N of the lowest loss at each cost (b, k): a grid, then bisection of the slope. See ``Form.optimal_log_n``."""

    def along(log_n: Array) -> Array:
        return form.loss_at(c, {"N": log_n, "D": cost.log_tokens(log_n, log_c)})

    shape = np.broadcast_shapes((len(c[form.names[0]]), 1), log_c.shape)
    grid = np.linspace(*SPAN, 51)
    best, lowest = np.full(shape, np.nan), np.full(shape, np.inf)
    for log_n in grid:
        loss = along(np.full(shape, log_n))
        better = loss < lowest
        best, lowest = np.where(better, log_n, best), np.where(better, loss, lowest)
    inside = form.is_whole(c)[:, None] & (best > grid[0]) & (best < grid[-1])
    width, step = grid[1] - grid[0], 1e-4  # smaller steps drown in rounding
    found = bisect(lambda n: along(n + step) < along(n - step), best - width, best + width, 40)
    return np.where(inside, found, np.nan)


def cheapest(form: Form, c: Coefficients, cost: CostModel, loss: Array) -> tuple[Array, Array, Array]:
    """Bisection of the optimal loss over the cost. See ``Form.cheapest``."""
    shape = np.broadcast_shapes((len(c[form.names[0]]), 1), loss.shape)
    edges = [np.full(shape, edge) for edge in SPAN]

    def too_cheap(log_c: Array) -> Array:
        sizes = [form.optimal_log_n(c, cost, log_c), *edges]  # an optimum beyond the span is as good as at its edge
        reached = [form.loss_at(c, {"N": n, "D": cost.log_tokens(n, log_c)}) for n in sizes]
        return ~(np.fmin.reduce(reached) <= loss)

    log_c = bisect(too_cheap, edges[0], 2 * edges[1], 48)
    log_n = form.optimal_log_n(c, cost, log_c)
    known = form.is_whole(c)[:, None] & ~np.isnan(loss)
    reachable = loss > form.lowest(c)[:, None]
    found = (np.where(reachable, v, np.inf) for v in (log_c, log_n, cost.log_tokens(log_n, log_c)))
    log_c, log_n, log_d = (np.where(known, v, np.nan) for v in found)
    return log_c, log_n, log_d
