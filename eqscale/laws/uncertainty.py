"""Resampling and intervals: the recommended one, beside it a model-based and a robust one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter

import numpy as np

from eqscale.errors import InputError
from eqscale.laws.fit import Fit, Quantity
from eqscale.laws.forms import Coefficients
from eqscale.laws.profile import MANY, Region, Surface, leverage, limits, surface
from eqscale.laws.solver import derivatives, minimise

Array = np.ndarray

KINDS = ("case", "residual", "wild", "cluster")
_BLOCK = 1 << 24  # runs times resamples held at a time
DISAGREEMENT = 1.5
"""Ratio of interval widths beyond which the model-based interval is not to be trusted."""


@dataclass(frozen=True)
class Bootstrap:
    """Refits of a law to resampled runs."""

    fit: Fit
    kind: str
    seed: int
    theta: Array = field(repr=False)
    """Internal parameters, (K, p)."""
    member: Array | None = field(repr=False)
    """Number of each run's group, (n,), if groups were drawn."""
    unfinished: int
    """Refits that did not meet the stopping criterion; kept, since dropping them would bias the interval."""

    @cached_property
    def coefficients(self) -> Coefficients:
        """Refitted public parameters, each (K,)."""
        return self.fit.form.to_natural(self.theta, self.fit.centre)

    @cached_property
    def surface(self) -> Surface:
        """What the profile limits of the law are cut from; runs of one drawn group share errors."""
        return surface(self.fit, self.member)

    @property
    def resamples(self) -> int:
        """Number of refits."""
        return len(self.theta)

    def values(self, quantity: Quantity) -> Array:
        """A quantity under every refit, (K,) or (K, k)."""
        return np.asarray(quantity(self.coefficients), float)

    def interval(self, quantity: Quantity, level: float = 0.95) -> tuple[Array, Array]:
        """Percentile interval of a quantity, each (k,)."""
        return percentiles(self.values(quantity).reshape(self.resamples, -1), level)


def percentiles(values: Array, level: float = 0.95) -> tuple[Array, Array]:
    """Central percentile interval of each column, over its finite values; NaN where there are none."""
    tail = 50 * (1 - level)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column without a finite value
        finite = np.where(np.isfinite(values), values, np.nan)
        low, high = np.nanpercentile(finite, [tail, 100 - tail], axis=0)
    return low, high


def bootstrap(
    fit: Fit,
    kind: str = "case",
    *,
    resamples: int = 1000,
    seed: int = 0,
    clusters: Sequence[object] | Array | None = None,
) -> Bootstrap:
    """Refit to resampled data; every refit is free to move onto or off the E = 0 face.

    Beyond 100,000 runs a refit is one Newton step from the fit, which is then exact to less than the error that it
    measures; others are made in blocks of resamples, so that memory does not grow with their number.

    Args:
        fit: the fit to resample around.
        kind: ``case`` draws runs with replacement; ``residual`` adds exchanged residuals to the fitted curve (inflated
            by sqrt(n/(n−p))); ``wild`` flips the sign of each run's own residual at random (inflated by its leverage),
            which keeps unequal noise; ``cluster`` draws whole groups, such as all runs of one budget, with replacement.
        resamples: number of refits.
        seed: of the random generator; equal seeds give equal refits.
        clusters: group of each run (n,), for ``cluster``.

    Raises:
        InputError: unknown kind, no clusters or fewer than three of them.
    """
    if kind not in KINDS:
        raise InputError(f"unknown bootstrap {kind!r}; choose one of {', '.join(KINDS)}")
    if resamples < 1:
        raise InputError(f"{resamples} resamples; at least 1 is needed")
    rng = np.random.default_rng(seed)
    member = _groups(clusters, fit.n) if kind == "cluster" else None
    if fit.n > MANY:
        return Bootstrap(fit, kind, seed, _one_step(fit, kind, resamples, rng, member), member, 0)
    block = max(1, _BLOCK // fit.n)
    parts = []
    for first in range(0, resamples, block):
        size = min(block, resamples - first)
        y, w = None, None
        if kind in ("residual", "wild"):
            y = _resampled_losses(fit, kind, size, rng)
        else:
            groups = fit.n if member is None else int(member.max()) + 1
            counts = rng.multinomial(groups, np.full(groups, 1 / groups), size)
            w = fit.weights * (counts if member is None else counts[:, member])
        parts.append(
            minimise(
                fit, np.repeat(_restart(fit)[None], size, 0), loss=y, weights=w,
                delta=max(fit.threshold, 1e-4), tolerance=1e-9, iterations=200,
            )
        )  # fmt: skip
    theta, done = (np.concatenate([part[i] for part in parts]) for i in (0, 2))
    return Bootstrap(fit, kind, seed, theta, member, int((~done).sum()))


def _one_step(fit: Fit, kind: str, resamples: int, rng: np.random.Generator, member: Array | None) -> Array:
    """Refits of very many runs by one Newton step each, (K, p); a sum over resampled runs is as good as normal."""
    at = derivatives(fit, fit.theta[None], fit.scaled_loss[None], fit.weights[None], max(fit.threshold, 1e-4))
    r = fit.residuals / fit.residual_unit
    psi = np.clip(r, -fit.threshold, fit.threshold)
    if kind == "residual":
        psi = np.full(fit.n, np.sqrt(np.mean(psi**2)))
    scores = fit.jacobian * (fit.weights * psi)
    if member is not None:
        groups = int(member.max()) + 1
        sums = np.stack([np.bincount(member, row, groups) for row in scores], 1)
        pull = (rng.multinomial(groups, np.full(groups, 1 / groups), resamples) - 1.0) @ sums
    else:
        values, vectors = np.linalg.eigh(scores @ scores.T)
        pull = rng.standard_normal((resamples, len(values))) * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    pull = pull - at.g[0]  # not zero on a bound
    inside = (fit.lower < fit.upper) & np.array([name not in fit.idle for name in fit.form.names])
    held = np.repeat(~inside[None], resamples, 0)
    step, fixed = np.zeros(pull.shape), np.zeros(pull.shape)
    for _ in range(pull.shape[1]):
        mask = held[:, :, None] | held[:, None, :]
        rhs = np.where(held, 0.0, pull - fixed @ at.h[0])
        step = fixed + np.linalg.solve(np.where(mask, np.eye(len(inside)), at.h), rhs[..., None])[..., 0]
        over = ~held & ((fit.theta + step < fit.lower) | (fit.theta + step > fit.upper))
        if not over.any():
            break
        held |= over
        fixed = np.where(over, np.clip(fit.theta + step, fit.lower, fit.upper) - fit.theta, fixed)
    return fit.theta + step


def _groups(clusters: Sequence[object] | Array | None, n: int) -> Array:
    """Number of each run's group, (n,)."""
    if clusters is None:
        raise InputError("the cluster bootstrap needs a column: cluster:COLUMN")
    if len(clusters) != n:
        raise InputError(f"{len(clusters)} cluster labels for {n} runs")
    labels, member = np.unique(np.asarray(clusters).astype(str), return_inverse=True)
    if len(labels) < 3:
        raise InputError(f"the cluster bootstrap needs at least 3 groups, not {len(labels)}")
    return member


def _restart(fit: Fit) -> Array:
    """Where refits start: at the fit, with vanished terms made small instead, so that they may return."""
    start = fit.theta.copy()
    for prefactor in fit.vanished:
        j = fit.index(fit.form.powers[prefactor][0])
        start[fit.index(prefactor)] = -6.0
        start[j] = np.clip(0.3, fit.lower[j], fit.upper[j])
    return start


def _resampled_losses(fit: Fit, kind: str, resamples: int, rng: np.random.Generator) -> Array:
    """Fitted curve plus resampled residuals, in centred units, (K, n)."""
    r = fit.residuals / fit.residual_unit
    n, p = fit.n, len(fit.free)
    if kind == "residual":
        centred = (r - r.mean()) * np.sqrt(n / max(n - p, 1))
        drawn = centred[rng.integers(0, n, (resamples, n))]
    else:
        pull = np.clip(fit_leverage(fit), 0.0, 0.95)
        drawn = r / np.sqrt(1 - pull) * rng.choice([-1.0, 1.0], (resamples, n))
    return with_residuals(fit, drawn)


def with_residuals(fit: Fit, residuals: Array) -> Array:
    """Fitted losses in centred units with residuals (K, n) added, (K, n)."""
    fitted = fit.predicted(fit.theta[None])
    if fit.loss.is_log:
        return fitted * np.exp(residuals)
    # a loss stays positive however large the additive noise
    return np.maximum(fitted + residuals, 1e-3 * fitted)


def fit_leverage(fit: Fit) -> Array:
    """Leverage of each run at the fit, (n,)."""
    return leverage(fit.jacobian[fit.free], fit.weights)


@dataclass(frozen=True)
class Target:
    """A named quantity; ``log`` marks positive ones whose intervals are built on the logarithm."""

    name: str
    quantity: Quantity
    log: bool = False

    def transformed(self, c: Coefficients) -> Array:
        """The quantity on the scale on which its error is nearly symmetric."""
        v = np.asarray(self.quantity(c), float)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(v) if self.log else v

    def back(self, v: float) -> float:
        """Undo the transformation."""
        with np.errstate(over="ignore"):
            return float(np.exp(v)) if self.log else float(v)


def _prefactor(logarithm: str) -> Quantity:
    return lambda c: np.exp(np.minimum(c[logarithm], 700.0))


def parameter_targets(fit: Fit) -> list[Target]:
    """The law's parameters, and what the form derives from them."""
    logs = [name for name in fit.form.log_names if fit.params[name] > 0]
    out = [Target(n, _prefactor("log_" + n), True) if n in logs else Target(n, itemgetter(n)) for n in fit.form.names]
    return out + [Target(name, derived(name)) for name in fit.form.derived(fit.coefficients)]


def derived(name: str) -> Quantity:
    """A number that the form derives from its parameters, as a quantity."""
    return lambda c: c.form.derived(c)[name]


@dataclass(frozen=True)
class Interval:
    """One quantity with its intervals."""

    name: str
    estimate: float
    recommended: tuple[float, float]
    """Profile limits (see ``profile``), which hold beside a floor of zero and beyond the runs, too: the one to quote.
    Infinite where the runs set no limit."""
    standard_error: float
    """Model-based; of the logarithm for quantities whose interval is built on the logarithm."""
    model: tuple[float, float]
    """Gauss–Newton with Student's t; NaN on a bound, where it has no meaning."""
    robust: tuple[float, float] | None
    """Bootstrap percentiles, if a bootstrap was given."""
    ratio: float | None
    """Wider over narrower of these two."""

    @property
    def disagree(self) -> bool:
        """Whether the two differ by more than ``DISAGREEMENT``."""
        return self.ratio is not None and self.ratio > DISAGREEMENT


def intervals(
    fit: Fit, boot: Bootstrap | None = None, targets: Sequence[Target] | None = None, level: float = 0.95
) -> dict[str, Interval]:
    """Intervals of quantities by name; the law's parameters unless ``targets`` says otherwise."""
    targets = parameter_targets(fit) if targets is None else targets
    region = Region([boot.surface if boot else surface(fit)])
    profiled = limits(region, [_scalar(target.transformed) for target in targets], level)
    out = {}
    for target, recommended in zip(targets, profiled, strict=True):
        estimate = float(np.asarray(target.quantity(fit.coefficients)).reshape(-1)[0])
        model = _pair(fit.interval(target.transformed, level))
        se = float(fit.standard_error(target.transformed)[0])
        robust: tuple[float, float] | None = None
        ratio = None
        if boot is not None:
            robust = _pair(boot.interval(target.transformed, level))
            widths = sorted((model[1] - model[0], robust[1] - robust[0]))
            ratio = widths[1] / widths[0] if widths[0] > 0 else None
            robust = _shown(fit, target, robust)
        low, high = _shown(fit, target, _pair(recommended[:, None]))
        if se == 0 and target.name not in fit.fixed and high > low:
            se, model = np.nan, (np.nan, np.nan)
        within = min(low, estimate), max(high, estimate)
        out[target.name] = Interval(target.name, estimate, within, se, _shown(fit, target, model), robust, ratio)
    return out


def _pair(limits: Sequence[Array] | Array) -> tuple[float, float]:
    """The first lower and the first upper limit."""
    return float(limits[0][0]), float(limits[1][0])


def _shown(fit: Fit, target: Target, limits: tuple[float, float]) -> tuple[float, float]:
    """Limits on the quantity's own scale, within its range."""
    ranges = {**fit.form.bounds, **fit.form.derived_bounds}
    lowest, highest = ranges.get(target.name, (-np.inf, np.inf))
    low, high = (float(np.clip(target.back(v), lowest, highest)) for v in limits)
    return low, high


def _scalar(quantity: Quantity) -> Quantity:
    """A quantity's first number, (b,)."""
    return lambda c: np.asarray(quantity(c), float).reshape(len(next(iter(c.values()))), -1)[:, 0]


def disagreement(found: dict[str, Interval]) -> str | None:
    """The warning that belongs beside intervals that disagree, or None."""
    wide = [f"{i.name} {i.ratio:.1f}×" for i in found.values() if i.disagree]
    if not wide:
        return None
    return (
        f"model-based and robust intervals differ by more than {DISAGREEMENT}× for {', '.join(wide)}: "
        "noise is unequal or clustered, a few runs carry the fit, or it lies on a boundary"
    )
