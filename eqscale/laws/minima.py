"""Compute-optimal loss and size of each budget from its own runs, without a law.

Approach 2 of Hoffmann et al. 2022 (section 3.2) with intervals, and with the minimum of a cubic in log N through the
log losses of a budget's runs: losses rise more steeply on one side, which shifts a parabola's minimum by several
percent. Only sizes near the best one count. One scatter is pooled over all budgets of an arm; it holds both the noise
of the runs and what the curves miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from eqscale.errors import InputError
from eqscale.laws.arms import ArmFit
from eqscale.laws.contrast import Estimate, estimate

Array = np.ndarray

_SIZES = 4  # fewer leave no residual to judge even a parabola by
_NEAR = 0.2  # sizes count up to so far above the best one's mean log loss, or else the best five


@dataclass(frozen=True)
class Optima:
    """A logarithm at each of k budgets, with its errors."""

    value: Array
    """(k,)"""
    se: Array
    """Standard errors to first order, (k,)."""
    draws: Array
    """Residual bootstrap, (resamples, k)."""


@dataclass(frozen=True)
class Minima:
    """The optima of an arm at its budgets."""

    name: str
    cost: Array
    """Budgets with enough sizes, ascending, (k,)."""
    loss: Optima
    """Log loss at the vertex, or at the end of the sizes that is nearest to it."""
    N: Optima
    """Log size at the vertex; NaN where it lies outside the sizes."""
    scatter: float
    """Standard deviation of a log loss about its curve, pooled over budgets."""
    df: int
    """Degrees of freedom of ``scatter``."""

    def at(self, cost: Array) -> Array:
        """Positions of budgets among ``cost``."""
        return np.searchsorted(self.cost, cost)


def measured_minima(arm: ArmFit, *, resamples: int = 1000, seed: int = 0) -> Minima | None:
    """Fit a curve to each budget of an arm: a cubic, or a parabola where there are four sizes.

    Args:
        arm: runs grouped by ``budget``; those of one budget should cost about the same. The law is not used.
        resamples, seed: of the residual bootstrap.

    Returns:
        None if no budget has runs at four sizes or more.
    """
    budgets = [b for b in np.unique(arm.budget) if len(np.unique(arm.N[arm.budget == b])) >= _SIZES]
    if not budgets:
        return None
    grids, fitted, residuals, leverages = [], [], [], []
    for budget in budgets:
        here = arm.budget == budget
        x, y = _near(np.log(arm.N[here]), np.log(arm.loss[here]))
        X = np.vander(x - x.mean(), 4 if len(np.unique(x)) > _SIZES else 3)
        solve = np.linalg.pinv(X)
        grids.append((x, solve))
        fitted.append(X @ (solve @ y))
        residuals.append(y - fitted[-1])
        leverages.append(np.einsum("ij,ji->i", X, solve))
    df = sum(len(x) - len(solve) for x, solve in grids)
    scatter = float(np.sqrt(sum(float(r @ r) for r in residuals) / df))
    pool = np.concatenate(residuals) / np.sqrt(np.maximum(1 - np.concatenate(leverages), 0.05))
    pool -= pool.mean()
    rng = np.random.default_rng(seed)
    losses, log_sizes = [], []
    for (x, solve), line, residual in zip(grids, fitted, residuals, strict=True):
        drawn = line + rng.choice(pool, (resamples, len(x)))
        coefficients = np.concatenate([(line + residual)[None], drawn]) @ solve.T
        log_loss, at, inside = _lowest(coefficients, x - x.mean())
        log_n = np.where(inside, at + x.mean(), np.nan)
        covariance = scatter**2 * solve @ solve.T
        by_loss = np.vander(at[:1], len(solve))[0]  # at a vertex its own shift doesn't count
        by_size = np.full(len(solve), np.nan)
        if inside[0]:
            powers = np.arange(len(solve) - 1, -1, -1)
            slopes = powers * at[0] ** np.maximum(powers - 1, 0)
            by_size = -slopes / np.polyval(np.polyder(coefficients[0], 2), at[0])
        losses.append((log_loss[0], np.sqrt(by_loss @ covariance @ by_loss), log_loss[1:]))
        log_sizes.append((log_n[0], np.sqrt(by_size @ covariance @ by_size), log_n[1:]))
    loss, size = (
        Optima(np.array(value), np.array(se), np.transpose(draws))
        for value, se, draws in (zip(*losses, strict=True), zip(*log_sizes, strict=True))
    )
    return Minima(arm.name, np.array(budgets), loss, size, scatter, df)


def _near(x: Array, y: Array) -> tuple[Array, Array]:
    """The runs of the sizes near the best one: log sizes and log losses."""
    which = np.unique(x, return_inverse=True)[1]
    mean = np.bincount(which, y) / np.bincount(which)
    limit = max(mean.min() + _NEAR, np.sort(mean)[:5].max())
    chosen = mean[which] <= limit
    return x[chosen], y[chosen]


def _lowest(coefficients: Array, x: Array) -> tuple[Array, Array, Array]:
    """Value at the minimum within the sizes x of cubics or parabolas (b, 4 or 3), where it is, and whether it is a
    vertex.
    """
    *cubic, b, c, d = coefficients.T
    a = cubic[0] if cubic else np.zeros_like(b)
    low, high = x.min(), x.max()
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(b * b - 3 * a * c)  # half the curvature at the minimum
        top = np.where(b > 0, -c / (b + root), (root - b) / (3 * a))
    inside = (root > 0) & (low < top) & (top < high)
    ends = [((a * v + b) * v + c) * v + d for v in (low, high)]
    at = np.where(inside, top, np.where(ends[0] < ends[1], low, high))
    return ((a * at + b) * at + c) * at + d, at, inside


def vertex(x: Array, y: Array) -> tuple[float, float, bool]:
    """Lowest value within x of the parabola through points (n,), where it is, and whether it is a vertex."""
    found, at, inside = _lowest(np.polyfit(x - x.mean(), y, 2)[None], x - x.mean())
    return float(found[0]), float(at[0] + x.mean()), bool(inside[0])


def combine(terms: Sequence[tuple[Minima, Optima, Array]]) -> Estimate:
    """Sum of weighted optima of different arms, with a model-based and a robust interval.

    Args:
        terms: each arm once: its minima, their ``loss`` or ``N``, and the weight of each budget, (k,).
    """
    value = variance = 0.0
    drawn = 0.0
    for _, optima, weights in terms:
        used = weights != 0  # an unknown optimum that isn't used must not spoil the sum
        value += float(optima.value[used] @ weights[used])
        variance += float(optima.se[used] ** 2 @ weights[used] ** 2)
        drawn = drawn + optima.draws[:, used] @ weights[used]
    t = float(stats.t.ppf(0.975, min(minima.df for minima, *_ in terms)))
    return estimate(value, t * np.sqrt(variance), np.asarray(drawn))


def weights_at(minima: Minima, cost: Array, weights: Array) -> Array:
    """Weights over an arm's budgets that are zero except at the given ones."""
    out = np.zeros(len(minima.cost))
    out[minima.at(cost)] = weights
    return out


def lowest_loss(minima: Minima, cost: float) -> Estimate:
    """log L_opt of an arm at one of its budgets."""
    return combine([(minima, minima.loss, weights_at(minima, np.array([cost]), np.ones(1)))])


def best_size(minima: Minima, cost: float) -> Estimate:
    """log N_opt of an arm at one of its budgets, NaN where it isn't known."""
    return combine([(minima, minima.N, weights_at(minima, np.array([cost]), np.ones(1)))])


def loss_ratio(arm: Minima, base: Minima, cost: float) -> Estimate:
    """log L_opt of the baseline minus that of the arm at a budget that both have."""
    one = np.array([cost])
    return combine([(m, m.loss, weights_at(m, one, sign * np.ones(1))) for m, sign in ((base, 1), (arm, -1))])


def compute_multiplier(arm: Minima, base: Minima, cost: float) -> Estimate:
    """log of how many times less compute the arm takes for the loss that the baseline has at a budget.

    ``cost`` is a budget of the baseline. The arm's losses are joined by straight lines in log L over log C. If they
    don't bracket the loss sought, the result is a bound: log(cost / the arm's lowest or highest budget) with limits of
    that number on the known side and infinity on the other; NaN if noise may be why they don't.
    """
    at = int(base.at(np.array([cost]))[0])
    target, target_draws = base.loss.value[at], base.loss.draws[:, at]
    value, x = arm.loss.value, np.log(arm.cost)
    around = np.flatnonzero((value[:-1] >= target) & (target > value[1:]))
    if not len(around):
        reached = value.min() < target
        bound = float(np.log(cost) - x[0 if reached else -1])
        end = int(value.argmin()) if reached else -1
        half = stats.t.ppf(0.975, min(arm.df, base.df)) * np.hypot(base.loss.se[at], arm.loss.se[end])
        if abs(target - value[end]) <= half:
            return Estimate(np.nan, (-np.inf, np.inf), (-np.inf, np.inf))
        limits = (bound, np.inf) if reached else (-np.inf, bound)
        return Estimate(bound, limits, limits)
    i = int(around[-1])
    width = x[i + 1] - x[i]
    slope = (value[i + 1] - value[i]) / width
    share = (target - value[i]) / (value[i + 1] - value[i])
    errors = np.array([base.loss.se[at], (1 - share) * arm.loss.se[i], share * arm.loss.se[i + 1]])
    half = stats.t.ppf(0.975, min(arm.df, base.df)) * np.linalg.norm(errors) / abs(slope)
    low, high = arm.loss.draws[:, i], arm.loss.draws[:, i + 1]
    drawn = np.where(high < low, (target_draws - low) / (high - low), np.nan)
    return estimate(float(np.log(cost) - x[i] - share * width), float(half), np.log(cost) - x[i] - drawn * width)


def line_to_top(minima: Minima) -> float | None:
    """log of the lowest loss at the top budget, predicted from those below, over the measured one; None if too few."""
    below = slice(-1)
    loss, size = (Optima(o.value[below], o.se[below], o.draws[:, below]) for o in (minima.loss, minima.N))
    if len(loss.value) < 2:
        return None
    seen = replace(minima, cost=minima.cost[below], loss=loss, N=size)
    return extrapolate(seen, "loss", float(minima.cost[-1])).value - float(minima.loss.value[-1])


def extrapolate(minima: Minima, what: str, cost: float) -> Estimate:
    """log ``loss`` or log ``N`` at another cost, by a straight line in log C through the last three known optima.

    Raises:
        InputError: fewer than two optima are known.
    """
    optima: Optima = getattr(minima, what)
    known = np.flatnonzero(np.isfinite(optima.value))[-3:]
    if len(known) < 2:
        raise InputError(f"{minima.name}: {len(known)} measured optimum; a line needs two: add sizes at the edges")
    line = np.linalg.pinv(np.vander(np.log(minima.cost[known]), 2))
    weights = np.zeros(len(minima.cost))
    weights[known] = [np.log(cost), 1.0] @ line
    return combine([(minima, optima, weights)])


def of_one_run(minima: Minima, mean: Estimate) -> tuple[float, float]:
    """95 % limits of one run's log loss about an estimate of its mean, model-based."""
    t = float(stats.t.ppf(0.975, minima.df))
    half = np.hypot(mean.model[1] - mean.value, t * minima.scatter)
    return mean.value - half, mean.value + half


def bend(minima: Minima, cost: Array) -> Estimate:
    """log of the local exponent of L_opt in the top third over that in the bottom third of budgets.

    Exponents are those of a parabola in log C through the measured minima at ``cost``: at least three of the arm's
    budgets, ascending.
    """
    x = np.log(cost)
    span = (x - x[0]) / (x[-1] - x[0])
    fit = np.linalg.pinv(np.vander(span, 3))
    bottom = weights_at(minima, cost, (np.vander([0.0, 1 / 3], 3) @ fit).T @ np.array([1.0, -1.0]))
    top = weights_at(minima, cost, (np.vander([2 / 3, 1.0], 3) @ fit).T @ np.array([1.0, -1.0]))
    with np.errstate(invalid="ignore", divide="ignore"):
        falls = [np.concatenate([[minima.loss.value @ w], minima.loss.draws @ w]) for w in (bottom, top)]
        log_ratio = np.log(np.maximum(falls[1], 0.0) / np.maximum(falls[0], 1e-300))
        gradient = top / falls[1][0] - bottom / falls[0][0]
    half = stats.t.ppf(0.975, minima.df) * np.sqrt(float(minima.loss.se**2 @ gradient**2))
    return estimate(float(log_ratio[0]), half, log_ratio[1:])
