"""Fitting one law to one set of runs, and what follows from the fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np
from scipy import special

from eqscale.errors import InputError
from eqscale.laws.certificate import Certificate, Verdict, certify, verdict_of
from eqscale.laws.forms import Coefficients, Evaluation, Form, get_form
from eqscale.laws.forms.base import GONE
from eqscale.laws.noise import noise_scale, residual_spread
from eqscale.laws.problem import Loss, Problem, check_fixed, read_columns
from eqscale.laws.replicates import LackOfFit, pure_error_test
from eqscale.laws.search import solve
from eqscale.laws.solver import covariance_of
from eqscale.laws.structure import Structure, structure_test

Array = np.ndarray
Quantity = Callable[[Coefficients], Array]
"""A number (or several) that follows from the coefficients: b sets to (b,) or (b, k)."""


@dataclass(frozen=True)
class Fit(Problem):
    """A problem with its solution and everything that follows from it."""

    theta: Array = field(repr=False)
    """Internal parameters, (p,)."""
    starts: int
    """Points that the search for the minimum started from."""
    minima: list[float] = field(repr=False)
    """Objectives of the distinct minima found, ascending."""
    remark: str = field(default="", kw_only=True)
    """What a comparison with other forms adds to a verdict of misfit (see ``rivals``)."""

    @cached_property
    def params(self) -> dict[str, float]:
        """Public parameters in the user's units."""
        found = {name: float(self.coefficients[name][0]) for name in self.form.names}
        for name in self.form.powers:
            if self.theta[self.index(name)] <= GONE + 10:
                found[name] = 0.0
        return found | self.fixed

    @cached_property
    def objective(self) -> float:
        """Σ weight × ρ(residual) as minimised: summed, unscaled."""
        return float(np.sum(self.weights * self.loss.rho(self.residuals)))

    @cached_property
    def certificate(self) -> Certificate:
        """Evidence that this is the minimum."""
        return certify(self)

    @cached_property
    def structure(self) -> Structure | None:
        """Whether the form is right, by the residuals."""
        return structure_test(self)

    @cached_property
    def lack_of_fit(self) -> LackOfFit | None:
        """Whether the form is right, by replicates; None without them."""
        return pure_error_test(self.least_squares())

    @cached_property
    def verdict(self) -> Verdict:
        """What the fit is worth, in words; read it before the parameters."""
        return verdict_of(self)

    @cached_property
    def residuals(self) -> Array:
        """Observed minus fitted, as logarithms (or as losses for ``lsq``), (n,)."""
        return self.residuals_at(self.theta[None])[0] * self.residual_unit

    @cached_property
    def free(self) -> Array:
        """Indices of the parameters that neither sit on a bound nor are fixed."""
        inside = (self.theta > self.lower) & (self.theta < self.upper)
        return np.flatnonzero(inside & np.array([n not in self.idle for n in self.form.names]))

    @property
    def vanished(self) -> list[str]:
        """Free prefactors that ended at zero."""
        return [p for p in self.form.powers if self.params[p] == 0.0 and p not in self.fixed]

    @property
    def idle(self) -> set[str]:
        """Parameters without effect: the exponent of a term whose prefactor is zero, and the prefactor."""
        gone = [p for p in self.form.powers if self.params[p] == 0.0]
        return {*gone, *(self.form.powers[p][0] for p in gone)}

    @cached_property
    def coefficients(self) -> Coefficients:
        """The point estimate in the shape that quantities take: arrays of one."""
        return self.form.to_natural(self.theta[None], self.centre)

    def columns_from(self, *args, **kwargs) -> dict[str, Array]:
        """Regressors by position or name, broadcast against each other.

        Raises:
            InputError: one is missing.
        """
        given = dict(zip(self.form.columns, args, strict=False)) | kwargs
        for column, stand_in in self.form.stand_ins.items():
            if stand_in in given:
                given.setdefault(column, given[stand_in])
        missing = [c for c in self.form.columns if c not in given]
        if missing:
            raise InputError(f"{self.form.name}: predict needs {', '.join(self.form.columns)}; missing {missing[0]}")
        arrays = np.broadcast_arrays(*(np.asarray(given[c], float) for c in self.form.columns))
        return dict(zip(self.form.columns, arrays, strict=True))

    def evaluate_at(self, columns: Mapping[str, Array]) -> Evaluation:
        """The law and its derivatives at regressors (m,), in centred units."""
        x = self.form.features({k: np.log(v) for k, v in columns.items()}, self.centre)
        return self.form.evaluate(self.theta[None], x)

    def predict(self, *args, **kwargs) -> Array:
        """Loss at ``predict(N, D)`` (or the form's own regressors, also by name), in the user's units."""
        columns = self.columns_from(*args, **kwargs)
        shape = next(iter(columns.values())).shape
        value = self.evaluate_at({k: v.ravel() for k, v in columns.items()}).value[0]
        return (value * self.unit).reshape(shape)

    @cached_property
    def noise(self) -> float:
        """Standard error scale of the residuals that the covariance is built with (see ``noise_scale``)."""
        return noise_scale(self.residuals, self.weights, len(self.free), self.loss)

    @cached_property
    def spread(self) -> float:
        """Standard deviation of the noise of one run (see ``residual_spread``)."""
        return residual_spread(self.residuals, self.weights, len(self.free), self.loss)

    def spread_at(self, loss: Array | float) -> Array | float:
        """Standard deviation of the log loss of one run at a loss."""
        return self.spread if self.loss.is_log else self.spread / loss

    def refit(self, keep: Array, starts: Array | None = None) -> Fit:
        """The same law fitted to some of the runs (boolean (n,) or indices), from ``starts`` (k, p) or new ones.

        Raises:
            InputError: those runs cannot determine the law.
        """
        some = self.only(keep)
        some.check(int(np.sum(self.lower < self.upper)), "remaining runs")
        return fit_problem(some, starts)

    def least_squares(self) -> Fit:
        """The same law fitted by least squares of the log loss."""
        return fit_problem(replace(self, loss=Loss("log-lsq")), self.theta[None])

    @cached_property
    def covariance(self) -> Array:
        """Gauss–Newton covariance of the internal parameters (p, p); zero for fixed and bound ones."""
        return covariance_of(self.gauss_newton, self.free, (self.noise / self.residual_unit) ** 2)

    @cached_property
    def jacobian(self) -> Array:
        """Derivatives of the fitted (log) loss by the internal parameters, (p, n)."""
        return self.jacobian_at(self.theta)

    @cached_property
    def gauss_newton(self) -> Array:
        """J W Jᵀ, (p, p)."""
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


def fit_problem(problem: Problem, starts: Array | None = None) -> Fit:
    """Solve a problem that has been checked already, from ``starts`` (k, p) or those of its form."""
    found = solve(problem, starts)
    stated = {f.name: getattr(problem, f.name) for f in fields(Problem)}
    return Fit(**stated, theta=found.theta, starts=found.starts, minima=found.minima)


def fit(
    N: object = None,
    D: object = None,
    loss: object = None,
    *,
    form: str | Form = "chinchilla",
    loss_fn: str = "log-huber",
    delta: float = 1e-3,
    fix: Mapping[str, float] | None = None,
    weights: object = None,
    chosen: Mapping[str, object] | None = None,
    points: object = None,
    where: str = "runs",
    **columns: object,
) -> Fit:
    """Fit a scaling law.

    Args:
        N, D, loss: parameters, training tokens and final loss of each run, (n,), any positive units.
        form: one of ``FORMS``, by name or itself.
        loss_fn: ``log-huber`` (default, Hoffmann et al. 2022), ``log-lsq``, ``lad``, ``huber``, ``lsq``: see ``Loss``.
        delta: Huber threshold of log residuals, for ``huber`` in units of the loss.
        fix: parameters held at a value, as ``{"E": 0}``.
        weights: non-negative weight of each run's loss (n,).
        chosen, points: further columns of the runs' design, and which runs are replicates: see ``Problem``.
        where: name of the data in messages.
        columns: further regressors of the form, such as unique tokens U or compute C, (n,).

    Returns:
        The fit, whatever its verdict; read ``verdict`` before the parameters.

    Raises:
        InputError: see ``check_design``; unknown names; values that are not positive and finite.
    """
    chosen_form, rule = get_form(form) if isinstance(form, str) else form, Loss(loss_fn, float(delta))
    regressors, observed, w = read_columns(chosen_form, {"N": N, "D": D, **columns}, loss, weights, where)
    fixed = check_fixed(chosen_form, fix or {}, float(observed[w > 0].min(initial=np.inf)), where)
    problem = pose(chosen_form, rule, regressors, observed, w, fixed)
    further = {name: np.asarray(v) for name, v in (chosen or {}).items()}
    label = None if points is None else np.asarray(points)
    for name, v in (further if label is None else further | {"points": label}).items():
        if len(v) != len(observed):
            raise InputError(f"{where}: column {name!r} has {len(v)} values, loss has {len(observed)}")
    problem = replace(problem, chosen=further, points=label)
    problem.check(len(problem.form.names) - len(fixed), where)
    return fit_problem(problem)


def pose(
    form: Form, loss: Loss, columns: dict[str, Array], observed: Array, weights: Array, fixed: dict[str, float]
) -> Problem:
    """The problem of fitting a form to checked runs, in the variables and the box that suit it."""
    centre = form.centre(columns, observed, fixed)
    lower, upper = form.internal_bounds()
    for name in fixed:
        i = form.names.index(name)
        lower[i] = upper[i] = max(form.internal_value(name, fixed, centre), GONE)
    return Problem(form, loss, columns, observed, weights, centre, lower, upper, fixed)
