"""Least absolute deviations: from a smoothed solution to the vertex of the exact one, and how to certify it."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog, lsq_linear

from eqscale.laws.forms.base import GONE
from eqscale.laws.problem import Problem
from eqscale.laws.solver import minimise

Array = np.ndarray


def polish(problem: Problem, theta: Array) -> tuple[Array, Array]:
    """Exact minima near smoothed ones (k, p), with Σ w |r| of each."""
    vertices, f = (np.array(v) for v in zip(*(_to_vertex(problem, t) for t in theta), strict=True))
    # an optimum that bends away from its vertex is smooth along the bend, where Newton applies again
    smooth = minimise(problem, vertices, delta=1e-6, tolerance=1e-12)[0]
    smooth = minimise(problem, smooth, tolerance=1e-15, iterations=500)[0]
    value = np.sum(problem.weights * np.abs(problem.residuals_at(smooth)), axis=1)
    return np.where((value < f)[:, None], smooth, vertices), np.minimum(f, value)


def _to_vertex(problem: Problem, theta: Array) -> tuple[Array, float]:
    """Successive linear programs in a shrinking box: parameters and Σ w |r|.

    The optimum is usually a vertex, where as many residuals vanish as there are free parameters; there the
    linear programs converge quadratically.
    """

    def value(t: Array) -> float:
        return float(np.sum(problem.weights * np.abs(problem.residuals_at(t[None])[0])))

    lower, upper = problem.lower, problem.upper
    free = np.flatnonzero((lower < upper) & (theta > GONE + 10))
    used = np.flatnonzero(problem.weights > 0)
    best, objective = theta.copy(), value(theta)
    radius = np.inf
    for _ in range(60):
        jac = problem.jacobian_at(best)[np.ix_(free, used)]
        r = problem.residuals_at(best[None])[0][used]
        radius = min(radius, float(np.linalg.norm(r)))
        room = (lower - best)[free], (upper - best)[free]
        step, promise = _linear_step(jac, r, problem.weights[used], room, radius)
        if step is None:
            break
        new = best.copy()
        new[free] += step
        new = np.clip(new, lower, upper)
        reached, promised = value(new), objective + promise
        if reached < objective:
            gained = objective - reached
            radius *= 4.0 if gained > 0.5 * promised else 1.0
            best, objective = new, reached
        else:
            radius *= 0.2
        if promised <= 1e-13 * objective or radius < 1e-13:
            break
    return best, objective


def _linear_step(
    jac: Array, r: Array, weights: Array, room: tuple[Array, Array], radius: float
) -> tuple[Array | None, float]:
    """Step (k,) that minimises Σ w |r − Jᵀ step| within ``room`` and a radius, and minus that sum."""
    k = len(jac)
    # coordinates z in which the runs see every direction equally: J dx = U z
    scale = 1.0 / np.maximum(np.linalg.norm(jac, axis=1), 1e-300)
    u, spectrum, vt = np.linalg.svd((jac * scale[:, None]).T, full_matrices=False)
    back = scale[:, None] * vt.T / np.maximum(spectrum, 1e-9)  # dx = back @ z
    limits, space = [np.eye(k), -np.eye(k)], [np.full(2 * k, radius)]
    for sign, bound in ((1, room[1]), (-1, room[0])):
        finite = np.flatnonzero(np.isfinite(bound))
        limits.append(sign * back[finite])
        space.append(sign * bound[finite])
    walls, most = np.vstack(limits), np.concatenate(space)
    # min Σ w |r − U z| with walls z ≤ most by its dual, which has k rows however many the runs;
    # z are the multipliers of those rows
    low = np.concatenate([-weights, np.zeros(len(most))])
    high = np.concatenate([weights, np.full(len(most), np.inf)])
    found = linprog(
        np.concatenate([-r, most]), A_eq=np.hstack([-u.T, walls.T]), b_eq=np.zeros(k),
        bounds=np.column_stack([low, high]), method="highs",
    )  # fmt: skip
    return (back @ found.eqlin.marginals, found.fun) if found.status == 0 else (None, 0.0)


def subgradient_excess(residuals: Array, jacobian: Array, weights: Array) -> float:
    """How far 0 is from the subdifferential of Σ w|r|: multipliers of the zero residuals must lie in ±w.

    Args:
        residuals, weights: (n,).
        jacobian: derivatives of the log loss by the free parameters, (k, n).
    """
    zero = np.abs(residuals) <= 1e-8
    pull = jacobian[:, ~zero] @ (weights * np.sign(residuals))[~zero]
    scale = 1.0 / np.sqrt(np.sum(jacobian**2, axis=1) * len(residuals))
    if not zero.any():
        return float(np.max(np.abs(pull) * scale))
    limit = np.maximum(weights[zero], 1e-12)
    found = lsq_linear(jacobian[:, zero] * scale[:, None], -pull * scale, bounds=(-limit, limit), tol=1e-12)
    return float(np.max(np.abs(found.fun)))
