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
    """Σ over runs of q (b, m) times the second derivatives, (b, p, p), by differences of values."""
    step, (b, p) = 1e-4, theta.shape
    units = step * np.vstack([np.zeros((1, p)), np.eye(p)])
    pairs = np.array([(i, j) for i in range(p + 1) for j in range(max(i, 1), p + 1)])  # 0 is no step

    def total(shifts: Array) -> Array:
        """q times the values at each shift from ``theta``, summed over runs: (b, k)."""
        values = value((theta[:, None] + shifts).reshape(-1, p), x).reshape(b, len(shifts), -1)
        return np.einsum("bkm,bm->bk", values, q)

    shifts = units[pairs].sum(1)
    both = np.zeros((b, p + 1, p + 1))
    both[:, pairs[:, 0], pairs[:, 1]] = both[:, pairs[:, 1], pairs[:, 0]] = total(shifts) + total(-shifts)
    single = both[:, 0, 1:]
    middle = 2 * total(units[:1])[:, :, None]
    return (both[:, 1:, 1:] - single[:, :, None] - single[:, None, :] + middle) / (2 * step**2)


def bisect(rising: Callable[[Array], Array], left: Array, right: Array, steps: int) -> Array:
    """Where ``rising`` turns from true to false between ``left`` and ``right``, element by element."""
    for _ in range(steps):
        middle = 0.5 * (left + right)
        further = rising(middle)
        left, right = np.where(further, middle, left), np.where(further, right, middle)
    return 0.5 * (left + right)


def root(falling: Callable[[Array], tuple[Array, Array]], left: Array, right: Array) -> Array:
    """Where ``falling``, which gives value and slope, is zero between ``left`` and ``right``, element by element.

    Newton's steps, and halves of the bracket where they leave it.
    """
    at = 0.5 * (left + right)
    for _ in range(50):
        value, slope = falling(at)
        left, right = np.where(value > 0, at, left), np.where(value > 0, right, at)
        newton = at - value / slope
        last, at = at, np.where((newton >= left) & (newton <= right), newton, 0.5 * (left + right))
        if not (np.abs(at - last) > 1e-13 * np.abs(at)).any():
            break
    return at


def optimal_log_n(form: Form, c: Coefficients, cost: CostModel, log_c: Array) -> Array:
    """log N of the lowest loss at each cost (b, k): a grid, then Newton in a bracket. See ``Form.optimal_log_n``."""

    def along(log_n: Array) -> Array:
        return form.loss_at(c, {"N": log_n, "D": cost.log_tokens(log_n, log_c)})

    shape = np.broadcast_shapes((len(c[form.names[0]]), 1), log_c.shape)
    grid = np.linspace(*SPAN, 26)
    best, lowest = np.full(shape, np.nan), np.full(shape, np.inf)
    for log_n in grid:
        loss = along(np.full(shape, log_n))
        better = loss < lowest
        best, lowest = np.where(better, log_n, best), np.where(better, loss, lowest)
    inside = form.is_whole(c)[:, None] & (best > grid[0]) & (best < grid[-1])
    width, step = grid[1] - grid[0], 3e-4  # smaller steps drown in rounding
    left, right, at = best - width, best + width, best
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for _ in range(40):
            low, middle, high = along(at - step), along(at), along(at + step)
            rises = high > low
            left, right = np.where(rises, left, at), np.where(rises, at, right)
            newton = at - 0.5 * step * (high - low) / (high - 2 * middle + low)
            last, at = at, np.where((newton > left) & (newton < right), newton, 0.5 * (left + right))
            if not (np.abs(at - last) > 1e-9)[inside].any():
                break
    return np.where(inside, at, np.nan)


def cheapest(form: Form, c: Coefficients, cost: CostModel, loss: Array) -> tuple[Array, Array, Array]:
    """The root of the optimal loss over the cost. See ``Form.cheapest``.

    Secants, within a bracket, of the logarithm of what the optimal loss has above the floor: it is nearly linear in
    that of the cost.
    """
    shape = np.broadcast_shapes((len(c[form.names[0]]), 1), loss.shape)
    edges = [np.full(shape, edge) for edge in SPAN]
    floor = form.lowest(c)[:, None]

    def above(log_c: Array) -> Array:
        sizes = [form.optimal_log_n(c, cost, log_c), *edges]  # an optimum beyond the span is as good as at its edge
        reached = [form.loss_at(c, {"N": n, "D": cost.log_tokens(n, log_c)}) for n in sizes]
        return np.log(np.fmin.reduce(reached) - floor) - np.log(loss - floor)

    reachable = loss > floor
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        left, right = edges[0], 2 * edges[1]
        last, at = left, 0.5 * (left + right)
        value_last = above(last)
        for _ in range(48):
            value = above(at)
            too_cheap = ~(value <= 0)
            left, right = np.where(too_cheap, at, left), np.where(too_cheap, right, at)
            secant = at - value * (at - last) / (value - value_last)
            last, value_last = at, value
            at = np.where((secant > left) & (secant < right), secant, 0.5 * (left + right))
            if not (np.abs(at - last) > 1e-9)[reachable].any():
                break
    log_c = at
    log_n = form.optimal_log_n(c, cost, log_c)
    known = form.is_whole(c)[:, None] & ~np.isnan(loss)
    found = (np.where(reachable, v, np.inf) for v in (log_c, log_n, cost.log_tokens(log_n, log_c)))
    log_c, log_n, log_d = (np.where(known, v, np.nan) for v in found)
    return log_c, log_n, log_d
