"""Variable projection: for given exponents the coefficients E, A, B ≥ 0 solve a linear problem exactly.

Golub & Pereyra 1973; the non-negative problem in three columns is solved by enumerating its active sets.
Profiling on a grid of exponents leaves a two-dimensional picture; its local minima are the basins.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy.ndimage import minimum_filter

Array = np.ndarray

_FEW = 100  # runs up to which a coarse lattice of further starts costs nothing; few runs have more basins
_TINY = 1e-8  # prefactor given to a term that the linear fit switched off, relative to the loss


def exponent_grid(size: int) -> Array:
    """Exponents to profile, geometric, over all that the laws allow; published ones lie in 0.03–1."""
    return np.geomspace(0.01, 10.0, size)


def nonnegative_least_squares(gram: Array, rhs: Array, free: tuple[int, ...]) -> tuple[Array, Array]:
    """Minimise x'Gx − 2c'x over x ≥ 0 for stacks of small problems, by enumeration of supports.

    Args:
        gram: (m, k, k) Gram matrices.
        rhs: (m, k).
        free: the columns allowed to be non-zero.

    Returns:
        Solutions (m, k) and objectives (m,).
    """
    m, k = rhs.shape
    best, objective = np.zeros((m, k)), np.zeros(m)
    for size in range(1, len(free) + 1):
        for support in itertools.combinations(free, size):
            s = list(support)
            g, c = gram[:, s][:, :, s], rhs[:, s]
            scale = np.sqrt(np.maximum(np.einsum("mii->mi", g), 1e-300))
            g = g / scale[:, :, None] / scale[:, None, :]
            c = c / scale
            # a relative ridge keeps nearly equal columns (alpha ~ 0 beside E) solvable; starts need no more
            g[:, range(size), range(size)] += 1e-12
            if size == 1:
                x = c / g[:, 0]
            elif size == 2:  # Cramer: a batched solve costs several times as much
                det = g[:, 0, 0] * g[:, 1, 1] - g[:, 0, 1] ** 2
                x = (g[:, [1, 0], [1, 0]] * c - g[:, 0, 1, None] * c[:, ::-1]) / det[:, None]
            else:
                x = np.linalg.solve(g, c[..., None])[..., 0]
            value = -np.einsum("mi,mi->m", c, x)
            better = (x > 0).all(1) & (value < objective)
            objective[better] = value[better]
            best[better] = 0.0
            best[np.ix_(better, s)] = (x / scale)[better]
    return best, objective


def nonnegative_profile(
    x1: Array, x2: Array | None, loss: Array, weights: Array, grid_1: Array, grid_2: Array, floor: float | None = None
) -> Array:
    """Starting points from the profile of relative least squares over a grid of exponents.

    Args:
        x1, x2: centred log regressors (m,); ``x2`` None drops the second term.
        loss, weights: (m,).
        grid_1, grid_2: exponents.
        floor: value of E if fixed.

    Returns:
        (k, 5) rows of E, log A, log B, α, β at the four best local minima, best first (and a lattice, for few runs).
    """
    w = weights / loss**2
    target = loss if floor is None else loss - floor
    u = np.exp(-np.outer(grid_1, x1))
    v = np.exp(-np.outer(grid_2, x2)) if x2 is not None else np.zeros((len(grid_2), len(x1)))
    k1, k2 = len(grid_1), len(grid_2)
    gram, rhs = np.empty((k1, k2, 3, 3)), np.empty((k1, k2, 3))
    uw, vw = u * w, v * w
    gram[..., 0, 0] = w.sum()
    gram[..., 0, 1] = gram[..., 1, 0] = uw.sum(1)[:, None]
    gram[..., 0, 2] = gram[..., 2, 0] = vw.sum(1)[None, :]
    gram[..., 1, 1] = (uw * u).sum(1)[:, None]
    gram[..., 2, 2] = (vw * v).sum(1)[None, :]
    gram[..., 1, 2] = gram[..., 2, 1] = uw @ v.T
    rhs[..., 0] = w @ target
    rhs[..., 1] = (uw @ target)[:, None]
    rhs[..., 2] = (vw @ target)[None, :]
    free = (() if floor is not None else (0,)) + ((1,) if x2 is None else (1, 2))
    coef, objective = nonnegative_least_squares(gram.reshape(-1, 3, 3), rhs.reshape(-1, 3), free)
    surface = objective.reshape(k1, k2)
    minima = np.flatnonzero(surface <= minimum_filter(surface, 3, mode="constant", cval=np.inf))
    minima = minima[np.argsort(objective[minima])][:4]
    if len(loss) <= _FEW:
        nodes = np.arange(k1 * k2).reshape(k1, k2)
        lattice = nodes[k1 // 8 :: max(k1 // 4, 1), k2 // 8 :: max(k2 // 4, 1)].ravel()
        minima = np.concatenate([minima, np.setdiff1d(lattice, minima)])
    i, j = np.divmod(minima, k2)
    e, a, b = coef[minima].T
    tiny = _TINY * loss.min()
    if floor is not None:
        e = np.full(len(minima), floor)
    return np.column_stack([e, np.log(np.maximum(a, tiny)), np.log(np.maximum(b, tiny)), grid_1[i], grid_2[j]])
