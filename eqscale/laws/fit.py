"""Fitting one law to one set of runs: global start, exact Newton, certificate and verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import special
from scipy.optimize import linprog, lsq_linear

from eqscale.errors import InputError
from eqscale.laws.forms import FORMS, Centre, Form
from eqscale.laws.solver import LOSSES, Loss, derivatives, minimise, residuals

Array = np.ndarray
Coefficients = Mapping[str, Array]
"""Public parameters by name, each (b,); prefactors also as logarithms under ``log_A``, ``log_B``."""
Quantity = Callable[[Coefficients], Array]
"""A number (or several) that follows from the coefficients: b sets to (b,) or (b, k)."""


@dataclass(frozen=True)
class Certificate:
    """Evidence that a fit is the minimum it claims to be."""

    gradient: float
    """Scaled gradient norm: max_i |g_i| / sqrt(2 f M_ii), M the Gauss–Newton majoriser; 0 at a minimum.
    For ``lad`` the excess over the subgradient condition instead."""
    decrement: float
    """Relative decrease of the objective that one more Newton step promises."""
    eigenvalues: tuple[float, ...]
    """Of the Hessian scaled to a unit diagonal, on the free parameters, ascending; all positive at a
    strict minimum."""
    condition: float
    """Condition number of the scaled Gauss–Newton matrix: how nearly the design confounds parameters."""
    starts: int
    basins: int
    """Distinct local minima that the starts led to."""
    basin_objectives: tuple[float, ...]
    active_bounds: tuple[str, ...]
    weakest_direction: str
    """The combination of parameters that the runs say least about."""


@dataclass(frozen=True)
class Fit:
    """A fitted law with its data, its certificate and everything that follows from them."""

    form: Form
    loss: Loss
    params: dict[str, float]
    """Public parameters in the user's units: E, A, B, alpha, beta (gamma, R)."""
    objective: float
    """Σ weight × ρ(residual) as minimised: summed, unscaled."""
    n: int
    verdict: str
    certificate: Certificate
    fixed: dict[str, float]
    columns: dict[str, Array] = field(repr=False)
    """Regressors of the runs by name, each (n,)."""
    observed: Array = field(repr=False)
    weights: Array = field(repr=False)
    theta: Array = field(repr=False)
    centre: Centre = field(repr=False)
    lower: Array = field(repr=False)
    upper: Array = field(repr=False)

    @property
    def converged(self) -> bool:
        """Whether the verdict is anything but ``not converged``."""
        return "not converged" not in self.verdict

    @cached_property
    def features(self) -> dict[str, Array]:
        """Centred regressors of the runs."""
        return self.form.features(self.columns, self.centre)

    @cached_property
    def scaled_loss(self) -> Array:
        """Observed loss over its geometric mean."""
        return self.observed / np.exp(self.centre.log_loss)

    @cached_property
    def residuals(self) -> Array:
        """Observed minus fitted, as logarithms (or as losses for ``lsq``), (n,)."""
        r = residuals(self.form, self.theta[None], self.features, self.scaled_loss[None], self.loss.is_log)[0]
        return r if self.loss.is_log else r * np.exp(self.centre.log_loss)

    @cached_property
    def free(self) -> Array:
        """Indices of the parameters that neither sit on a bound nor are fixed."""
        inside = (self.theta > self.lower) & (self.theta < self.upper)
        return np.flatnonzero(inside & np.array([n not in self._idle for n in self.form.names]))

    @property
    def _idle(self) -> set[str]:
        """Parameters without effect: the exponent of a term whose prefactor vanished, and the prefactor."""
        idle = set()
        for prefactor, (exponent, _) in self.form.powers.items():
            if self.params[prefactor] == 0.0:
                idle |= {prefactor, exponent}
        return idle

    @cached_property
    def coefficients(self) -> dict[str, Array]:
        """The point estimate in the shape that quantities take: arrays of one."""
        return self.form.to_natural(self.theta[None], self.centre)

    def columns_from(self, *args, **kwargs) -> dict[str, Array]:
        """Regressors by position or name, broadcast against each other."""
        given = dict(zip(self.form.columns, args, strict=False)) | kwargs
        if "U" in self.form.columns and "U" not in given:
            given["U"] = given["D"]  # no token seen twice
        missing = [c for c in self.form.columns if c not in given]
        if missing:
            raise InputError(
                f"{self.form.name}: predict needs {', '.join(self.form.columns)}; missing {missing[0]}"
            )
        arrays = np.broadcast_arrays(*(np.asarray(given[c], float) for c in self.form.columns))
        return dict(zip(self.form.columns, arrays, strict=True))

    def predict(self, *args, **kwargs) -> Array:
        """Loss at ``predict(N, D)`` (or the form's own regressors, also by name), in the user's units."""
        columns = self.columns_from(*args, **kwargs)
        shape = next(iter(columns.values())).shape
        return self.predict_with(self.theta[None], {k: v.ravel() for k, v in columns.items()})[0].reshape(
            shape
        )

    def predict_with(self, theta: Array, columns: Mapping[str, Array]) -> Array:
        """Loss for internal parameters (b, p) at regressors (m,): (b, m)."""
        x = self.form.features(columns, self.centre)
        return self.form.evaluate(theta, x, curvature=False).value * np.exp(self.centre.log_loss)

    @cached_property
    def noise(self) -> float:
        """Standard error scale of the residuals that the covariance is built with (see ``noise_scale``)."""
        return noise_scale(self.residuals, self.weights, len(self.free), self.loss)

    @cached_property
    def spread(self) -> float:
        """Standard deviation of the noise of one run (see ``residual_spread``)."""
        return residual_spread(self.residuals, self.weights, len(self.free), self.loss)

    def refit(self, keep: Array) -> Fit:
        """The same law fitted to some of the runs (boolean (n,) or indices), started afresh.

        Raises:
            InputError: those runs cannot determine the law.
        """
        columns = {k: v[keep] for k, v in self.columns.items()}
        free = int(np.sum(self.lower < self.upper))
        used = self.weights[keep] > 0
        check_design(
            self.form,
            {k: v[used] for k, v in columns.items()},
            self.observed[keep][used],
            free,
            "remaining runs",
        )
        return fit_internal(
            self.form, self.loss, columns, self.observed[keep], self.weights[keep], self.centre,
            self.lower, self.upper, self.fixed,
        )  # fmt: skip

    @cached_property
    def covariance(self) -> Array:
        """Gauss–Newton covariance of the internal parameters (p, p); zero for fixed and bound ones."""
        d = self._gauss_newton
        out = np.zeros((len(self.theta),) * 2)
        if len(self.free):
            noise = self.noise if self.loss.is_log else self.noise / np.exp(self.centre.log_loss)
            block = d[np.ix_(self.free, self.free)]
            scale = 1.0 / np.sqrt(np.maximum(np.diag(block), 1e-290))
            inverse = np.linalg.pinv(block * np.outer(scale, scale), rcond=1e-14, hermitian=True)
            out[np.ix_(self.free, self.free)] = noise**2 * inverse * np.outer(scale, scale)
        return out

    @cached_property
    def jacobian(self) -> Array:
        """Derivatives of the fitted (log) loss by the internal parameters, (p, n)."""
        ev = self.form.evaluate(self.theta[None], self.features)
        return (ev.jacobian / ev.value[:, None])[0] if self.loss.is_log else ev.jacobian[0]

    @cached_property
    def _gauss_newton(self) -> Array:
        return (self.jacobian * self.weights) @ self.jacobian.T

    @property
    def degrees_of_freedom(self) -> int:
        """Runs with weight minus free parameters."""
        return int((self.weights > 0).sum()) - len(self.free)

    def standard_error(self, quantity: Quantity) -> Array:
        """Gauss–Newton standard error of a quantity by the delta method."""
        gradient = self.quantity_gradient(quantity)
        return np.sqrt(np.maximum(np.einsum("ki,ij,kj->k", gradient, self.covariance, gradient), 0.0))

    def quantity_gradient(self, quantity: Quantity) -> Array:
        """Central differences of a quantity by the internal parameters, (k, p)."""
        se = np.sqrt(np.diag(self.covariance))
        step = np.where(se > 0, np.minimum(1e-4 * np.maximum(se, 1e-9), 1e-3), 0.0)
        p = len(self.theta)
        points = np.repeat(self.theta[None], 2 * p, 0)
        points[np.arange(p), np.arange(p)] += step
        points[np.arange(p) + p, np.arange(p)] -= step
        values = np.asarray(quantity(self.form.to_natural(points, self.centre)), float).reshape(2 * p, -1)
        with np.errstate(invalid="ignore", divide="ignore"):
            slope = (values[:p] - values[p:]) / (2 * step[:, None])
        return np.where(step[:, None] > 0, slope, 0.0).T

    def interval(self, quantity: Quantity, level: float = 0.95) -> tuple[Array, Array]:
        """Gauss–Newton t interval of a quantity: (low, high), each (k,)."""
        centre = np.asarray(quantity(self.coefficients), float).reshape(-1)
        half = self.t_value(level) * self.standard_error(quantity)
        return centre - half, centre + half

    def t_value(self, level: float) -> float:
        """Student t quantile for a two-sided interval."""
        return float(special.stdtrit(max(self.degrees_of_freedom, 1), 0.5 + level / 2))


_NORMAL_PEAK = 1 / np.sqrt(2 * np.pi)


def _psi_moments(k: float) -> tuple[float, float]:
    """E ψ' and E ψ² of Huber's ψ with threshold k for a standard normal residual."""
    if k < 1e-4:  # the sign function, up to the factor k of ψ
        slope = 2 * k * _NORMAL_PEAK
        return slope, k * k
    inside = float(2 * special.ndtr(k) - 1)
    density = _NORMAL_PEAK * np.exp(-k * k / 2)
    return inside, float(inside - 2 * k * density + 2 * k * k * special.ndtr(-k))


def efficiency(noise: float, loss: Loss) -> float:
    """Factor c such that 2c × a drop of the objective is χ² distributed: E ψ' / E ψ² for normal noise."""
    if noise == 0.0:
        return np.inf
    if not loss.is_log or np.isinf(loss.threshold):
        return 1 / noise**2
    if loss.kind == "lad":  # the objective is Σ|r|: ψ is the sign
        return 2 * _NORMAL_PEAK / noise
    slope, square = _psi_moments(loss.threshold / noise)
    return slope / square / noise**2


_WINSOR = 1.5  # residuals beyond this many scales count as if at it
_WINSOR_MEAN = 0.7785  # E min(z², 1.5²) of a standard normal


def residual_spread(r: Array, weights: Array, parameters: int, loss: Loss) -> float:
    """Standard deviation of the noise with n − p degrees of freedom; for robust losses winsorised at 1.5 of
    itself (Huber's proposal 2), which outliers cannot inflate.
    """
    used = weights > 0
    r, w = r[used], weights[used]
    n = len(r)
    df = max(n - parameters, 1)
    rms = float(np.sqrt(np.sum(w * r * r) / df))
    if not loss.is_log or np.isinf(loss.threshold):
        return rms
    # a robust fit passes through up to p runs: they say nothing about the noise
    scale = 1.4826 * float(np.median(np.sort(np.abs(r))[min(parameters, n - 1) :])) or rms
    for _ in range(50):
        if scale == 0.0:
            return 0.0
        clipped = np.minimum(r * r, (_WINSOR * scale) ** 2)
        new = float(np.sqrt(np.sum(w * clipped) / df / _WINSOR_MEAN))
        if abs(new - scale) <= 1e-9 * scale:
            break
        scale = new
    return scale


def noise_scale(r: Array, weights: Array, parameters: int, loss: Loss) -> float:
    """Scale s such that s² (JᵀWJ)⁻¹ is the covariance of the estimate.

    The spread of the residuals, for robust losses times the M-estimator's loss of efficiency τ at that scale
    (Huber 1981, eq. 6.5), taken for normal noise, since counting the residuals below delta to estimate their
    density is hopeless for a few dozen runs. With p/n not small the fit follows the noise and τ overstates
    the spread; the correction 1 − 2p/n is from our coverage simulation (``benchmarks/laws.py``).
    """
    scale, n = residual_spread(r, weights, parameters, loss), int((weights > 0).sum())
    if not loss.is_log or np.isinf(loss.threshold) or scale == 0.0:
        return scale
    slope, square = _psi_moments(loss.threshold / scale)
    tau = np.sqrt(square) / slope
    return scale * (1 + (tau - 1) * max(1 - 2 * parameters / n, 0.0))


def _centre(form: Form, columns: Mapping[str, Array], loss: Array, pinned: set[str]) -> Centre:
    """Means of the logarithms; a regressor whose prefactor is pinned stays in the user's units."""
    logs = {c: float(np.log(columns[c]).mean()) for c in form.columns}
    log_loss = float(np.log(loss).mean())
    for prefactor, (_, regressor) in form.powers.items():
        if prefactor in pinned:
            logs[regressor] = 0.0
            if form.name == "gamma":
                log_loss = 0.0  # the unit of a prefactor depends on γ
    return Centre(log_loss, logs)


def check_design(form: Form, columns: Mapping[str, Array], loss: Array, free: int, where: str) -> None:
    """Refuse designs from which the law cannot be known, and say why.

    Raises:
        InputError: too few runs, or all runs at one value of a regressor.
    """
    regressors = [c for c in form.columns if c != "U"]
    exponents = {r: e for e, r in form.powers.values()}
    for c in regressors:
        v = columns[c]
        if np.ptp(np.log(v)) <= 1e-9:
            raise InputError(
                f"{where}: all {len(v)} runs have {c} = {v[0]:g}: the exponent {exponents[c]} cannot be "
                f"known from them; add runs at another {c}, or fit a law in the other variable"
            )
    points = np.unique(np.column_stack([*columns.values(), loss]), axis=0)
    if len(points) < free + 2:
        raise InputError(
            f"{where}: {len(points)} distinct runs are too few for {free} free parameters; "
            f"at least {free + 2} are needed (or --fix some)"
        )
    designs = np.unique(np.column_stack(list(columns.values())), axis=0)
    if len(designs) < free:
        raise InputError(
            f"{where}: runs at {len(designs)} distinct points ({', '.join(columns)}) cannot determine "
            f"{free} free parameters; add runs at other points (or --fix some)"
        )


def _as_columns(form: Form, values: Mapping[str, object], loss: object, where: str) -> tuple[dict, Array]:
    loss_values = _vector(loss, "loss", where)
    columns = {}
    for c in form.columns:
        if values.get(c) is None:
            raise InputError(f"{where}: the form {form.name!r} needs a column {c!r}")
        columns[c] = _vector(values[c], c, where)
        if len(columns[c]) != len(loss_values):
            raise InputError(
                f"{where}: column {c!r} has {len(columns[c])} values, loss has {len(loss_values)}"
            )
    return columns, loss_values


def _vector(values: object, name: str, where: str) -> Array:
    try:
        v = np.array(values, dtype=float).reshape(-1)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: column {name!r} holds values that are not numbers") from error
    for i in np.flatnonzero(~(np.isfinite(v) & (v > 0))):
        raise InputError(f"{where}: row {i + 1}, column {name!r}: {v[i]:g} is not a positive finite number")
    return v


def resolve_form(form: str | Form) -> Form:
    """A form by name.

    Raises:
        InputError: unknown name.
    """
    if isinstance(form, Form):
        return form
    if form not in FORMS:
        raise InputError(f"unknown form {form!r}; choose one of {', '.join(FORMS)}")
    return FORMS[form]


def resolve_loss(loss_fn: str, delta: float) -> Loss:
    """A loss by name.

    Raises:
        InputError: unknown name, or delta not positive.
    """
    if loss_fn not in LOSSES:
        raise InputError(f"unknown loss function {loss_fn!r}; choose one of {', '.join(LOSSES)}")
    if not delta > 0:
        raise InputError(f"delta = {delta:g} is not positive")
    return Loss(loss_fn, float(delta))


def fit(
    N: object = None,
    D: object = None,
    loss: object = None,
    *,
    U: object = None,
    C: object = None,
    form: str | Form = "chinchilla",
    loss_fn: str = "log-huber",
    delta: float = 1e-3,
    fix: Mapping[str, float] | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    weights: object = None,
    where: str = "runs",
) -> Fit:
    """Fit a scaling law.

    Args:
        N, D, loss: parameters, training tokens and final loss of each run, (n,), any positive units.
        U, C: unique tokens (form ``repetition``) and compute (form ``power:C``).
        form: one of ``FORMS``.
        loss_fn: ``log-huber`` (default, Hoffmann et al. 2022), ``log-lsq``, ``lsq`` or ``lad``.
        delta: Huber threshold of log residuals.
        fix: parameters held at a value, as ``{"E": 0}``.
        bounds: (low, high) by parameter, narrower than the form's own.
        weights: non-negative weight of each run's loss (n,).
        where: name of the data in messages.

    Returns:
        The fit, whatever its verdict; read ``verdict`` before the parameters.

    Raises:
        InputError: see ``check_design``; unknown names; values that are not positive and finite.
    """
    form, objective = resolve_form(form), resolve_loss(loss_fn, delta)
    columns, observed = _as_columns(form, {"N": N, "D": D, "U": U, "C": C}, loss, where)
    w = _weights(weights, len(observed), where)
    fixed = _check_fixed(form, fix or {}, where)
    limits = _check_bounds(form, bounds or {}, where)
    used = w > 0
    check_design(
        form, {c: v[used] for c, v in columns.items()}, observed[used], len(form.names) - len(fixed), where
    )
    centre = _centre(form, columns, observed, {*fixed, *limits})
    if fixed.get("E", 0.0) >= observed[used].min():
        raise InputError(
            f"{where}: fixed E = {fixed['E']:g} is not below the smallest loss, {observed[used].min():g}"
        )
    lower, upper = form.internal_bounds()
    for name, (lo, hi) in limits.items():
        i = form.names.index(name)
        lower[i], upper[i] = _internal_value(form, name, lo, centre), _internal_value(form, name, hi, centre)
    for name, value in fixed.items():
        i = form.names.index(name)
        lower[i] = upper[i] = _internal_value(form, name, value, centre)
    return fit_internal(form, objective, columns, observed, w, centre, lower, upper, fixed)


def _internal_value(form: Form, name: str, value: float, centre: Centre) -> float:
    if name in form.floors:
        return value / np.exp(centre.log_loss)
    if name in form.powers:  # its regressor is not centred, so no exponent enters
        unit = 0.0 if form.name == "gamma" else centre.log_loss
        return (np.log(value) if value > 0 else -700.0) - unit
    if name in form.log_names:
        return float(np.log(value)) if value > 0 else -700.0
    return float(value)


def _weights(weights: object, n: int, where: str) -> Array:
    if weights is None:
        return np.ones(n)
    raw = np.asarray(weights, dtype=object).reshape(-1)
    w = pd.to_numeric(pd.Series(raw), errors="coerce").to_numpy(float)
    if len(w) != n:
        raise InputError(f"{where}: {len(w)} weights for {n} runs")
    for i in np.flatnonzero(~(np.isfinite(w) & (w >= 0))):
        raise InputError(f"{where}: row {i + 1}: weight {raw[i]!r} is not a finite non-negative number")
    return w


def _check_fixed(form: Form, fix: Mapping[str, float], where: str) -> dict[str, float]:
    for name, value in fix.items():
        if name not in form.names:
            raise InputError(
                f"{where}: cannot fix {name!r}; the form {form.name!r} has {', '.join(form.names)}"
            )
        lowest = form.bounds.get(name, (0.0, np.inf))[0]
        if not (np.isfinite(value) and value >= lowest):
            raise InputError(f"{where}: cannot fix {name} = {value}; it must be a number ≥ {lowest:g}")
    return {k: float(v) for k, v in fix.items()}


def _check_bounds(form: Form, bounds: Mapping[str, tuple[float, float]], where: str) -> dict:
    for name, (lo, hi) in bounds.items():
        if name not in form.names:
            raise InputError(
                f"{where}: cannot bound {name!r}; the form {form.name!r} has {', '.join(form.names)}"
            )
        if not 0 <= lo < hi:
            raise InputError(f"{where}: bounds of {name} must satisfy 0 ≤ low < high, not ({lo}, {hi})")
    return dict(bounds)


def fit_internal(
    form: Form,
    objective: Loss,
    columns: dict[str, Array],
    observed: Array,
    w: Array,
    centre: Centre,
    lower: Array,
    upper: Array,
    fixed: dict[str, float],
) -> Fit:
    """Fit with everything already checked and in internal units; equal bounds fix a parameter."""
    x = form.features(columns, centre)
    y = observed / np.exp(centre.log_loss)
    pinned = {i: lower[i] for i in range(len(lower)) if lower[i] == upper[i]}
    starts = form.starts(x, y, w if objective.is_log else w * y**2, pinned)
    if objective.kind in ("log-huber", "lad"):
        # outliers can hide a basin from least squares: profile again with L1 weights around its best
        r = np.abs(residuals(form, np.clip(starts[:1], lower, upper), x, y[None], True)[0])
        w1 = w / np.maximum(r, max(0.1 * np.median(r), 1e-12))
        starts = np.concatenate([starts, form.starts(x, y, w1 / w1.max(), pinned)])
    starts = np.clip(starts, lower, upper)

    def solve(theta: Array, delta: float, tolerance: float, iterations: int = 150):
        return minimise(
            form, theta, x, y[None], w[None], delta, objective.is_log, lower, upper,
            tolerance=tolerance, iterations=iterations,
        )  # fmt: skip

    target = objective.threshold
    theta = starts
    # the starts solve least squares already; going through it again would merge their basins
    path = [d for d in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8) if d > target]
    starting = len(theta)
    for delta in path:
        theta, f, _ = solve(theta, delta, *((1e-7, 150) if objective.kind == "lad" else (1e-4, 25)))
        theta = _best_distinct(theta, f, 12 if len(y) <= 100 else 6)
    theta, f, _ = solve(theta, target, 1e-7, 50)
    folded = _fold_floor(form, theta, lower)
    if len(folded):
        folded, g, _ = solve(folded, target, 1e-7, 50)
        theta, f = np.concatenate([theta, folded]), np.concatenate([f, g])
    theta, f, done = solve(_best_distinct(theta, f, 8 if len(y) <= 100 else 4), target, 1e-15)
    late = ~done & (f <= f.min() * 1.001)
    if late.any():
        theta[late], f[late], _ = solve(theta[late], target, 1e-15, 2000)
    theta, f = _with_faces(form, theta, f, x, y, w, objective, lower, upper)
    if objective.kind == "lad":
        near = theta[np.argsort(f)[:3]]
        theta, f = zip(*(_to_vertex(form, t, x, y, w, lower, upper) for t in near), strict=True)
        theta, f = np.array(theta), np.array(f)
        # an optimum that bends away from its vertex is smooth along the bend: Newton's business again
        smooth = solve(theta, 1e-6, 1e-12)[0]
        smooth = solve(smooth, target, 1e-15, 500)[0]
        value = np.sum(w * np.abs(residuals(form, smooth, x, y[None], True)), axis=1)
        theta[value < f], f = smooth[value < f], np.minimum(f, value)
    # of equal minima (noise-free data) the one with the fewest terms
    equal = f <= f.min() * (1 + 1e-12) + _ROUNDING * len(y)
    best = int(np.argmin(np.where(equal, -1.0 - np.sum(theta < -690.0, axis=1), f)))
    # a parameter within rounding of its bound belongs on it, or the slope there would look like work undone
    at_low, at_high = (np.abs(theta[best] - bound) < 1e-9 for bound in (lower, upper))
    snapped = np.where(at_low, lower, np.where(at_high, upper, theta[best]))
    if (snapped != theta[best]).any():
        t, g, _ = solve(snapped[None], target, 1e-15, 0 if objective.kind == "lad" else 150)
        if objective.rho(residuals(form, t, x, y[None], objective.is_log)[0]) @ w <= f[best] * (1 + 1e-12):
            theta[best] = t[0]
    solution = _refine(form, theta[best], x, y, w, objective, lower, upper)
    minima = _distinct(f if objective.is_log else f * np.exp(2 * centre.log_loss))
    return _finish(
        form, objective, columns, observed, w, centre, lower, upper, fixed, solution, starting, minima
    )


_FLAT = 0.05  # an exponent below which a term is hardly told from the floor


def _fold_floor(form: Form, theta: Array, lower: Array) -> Array:
    """For terms with an exponent near zero: the law without floor that has the same value and slope in the middle
    of the runs. Towards a logarithm E and A trade places along a valley so flat that Newton only crawls in it,
    and the minimum is at its end, on the face E = 0.
    """
    if "E" not in form.names or lower[form.names.index("E")] > 0 or form.name == "gamma":
        return theta[:0]
    found = []
    for prefactor, (exponent, _) in form.powers.items():
        i, j = form.names.index(prefactor), form.names.index(exponent)
        part = theta[(theta[:, j] < _FLAT) & (theta[:, 0] > 0)].copy()
        term = np.exp(part[:, i])
        part[:, i] = np.log(term + part[:, 0])
        part[:, j] *= term / (term + part[:, 0])
        part[:, 0] = 0.0
        found.append(part)
    return np.concatenate(found)


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


_ROUNDING = 1e-29  # objective per run below which residuals are rounding errors
_VANISHED = 1e-9  # a term below this fraction of every loss has left the law


def _with_faces(form, theta, f, x, y, w, objective, lower, upper):
    """Replace a term that fades away by its face (prefactor exactly 0), if the face is at least as good."""
    theta, f = theta.copy(), f.copy()
    for k in np.flatnonzero(f <= 1.2 * f.min() + _ROUNDING * len(y)):
        for prefactor in form.powers:
            i = form.names.index(prefactor)
            if lower[i] == upper[i]:
                continue
            j = form.names.index(form.powers[prefactor][0])
            without = theta[k].copy()
            without[i] = -700.0
            if theta[k, j] < 1e-6 and form.floors == ("E",) and form.name != "gamma" and lower[0] < upper[0]:
                without[0] += np.exp(theta[k, i])  # a constant term is part of the floor
            full = form.evaluate(theta[k : k + 1], x, curvature=False).value
            gone = form.evaluate(without[None], x, curvature=False).value
            if np.any(np.abs(full - gone) > _VANISHED * gone):
                continue
            lo, hi = lower.copy(), upper.copy()
            lo[i] = hi[i] = -700.0
            lo[j] = hi[j] = theta[k, j]
            t, g, _ = minimise(
                form, without[None], x, y[None], w[None], objective.threshold, objective.is_log, lo, hi,
                tolerance=1e-15, iterations=1000,
            )  # fmt: skip
            if g[0] <= f[k] * (1 + 1e-9) + 1e-30:
                theta[k], f[k] = t[0], g[0]
    return theta, f


def _refine(form, theta, x, y, w, objective, lower, upper) -> Array:
    """Last digits of a nearly exact fit: Gauss–Newton by QR while residuals are tiny, so that the condition
    number enters once and not squared.
    """
    r = residuals(form, theta[None], x, y[None], objective.is_log)[0]
    exact = 1e-7 if objective.is_log else 1e-7 * np.max(y)
    if np.max(np.abs(r)) > min(exact, objective.threshold if objective.kind == "log-huber" else np.inf):
        return theta
    free = (theta > lower) & (theta < upper) & (theta > -690.0)
    root = np.sqrt(w)
    best, smallest = theta, np.linalg.norm(root * r)
    for _ in range(8):
        ev = form.evaluate(best[None], x)
        jac = (ev.jacobian / ev.value[:, None] if objective.is_log else ev.jacobian)[0][free]
        r = residuals(form, best[None], x, y[None], objective.is_log)[0]
        scale = 1.0 / np.maximum(np.linalg.norm(jac * root, axis=1), 1e-300)
        step, *_ = np.linalg.lstsq((jac * root * scale[:, None]).T, root * r, rcond=1e-15)
        new = best.copy()
        new[free] += step * scale
        new = np.clip(new, lower, upper)
        norm = np.linalg.norm(root * residuals(form, new[None], x, y[None], objective.is_log)[0])
        if not norm < smallest:
            break
        best, smallest = new, norm
    return best


def _to_vertex(form, theta, x, y, w, lower, upper) -> tuple[Array, float]:
    """Least absolute deviations from the smoothed solution: successive linear programs in a shrinking box.

    The optimum is usually a vertex, where as many residuals vanish as there are free parameters; there the
    linear programs converge quadratically. Returns parameters and Σ w |r|.
    """

    def value(t: Array) -> float:
        return float(np.sum(w * np.abs(residuals(form, t[None], x, y[None], True)[0])))

    free = np.flatnonzero((lower < upper) & (theta > -690.0))
    used = np.flatnonzero(w > 0)
    best, objective = theta.copy(), value(theta)
    k = len(free)
    radius = np.inf
    for _ in range(60):
        ev = form.evaluate(best[None], x)
        jac = (ev.jacobian / ev.value[:, None])[0][np.ix_(free, used)]
        r = residuals(form, best[None], x, y[None], True)[0][used]
        radius = min(radius, float(np.linalg.norm(r)))
        # coordinates z in which the runs see every direction equally: J dx = U z
        scale = 1.0 / np.maximum(np.linalg.norm(jac, axis=1), 1e-300)
        u, spectrum, vt = np.linalg.svd((jac * scale[:, None]).T, full_matrices=False)
        back = scale[:, None] * vt.T / np.maximum(spectrum, 1e-9)  # dx = back @ z
        limits, room = [np.eye(k), -np.eye(k)], [np.full(2 * k, radius)]
        for sign, bound in ((1, upper), (-1, lower)):
            finite = np.flatnonzero(np.isfinite(bound[free]))
            limits.append(sign * back[finite])
            room.append(sign * (bound - best)[free][finite])
        walls, space = np.vstack(limits), np.concatenate(room)
        # min Σ w |r − U z| with walls z ≤ space by its dual, which has k rows however many the runs;
        # z are the multipliers of those rows
        found = linprog(
            np.concatenate([-r, space]), A_eq=np.hstack([-u.T, walls.T]), b_eq=np.zeros(k),
            bounds=np.column_stack([
                np.concatenate([-w[used], np.zeros(len(space))]),
                np.concatenate([w[used], np.full(len(space), np.inf)]),
            ]), method="highs",
        )  # fmt: skip
        if found.status != 0:
            break
        new = best.copy()
        new[free] += back @ found.eqlin.marginals
        new = np.clip(new, lower, upper)
        reached, promised = value(new), objective + found.fun
        if reached < objective:
            gained = objective - reached
            radius *= 4.0 if gained > 0.5 * promised else 1.0
            best, objective = new, reached
        else:
            radius *= 0.2
        if promised <= 1e-13 * objective or radius < 1e-13:
            break
    return best, objective


def _finish(form, objective, columns, observed, w, centre, lower, upper, fixed, theta, starts, minima) -> Fit:
    natural = form.to_natural(theta[None], centre)
    params = {name: float(natural[name][0]) for name in form.names}
    for name in form.powers:
        if theta[form.names.index(name)] <= -690.0:
            params[name] = 0.0
    params.update(fixed)
    x = form.features(columns, centre)
    y = observed / np.exp(centre.log_loss)
    r = residuals(form, theta[None], x, y[None], objective.is_log)[0]
    if not objective.is_log:
        r = r * np.exp(centre.log_loss)
    total = float(np.sum(w * objective.rho(r)))
    shell = Fit(
        form, objective, params, total, len(observed), "", _NO_CERTIFICATE, fixed,
        columns, observed, w, theta, centre, lower, upper,
    )  # fmt: skip
    certificate = _certify(shell, starts, minima)
    return Fit(
        form, objective, params, total, len(observed), _verdict(shell, certificate), certificate, fixed,
        columns, observed, w, theta, centre, lower, upper,
    )  # fmt: skip


_NO_CERTIFICATE = Certificate(np.nan, np.nan, (), np.nan, 0, 0, (), (), "")


def _certify(fit: Fit, starts: int, minima: list[float]) -> Certificate:
    free, loss = fit.free, fit.loss
    active = []
    for i, name in enumerate(fit.form.names):
        if name in fit.fixed or name in fit._idle:
            continue
        if fit.theta[i] <= fit.lower[i]:
            active.append(f"{name} = {fit.params[name]:g} (lower bound)")
        elif fit.theta[i] >= fit.upper[i]:
            active.append(f"{name} = {fit.params[name]:g} (upper bound)")
    active += [
        f"{p} = 0 (lower bound)" for p in fit.form.powers if fit.params[p] == 0.0 and p not in fit.fixed
    ]
    if not len(free):
        return Certificate(0.0, 0.0, (), 1.0, starts, len(minima), tuple(minima), tuple(active), "none")
    d = derivatives(
        fit.form, fit.theta[None], fit.features, fit.scaled_loss[None], fit.weights[None],
        loss.threshold, loss.is_log,
    )  # fmt: skip
    # an objective at the rounding level of the residuals is zero (noise-free data): its slope is rounding too
    rounding = float(np.sum(fit.weights)) * (4e-16 * (1.0 if loss.is_log else np.max(fit.scaled_loss))) ** 2
    f = float(d.f[0]) if d.f[0] > 100 * rounding else np.inf
    block = np.ix_(free, free)
    gauss_newton = fit._gauss_newton[block]
    scale = 1.0 / np.sqrt(np.maximum(np.diag(gauss_newton), 1e-290))
    design = gauss_newton * np.outer(scale, scale)
    values, vectors = np.linalg.eigh(design)
    condition = float(values[-1] / max(values[0], 1e-18))
    if loss.kind == "lad":
        gradient = decrement = _subgradient_excess(fit)
        eigenvalues = values
    else:
        m = np.maximum(np.diag(d.majoriser[0])[free], 1e-290)
        gradient = float(np.max(np.abs(d.g[0][free]) / np.sqrt(2 * f * m)))
        hs = 1.0 / np.sqrt(m)
        eigenvalues, basis = np.linalg.eigh(d.h[0][block] * np.outer(hs, hs))
        slope = basis.T @ (d.g[0][free] * hs)
        decrement = float(np.sum(slope**2 / np.maximum(np.abs(eigenvalues), 1e-14)) / (2 * f))
    weakest = vectors[:, 0]
    order = np.argsort(-np.abs(weakest))
    names = [fit.form.names[free[i]] for i in order if abs(weakest[i]) > 0.3]
    return Certificate(
        gradient, decrement, tuple(float(v) for v in eigenvalues), condition, starts, len(minima),
        tuple(minima), tuple(active), "–".join(names),
    )  # fmt: skip


def _subgradient_excess(fit: Fit) -> float:
    """How far 0 is from the subdifferential of Σ w|r|: multipliers of the zero residuals must lie in ±w."""
    r, w, free = fit.residuals, fit.weights, fit.free
    zero = np.abs(r) <= 1e-8
    jac = fit.jacobian[free]
    pull = jac[:, ~zero] @ (w * np.sign(r))[~zero]
    if not zero.any():
        return float(np.max(np.abs(pull) / np.sqrt(np.sum(jac**2, 1) * fit.n)))
    scale = 1.0 / np.sqrt(np.sum(jac**2, axis=1) * fit.n)
    limit = np.maximum(w[zero], 1e-12)
    found = lsq_linear(jac[:, zero] * scale[:, None], -pull * scale, bounds=(-limit, limit), tol=1e-12)
    return float(np.max(np.abs(found.fun)))


def _verdict(fit: Fit, c: Certificate) -> str:
    """The state of the fit in words."""
    if not np.isfinite(fit.objective) or not np.isfinite(c.decrement):
        return "not converged: the objective is not finite"
    if len(fit.fixed) == len(fit.form.names):
        return "converged: all parameters are fixed, nothing was fitted"
    late = ""
    if c.decrement > 1e-9 and c.gradient > 1e-6:
        late = f"not converged: one more step would lower the objective by {c.decrement:.1e} (relative)"
        if c.condition < 1e10:
            return late
    boundary = f"on boundary: {', '.join(c.active_bounds)}" if c.active_bounds else ""
    idle = [fit.form.powers[p][0] for p in fit.form.powers if fit.params[p] == 0.0 and p not in fit.fixed]
    vague = _vague_parameters(fit)
    if c.condition > 1e12 or vague or idle:
        if idle:
            what = f"{', '.join(idle)} (its term vanished)"
        elif vague:
            what = f"{c.weakest_direction} ({'; '.join(vague)})"
        else:
            what = f"{c.weakest_direction} (condition {c.condition:.0e})"
        return "; ".join(filter(None, (f"unidentified: direction {what}", boundary, late)))
    return late or boundary or "converged"


def _vague_parameters(fit: Fit) -> list[str]:
    """Exponents whose 95 % interval is as wide as they are, and R uncertain by more than a factor of 10.

    Prefactors are left out: in the user's units they are extrapolations to N = 1 or D = 1.
    """
    out = []
    half = fit.t_value(0.95) * np.sqrt(np.maximum(np.diag(fit.covariance), 0.0))
    for i in fit.free:
        name = fit.form.names[i]
        if name in fit.form.powers or name in fit.form.floors:
            continue
        value = fit.params[name]
        if name in fit.form.log_names:
            if half[i] > np.log(10):
                out.append(f"{name} = {value:.3g} within a factor of {np.exp(min(half[i], 50)):.2g}")
        elif half[i] >= value:
            out.append(f"{name} = {value:.3g} ± {half[i]:.2g}")
    return out


def alloc_exponents(c: Coefficients) -> Array:
    """Exponents a, b of N_opt ∝ C^a and D_opt ∝ C^b for C = κND: a = β/(α+β), b = α/(α+β), (b, 2)."""
    total = c["alpha"] + c["beta"]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([c["beta"] / total, c["alpha"] / total], -1)
