"""Batched, bounded, damped Newton with exact Hessians for robust losses of scaling-law residuals.

One call minimises b problems at once: several starts of a fit, or thousands of bootstrap resamples that
differ in weights or in the observed loss. Objectives are sums over runs (never means), in the caller's scale,
and stopping is relative: SciPy's L-BFGS-B test is absolute below one, which is why the usual recipe stops
early on objectives of 1e-3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eqscale.laws.forms import Features, Form

Array = np.ndarray

LOSSES = ("log-huber", "log-lsq", "lsq", "lad")
_LAD_DELTA = 1e-9
_CHUNK = 1 << 15  # run-evaluations per block: the working arrays stay in the second-level cache


@dataclass(frozen=True)
class Loss:
    """The objective: sum over runs of weight × ρ(residual).

    ``log-huber``: ρ of log L − log L̂ is r²/2 up to |r| = delta and delta (|r| − delta/2) beyond;
    ``log-lsq``: r²/2 of the same residual; ``lad``: |r| of the same; ``lsq``: (L − L̂)²/2.
    """

    kind: str = "log-huber"
    delta: float = 1e-3

    @property
    def is_log(self) -> bool:
        """Whether residuals are differences of logarithms."""
        return self.kind != "lsq"

    @property
    def threshold(self) -> float:
        """Residual at which the loss turns from quadratic to linear while minimising."""
        return {"log-huber": self.delta, "lad": _LAD_DELTA}.get(self.kind, np.inf)

    def rho(self, r: Array) -> Array:
        """The loss of residuals as reported: exact, without the smoothing that ``lad`` is minimised with."""
        if self.kind == "lad":
            return np.abs(r)
        return _huber(r, self.threshold)


def _huber(r: Array, delta: float) -> Array:
    if np.isinf(delta):
        return 0.5 * r * r
    a = np.minimum(np.abs(r), delta)
    return a * (np.abs(r) - 0.5 * a)


@dataclass
class Derivatives:
    """Objective, gradient, Hessian and the positive semi-definite majoriser, stacked over problems."""

    f: Array
    g: Array
    h: Array
    majoriser: Array

    def take(self, rows: Array) -> Derivatives:
        """The given problems only."""
        return Derivatives(self.f[rows], self.g[rows], self.h[rows], self.majoriser[rows])

    def put(self, rows: Array, other: Derivatives) -> None:
        """Overwrite the given problems."""
        self.f[rows], self.g[rows], self.h[rows], self.majoriser[rows] = (
            other.f,
            other.g,
            other.h,
            other.majoriser,
        )


def residuals(form: Form, theta: Array, x: Features, loss: Array, is_log: bool) -> Array:
    """log L − log L̂, or L − L̂, in centred units: (b, m)."""
    value = form.evaluate(theta, x, curvature=False).value
    # log of a ratio near one keeps full absolute precision, a difference of two logarithms does not
    with np.errstate(divide="ignore"):
        return -np.log(value / loss) if is_log else loss - value


def derivatives(
    form: Form, theta: Array, x: Features, loss: Array, weights: Array, delta: float, is_log: bool
) -> Derivatives:
    """Objective Σ w ρ(r) and its exact derivatives.

    Args:
        theta: (b, p).
        loss: observed loss in centred units, (b, m) or (1, m).
        weights: (b, m) or (1, m).
        delta: Huber threshold, ``inf`` for least squares.
        is_log: residuals of logarithms.
    """
    ev = form.evaluate(theta, x)
    jac, value = ev.jacobian, ev.value
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
    form: Form,
    start: Array,
    x: Features,
    loss: Array,
    weights: Array,
    delta: float,
    is_log: bool,
    lower: Array,
    upper: Array,
    *,
    tolerance: float = 1e-14,
    iterations: int = 150,
) -> tuple[Array, Array, Array]:
    """Minimise b problems from b starts.

    Args:
        start: (b, p).
        loss, weights: (b, m) or (1, m), loss in centred units.
        lower, upper: (p,) bounds; equal bounds fix a parameter.
        tolerance: a problem is done when a step promises and brings less than this relative decrease.

    Returns:
        Parameters (b, p), objectives (b,), and whether each stopped by the criterion.
    """
    b, m = start.shape[0], loss.shape[1]
    size = max(1, _CHUNK // m)
    if b > size:
        parts = []
        for i in range(0, b, size):
            block = slice(i, i + size)
            parts.append(
                minimise(
                    form,
                    start[block],
                    x,
                    loss if len(loss) == 1 else loss[block],
                    weights if len(weights) == 1 else weights[block],
                    delta,
                    is_log,
                    lower,
                    upper,
                    tolerance=tolerance,
                    iterations=iterations,
                )
            )
        return tuple(np.concatenate(p) for p in zip(*parts, strict=True))  # type: ignore[return-value]

    theta = np.clip(start, lower, upper)
    loss = np.broadcast_to(loss, (b, m))
    weights = np.broadcast_to(weights, (b, m))
    damping = np.full(b, 1e-3)
    growth = np.full(b, 4.0)
    quiet = np.zeros(b, int)
    done = np.zeros(b, bool)
    # below this an objective is rounding error of the residuals
    floor = weights.sum(1) * (0.0 if not is_log else 1e-34)
    fixed = lower == upper
    # longest step: one e-fold of a prefactor, half a unit of an exponent; E within its own scale
    reach = np.array([2.0 if n in form.log_names else 0.5 for n in form.names])
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        now = derivatives(form, theta, x, loss, weights, delta, is_log)
        live = np.arange(b)
        for _ in range(iterations):
            if not live.size:
                break
            t, d = theta[live], now.take(live)
            held = fixed | ((t <= lower) & (d.g > 0)) | ((t >= upper) & (d.g < 0))
            step = _damped_step(d, d.g, held, damping[live])
            beyond = ~held & ((t + step < lower) | (t + step > upper))
            rows = np.flatnonzero(beyond.any(1))
            if rows.size:
                # those go to their bound and the others answer to that; clipping alone would stall at a face
                part, over = d.take(rows), beyond[rows]
                to_bound = np.where(over, np.clip(t[rows] + step[rows], lower, upper) - t[rows], 0.0)
                shifted = part.g + np.einsum("bij,bj->bi", part.h, to_bound)
                answer = _damped_step(part, shifted, held[rows] | over, damping[live[rows]])
                step[rows] = np.where(over, to_bound, answer)
            longest = np.max(np.abs(step) / reach, axis=1, keepdims=True)
            step /= np.maximum(longest, 1.0)
            new = np.clip(t + step, lower, upper)
            step = new - t
            promised = -(np.einsum("bi,bi->b", d.g, step) + 0.5 * np.einsum("bi,bij,bj->b", step, d.h, step))
            trial = derivatives(form, new, x, loss[live], weights[live], delta, is_log)
            gain = d.f - trial.f
            accept = gain > 0
            small = np.abs(promised) <= tolerance * (d.f + floor[live])
            tiny = np.abs(gain) <= tolerance * (d.f + floor[live])
            settled = (small & (tiny | ~accept)) | (np.abs(step).max(1) < 1e-15) | (d.f <= floor[live])
            quiet[live] = np.where(settled, quiet[live] + 1, 0)
            rows = live[accept]
            theta[rows] = new[accept]
            now.put(rows, trial.take(np.flatnonzero(accept)))
            ratio = np.where(promised > 0, gain / np.where(promised > 0, promised, 1.0), 0.0)
            factor = np.where(ratio > 0.75, 0.1, np.where(ratio > 0.25, 0.5, 2.0))
            damping[live] = np.where(
                accept, np.maximum(damping[live] * factor, 1e-15), damping[live] * growth[live] + 1e-12
            )
            growth[live] = np.where(accept, 4.0, growth[live] * 2.0)
            stuck = damping[live] > 1e10
            done[live] = quiet[live] >= 2
            live = live[~(done[live] | stuck)]
    return theta, now.f, done
