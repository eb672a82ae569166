"""Which runs next: where one more run, per unit of cost, most reduces the uncertainty of a stated quantity.

V-optimal design (Fedorov 1972) on the linearised law: a run with sensitivity j to the parameters turns the
covariance Σ into Σ − Σjjᵀ Σ/(σ² + jᵀΣj), so the variance of a quantity with gradient g falls by
(gᵀΣj)²/(σ² + jᵀΣj). Runs are picked one by one by that gain over their cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from eqscale.errors import InputError
from eqscale.laws.arms import ArmFit
from eqscale.laws.contrast import log_optimum
from eqscale.laws.frontier import frontier, frontier_values
from eqscale.laws.uncertainty import parameter_targets

Array = np.ndarray


@dataclass(frozen=True)
class Question:
    """A quantity with its gradient for each arm it depends on."""

    name: str
    estimate: float
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
    estimate = float(np.asarray(quantity(arm.fit.coefficients)).ravel()[0])
    return Question(text, estimate, {arm.name: arm.fit.quantity_gradient(quantity)[0]})


def _question_of_two(text: str, name: str, C: float, arms: Mapping[str, ArmFit]) -> Question:
    if len(arms) != 2:
        raise InputError(f"{text!r} is about two arms, not {len(arms)} ({', '.join(arms)}); name them")
    one, two = arms.values()
    if name == "crossing":
        C = _find_crossing(one, two)
    gradients = {
        arm.name: sign * arm.fit.quantity_gradient(log_optimum(arm.cost, C, "loss"))[0]
        for arm, sign in ((one, 1.0), (two, -1.0))
    }
    if name == "gap":
        return Question(text, _gap(one, two, C), gradients)
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
        raise InputError(f"the laws of {one.name} and {two.name} do not cross from C = {grid[0]:.3g} to {grid[-1]:.3g}")
    k = change[len(change) // 2]
    low, high = np.log(grid[k : k + 2])
    return float(np.exp(optimize.brentq(lambda x: _gap(one, two, np.exp(x)), low, high)))


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
    """Runs, most informative first."""

    question: str
    estimate: float
    se_now: float
    runs: tuple[PlannedRun, ...]

    @property
    def cost(self) -> float:
        """Total cost of the runs."""
        return float(sum(r.C for r in self.runs))


def _sensitivity(arm: ArmFit, N: Array, D: Array) -> tuple[Array, float]:
    """Derivatives of the (log) loss at new runs by internal parameters, (m, p), and the noise variance."""
    fit = arm.fit
    ev = fit.evaluate_at(fit.columns_from(N, D))
    jac, noise = ev.jacobian()[0].T, fit.noise
    if fit.loss.is_log:
        jac /= ev.value[0][:, None]
    else:
        noise /= fit.unit
    jac[:, np.setdiff1d(np.arange(jac.shape[1]), fit.free)] = 0.0
    return jac, noise**2


def candidate_runs(arm: ArmFit, most: float) -> tuple[Array, Array, Array]:
    """Runs to choose from: 12 costs from the cheapest run's to ``most``, 17 sizes around each optimum: (N, D, C).

    None lies more than a factor of two beyond the sizes and tokens of the runs at hand, except where larger costs
    must: the linearised law is an extrapolation there.
    """
    C = np.repeat(np.geomspace(min(arm.C.min(), most), most, 12), 17)
    best = frontier_values(arm.fit.coefficients, arm.cost, C)[0][0]
    N = np.exp(best) * np.tile(np.geomspace(1 / 16, 16, 17), 12)
    D = arm.cost.tokens(N, C)
    near = (arm.N.min() / 2 <= N) & (arm.D.min() / 2 <= D)
    near &= ((arm.N.max() * 2 >= N) & (arm.D.max() * 2 >= D)) | (arm.C.max() < C)
    return (N[near], D[near], C[near]) if near.any() else (N, D, C)


def plan_runs(
    question: Question, arms: Mapping[str, ArmFit], *, budget: float, most: float | None = None, runs: int = 20
) -> Plan:
    """Choose runs for a question within a total budget.

    Args:
        question: what should become more certain (see ``parse_question``).
        arms: the arms it is about.
        budget: total cost of the new runs.
        most: highest cost of one run; that of the most expensive run so far if None.
        runs: most runs planned.

    Raises:
        InputError: a budget below the cheapest candidate.
    """
    if not budget > 0:
        raise InputError(f"budget {budget:g} is not positive")
    top = min(budget, most or max(a.C.max() for a in arms.values()))
    state, se2 = {}, 0.0
    for name, gradient in question.gradients.items():
        arm = arms[name]
        N, D, C = candidate_runs(arm, top)
        jac, noise = _sensitivity(arm, N, D)
        state[name] = (arm.fit.covariance.copy(), gradient, jac, noise, N, D, C)
        se2 += float(gradient @ arm.fit.covariance @ gradient)
    cheapest = min(s[6].min() for s in state.values())
    if budget < cheapest:
        raise InputError(f"budget {budget:g} is below the cheapest run, {cheapest:g}")
    plans = [_greedy(state, se2, budget, runs, per_cost) for per_cost in (True, False)]
    # by gain per cost unless the number of runs, not the budget, is what limits
    best = min(plans, key=lambda p: p[-1].expected_se if p else np.inf)
    return Plan(question.name, question.estimate, float(np.sqrt(se2)), tuple(best))


def _greedy(state: dict, se2: float, left: float, runs: int, per_cost: bool) -> list[PlannedRun]:
    """One run after the other by its gain, or its gain per cost."""
    state, chosen, start = dict(state), [], se2
    for _ in range(runs):
        best = None
        for name, (sigma, gradient, jac, noise, _, _, C) in state.items():
            pull = jac @ sigma
            gain = (pull @ gradient) ** 2 / (noise + np.einsum("mp,mp->m", pull, jac))
            worth = np.where(left * (1 + 1e-9) >= C, gain / C if per_cost else gain, 0.0)
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
