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
    step = 1e-30
    return np.stack([value(theta + 1j * step * unit, x).imag / step for unit in np.eye(theta.shape[1])], 1)


def curvature(value: Value, theta: Array, x: Any, q: Array) -> Array:
    """Σ over runs of q (b, m) times the second derivatives, (b, p, p), by differences of exact derivatives."""
    step = 1e-6

    def slope(shift: Array) -> Array:
        return np.einsum("bpm,bm->bp", jacobian(value, theta + shift, x), q)

    rows = [(slope(unit) - slope(-unit)) / (2 * step) for unit in step * np.eye(theta.shape[1])]
    h = np.stack(rows, 1)
    return 0.5 * (h + h.transpose(0, 2, 1))


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
    width = grid[1] - grid[0]
    left, right = best - width, best + width
    step = 1e-4  # smaller ones drown in rounding
    for _ in range(40):
        middle = 0.5 * (left + right)
        falling = along(middle + step) < along(middle - step)
        left, right = np.where(falling, middle, left), np.where(falling, right, middle)
    return np.where(inside, 0.5 * (left + right), np.nan)


def cheapest(form: Form, c: Coefficients, cost: CostModel, loss: Array) -> tuple[Array, Array, Array]:
    """Bisection of the optimal loss over the cost. See ``Form.cheapest``."""
    shape = np.broadcast_shapes((len(c[form.names[0]]), 1), loss.shape)
    left, right = np.full(shape, SPAN[0]), np.full(shape, 2 * SPAN[1])
    for _ in range(48):
        middle = 0.5 * (left + right)
        sizes = [form.optimal_log_n(c, cost, middle), *(np.full(shape, edge) for edge in SPAN)]
        reached = [form.loss_at(c, {"N": n, "D": cost.log_tokens(n, middle)}) for n in sizes]
        worse = ~(np.fmin.reduce(reached) <= loss)  # an optimum beyond the span is as good as at its edge
        left, right = np.where(worse, middle, left), np.where(worse, right, middle)
    log_c = 0.5 * (left + right)
    log_n = form.optimal_log_n(c, cost, log_c)
    known = form.is_whole(c)[:, None] & ~np.isnan(loss)
    reachable = loss > form.lowest(c)[:, None]
    found = (np.where(reachable, v, np.inf) for v in (log_c, log_n, cost.log_tokens(log_n, log_c)))
    log_c, log_n, log_d = (np.where(known, v, np.nan) for v in found)
    return log_c, log_n, log_d
