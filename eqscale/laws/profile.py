"""Profile limits: how far a quantity can move before the runs object to the laws it needs.

The limits of a quantity are its extremes over all laws whose objective lies within a cut of the lowest (Venzon &
Moolgavkar 1988). They need no symmetry, no second derivative at the estimate and no interior optimum: a floor at E = 0
is a face of that region like any other, so that they stay right where Gauss–Newton intervals collapse.

The objective is Huber's with a threshold of 1.345 standard deviations of the noise, which uses 95 % of what the runs
say; the default of the fit, hardly more than an absolute deviation, uses 64 %. A drop of it is scaled to χ² as for
any M-estimator (Huber & Ronchetti 2009, ch. 7) and compared with Student's t, since the noise is estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np
from scipy import interpolate, special

from eqscale.laws.fit import Fit
from eqscale.laws.forms import Coefficients
from eqscale.laws.forms.base import GONE
from eqscale.laws.solver import Derivatives, covariance_of, derivatives, minimise
from eqscale.laws.structure import EXACT, HUBER

Array = np.ndarray
Joint = Callable[..., Array]
"""A quantity of one law or several: coefficients of each, b sets, to (b,)."""

MANY = 100_000
"""Runs from which sums over them are as good as normal and objectives quadratic within what they leave open."""
_CHANCE = 3.0  # over √n: the ratio of robust to plain standard error may exceed 1 by this much by chance
_STAGES = ((0.35, 4), (0.7, 4), (1.0, 40))  # fractions of the distance to the cut, and the most steps for each


@dataclass(frozen=True)
class Surface:
    """The objective around a fit, scaled so that its drop to the lowest point is χ² distributed."""

    fit: Fit
    threshold: float
    scale: float
    theta: Array = field(repr=False)
    """Internal parameters at the lowest point, (p,)."""
    lowest: float
    """Scaled objective there."""
    free: Array = field(repr=False)
    """Which parameters the runs have a say in: not held and not of a term that vanished, (p,)."""
    df: int
    """Degrees of freedom of the noise."""
    member: Array | None = field(repr=False)
    """Number of each run's group, (n,), if runs of a group share errors."""

    def _exact(self, theta: Array) -> Derivatives:
        fit = self.fit
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            found = derivatives(fit, theta, fit.scaled_loss[None], fit.weights[None], self.threshold)
        return Derivatives(*(self.scale * v for v in found))

    @cached_property
    def _quadratic(self) -> Derivatives:
        return self._exact(self.theta[None])

    def derivatives(self, theta: Array) -> Derivatives:
        """The scaled objective and its derivatives at (b, p); of very many runs its quadratic model, as good there."""
        if self.fit.n <= MANY:
            return self._exact(theta)
        at, b, moved = self._quadratic, len(theta), theta - self.theta
        bent = moved @ at.h[0]
        f = at.f[0] + moved @ at.g[0] + 0.5 * np.sum(bent * moved, axis=1)
        return Derivatives(f, at.g + bent, np.repeat(at.h, b, 0), np.repeat(at.majoriser, b, 0))

    @cached_property
    def scores(self) -> Array:
        """Half the scaled slope of each run's term at the lowest point, corrected for its leverage, (p, n); of each
        group's, if there are groups.
        """
        fit, jac = self.fit, self.fit.jacobian_at(self.theta)
        jac[~self.free] = 0.0
        r = fit.residuals_at(self.theta[None])[0]
        psi = np.clip(r, -self.threshold, self.threshold)
        psi /= np.sqrt(1 - np.minimum(leverage(jac[self.free], fit.weights), 0.95))
        scores = 0.5 * self.scale * jac * (fit.weights * psi)
        if self.member is None:
            return scores
        groups = int(self.member.max()) + 1
        return np.sqrt(groups / (groups - 1)) * np.stack([np.bincount(self.member, row, groups) for row in scores])


def leverage(jacobian: Array, weights: Array) -> Array:
    """Leverage of each run in a linearised fit with a Jacobian (p, n), (n,): how far a run pulls its own prediction."""
    root = jacobian * np.sqrt(weights)
    q, _ = np.linalg.qr((root / np.maximum(np.linalg.norm(root, axis=1, keepdims=True), 1e-300)).T)
    return np.sum(q * q, axis=1)


def surface(fit: Fit, member: Array | None = None) -> Surface:
    """What a fit's profile limits are cut from; ``member`` numbers the groups of runs that share errors, (n,)."""
    threshold = fit.threshold
    if np.isfinite(threshold):
        threshold = max(threshold, HUBER * (fit.spread / fit.residual_unit))
    starts = np.repeat(fit.theta[None], 1 + len(fit.form.floors), 0)
    for row, floor in enumerate(fit.form.floors, 1):  # a fit on the face may have its minimum off it under this loss
        i = fit.index(floor)
        starts[row, i] = np.clip(0.3 * fit.scaled_loss.min(), fit.lower[i], fit.upper[i])
    theta, f, _ = minimise(fit, starts, delta=threshold, tolerance=1e-10, iterations=60)
    best = int(np.argmin(f))
    r = fit.residuals_at(theta[best][None])[0]
    free = (fit.lower < fit.upper) & (theta[best] > GONE + 10)
    for prefactor, (exponent, _) in fit.form.powers.items():
        free[fit.index(exponent)] &= free[fit.index(prefactor)] or prefactor in fit.fixed
    w, n, p = fit.weights, int((fit.weights > 0).sum()), int(free.sum())
    df = max(n - p, 1)
    inside = np.sum(w * (np.abs(r) <= threshold)) / np.sum(w)
    square = np.sum(w * np.minimum(np.abs(r), threshold) ** 2) / df
    correction = 1 + p / n * (1 - inside) / inside
    scale = 2 * inside / (correction**2 * max(square, EXACT**2))
    if member is not None:  # as many independent errors as groups
        df = min(df, int(member.max()))
    return Surface(fit, threshold, scale, theta[best], scale * float(f[best]), free, df, member)


class Region:
    """The laws that the runs of one fit, or of several independent ones, don't object to."""

    def __init__(self, surfaces: Sequence[Surface]):
        self.surfaces = tuple(surfaces)
        self.slices, at = [], 0
        for s in surfaces:
            self.slices.append(slice(at, at + len(s.theta)))
            at += len(s.theta)
        self.theta = np.concatenate([s.theta for s in surfaces])
        self.df = min(s.df for s in surfaces)
        self.lowest = sum(s.lowest for s in surfaces)
        self.lower = np.concatenate([s.fit.lower for s in surfaces])
        self.upper = np.concatenate([s.fit.upper for s in surfaces])
        self.free = np.concatenate([s.free for s in surfaces])
        names = [(s.fit.form, name) for s in surfaces for name in s.fit.form.names]
        floors = [name in form.floors for form, name in names]
        self.floors = np.flatnonzero(self.free & floors & (self.lower == 0.0))
        """Where the floors are that may be zero."""
        self.reach = np.array([2.0 if name in form.log_names else 0.5 for form, name in names])
        """Longest step of each parameter."""

    def derivatives(self, theta: Array) -> Derivatives:
        """Sum of the objectives at (b, P) and its derivatives."""
        b, p = theta.shape
        out = Derivatives(np.zeros(b), np.zeros((b, p)), np.zeros((b, p, p)), np.zeros((b, p, p)))
        for s, here in zip(self.surfaces, self.slices, strict=True):
            d = s.derivatives(theta[:, here])
            out.f[:] += d.f
            out.g[:, here], out.h[:, here, here], out.majoriser[:, here, here] = d.g, d.h, d.majoriser
        return out

    def coefficients(self, theta: Array) -> list[Coefficients]:
        """Public parameters of each law at (b, P)."""
        laws = zip(self.surfaces, self.slices, strict=True)
        return [s.fit.form.to_natural(theta[:, here], s.fit.centre) for s, here in laws]

    @cached_property
    def inverse(self) -> Array:
        """Covariance of the internal parameters as if there were no bounds, (P, P); zero where held."""
        information = 0.5 * self.derivatives(self.theta[None]).majoriser[0]
        return covariance_of(information, self.free, rcond=1e-13)

    @cached_property
    def sandwich(self) -> Array:
        """The same with each run's or group's own noise (White 1980), (P, P)."""
        out = np.zeros_like(self.inverse)
        for s, here in zip(self.surfaces, self.slices, strict=True):
            out[here, here] = s.scores @ s.scores.T
        return self.inverse @ out @ self.inverse

    def inflation(self, direction: Array, slope: Array) -> Array:
        """Factor of the variance of quantities (r,) where the runs contradict equal, independent noise; 1 elsewhere."""
        with np.errstate(invalid="ignore", divide="ignore"):
            plain = np.sum(direction * slope, axis=1)
            ratio = np.einsum("ri,ij,rj->r", slope, self.sandwich, slope) / plain
        ratio = np.maximum(np.nan_to_num(ratio, nan=1.0), 1.0)
        grouped = any(s.member is not None for s in self.surfaces)
        by_chance = 1 + _CHANCE / np.sqrt(min(s.fit.n for s in self.surfaces))
        return ratio if grouped else np.where(ratio > by_chance**2, ratio, 1.0)

    def slopes(self, quantity: Joint, theta: Array) -> tuple[Array, Array]:
        """A quantity at (b, P) and its derivatives by central differences: (b,) and (b, P)."""
        b, p = theta.shape
        step = np.where(self.free, 1e-4 * np.clip(np.sqrt(np.diag(self.inverse)), 1e-3, 1.0), 0.0)
        moved = np.flatnonzero(step > 0)
        points = np.repeat(theta[None], 1 + 2 * len(moved), 0)
        points[1 + np.arange(len(moved)), :, moved] += step[moved, None]
        points[1 + len(moved) + np.arange(len(moved)), :, moved] -= step[moved, None]
        with np.errstate(all="ignore"):
            values = np.asarray(quantity(*self.coefficients(points.reshape(-1, p))), float).reshape(-1, b)
            slope = np.zeros((b, p))
            slope[:, moved] = ((values[1 : len(moved) + 1] - values[len(moved) + 1 :]) / (2 * step[moved, None])).T
        return values[0], slope


def limits(
    region: Region, quantities: Sequence[Joint], level: float = 0.95, spread: Sequence[float] | Array = ()
) -> Array:
    """Confidence limits of each quantity, (k, 2); infinite where the runs set none.

    The cut is that of Student's t, except near a floor of zero: there the drop is not χ², and the cut becomes the one
    that covers if the law at the limit is true (Feldman & Cousins 1998, with nuisance parameters at their profile).

    Args:
        region: the laws.
        quantities: k of them; infinite values are allowed, NaN counts as outside.
        level: of confidence.
        spread: standard errors from elsewhere, of each quantity: limits are widened to be no narrower than they say.
    """
    climb = _Climb(region, quantities)
    if len(spread):
        climb.inflation = np.maximum(climb.inflation, np.square(np.repeat(spread, 2) / np.maximum(climb.se, 1e-300)))
    cut = _student(special.chdtri(1, 1 - level), region.df)
    found = climb.run(cut, _STAGES)
    if len(region.floors):
        for damping in (1.0, 0.7, 0.5):
            cut = cut + damping * (_student(climb.boundary_cut(level), region.df) - cut)
            found = climb.run(cut, _STAGES[-1:])
    return found.reshape(len(quantities), 2) + 0.0  # no negative zero


def _student(cut: Array | float, df: float) -> Array:
    """The squared Student's t that is exceeded as often as χ² with one degree of freedom exceeds ``cut``."""
    return special.stdtrit(max(df, 1.0), special.ndtr(np.sqrt(cut))) ** 2


_AWAY = np.array([0.0, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5])
_SHARE = np.array([0.0, 0.3, 0.5, 0.65, 0.75, 0.85, 0.9, 0.95, 0.98, 0.999, 1.0])


@cache
def _floor_cuts(level: float) -> interpolate.RegularGridInterpolator:
    """χ² cut by how far the floor lies above zero, in standard errors, and its correlation with the quantity.

    In whitened coordinates z the floor is above zero on a half-plane and a value of the quantity is a ray in it: the
    drop of the objective is the squared distance from z to the ray less that to the half-plane (Self & Liang 1987).
    """
    n = 20000
    z1, z2 = special.ndtri((np.arange(n) + 0.5) / n), special.ndtri((np.arange(n) * 0.6180339887498949 + 0.5) % 1.0)
    cuts = np.empty((len(_AWAY), len(_SHARE)))
    for i, away in enumerate(_AWAY):
        outside = np.minimum(z1 + away, 0.0) ** 2
        for j, share in enumerate(_SHARE):
            rest = np.sqrt(1 - share**2)
            along = np.maximum(z1 * rest - z2 * share, -away / rest if rest > 0 else -np.inf)
            drop = (z1 - along * rest) ** 2 + (z2 + along * share) ** 2 - outside
            cuts[i, j] = np.quantile(drop, level)
    return interpolate.RegularGridInterpolator((_AWAY, _SHARE), cuts)


class _Climb:
    """Sequential quadratic programming for all rows at once: each quantity's lower and upper limit."""

    def __init__(self, region: Region, quantities: Sequence[Joint]):
        k = len(quantities)
        self.region, self.quantities = region, quantities
        self.owner, self.sign = np.repeat(np.arange(k), 2), np.tile([-1.0, 1.0], k)
        self.theta = np.repeat(region.theta[None], 2 * k, 0)
        self.at = region.derivatives(self.theta)
        self.value, self.slope = self._measure(np.arange(2 * k), self.theta)
        self.direction = self.slope @ region.inverse
        self.se = np.sqrt(np.maximum(np.sum(self.direction * self.slope, axis=1), 0.0))
        self.inflation = region.inflation(self.direction, self.slope)
        self.limit = np.where(np.isnan(self.value), np.nan, np.inf)
        usable = np.isfinite(self.value) & np.isfinite(self.slope).all(1)
        still = usable & (self.se == 0)
        self.limit[still] = self.value[still]
        self.rows = np.flatnonzero(usable & (self.se > 0))
        self.drift = np.zeros(2 * k)

    def _measure(self, rows: Array, theta: Array) -> tuple[Array, Array]:
        """Signed quantities and slopes at the points (r, P) of some rows."""
        value, slope = np.empty(len(rows)), np.empty(theta.shape)
        for k in np.unique(self.owner[rows]):
            mine = np.flatnonzero(self.owner[rows] == k)
            value[mine], slope[mine] = self.region.slopes(self.quantities[k], theta[mine])
        return self.sign[rows] * value, self.sign[rows, None] * slope

    def run(self, cut: Array | float, stages: Sequence[tuple[float, int]]) -> Array:
        """The extremes at cuts (2k,), (2k,)."""
        self.cut, live = cut * self.inflation, self.rows
        for fraction, steps in stages:
            live, factor = self.rows, np.ones(len(self.owner))
            for _ in range(steps):
                if not live.size:
                    break
                settled = self._advance(live, factor, fraction)
                endless = ~np.isfinite(self.value[live]) | ~np.isfinite(self.slope[live]).all(1)
                self.rows = np.setdiff1d(self.rows, live[endless])
                live = live[~(settled | endless)]
        rows = self.rows
        over = np.minimum(self.region.lowest + self.cut[rows] - self.at.f[rows], 0.0)
        self.limit[rows] = self.value[rows] + self._price(rows, 1.0) * over
        self.limit[live] = np.where(self.drift[live] > 0.05 * self.se[live], np.inf, self.limit[live])
        return self.sign * self.limit

    def boundary_cut(self, level: float) -> Array:
        """The χ² cut that covers if the law at each present limit is true, (2k,)."""
        region, spread = self.region, np.sqrt(np.diag(self.region.inverse)[self.region.floors])
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.abs(self.direction[:, region.floors]) / (self.se[:, None] * spread)
            away = np.maximum(self.theta[:, region.floors] - region.lower[region.floors], 0.0) / spread
        share = np.minimum(np.nan_to_num(share), 1.0)
        nearest = np.argmax(share, axis=1)[:, None]  # of several floors, the one that the quantity hangs on most
        away, share = (np.take_along_axis(v, nearest, 1)[:, 0] for v in (away, share))
        return _floor_cuts(level)(np.column_stack([np.minimum(away, _AWAY[-1]), share]))

    def _price(self, rows: Array, fraction: float) -> Array:
        """About how much of the quantity a unit of the objective buys at the cut."""
        return self.se[rows] / (2 * fraction * np.sqrt(self.cut[rows]))

    def _advance(self, live: Array, factor: Array, fraction: float) -> Array:
        """One step of some rows, taken where it improves; which are settled."""
        region, d = self.region, self.at.take(live)
        target = region.lowest + fraction**2 * self.cut[live]
        step = _step(d, self.slope[live], target - d.f, self.theta[live], region)
        theta = np.clip(self.theta[live] + factor[live, None] * step, region.lower, region.upper)
        trial = region.derivatives(theta)
        value, slope = self._measure(live, theta)
        price = 3 * self._price(live, fraction)
        excess = np.maximum(trial.f - target, 0.0)
        with np.errstate(invalid="ignore"):
            merit = self.value[live] - price * np.maximum(d.f - target, 0.0)
            gain = value - price * excess - merit
        good = (gain > 0) & (np.isfinite(value) | (excess <= 0.02 * self.cut[live])) & np.isfinite(trial.f)
        rows = live[good]
        self.theta[rows], self.value[rows], self.slope[rows] = theta[good], value[good], slope[good]
        self.at.put(rows, trial.take(np.flatnonzero(good)))
        factor[live] = np.where(good, np.minimum(2 * factor[live], 1.0), 0.35 * factor[live])
        least = 1e-3 * self.se[live]
        self.drift[live] = np.where(good, gain, 0.0)
        feasible = self.at.f[live] - target <= 0.01 * self.cut[live]
        return (np.abs(gain) < least) & feasible | (factor[live] < 1e-3)


def _step(d: Derivatives, slope: Array, room: Array, theta: Array, region: Region) -> Array:
    """The step that raises the quantity most while a quadratic model of the objective rises by no more than ``room``.

    Linear in the quantity, and no further than the first face of the box: what lies on a face and would leave is held.
    """
    r, p = theta.shape
    diagonal = np.einsum("rii->ri", d.majoriser)
    scale = np.where(region.free, 1.0 / np.sqrt(np.maximum(diagonal, 1e-290)), 1.0)
    outer = scale[:, :, None] * scale[:, None, :]
    matrix = d.h * outer
    matrix[:, ~region.free], matrix[:, :, ~region.free] = 0.0, 0.0
    matrix[:, ~region.free, ~region.free] = 1.0
    smallest = np.linalg.eigvalsh(np.where(np.isfinite(matrix), matrix, 0.0))[:, 0]
    soft = d.majoriser * outer + 1e-7 * np.eye(p)
    matrix = np.where((smallest > 1e-7)[:, None, None], matrix, soft)
    g, u = d.g * scale, slope * scale
    held = np.broadcast_to(~region.free, (r, p)).copy()
    for _ in range(p):
        mask = held[:, :, None] | held[:, None, :]
        rhs = np.where(held[..., None], 0.0, np.stack([g, u], 2))
        newton, climb = np.moveaxis(np.linalg.solve(np.where(mask, np.eye(p), matrix), rhs), 2, 0)
        left = np.maximum(room + 0.5 * np.sum(rhs[..., 0] * newton, 1), 0.0)
        gain = np.sum(rhs[..., 1] * climb, 1)
        step = (np.sqrt(2 * left / np.where(gain > 0, gain, np.inf))[:, None] * climb - newton) * scale
        out = ((theta <= region.lower) & (step < 0)) | ((theta >= region.upper) & (step > 0))
        if not (out & ~held).any():
            break
        held |= out
    with np.errstate(divide="ignore", invalid="ignore"):
        ahead = np.where(
            step < 0, (region.lower - theta) / step, np.where(step > 0, (region.upper - theta) / step, np.inf)
        )
        longest = np.maximum(np.max(np.abs(step) / region.reach, axis=1), 1.0)
    return step * np.minimum(1 / longest, ahead.min(1))[:, None]
