"""The global minimum of a problem: starts from a profile, a path of loss functions, exact Newton, and the faces."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from eqscale.laws import lad
from eqscale.laws.forms.base import GONE
from eqscale.laws.problem import Problem
from eqscale.laws.solver import minimise

Array = np.ndarray

FEW = 100
"""Runs up to which more points are followed to the end: few runs have more basins."""
_ROUNDING = 1e-29  # objective per run below which residuals are rounding errors
_VANISHED = 1e-9  # a term below this fraction of every loss has left the law
_PATH = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


@dataclass(frozen=True)
class Solution:
    """The lowest minimum found, and what else was."""

    theta: Array
    """(p,)"""
    starts: int
    minima: list[float]
    """Objectives of the distinct local minima, ascending."""


def solve(problem: Problem, starts: Array | None = None) -> Solution:
    """Find the lowest minimum of a problem; from ``starts`` (k, p) or those of its form."""
    starts = _starts(problem) if starts is None else np.clip(starts, problem.lower, problem.upper)
    theta, f = _with_faces(problem, *_follow(problem, starts))
    if problem.loss.kind == "lad":
        theta, f = lad.polish(problem, theta[np.argsort(f)[:3]])
    # of equal minima (noise-free data) the one with the fewest terms
    equal = f <= f.min() * (1 + 1e-12) + _ROUNDING * problem.n
    best = int(np.argmin(np.where(equal, -1.0 - np.sum(theta < GONE + 10, axis=1), f)))
    found = _refine(problem, _snap(problem, theta[best], f[best]))
    return Solution(found, len(starts), _distinct(f * problem.residual_unit**2))


def _starts(problem: Problem) -> Array:
    """Starting points within the box, (k, p)."""
    form, loss = problem.form, problem.loss
    x, y, w = problem.features, problem.scaled_loss, problem.weights
    lower, upper = problem.lower, problem.upper
    pinned = {int(i): float(lower[i]) for i in np.flatnonzero(lower == upper)}
    w = w if loss.is_log else w * y**2  # profiles are of relative residuals
    starts = form.starts(x, y, w, pinned)
    if np.isfinite(loss.threshold):
        # outliers can hide a basin from least squares: profile again with L1 weights around its best
        r = np.abs(problem.residuals_at(np.clip(starts[:1], lower, upper))[0])
        w1 = w / np.maximum(r, max(0.1 * np.median(r), 1e-12))
        starts = np.concatenate([starts, form.starts(x, y, w1 / w1.max(), pinned)])
    return np.clip(starts, lower, upper)


def _follow(problem: Problem, theta: Array) -> tuple[Array, Array]:
    """Minima (k, p) that starting points lead to, with their objectives (k,)."""
    few, loss = problem.n <= FEW, problem.loss
    # the starts solve least squares already; going through it again would merge their basins
    for delta in _PATH:
        if delta > problem.threshold:
            effort = (1e-7, 150) if loss.kind == "lad" else (1e-4, 25)
            theta, f, _ = minimise(problem, theta, delta=delta, tolerance=effort[0], iterations=effort[1])
            theta = _best_distinct(theta, f, 12 if few else 6)
    theta, f, _ = minimise(problem, theta, tolerance=1e-7, iterations=50)
    folded = problem.form.folded(theta)
    folded = folded[((problem.lower <= folded) & (folded <= problem.upper)).all(1)]
    if len(folded):
        folded, g, _ = minimise(problem, folded, tolerance=1e-7, iterations=50)
        theta, f = np.concatenate([theta, folded]), np.concatenate([f, g])
    theta, f, done = minimise(problem, _best_distinct(theta, f, 8 if few else 4), tolerance=1e-15)
    late = ~done & (f <= f.min() * 1.001)
    if late.any():
        theta[late], f[late], _ = minimise(problem, theta[late], tolerance=1e-15, iterations=2000)
    return theta, f


def _best_distinct(theta: Array, f: Array, most: int) -> Array:
    """The best few of the points reached so far, one for each basin."""
    order = np.argsort(f)
    kept: list[int] = []
    for k in order:
        if len(kept) == most:
            break
        if all(abs(f[k] - f[j]) > 1e-3 * f[j] or np.abs(theta[k] - theta[j]).max() > 0.05 for j in kept):
            kept.append(int(k))
    return theta[kept]


def _distinct(f: Array) -> list[float]:
    """Objectives of the distinct minima, ascending."""
    out: list[float] = []
    for v in np.sort(f):
        if not out or v > out[-1] * (1 + 1e-7) + 1e-30:
            out.append(float(v))
    return out


def _with_faces(problem: Problem, theta: Array, f: Array) -> tuple[Array, Array]:
    """Replace a term that fades away by its face (prefactor exactly 0), if the face is at least as good."""
    theta, f = theta.copy(), f.copy()
    held = problem.lower == problem.upper
    for k in np.flatnonzero(f <= 1.2 * f.min() + _ROUNDING * problem.n):
        for prefactor, (exponent, _) in problem.form.powers.items():
            i, j = problem.index(prefactor), problem.index(exponent)
            if held[i]:
                continue
            without = np.where(held, theta[k], problem.form.without(theta[k], prefactor))
            full, gone = problem.predicted(np.stack([theta[k], without]))
            if np.any(np.abs(full - gone) > _VANISHED * gone):
                continue
            lower, upper = problem.lower.copy(), problem.upper.copy()
            lower[i] = upper[i] = GONE
            lower[j] = upper[j] = theta[k, j]
            face = replace(problem, lower=lower, upper=upper)
            t, g, _ = minimise(face, without[None], tolerance=1e-15, iterations=1000)
            if g[0] <= f[k] * (1 + 1e-9) + 1e-30:
                theta[k], f[k] = t[0], g[0]
    return theta, f


def _snap(problem: Problem, theta: Array, f: float) -> Array:
    """Put parameters within rounding of a bound on it: the slope there would look like an unfinished fit."""
    at_low, at_high = (np.abs(theta - bound) < 1e-9 for bound in (problem.lower, problem.upper))
    snapped = np.where(at_low, problem.lower, np.where(at_high, problem.upper, theta))
    if (snapped == theta).all():
        return theta
    steps = 0 if problem.loss.kind == "lad" else 150
    t, *_ = minimise(problem, snapped[None], tolerance=1e-15, iterations=steps)
    objective = problem.loss.rho(problem.residuals_at(t)[0]) @ problem.weights
    return t[0] if objective <= f * (1 + 1e-12) else theta


def _refine(problem: Problem, theta: Array) -> Array:
    """Last digits of a nearly exact fit: Gauss–Newton by QR while residuals are tiny, so that the condition
    number enters once and not squared.
    """
    r = problem.residuals_at(theta[None])[0]
    exact = 1e-7 if problem.loss.is_log else 1e-7 * np.max(problem.scaled_loss)
    if np.max(np.abs(r)) > min(exact, np.inf if problem.loss.kind == "lad" else problem.threshold):
        return theta
    free = (theta > problem.lower) & (theta < problem.upper) & (theta > GONE + 10)
    root = np.sqrt(problem.weights)
    best, smallest = theta, np.linalg.norm(root * r)
    for _ in range(8):
        jac = problem.jacobian_at(best)[free]
        r = problem.residuals_at(best[None])[0]
        scale = 1.0 / np.maximum(np.linalg.norm(jac * root, axis=1), 1e-300)
        step, *_ = np.linalg.lstsq((jac * root * scale[:, None]).T, root * r, rcond=1e-15)
        new = best.copy()
        new[free] += step * scale
        new = np.clip(new, problem.lower, problem.upper)
        norm = np.linalg.norm(root * problem.residuals_at(new[None])[0])
        if not norm < smallest:
            break
        best, smallest = new, norm
    return best
