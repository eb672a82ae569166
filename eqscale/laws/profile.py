"""Profile likelihood intervals: where refitting all other parameters can no longer make up for one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import optimize, stats

from eqscale.errors import InputError
from eqscale.laws.fit import Fit
from eqscale.laws.noise import efficiency
from eqscale.laws.problem import Problem
from eqscale.laws.solver import minimise

Array = np.ndarray


def profile_interval(fit: Fit, name: str, level: float = 0.95) -> tuple[float, float]:
    """Profile likelihood interval of one parameter.

    The limits are where 2c (f − f_min) reaches the F quantile, c turning the objective into a log likelihood
    (see ``efficiency``). A side on which it never does is reported as the bound of the parameter.

    Raises:
        InputError: an unknown or fixed parameter.
    """
    form, i = fit.form, fit.form.names.index(name) if name in fit.form.names else -1
    if i < 0 or name in fit.fixed:
        free = [n for n in form.names if n not in fit.fixed]
        raise InputError(f"no profile of {name!r}; free parameters: {', '.join(free)}")
    # a prefactor in the user's units is a parameter only where nothing else moves its unit
    problem: Problem = replace(fit, centre=form.centre_holding(fit.centre, [name]))
    theta = form.to_internal(fit.params, problem.centre)
    if not np.isfinite(theta).all():
        return 0.0, np.inf
    held = [form.names.index(other) for other in fit.fixed]
    lower, upper = form.internal_bounds()
    lower[held] = upper[held] = theta[held]
    problem = problem.within(lower, upper)
    se = fit.standard_error(lambda c: c["log_" + name] if name in form.log_names else c[name])[0]
    is_floor = name in form.floors
    step = float(se) / (problem.unit if is_floor else 1.0)
    step = step if step > 0 else 0.1 * max(abs(theta[i]), 1.0)
    target = float(stats.f.ppf(level, 1, max(fit.degrees_of_freedom, 1)))
    highest = min(upper[i], problem.scaled_loss.min() * (1 - 1e-9)) if is_floor else upper[i]
    limits = []
    for bound, sign in ((lower[i], -1.0), (highest, 1.0)):
        excess = _excess(problem, theta, i, fit.noise, target)
        limits.append(_limit(excess, theta[i], sign * step, bound))
    return _natural(problem, theta, i, limits[0]), _natural(problem, theta, i, limits[1])


def _excess(problem: Problem, theta: Array, i: int, noise: float, target: float) -> Callable[[float], float]:
    """2c (f − f_min) minus its target, as a function of parameter i; a walk that starts where the last one ended."""
    loss = problem.loss
    smoothing = max(loss.threshold, 1e-5) if loss.kind == "lad" else loss.threshold
    unit = 1 / smoothing if loss.kind == "lad" else 1.0 if loss.is_log else problem.unit**2
    c = efficiency(noise, loss) * unit
    last = theta

    def best(value: float) -> float:
        nonlocal last
        lower, upper = problem.lower.copy(), problem.upper.copy()
        lower[i] = upper[i] = value
        start = np.stack([last, theta])
        start[:, i] = value
        t, f, _ = minimise(problem.within(lower, upper), start, delta=smoothing, tolerance=1e-12)
        last = t[int(np.argmin(f))]
        return float(f.min())

    bottom = best(theta[i])
    return lambda value: 2 * c * (best(value) - bottom) - target


def _limit(excess: Callable[[float], float], start: float, step: float, bound: float) -> float:
    """Where ``excess`` turns positive, going from ``start`` in growing steps; the bound if it never does."""
    inner = start
    for k in range(1, 40):
        outer = start + step * (1.5**k - 0.5)
        if (outer - bound) * step >= 0:
            outer = bound
        if not np.isfinite(outer):
            break
        if excess(outer) > 0:
            return optimize.brentq(excess, inner, outer, xtol=1e-6 * abs(step))
        if outer == bound:
            break
        inner = outer
    return bound


def _natural(problem: Problem, theta: Array, i: int, value: float) -> float:
    """A value of parameter i in public units."""
    if not np.isfinite(value):
        return 0.0 if value < 0 else np.inf
    theta = theta.copy()
    theta[i] = value
    return float(problem.form.to_natural(theta[None], problem.centre)[problem.form.names[i]][0])
