"""Resampling and intervals: model-based beside robust, and a warning where they disagree."""

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
from eqscale.laws.solver import minimise

Array = np.ndarray

KINDS = ("case", "residual", "wild", "cluster")
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
    unfinished: int
    """Refits that did not meet the stopping criterion; kept, since dropping them would bias the interval."""

    @cached_property
    def coefficients(self) -> Coefficients:
        """Refitted public parameters, each (K,)."""
        return self.fit.form.to_natural(self.theta, self.fit.centre)

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
    y, w = None, None
    if kind in ("residual", "wild"):
        y = _resampled_losses(fit, kind, resamples, rng)
    else:
        member = np.arange(fit.n) if kind == "case" else _groups(clusters, fit.n)
        groups = member.max() + 1
        w = fit.weights * rng.multinomial(groups, np.full(groups, 1 / groups), resamples)[:, member]
    theta, _, done = minimise(
        fit, np.repeat(_restart(fit)[None], resamples, 0), loss=y, weights=w,
        delta=max(fit.threshold, 1e-4), tolerance=1e-9, iterations=200,
    )  # fmt: skip
    return Bootstrap(fit, kind, seed, theta, int((~done).sum()))


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
    r = fit.residuals if fit.loss.is_log else fit.residuals / fit.unit
    n, p = fit.n, len(fit.free)
    if kind == "residual":
        centred = (r - r.mean()) * np.sqrt(n / max(n - p, 1))
        drawn = centred[rng.integers(0, n, (resamples, n))]
    else:
        leverage = np.clip(fit_leverage(fit), 0.0, 0.95)
        drawn = r / np.sqrt(1 - leverage) * rng.choice([-1.0, 1.0], (resamples, n))
    return with_residuals(fit, drawn)


def with_residuals(fit: Fit, residuals: Array) -> Array:
    """Fitted losses in centred units with residuals (K, n) added, (K, n)."""
    fitted = fit.predicted(fit.theta[None])
    if fit.loss.is_log:
        return fitted * np.exp(residuals)
    # a loss stays positive however large the additive noise
    return np.maximum(fitted + residuals, 1e-3 * fitted)


def fit_leverage(fit: Fit) -> Array:
    """Leverage of each run in the linearised fit, (n,): how far one run pulls its own prediction."""
    jac = fit.jacobian[fit.free] * np.sqrt(fit.weights)
    q, _ = np.linalg.qr((jac / np.maximum(np.linalg.norm(jac, axis=1, keepdims=True), 1e-300)).T)
    return np.sum(q * q, axis=1)


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
        return float(np.exp(np.minimum(v, 700.0))) if self.log else float(v)


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
    """One quantity with its two intervals."""

    name: str
    estimate: float
    standard_error: float
    """Model-based; of the logarithm for quantities whose interval is built on the logarithm."""
    model: tuple[float, float]
    """Gauss–Newton with Student's t."""
    robust: tuple[float, float] | None
    """Bootstrap percentiles, if a bootstrap was given."""
    ratio: float | None
    """Wider over narrower of the two."""

    @property
    def disagree(self) -> bool:
        """Whether the two differ by more than ``DISAGREEMENT``."""
        return self.ratio is not None and self.ratio > DISAGREEMENT


def intervals(
    fit: Fit, boot: Bootstrap | None = None, targets: Sequence[Target] | None = None, level: float = 0.95
) -> dict[str, Interval]:
    """Intervals of quantities by name; the law's parameters unless ``targets`` says otherwise."""
    out = {}
    for target in parameter_targets(fit) if targets is None else targets:
        estimate = float(np.asarray(target.quantity(fit.coefficients)).reshape(-1)[0])
        low, high = (float(v[0]) for v in fit.interval(target.transformed, level))
        se = float(fit.standard_error(target.transformed)[0])
        robust, ratio = None, None
        if boot is not None:
            rl, rh = (float(v[0]) for v in boot.interval(target.transformed, level))
            robust = (target.back(rl), target.back(rh))
            widths = sorted((high - low, rh - rl))
            ratio = widths[1] / widths[0] if widths[0] > 0 else None
        lowest = fit.form.bounds.get(target.name, (-np.inf, np.inf))[0]
        model = (max(target.back(low), lowest), target.back(high))
        out[target.name] = Interval(target.name, estimate, se, model, robust, ratio)
    return out


def disagreement(found: dict[str, Interval]) -> str | None:
    """The warning that belongs beside intervals that disagree, or None."""
    wide = [f"{i.name} {i.ratio:.1f}×" for i in found.values() if i.disagree]
    if not wide:
        return None
    return (
        f"model-based and robust intervals differ by more than {DISAGREEMENT}× for {', '.join(wide)}: "
        "noise is unequal or clustered, or a few runs carry the fit; trust the wider one"
    )
