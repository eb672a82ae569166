"""Sums and differences of quantities of several laws, with a model-based and a robust interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eqscale.errors import InputError
from eqscale.laws.arms import ArmFit
from eqscale.laws.cost import CostModel
from eqscale.laws.fit import Quantity
from eqscale.laws.forms import Coefficients
from eqscale.laws.frontier import frontier_values

Array = np.ndarray

_UNDEFINED = 0.05  # share of resamples without the quantity beyond which nothing is known about it


@dataclass(frozen=True)
class Estimate:
    """A number with two 95 % intervals."""

    value: float
    model: tuple[float, float]
    """Gauss–Newton with Student's t; errors of different laws are independent."""
    robust: tuple[float, float]
    """Bootstrap percentiles; infinite if too many resamples lack the quantity."""

    @property
    def low(self) -> float:
        """The lower of the two lower limits."""
        return min(self.model[0], self.robust[0])

    @property
    def high(self) -> float:
        """The higher of the two upper limits."""
        return max(self.model[1], self.robust[1])

    def exp(self) -> Estimate:
        """The same for the exponential of the number."""
        with np.errstate(over="ignore"):
            value, *limits = np.exp([self.value, *self.model, *self.robust]).tolist()
        return Estimate(value, (limits[0], limits[1]), (limits[2], limits[3]))


def contrast(terms: Sequence[tuple[ArmFit, Quantity]]) -> Estimate:
    """Sum over arms, each given once, of a quantity of its coefficients (k = 1, signed as needed).

    Raises:
        InputError: an arm without a bootstrap.
    """
    return contrasts(terms)[0]


def contrasts(terms: Sequence[tuple[ArmFit, Quantity]]) -> list[Estimate]:
    """``contrast`` of each of the k values of a quantity."""
    value: Array | float = 0.0
    variance: Array | float = 0.0
    draws = []
    for arm, quantity in terms:
        if arm.boot is None:
            raise InputError(f"{arm.name}: an interval needs a bootstrap")
        with np.errstate(invalid="ignore"):  # infinite optima of laws that say nothing
            value += np.ravel(quantity(arm.fit.coefficients))
        variance += arm.fit.standard_error(quantity) ** 2
        draws.append(np.reshape(arm.boot.values(quantity), (arm.boot.resamples, -1)))
    half = max(arm.fit.t_value(0.95) for arm, _ in terms) * np.sqrt(variance)
    size = min(map(len, draws))
    with np.errstate(invalid="ignore"):
        drawn = np.sum([d[:size] for d in draws], axis=0)
    return [estimate(*of_one) for of_one in zip(np.ravel(value).tolist(), half, drawn.T, strict=True)]


def estimate(value: float, half: float, draws: Array) -> Estimate:
    """An estimate from half the width of its model-based interval and resamples, NaN where undefined."""
    known = draws[~np.isnan(draws)]
    robust = (-np.inf, np.inf)
    if len(known) >= (1 - _UNDEFINED) * len(draws):
        low, high = np.percentile(known, [2.5, 97.5], method="nearest")
        robust = (float(low), float(high))
    if not np.isfinite(half):
        return Estimate(value, (-np.inf, np.inf), robust)
    return Estimate(value, (value - half, value + half), robust)


def log_optimum(cost: CostModel, C: float, what: str) -> Quantity:
    """Logarithm of the compute-optimal ``N``, ``D`` or ``loss`` at cost C, as a quantity."""
    optima = log_optima(cost, np.array([C]), what)
    return lambda c: optima(c)[:, 0]


def log_optima(cost: CostModel, C: Array, what: str) -> Quantity:
    """``log_optimum`` at costs (k,), as a quantity of k values."""
    index = ("N", "D", "loss").index(what)
    return lambda c: frontier_values(c, cost, C)[index]


def scaled(quantity: Quantity, factor: float) -> Quantity:
    """A quantity times a constant."""
    return lambda c: factor * np.asarray(quantity(c))


def slope(quantity_low: Quantity, quantity_high: Quantity, distance: float) -> Quantity:
    """Difference quotient of two quantities, such as an exponent between two costs."""

    def of(c: Coefficients) -> Array:
        with np.errstate(invalid="ignore"):  # a law without one of its terms has no optimum: NaN
            return (np.asarray(quantity_high(c)) - np.asarray(quantity_low(c))) / distance

    return of


def loss_gap(arm: ArmFit, base: ArmFit, C: float) -> Estimate:
    """log L_opt of the baseline minus that of the arm at cost C: positive where the arm is ahead."""
    return loss_gaps(arm, base, np.array([C]))[0]


def loss_gaps(arm: ArmFit, base: ArmFit, C: Array) -> list[Estimate]:
    """``loss_gap`` at each of the costs (k,)."""
    return contrasts([(base, log_optima(base.cost, C, "loss")), (arm, scaled(log_optima(arm.cost, C, "loss"), -1.0))])
