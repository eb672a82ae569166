"""What people ask a law: the loss of a training, and the cheapest training that reaches a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eqscale.errors import InputError
from eqscale.laws.arms import ArmFit
from eqscale.laws.cost import CostModel
from eqscale.laws.fit import Fit, Quantity
from eqscale.laws.forms import Coefficients
from eqscale.laws.forms.numeric import SPAN, bisect
from eqscale.laws.frontier import cost_to_reach, frontier, law_value
from eqscale.laws.render import with_interval
from eqscale.laws.uncertainty import Bootstrap, Target, intervals

Array = np.ndarray

_LOG_SIZES = (-50.0, 250.0)
"""Logarithms of N between which a size is searched."""


@dataclass(frozen=True)
class Amount:
    """A number with its 95 % interval; none where the number was given."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Answer:
    """One training, as far as it follows from what was asked."""

    asked: str
    N: Amount | None
    D: Amount | None
    cost: Amount | None
    loss: Amount | None
    new_run: tuple[float, float] | None
    """95 % limits of the loss of one further run, coefficient error and noise included."""
    beyond: float | None
    """Cost over that of the most expensive run; over 1 is extrapolation."""
    note: str = ""
    """What stands in the way of an answer, in words."""


def at_regressors(fit: Fit, boot: Bootstrap | None, arm: ArmFit | None, asked: str, at: dict[str, float]) -> Answer:
    """The loss at values of the law's regressors, such as N and D.

    Raises:
        InputError: one of them is missing or is none of the law's.
    """
    for name in at:
        if name not in fit.form.columns:
            raise InputError(f"--at {asked}: the form {fit.form.name!r} has {', '.join(fit.form.columns)}, no {name!r}")
    columns = {name: np.atleast_1d(v) for name, v in fit.columns_from(**at).items()}
    logs = {name: np.log(v) for name, v in columns.items()}
    (loss,) = _amounts(fit, boot, [lambda c: c.form.loss_at(c, logs)[:, 0]])
    cost = None if arm is None else float(arm.cost.cost(columns["N"], columns["D"])[0])
    N, D = (Amount(float(columns[name][0])) if name in columns else None for name in ("N", "D"))
    spent = None if cost is None else Amount(cost)
    return Answer(asked, N, D, spent, loss, _new_run(fit, loss), _beyond(arm, cost))


def at_cost(arm: ArmFit, asked: str, C: float, ratio: float | None = None) -> Answer:
    """The loss that a cost buys: at its best split into N and D, or at D = ``ratio`` N."""
    if ratio is not None:
        (N,) = size_at_ratio(arm.cost, ratio, np.array([C])).tolist()
        return at_regressors(arm.fit, arm.boot, arm, asked, {"N": N, "D": ratio * N})
    if why := no_split(arm.fit):
        return Answer(asked, None, None, None, None, None, None, why)
    best = frontier(arm.fit, np.array([C]), arm.cost, arm.boot, profile=True)
    limits = {name: (float(band.low[0]), float(band.high[0])) for name, band in best.recommended.items()}
    n, d, loss = (Amount(float(getattr(best, name)[0]), limits[name]) for name in ("N", "D", "loss"))
    return Answer(asked, n, d, Amount(C), loss, limits["new_run"], _beyond(arm, C))


def no_split(fit: Fit) -> str:
    """Why the runs don't tell how a cost is best split into N and D; empty if they do."""
    if not fit.form.is_whole(fit.coefficients)[0]:
        return "no cost has a best split into N and D: a term of the law vanished"
    return "" if fit.verdict.determined else "the runs don't tell the best split into N and D (see the verdict)"


def to_reach(arm: ArmFit, asked: str, loss: float, ratio: float | None = None) -> Answer:
    """The cheapest training that reaches a loss, among all or among those at D = ``ratio`` N."""
    fit, cost = arm.fit, arm.cost
    if ratio is None and (why := no_split(fit)):
        return Answer(asked, None, None, None, None, None, None, why)

    def logs(c: Coefficients) -> tuple[Array, Array, Array]:
        if ratio is None:
            return tuple(v[:, 0] for v in cost_to_reach(c, cost, np.array([loss])))  # type: ignore[return-value]
        log_n = log_size_to_reach(c, ratio, loss)
        log_d = log_n + np.log(ratio)
        with np.errstate(invalid="ignore"):
            return cost.log_per_token(log_n)[0] + cost.power * log_d, log_n, log_d

    def each(i: int) -> Quantity:
        return lambda c: logs(c)[i]

    if not np.isfinite(logs(fit.coefficients)[0][0]):
        (floor,) = _amounts(fit, arm.boot, [fit.form.lowest])
        limits = floor.interval or (np.nan, np.nan)
        why = f"no training reaches it: the law's floor is {with_interval(floor.value, *limits, 4)}"
        return Answer(asked, None, None, None, Amount(loss), None, None, why)
    spent, n, d = _amounts(fit, arm.boot, [_exp(each(i)) for i in range(3)])
    note = ""
    if arm.boot is not None:
        lost = float(np.mean(~np.isfinite(logs(arm.boot.coefficients)[0])))
        note = f"out of reach in {100 * lost:.2g} % of the resamples" if lost > 0 else ""
    return Answer(asked, n, d, spent, Amount(loss), None, _beyond(arm, spent.value), note)


def size_at_ratio(cost: CostModel, ratio: Array | float, C: Array) -> Array:
    """N at which N parameters on ``ratio`` N tokens cost C, (k,)."""
    low, high = (np.full(C.shape, bound) for bound in SPAN)
    return np.exp(bisect(lambda log_n: cost.cost(np.exp(log_n), ratio * np.exp(log_n)) < C, low, high, 60))


def log_size_to_reach(c: Coefficients, ratio: float, loss: float) -> Array:
    """log N at which N parameters on ``ratio`` N tokens reach a loss, (b,); infinite where it is out of reach."""
    low, high = (np.full(len(c[c.form.names[0]]), bound) for bound in _LOG_SIZES)

    def above(log_n: Array) -> Array:
        return law_value(c, log_n[:, None], log_n[:, None] + np.log(ratio))[:, 0] > loss

    return np.where(above(high), np.inf, bisect(above, low, high, 60))


def _exp(log: Quantity) -> Quantity:
    def of(c: Coefficients) -> Array:
        with np.errstate(over="ignore"):
            return np.exp(log(c))

    return of


def _amounts(fit: Fit, boot: Bootstrap | None, quantities: Sequence[Quantity]) -> list[Amount]:
    """Positive quantities with their recommended intervals."""
    targets = [Target(str(i), quantity, log=True) for i, quantity in enumerate(quantities)]
    return [Amount(found.estimate, found.recommended) for found in intervals(fit, boot, targets).values()]


def _new_run(fit: Fit, loss: Amount) -> tuple[float, float]:
    """95 % limits of the loss of a further run: its noise beside the interval of the law, in squares of logarithms."""
    noise = fit.t_value(0.95) * fit.spread_at(loss.value)
    with np.errstate(divide="ignore"):  # a loss whose lower limit is zero
        low, high = np.hypot(np.log(np.array(loss.interval) / loss.value), noise)
    return float(loss.value * np.exp(-low)), float(loss.value * np.exp(high))


def _beyond(arm: ArmFit | None, cost: float | None) -> float | None:
    return None if arm is None or cost is None else float(cost / arm.C.max())
