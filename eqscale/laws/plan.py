"""Which runs next: where one more run, per unit of cost, most reduces the uncertainty of a stated quantity.

V-optimal design (Fedorov 1972) on the linearised law: a run with sensitivity j to the parameters turns the
covariance Σ into Σ − Σjjᵀ Σ/(σ² + jᵀΣj), so the variance of a quantity with gradient g falls by
(gᵀΣj)²/(σ² + jᵀΣj). Runs are picked one by one by that gain over their cost. Σ starts from the runs at hand and a weak
prior, so that a parameter on a bound, or one that the runs leave open, counts as unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from eqscale.errors import InputError
from eqscale.laws.answers import size_at_ratio
from eqscale.laws.arms import ArmFit
from eqscale.laws.contrast import log_optimum
from eqscale.laws.fit import Quantity
from eqscale.laws.frontier import frontier, frontier_values
from eqscale.laws.solver import covariance_of
from eqscale.laws.uncertainty import parameter_targets
from eqscale.numbers import number

Array = np.ndarray


@dataclass(frozen=True)
class Question:
    """A quantity with its gradient for each arm it depends on."""

    name: str
    estimate: float
    """NaN where a law that it rests on is unidentified."""
    gradients: dict[str, Array]
    """By arm, with respect to the internal parameters, (p,)."""


def parse_question(text: str, arms: Mapping[str, ArmFit]) -> Question:
    """What should become more certain.

    Args:
        text: about one arm a parameter of the law or what follows from it, such as ``alpha`` or ``a``, ``size@C`` or
            ``loss@C`` (log N_opt or log L_opt at a cost); about two arms ``gap@C`` (log ratio of their L_opt) or
            ``crossing`` (log of the cost at which these meet). C is a number, as in ``gap@1e20``.
        arms: the arms it is about.

    Raises:
        InputError: unknown quantity, a missing cost, the wrong number of arms, or no crossing near the runs.
    """
    name, at, value = text.partition("@")
    own = {t.name: t.quantity for t in parameter_targets(next(iter(arms.values())).fit)}
    known = [*own, "size@C", "loss@C", "gap@C", "crossing"]
    if (f"{name}@C" if at else name) not in known:
        raise InputError(f"unknown quantity {text!r}; choose one of {', '.join(known)}")
    try:
        C = float(value) if at else 0.0
    except ValueError:
        C = -1.0
    if at and not 0 < C < np.inf:
        raise InputError(f"{text!r}: {value!r} is not a positive cost")
    if name in ("gap", "crossing"):
        return _question_of_two(text, name, C, arms)
    if len(arms) != 1:
        raise InputError(f"{text!r} is about one arm, not {len(arms)} ({', '.join(arms)}); name it")
    (arm,) = arms.values()
    quantity = log_optimum(arm.cost, C, "N" if name == "size" else "loss") if at else own[name]
    estimate = float(np.asarray(quantity(arm.fit.coefficients)).ravel()[0]) if arm.fit.verdict.determined else np.nan
    return Question(text, estimate, {arm.name: gradient(arm, quantity)})


def _question_of_two(text: str, name: str, C: float, arms: Mapping[str, ArmFit]) -> Question:
    if len(arms) != 2:
        raise InputError(f"{text!r} is about two arms, not {len(arms)} ({', '.join(arms)}); name them")
    one, two = arms.values()
    if name == "crossing":
        C = _find_crossing(one, two)
    gradients = {
        arm.name: sign * gradient(arm, log_optimum(arm.cost, C, "loss")) for arm, sign in ((one, 1.0), (two, -1.0))
    }
    if name == "gap":
        return Question(
            text, _gap(one, two, C) if one.fit.verdict.determined and two.fit.verdict.determined else np.nan, gradients
        )
    slope = (_gap(one, two, C * 1.01) - _gap(one, two, C / 1.01)) / (2 * np.log(1.01))
    return Question(text, float(np.log(C)), {k: -g / slope for k, g in gradients.items()})


def _gap(one: ArmFit, two: ArmFit, C: float) -> float:
    values = [frontier_values(a.fit.coefficients, a.cost, np.array([C]))[2][0, 0] for a in (one, two)]
    return float(values[0] - values[1])


def _find_crossing(one: ArmFit, two: ArmFit) -> float:
    grid = np.geomspace(min(one.C.min(), two.C.min()) / 1e3, max(one.C.max(), two.C.max()) * 1e3, 200)
    values = np.array([_gap(one, two, c) for c in grid])
    change = np.flatnonzero(values[:-1] * values[1:] <= 0)
    if not len(change):
        raise InputError(
            f"the laws of {one.name} and {two.name} do not cross from C = {number(grid[0], 3)} to {number(grid[-1], 3)}"
        )
    k = change[len(change) // 2]
    low, high = np.log(grid[k : k + 2])
    return float(np.exp(optimize.brentq(lambda x: _gap(one, two, np.exp(x)), low, high)))


@dataclass(frozen=True)
class Limits:
    """Which runs of an arm may be proposed: the linearised law is an extrapolation elsewhere."""

    cost: tuple[float, float]
    ratio: tuple[float, float]
    """Of D/N."""


def limits_of(arm: ArmFit, cost: tuple[float, float] | None = None) -> Limits:
    """Costs within three times the range of an arm's runs unless given, D/N within twice their range."""
    ratio = arm.D / arm.N
    low, high = cost or (arm.C.min() / 3, arm.C.max() * 3)
    return Limits((float(low), float(high)), (float(ratio.min() / 2), float(ratio.max() * 2)))


def candidate_runs(arm: ArmFit, limits: Limits) -> tuple[Array, Array, Array]:
    """12 costs by 17 ratios D/N within limits: (N, D, C)."""
    C = np.repeat(np.geomspace(*limits.cost, 12), 17)
    ratio = np.tile(np.geomspace(*limits.ratio, 17), 12)
    N = size_at_ratio(arm.cost, ratio, C)
    return N, ratio * N, C


@dataclass(frozen=True)
class PlannedRun:
    """A proposed run and the standard error of the question's answer after it (and those before it)."""

    arm: str
    N: float
    D: float
    C: float
    expected_se: float


@dataclass(frozen=True)
class Plan:
    """A batch of runs, most informative first."""

    question: str
    estimate: float
    """NaN where the laws don't say."""
    se_now: float
    runs: tuple[PlannedRun, ...]
    limits: dict[str, Limits]
    """Of each arm."""

    @property
    def cost(self) -> float:
        """Total cost of the runs."""
        return float(sum(r.C for r in self.runs))

    @property
    def points(self) -> list[tuple[PlannedRun, int]]:
        """Each proposed point once, with the number of runs there; cheapest first."""
        found: dict[tuple[str, float, float], list[PlannedRun]] = {}
        for run in self.runs:
            found.setdefault((run.arm, run.N, run.D), []).append(run)
        return sorted(((group[-1], len(group)) for group in found.values()), key=lambda p: (p[0].arm, p[0].C, p[0].N))


@dataclass(frozen=True)
class Candidates:
    """Runs of one arm to choose from, each (m,)."""

    N: Array
    D: Array
    C: Array


def plan_runs(
    question: Question,
    arms: Mapping[str, ArmFit],
    *,
    budget: float,
    cost_range: tuple[float, float] | None = None,
    runs: int = 20,
) -> Plan:
    """Choose runs for a question within a total budget.

    Args:
        question: what should become more certain (see ``parse_question``).
        arms: the arms it is about.
        budget: total cost of the new runs.
        cost_range: lowest and highest cost of one run; see ``limits_of``.
        runs: most runs planned.

    Raises:
        InputError: a range without runs, or a budget below the cheapest candidate.
    """
    if not budget > 0:
        raise InputError(f"a spend of {budget:g} is not positive")
    limits, candidates = {}, {}
    for name in question.gradients:
        limits[name] = within = limits_of(arms[name], cost_range)
        low, high = within.cost
        if not 0 < low <= high:
            raise InputError(
                f"range {low:g},{high:g}: the lowest cost of a run must be positive and not above the highest"
            )
        if budget < low * (1 - 1e-9):
            why = "" if cost_range else ": a third of the cheapest at hand (--range LOW,HIGH allows others)"
            raise InputError(
                f"a spend of {number(budget, 3)} is below {number(low, 3)}, the cheapest run to choose from for "
                f"{name}{why}"
            )
        within = Limits((low, max(min(high, budget), low)), within.ratio)
        candidates[name] = Candidates(*candidate_runs(arms[name], within))
    return choose_runs(question, arms, candidates, budget=budget, runs=runs, limits=limits)


def choose_runs(
    question: Question,
    arms: Mapping[str, ArmFit],
    candidates: Mapping[str, Candidates],
    *,
    budget: float,
    runs: int,
    limits: dict[str, Limits] | None = None,
) -> Plan:
    """The best of given runs for a question, each as often as it helps, within a total budget and number."""
    state, se2 = {}, 0.0
    for name, gradient in question.gradients.items():
        arm, choice = arms[name], candidates[name]
        covariance = opened_covariance(arm)
        jac, noise = _sensitivity(arm, choice.N, choice.D)
        state[name] = (covariance, gradient, jac, noise, choice.N, choice.D, choice.C)
        se2 += float(gradient @ covariance @ gradient)
    # gain per cost where the budget limits, gain where the number of runs does, and between them
    plans = [_greedy(state, se2, budget, runs, power) for power in (0.0, 0.5, 1.0)]
    best = min(plans, key=lambda p: p[-1].expected_se if p else np.inf)
    return Plan(question.name, question.estimate, float(np.sqrt(se2)), tuple(best), limits or {})


_UNKNOWN = {"log": 3.0, "floor": 1.0, "exponent": 0.5}
"""Standard deviations, in centred units, of what is known of a parameter before any run."""


def opened(arm: ArmFit) -> Array:
    """Internal parameters (p,) at which an arm's law is linearised.

    Those of the fit; if the runs leave it open, those of a law with floor and terms of equal size and exponents of 0.3.
    """
    fit, form = arm.fit, arm.fit.form
    theta = fit.theta.copy()
    if arm.fit.verdict.determined:
        return theta
    part = 1 / (len(form.powers) + len(form.floors))
    neutral = dict.fromkeys(form.floors, part) | dict.fromkeys(form.powers, np.log(part))
    neutral |= {exponent: 0.3 for exponent, _ in form.powers.values()}
    for name in neutral.keys() - fit.fixed.keys():
        theta[fit.index(name)] = neutral[name]
    return np.clip(theta, fit.lower, fit.upper)


def opened_covariance(arm: ArmFit) -> Array:
    """Covariance of the internal parameters (p, p) from an arm's runs and a weak prior, with no bound but the fixed
    parameters.
    """
    fit, theta = arm.fit, opened(arm)
    jac, noise = fit.jacobian_at(theta), _noise(arm)
    exponents = {exponent for exponent, _ in fit.form.powers.values()}
    prior = np.array([
        _UNKNOWN["log"] if name in fit.form.log_names
        else _UNKNOWN["floor"] if name in fit.form.floors
        else _UNKNOWN["exponent"] if name in exponents
        else 3 * max(abs(t), 1.0)
        for name, t in zip(fit.form.names, theta, strict=True)
    ])  # fmt: skip
    free = np.flatnonzero([name not in fit.fixed for name in fit.form.names])
    information = (jac * fit.weights) @ jac.T / noise**2 + np.diag(prior**-2.0)
    return covariance_of(information, free)


def _noise(arm: ArmFit) -> float:
    """Noise of one run in the units of the residuals inside; never quite zero."""
    return max(arm.fit.noise / arm.fit.residual_unit, 1e-6)


def _sensitivity(arm: ArmFit, N: Array, D: Array) -> tuple[Array, float]:
    """Derivatives of the (log) loss at new runs by internal parameters, (m, p), and the noise variance."""
    fit = arm.fit
    x = fit.form.features({k: np.log(v) for k, v in fit.columns_from(N, D).items()}, fit.centre)
    ev = fit.form.evaluate(opened(arm)[None], x)
    jac = ev.jacobian()[0].T
    return jac / ev.value[0][:, None] if fit.loss.is_log else jac, _noise(arm) ** 2


def gradient(arm: ArmFit, quantity: Quantity) -> Array:
    """Central differences of a quantity by the internal parameters where the law is linearised, (p,).

    Raises:
        InputError: the quantity doesn't exist there.
    """
    theta, step = opened(arm), 1e-4
    shifts = step * np.diag([name not in arm.fit.fixed for name in arm.fit.form.names]).astype(float)
    points = arm.fit.form.to_natural(np.concatenate([theta + shifts, theta - shifts]), arm.fit.centre)
    above, below = np.asarray(quantity(points), float).reshape(2, len(theta))
    slope = (above - below) / (2 * step)
    if not np.isfinite(slope).all():
        raise InputError(f"{arm.name}: its law has no such quantity ({arm.fit.verdict})")
    return slope


def _greedy(state: dict, se2: float, left: float, runs: int, power: float) -> list[PlannedRun]:
    """One run after the other by its gain over its cost to a power."""
    state, chosen, start = dict(state), [], se2
    for _ in range(runs):
        best = None
        for name, (sigma, gradient, jac, noise, _, _, C) in state.items():
            pull = jac @ sigma
            gain = (pull @ gradient) ** 2 / (noise + np.einsum("mp,mp->m", pull, jac))
            worth = np.where(left * (1 + 1e-9) >= C, gain / C**power, 0.0)
            k = int(np.argmax(worth))
            if worth[k] > 0 and (best is None or worth[k] > best[0]):
                best = (worth[k], name, k, gain[k])
        if best is None or best[3] <= 1e-12 * start:
            break
        _, name, k, gain_k = best
        sigma, gradient, jac, noise, N, D, C = state[name]
        j = jac[k]
        pull = sigma @ j
        state[name] = (sigma - np.outer(pull, pull) / (noise + j @ pull), gradient, jac, noise, N, D, C)
        se2 -= float(gain_k)
        left -= float(C[k])
        chosen.append(PlannedRun(name, float(N[k]), float(D[k]), float(C[k]), float(np.sqrt(max(se2, 0.0)))))
    return chosen


@dataclass(frozen=True)
class Advice:
    """What to train with a given cost."""

    arm: str
    C: float
    N: float
    N_band: tuple[float, float]
    D: float
    loss: float
    loss_band: tuple[float, float]
    probability_best: float | None
    """Share of resamples in which this arm has the lowest loss."""
    extrapolated: bool


def advise(arms: Mapping[str, ArmFit], C: float) -> list[Advice]:
    """Which arm to train at cost C, how large and how long; best first.

    Raises:
        InputError: C is not positive and finite.
    """
    if not 0 < C < np.inf:
        raise InputError(f"compute {C:g} is not positive and finite")
    chances: dict[str, float | None] = dict.fromkeys(arms)
    draws = [a.boot.values(log_optimum(a.cost, C, "loss")) for a in arms.values() if a.boot is not None]
    if len(draws) == len(arms) > 1:
        size = min(map(len, draws))
        losses = np.stack([d[:size] for d in draws])
        winner = np.argmin(np.where(np.isnan(losses), np.inf, losses), axis=0)
        chances = {name: float(np.mean(winner == i)) for i, name in enumerate(arms)}
    out = []
    for name, arm in arms.items():
        best = frontier(arm.fit, np.array([C]), arm.cost, arm.boot)
        size_band, loss_band = ((best.robust or best.model)[what] for what in ("N", "loss"))
        out.append(
            Advice(
                name, C, float(best.N[0]), (float(size_band.low[0]), float(size_band.high[0])), float(best.D[0]),
                float(best.loss[0]), (float(loss_band.low[0]), float(loss_band.high[0])), chances[name],
                not best.inside[0],
            )
        )  # fmt: skip
    return sorted(out, key=lambda a: np.inf if np.isnan(a.loss) else a.loss)
