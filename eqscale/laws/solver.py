"""Batched, bounded, damped Newton with exact Hessians for robust losses of scaling-law residuals.

One call minimises b problems at once: several starts of a fit, or thousands of bootstrap resamples that differ in
weights or in the observed loss. Objectives are sums over runs (never means), in the caller's scale, and stopping is
relative: SciPy's L-BFGS-B test is absolute below one, which is why the usual recipe stops early on objectives of 1e-3.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eqscale.laws.problem import Problem

Array = np.ndarray

_CHUNK = 1 << 15  # run-evaluations per block: the working arrays stay in the second-level cache


class Derivatives(NamedTuple):
    """Objective, gradient, Hessian and the positive semi-definite majoriser, stacked over problems."""

    f: Array
    g: Array
    h: Array
    majoriser: Array

    def take(self, rows: Array) -> Derivatives:
        """The given problems only."""
        return Derivatives(*(mine[rows] for mine in self))

    def put(self, rows: Array, other: Derivatives) -> None:
        """Overwrite the given problems."""
        for mine, new in zip(self, other, strict=True):
            mine[rows] = new


def derivatives(problem: Problem, theta: Array, loss: Array, weights: Array, delta: float) -> Derivatives:
    """Objective Σ w ρ(r) and its exact derivatives.

    Args:
        problem: the law, its regressors and whether residuals are logarithmic.
        theta: (b, p).
        loss: observed loss in centred units, (b, n) or (1, n).
        weights: (b, n) or (1, n).
        delta: Huber threshold, ``inf`` for least squares.
    """
    ev, is_log = problem.form.evaluate(theta, problem.features), problem.loss.is_log
    jac, value = ev.jacobian(), ev.value
    if is_log:
        r = -np.log(value / loss)
        inverse = 1.0 / value
        jac *= inverse[:, None]
    else:
        r = loss - value
    if np.isinf(delta):
        f = 0.5 * np.einsum("bm,bm->b", weights * r, r)
        psi = weights * r
        second = np.broadcast_to(weights, r.shape)
        irls = second
    else:
        a = np.abs(r)
        inside = a <= delta
        c = np.minimum(a, delta)
        f = np.einsum("bm,bm->b", weights * c, a - 0.5 * c)
        psi = weights * np.copysign(c, r)
        second = weights * inside
        irls = weights * (c / np.maximum(a, 1e-300))
        irls = np.where(a == 0, weights, irls)
    g = -(jac @ psi[..., None])[..., 0]
    transposed = jac.transpose(0, 2, 1)
    if is_log:
        h = (jac * (second + psi)[:, None]) @ transposed - ev.curvature(psi * inverse)
    else:
        h = (jac * second[:, None]) @ transposed - ev.curvature(psi)
    return Derivatives(f, g, h, (jac * irls[:, None]) @ transposed)


def _solve_positive(matrix: Array, rhs: Array) -> tuple[Array, Array]:
    """Solve stacks of symmetric systems by LDLᵀ, vectorised over the stack.

    Returns the solutions (b, p) and which matrices were safely positive definite.
    """
    m, x = matrix.copy(), rhs.copy()
    p = x.shape[1]
    good = np.ones(len(x), bool)
    for j in range(p):
        pivot = m[:, j, j]
        good &= pivot > 1e-13
        pivot = np.where(good, pivot, 1.0)
        m[:, j, j] = pivot
        if j + 1 < p:
            column = m[:, j + 1 :, j] / pivot[:, None]
            x[:, j + 1 :] -= column * x[:, j : j + 1]
            m[:, j + 1 :, j + 1 :] -= column[:, :, None] * m[:, j, None, j + 1 :]
    for j in range(p - 1, -1, -1):
        x[:, j] = (x[:, j] - np.einsum("bk,bk->b", m[:, j, j + 1 :], x[:, j + 1 :])) / m[:, j, j]
    return x, good


def covariance_of(information: Array, free: Array, variance: float = 1.0, rcond: float = 1e-14) -> Array:
    """``variance`` times the inverse of an information matrix (p, p) on the free parameters (boolean or indices), zero
    elsewhere; inverted with a unit diagonal, so that units don't matter.
    """
    out = np.zeros_like(information)
    index = np.ix_(free, free)
    scale = 1.0 / np.sqrt(np.maximum(np.diag(information)[free], 1e-290))
    inverse = np.linalg.pinv(information[index] * np.outer(scale, scale), rcond=rcond, hermitian=True)
    out[index] = variance * inverse * np.outer(scale, scale)
    return out


def _damped_step(d: Derivatives, g: Array, held: Array, damping: Array) -> Array:
    """Newton step with ``held`` components at rest; by the majoriser where the Hessian is not positive."""
    eye = np.eye(g.shape[1])
    diagonal = np.einsum("bii->bi", d.majoriser)
    scale = np.where(held, 1.0, 1.0 / np.sqrt(np.maximum(diagonal, 1e-290)))
    outer = scale[:, :, None] * scale[:, None, :]
    mask = held[:, :, None] | held[:, None, :]
    ridge = damping[:, None, None] * eye
    slope = np.where(held, 0.0, g * scale)
    step, good = _solve_positive(np.where(mask, eye, d.h * outer + ridge), -slope)
    if not good.all():
        bad = np.flatnonzero(~good)
        soft = np.where(mask[bad], eye, d.majoriser[bad] * outer[bad] + ridge[bad] + 1e-10 * eye)
        step[bad] = _solve_positive(soft, -slope[bad])[0]
    return step * scale


def minimise(
    problem: Problem,
    start: Array,
    *,
    loss: Array | None = None,
    weights: Array | None = None,
    delta: float | None = None,
    tolerance: float = 1e-14,
    iterations: int = 150,
) -> tuple[Array, Array, Array]:
    """Minimise from b starts, or b variants of a problem.

    Args:
        problem: the law, its runs and the box of its parameters.
        start: (b, p).
        loss: observed loss of each variant in centred units, (b, n); the problem's own if None.
        weights: of each variant, (b, n); the problem's own if None.
        delta: Huber threshold in centred units; that of the problem's loss if None.
        tolerance: a problem is done when a step both promises and brings a relative decrease below this.
        iterations: most steps.

    Returns:
        Parameters (b, p), objectives (b,), and whether each stopped by the criterion.
    """
    shape = (len(start), problem.n)
    loss = np.broadcast_to(problem.scaled_loss if loss is None else loss, shape)
    weights = np.broadcast_to(problem.weights if weights is None else weights, shape)
    delta = problem.threshold if delta is None else delta
    size = max(1, _CHUNK // problem.n)
    parts = []
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for i in range(0, max(len(start), 1), size):
            rows = slice(i, i + size)
            newton = _Newton(problem, start[rows], loss[rows], weights[rows], delta)
            parts.append(newton.run(tolerance, iterations))
    return tuple(np.concatenate(p) for p in zip(*parts, strict=True))  # type: ignore[return-value]


class _Newton:
    """The state of a batch of b minimisations."""

    def __init__(self, problem: Problem, start: Array, loss: Array, weights: Array, delta: float):
        self.problem, self.loss, self.weights, self.delta = problem, loss, weights, delta
        b = len(start)
        self.theta = np.clip(start, problem.lower, problem.upper)
        self.now = derivatives(problem, self.theta, loss, weights, delta)
        self.damping = np.full(b, 1e-3)
        self.growth = np.full(b, 4.0)
        self.quiet = np.zeros(b, int)
        # below this an objective is rounding error of the residuals
        self.rounding = weights.sum(1) * (1e-34 if problem.loss.is_log else 0.0)
        # longest step: one e-fold of a prefactor, half a unit of an exponent; E within its own scale
        form = problem.form
        self.reach = np.array([2.0 if n in form.log_names else 0.5 for n in form.names])

    def run(self, tolerance: float, iterations: int) -> tuple[Array, Array, Array]:
        """Iterate until all are done or stuck: parameters, objectives and which are done."""
        done = np.zeros(len(self.theta), bool)
        live = np.arange(len(self.theta))
        for _ in range(iterations):
            if not live.size:
                break
            self._advance(live, tolerance)
            done[live] = self.quiet[live] >= 2
            live = live[~(done[live] | (self.damping[live] > 1e10))]
        return self.theta, self.now.f, done

    def _advance(self, live: Array, tolerance: float) -> None:
        """One step of the live problems, taken where it lowers the objective."""
        d = self.now.take(live)
        new, step = self._propose(live, d)
        promised = -(np.einsum("bi,bi->b", d.g, step) + 0.5 * np.einsum("bi,bij,bj->b", step, d.h, step))
        trial = derivatives(self.problem, new, self.loss[live], self.weights[live], self.delta)
        gain = d.f - trial.f
        accept = gain > 0
        least = tolerance * (d.f + self.rounding[live])
        settled = (np.abs(promised) <= least) & ((np.abs(gain) <= least) | ~accept)
        settled |= (np.abs(step).max(1) < 1e-15) | (d.f <= self.rounding[live])
        self.quiet[live] = np.where(settled, self.quiet[live] + 1, 0)
        rows = live[accept]
        self.theta[rows] = new[accept]
        self.now.put(rows, trial.take(np.flatnonzero(accept)))
        ratio = np.where(promised > 0, gain / np.where(promised > 0, promised, 1.0), 0.0)
        factor = np.where(ratio > 0.75, 0.1, np.where(ratio > 0.25, 0.5, 2.0))
        damping, growth = self.damping[live], self.growth[live]
        self.damping[live] = np.where(accept, np.maximum(damping * factor, 1e-15), damping * growth + 1e-12)
        self.growth[live] = np.where(accept, 4.0, growth * 2.0)

    def _propose(self, live: Array, d: Derivatives) -> tuple[Array, Array]:
        """New parameters within the box, and the steps that lead there."""
        lower, upper, t = self.problem.lower, self.problem.upper, self.theta[live]
        held = (lower == upper) | ((t <= lower) & (d.g > 0)) | ((t >= upper) & (d.g < 0))
        step = _damped_step(d, d.g, held, self.damping[live])
        beyond = ~held & ((t + step < lower) | (t + step > upper))
        rows = np.flatnonzero(beyond.any(1))
        if rows.size:
            # those go to their bound and the others answer to that; clipping alone would stall at a face
            part, over = d.take(rows), beyond[rows]
            to_bound = np.where(over, np.clip(t[rows] + step[rows], lower, upper) - t[rows], 0.0)
            shifted = part.g + np.einsum("bij,bj->bi", part.h, to_bound)
            answer = _damped_step(part, shifted, held[rows] | over, self.damping[live[rows]])
            step[rows] = np.where(over, to_bound, answer)
        longest = np.max(np.abs(step) / self.reach, axis=1, keepdims=True)
        step /= np.maximum(longest, 1.0)
        new = np.clip(t + step, lower, upper)
        return new, new - t
