"""Does the law predict? Hold-outs, lack of fit from replicates, outliers and profile likelihood."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import optimize, stats

from eqscale.errors import InputError
from eqscale.laws.fit import Fit, efficiency
from eqscale.laws.forms import Centre
from eqscale.laws.solver import minimise
from eqscale.laws.uncertainty import fit_leverage

Array = np.ndarray


@dataclass(frozen=True)
class HoldOut:
    """Runs predicted by a law that has not seen them."""

    budgets: tuple[float, ...]
    """Budgets held out."""
    observed: Array = field(repr=False)
    predicted: Array = field(repr=False)
    low: Array = field(repr=False)
    high: Array = field(repr=False)
    """95 % Gauss–Newton limits of a new run."""
    params: dict[str, float]
    """Of the law fitted to the other runs."""
    verdict: str

    @property
    def errors(self) -> Array:
        """Relative errors, predicted over observed minus one."""
        return self.predicted / self.observed - 1

    @property
    def median_error(self) -> float:
        """Median absolute relative error."""
        return float(np.median(np.abs(self.errors)))

    @property
    def bias(self) -> float:
        """Mean relative error: positive where the law is too pessimistic."""
        return float(np.mean(self.errors))

    @property
    def covered(self) -> float:
        """Share of held-out runs within their limits."""
        return float(np.mean((self.observed >= self.low) & (self.observed <= self.high)))


def predict_new_runs(fit: Fit, columns: dict[str, Array], level: float = 0.95) -> tuple[Array, Array, Array]:
    """Predicted loss of new runs with limits that contain coefficient error and noise: (loss, low, high)."""
    loss = fit.predict(**columns)
    se = fit.standard_error(lambda c: np.log(_predict(fit, c, columns)))
    noise = fit.spread if fit.loss.is_log else fit.spread / loss
    wide = fit.t_value(level) * np.hypot(se, noise)
    return loss, loss * np.exp(-wide), loss * np.exp(wide)


def _predict(fit: Fit, c, columns: dict[str, Array]) -> Array:
    theta = np.array(
        [fit.form.to_internal({k: v[i] for k, v in c.items()}, fit.centre) for i in range(len(c["E"]))]
    )
    return fit.predict_with(np.where(np.isfinite(theta), theta, -700.0), columns)


def _hold_out(fit: Fit, held: Array, budgets: tuple[float, ...]) -> HoldOut:
    rest = fit.refit(~held)
    columns = {k: v[held] for k, v in fit.columns.items()}
    loss, low, high = predict_new_runs(rest, columns)
    return HoldOut(budgets, fit.observed[held], loss, low, high, rest.params, rest.verdict)


def hold_out_top(fit: Fit, budget: Array, top: int = 1) -> HoldOut:
    """Fit without the ``top`` largest budgets and predict their runs.

    Args:
        fit: a fit to all runs; its form and loss are used again.
        budget: budget of each run, (n,); see ``arms.group_budgets``.
        top: how many budgets to hold out.

    Raises:
        InputError: not enough budgets or runs are left.
    """
    values = np.unique(budget)
    if not 0 < top < len(values):
        raise InputError(f"cannot hold out {top} of {len(values)} budgets")
    out = values[-top:]
    return _hold_out(fit, np.isin(budget, out), tuple(float(v) for v in out))


def leave_one_budget_out(fit: Fit, budget: Array) -> list[HoldOut]:
    """For each budget, fit without it and predict its runs; budgets without which no fit is possible are left
    out of the list.
    """
    found = []
    for value in np.unique(budget):
        try:
            found.append(_hold_out(fit, budget == value, (float(value),)))
        except InputError:
            continue
    return found


@dataclass(frozen=True)
class LackOfFit:
    """Classical test of the form against pure error (Draper & Smith 1998, ch. 2)."""

    pure_error: float
    """Standard deviation of the log loss between replicates of one (N, D), at weight 1."""
    replicates: int
    """Degrees of freedom of the pure error."""
    f_statistic: float
    p_value: float

    @property
    def rejects(self) -> bool:
        """Whether the form misses structure, at the level of 5 %."""
        return self.p_value < 0.05

    def describe(self) -> str:
        """In words."""
        verdict = (
            "the form misses structure that seeds cannot explain" if self.rejects else "no lack of fit seen"
        )
        return (
            f"{verdict}: F = {self.f_statistic:.2f}, p = {self.p_value:.3g}, seed noise "
            f"{100 * self.pure_error:.2g} % from {self.replicates} degrees of freedom"
        )


def lack_of_fit(fit: Fit, points: Array | None = None) -> LackOfFit | None:
    """Test the form with seeds as replicates; None without replicates or spare design points.

    The test is exact for least squares, so the form is refitted by it to the log loss.

    Args:
        fit: the law to test.
        points: label of each run's design point, (n,), for replicates whose N or D differ a little (another
            data order has other token counts); by default runs with equal N and D are replicates.
    """
    from eqscale.laws.fit import fit_internal, resolve_loss

    squares = fit_internal(
        fit.form, resolve_loss("log-lsq", 1.0), fit.columns, fit.observed, fit.weights, fit.centre,
        fit.lower, fit.upper, fit.fixed,
    )  # fmt: skip
    if points is None:
        design = np.round(np.log(np.column_stack(list(fit.columns.values()))), 6)
        _, point = np.unique(design, axis=0, return_inverse=True)
    else:
        _, point = np.unique(np.asarray(points), return_inverse=True)
    w = fit.weights
    _, point = np.unique(point.ravel()[w > 0], return_inverse=True)
    log_loss, r, w = np.log(fit.observed)[w > 0], squares.residuals[w > 0], w[w > 0]
    means = np.bincount(point, w * log_loss) / np.bincount(point, w)
    pure = float(np.sum(w * (log_loss - means[point]) ** 2))
    df_pure = len(w) - len(means)
    df_lack = len(means) - len(squares.free)
    if df_pure < 1 or df_lack < 1 or pure == 0.0:
        return None
    lack = max(float(np.sum(w * r**2)) - pure, 0.0)
    f = (lack / df_lack) / (pure / df_pure)
    return LackOfFit(float(np.sqrt(pure / df_pure)), df_pure, f, float(stats.f.sf(f, df_lack, df_pure)))


@dataclass(frozen=True)
class Outlier:
    """A run that the law does not explain."""

    index: int
    """Position among the fitted runs, from 0."""
    residual: float
    """Log loss observed minus fitted."""
    score: float
    """Studentised residual."""


def outliers(fit: Fit, level: float = 0.05) -> list[Outlier]:
    """Runs whose studentised residual exceeds what ``level`` of clean data sets would show anywhere.

    The Bonferroni bound of the Student t; the scale is the robust one of the fit.
    """
    if fit.spread == 0.0:
        return []
    h = np.clip(fit_leverage(fit), 0.0, 0.95)
    r = fit.residuals if fit.loss.is_log else fit.residuals / fit.observed
    spread = fit.spread if fit.loss.is_log else fit.spread / np.median(fit.observed)
    score = r / (spread * np.sqrt(1 - h))
    limit = stats.t.ppf(1 - level / (2 * fit.n), max(fit.degrees_of_freedom, 1))
    return [Outlier(int(i), float(r[i]), float(score[i])) for i in np.flatnonzero(np.abs(score) > limit)]


def profile_interval(fit: Fit, name: str, level: float = 0.95) -> tuple[float, float]:
    """Profile likelihood interval of one parameter: where refitting all others can no longer make up for it.

    The limits are where 2c (f − f_min) reaches the F quantile, c turning the objective into a log likelihood
    (see ``efficiency``). A side on which it never does is reported as the bound of the parameter.

    Raises:
        InputError: an unknown or fixed parameter.
    """
    if name not in fit.form.names or name in fit.fixed:
        free = [n for n in fit.form.names if n not in fit.fixed]
        raise InputError(f"no profile of {name!r}; free parameters: {', '.join(free)}")
    centre = fit.centre
    if (
        name in fit.form.powers
    ):  # in the user's units a prefactor is a parameter only where nothing is centred
        centre = Centre(centre.log_loss, {**centre.logs, fit.form.powers[name][1]: 0.0})
        if fit.form.name == "gamma":
            centre = Centre(0.0, {k: 0.0 for k in centre.logs})
    i = fit.form.names.index(name)
    theta = fit.form.to_internal(fit.params, centre)
    if not np.isfinite(theta).all():
        return 0.0, np.inf
    x = fit.form.features(fit.columns, centre)
    y = fit.observed / np.exp(centre.log_loss)
    is_floor = name in fit.form.floors
    low_bound, high_bound = fit.form.internal_bounds()
    for other in fit.fixed:
        j = fit.form.names.index(other)
        low_bound[j] = high_bound[j] = theta[j]
    high_limit = min(high_bound[i], y.min() * (1 - 1e-9)) if is_floor else high_bound[i]
    smoothing = max(fit.loss.threshold, 1e-5) if fit.loss.kind == "lad" else fit.loss.threshold
    unit = 1 / smoothing if fit.loss.kind == "lad" else 1.0
    if not fit.loss.is_log:
        unit = np.exp(2 * centre.log_loss)
    c = efficiency(fit.noise, fit.loss) * unit
    target = float(stats.f.ppf(level, 1, max(fit.degrees_of_freedom, 1)))
    state = {"theta": theta}

    def best(value: float) -> float:
        lo, hi = low_bound.copy(), high_bound.copy()
        lo[i] = hi[i] = value
        start = np.stack([state["theta"], theta])
        start[:, i] = value
        t, f, _ = minimise(
            fit.form, start, x, y[None], fit.weights[None], smoothing, fit.loss.is_log, lo, hi,
            tolerance=1e-12,
        )  # fmt: skip
        k = int(np.argmin(f))
        state["theta"] = t[k]
        return float(f[k])

    bottom = best(theta[i])

    def excess(value: float) -> float:
        return 2 * c * (best(value) - bottom) - target

    limits = []
    se = fit.standard_error(lambda co: co["log_" + name] if name in fit.form.log_names else co[name])[0]
    step = float(se) / (np.exp(centre.log_loss) if is_floor else 1.0)
    step = step if step > 0 else 0.1 * max(abs(theta[i]), 1.0)
    for sign, bound in ((-1, low_bound[i]), (1, high_limit)):
        state["theta"] = theta
        inner, outer = theta[i], theta[i]
        reached = False
        for k in range(1, 40):
            outer = theta[i] + sign * step * (1.5**k - 0.5)
            if (sign < 0 and outer <= bound) or (sign > 0 and outer >= bound):
                outer = bound
            if not np.isfinite(outer):
                break
            if excess(outer) > 0:
                reached = True
                break
            if outer == bound:
                break
            inner = outer
        limits.append(optimize.brentq(excess, inner, outer, xtol=1e-6 * step) if reached else bound)
    out = []
    for value in limits:
        t = theta.copy()
        t[i] = value
        out.append(float(fit.form.to_natural(t[None], centre)[name][0]) if np.isfinite(value) else
                   (0.0 if value < 0 else np.inf))  # fmt: skip
    return out[0], out[1]
