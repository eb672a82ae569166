"""The interface of a law form: what the fitter, the frontier and the comparisons need to know about a formula.

Inside a fit a law is evaluated in centred variables: n = log N − mean(log N) and so on, loss divided by its
geometric mean. The coefficients of a power law are then of order one whatever the units, and an exponent is
nearly uncorrelated with its own prefactor. The floor E enters linearly, so that E = 0 is an ordinary bound
of the parameter space; prefactors enter as logarithms.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eqscale.laws.cost import CostModel
from eqscale.laws.forms import numeric
from eqscale.laws.varpro import exponent_grid, nonnegative_profile

Array = np.ndarray
Features = Mapping[str, Array]
"""Centred regressors by name, each of shape (m,), or (b, m) if they differ between parameter vectors."""

GONE = -700.0
"""Internal logarithm of a prefactor that is zero."""
_ZERO = -600.0  # a logarithm below this stands for zero


@dataclass(frozen=True)
class Evaluation:
    """A law at b parameter vectors and m runs."""

    value: Array
    """Predicted loss, (b, m)."""
    jacobian: Callable[[], Array]
    """Derivative of ``value`` by the internal parameters, (b, p, m), as a new array."""
    curvature: Callable[[Array], Array]
    """q (b, m) -> sum over runs of q times the second derivatives of ``value``, (b, p, p)."""


@dataclass(frozen=True)
class Centre:
    """Shifts between the user's units and the centred variables of a fit."""

    log_loss: float
    logs: Mapping[str, float]
    """Mean logarithm of each regressor."""


class Coefficients(dict[str, Array]):
    """Public parameters of b laws of one form by name, each (b,); prefactors also as logarithms ``log_A``."""

    def __init__(self, form: Form, values: Mapping[str, Array]):
        super().__init__(values)
        self.form = form

    def each(self, change: Callable[[Array], Array]) -> Coefficients:
        """The same laws with ``change`` applied to every array."""
        return Coefficients(self.form, {name: change(values) for name, values in self.items()})

    def followed_by(self, other: Coefficients) -> Coefficients:
        """These laws, then the others."""
        return Coefficients(self.form, {k: np.concatenate([v, other[k]]) for k, v in self.items()})


class Form:
    """A scaling law; subclass and ``register`` an instance to add one.

    A subclass names its parameters and defines ``value`` (derivatives are then taken numerically) or ``evaluate``
    (with exact derivatives, which is much faster). The rest has defaults that fit laws made of a floor, terms
    A/x^α and further parameters, whatever they do together; optima are then found numerically.
    """

    name: str
    formula: str
    columns: tuple[str, ...]
    """Regressors: columns of a run table."""
    names: tuple[str, ...]
    """Public parameters in the order of the internal ones."""
    log_names: tuple[str, ...] = ()
    """Parameters that are stored as logarithms."""
    powers: Mapping[str, tuple[str, str]] = {}
    """Prefactor to (exponent, regressor): what changes when units change."""
    floors: tuple[str, ...] = ("E",)
    """Parameters in units of loss that enter linearly: no training gets below their sum."""
    bounds: Mapping[str, tuple[float, float]] = {}
    derived_bounds: Mapping[str, tuple[float, float]] = {}
    """What the numbers of ``derived`` can't leave."""
    ladders: Mapping[str, Sequence[float]] = {}
    """Where to start parameters that are neither floor, prefactor nor exponent, in public units."""
    stand_ins: Mapping[str, str] = {}
    """Regressors that may be left out of a prediction, and those that then take their place."""

    # what the solver needs

    def features(self, logs: Mapping[str, Array], centre: Centre) -> dict[str, Array]:
        """What ``value`` takes, from the regressors' logarithms: these, centred."""
        return {c: logs[c] - centre.logs[c] for c in self.columns}

    def for_runs(self, rows: Array) -> Form:
        """The form for some of the runs it was made for, boolean (n,) or indices; most forms are for any runs."""
        return self

    def value(self, theta: Array, x: Features) -> Array:
        """Loss in units of the centre, (b, m), at internal parameters ``theta`` (b, p)."""
        return self.evaluate(theta, x).value

    def evaluate(self, theta: Array, x: Features) -> Evaluation:
        """``value`` with its derivatives."""
        return Evaluation(
            self.value(theta, x),
            lambda: numeric.jacobian(self.value, theta, x),
            lambda q: numeric.curvature(self.value, theta, x, q),
        )

    def profile(
        self, x: Features, loss: Array, weights: Array, fixed: Mapping[int, float], floor: float | None
    ) -> dict[str, Array]:
        """Floor, prefactors and exponents of E + Σ A/x^α, the first two terms of ``powers``, by name, each (k,): the
        minima over a grid of exponents (see ``varpro``), best first.
        """
        terms = list(self.powers.items())[:2]
        grids = []
        for _, (exponent, _) in terms:
            i = self.names.index(exponent)
            grids.append(np.array([fixed[i]]) if i in fixed else exponent_grid(24 if len(terms) > 1 else 96))
        x1, x2 = (x[terms[0][1][1]], x[terms[1][1][1]] if len(terms) > 1 else None)
        rows = nonnegative_profile(x1, x2, loss, weights, grids[0], grids[-1] if len(terms) > 1 else np.ones(1), floor)
        names = [next(iter(self.floors), ""), *(prefactor for prefactor, _ in terms)]
        exponents = [exponent for _, (exponent, _) in terms]
        return dict(zip(names, rows.T, strict=False)) | dict(zip(exponents, rows.T[3:], strict=False))

    def starts(self, x: Features, loss: Array, weights: Array, fixed: Mapping[int, float]) -> Array:
        """Starting points (k, p), best first, given internal values of the fixed parameters by index."""
        floor = fixed.get(self.names.index(self.floors[0])) if self.floors else 0.0
        known = self.profile(x, loss, weights, fixed, floor)
        further = [n for n in self.names if n not in known]
        ladders = [
            [fixed[i]] if (i := self.names.index(n)) in fixed
            else np.log(self.ladders[n]) if n in self.log_names else self.ladders[n]
            for n in further
        ]  # fmt: skip
        size = len(known[self.names[0]])
        out = []
        for values in itertools.product(*ladders):
            row = known | {n: np.full(size, v) for n, v in zip(further, values, strict=True)}
            out.append(np.stack([row[n] for n in self.names], 1))
        return np.concatenate(out)

    def without(self, theta: Array, prefactor: str) -> Array:
        """Internal parameters (p,) with one term switched off and the rest as good as it gets without a fit."""
        theta = theta.copy()
        theta[self.names.index(prefactor)] = GONE
        return theta

    def folded(self, theta: Array) -> Array:
        """Further points to try beside those reached so far (k, p): none by default."""
        return theta[:0]

    def internal_bounds(self) -> tuple[Array, Array]:
        """Lower and upper bounds of the internal parameters, each (p,)."""
        low, high = np.array([self.bounds.get(name, (-np.inf, np.inf)) for name in self.names], float).T.copy()
        logs = [name in self.log_names for name in self.names]
        with np.errstate(divide="ignore"):
            low[logs], high[logs] = np.log(np.maximum(low[logs], 0.0)), np.log(high[logs])
        return low, high

    # units

    def centre(self, columns: Mapping[str, Array], loss: Array, held: Collection[str]) -> Centre:
        """Means of the logarithms; the unit of a held prefactor stays the user's, so that it is held inside too."""
        centre = Centre(float(np.log(loss).mean()), {c: float(np.log(columns[c]).mean()) for c in self.columns})
        return self.centre_holding(centre, held)

    def centre_holding(self, centre: Centre, held: Collection[str]) -> Centre:
        """A centre in which the internal values of held prefactors depend on no other parameter."""
        kept = {self.powers[name][1]: 0.0 for name in held if name in self.powers}
        return Centre(centre.log_loss, {**centre.logs, **kept})

    def loss_power(self, name: str, values: Mapping[str, Any]) -> Any:
        """Power of the unit of loss that parameter ``name`` carries."""
        return 1.0 if name in self.floors or name in self.powers else 0.0

    def to_natural(self, theta: Array, centre: Centre) -> Coefficients:
        """Public parameters in the user's units from internal ones (b, p).

        Extended precision keeps prefactors A = A' exp(α mean log N) exact to the last digits of α.
        """
        t = np.atleast_2d(np.asarray(theta)).astype(np.longdouble)
        by_name = {name: t[:, i] for i, name in enumerate(self.names)}
        out: dict[str, Array] = {}
        for name, v in by_name.items():
            if name in self.log_names:
                unit = np.longdouble(centre.log_loss) * self.loss_power(name, by_name)
                if name in self.powers:
                    exponent, regressor = self.powers[name]
                    unit = unit + by_name[exponent] * np.longdouble(centre.logs[regressor])
                v = np.where(v <= _ZERO, -np.inf, v)
                out["log_" + name] = (v + unit).astype(float)
                out[name] = np.exp(v + unit).astype(float)
            elif name in self.floors:
                out[name] = (v * np.exp(np.longdouble(centre.log_loss))).astype(float)
            else:
                out[name] = v.astype(float)
        return Coefficients(self, out)

    def to_internal(self, values: Mapping[str, float], centre: Centre) -> Array:
        """Inverse of ``to_natural`` for one full set of public parameters; a zero prefactor gives −inf."""
        return np.array([self.internal_value(name, values, centre) for name in self.names])

    def internal_value(self, name: str, values: Mapping[str, float], centre: Centre) -> float:
        """Internal value of one parameter; others are only needed in a centre that doesn't hold it."""
        value = float(values[name])
        if name in self.floors:
            return value / np.exp(centre.log_loss)
        if name not in self.log_names:
            return value
        unit = centre.log_loss * float(self.loss_power(name, values))
        if name in self.powers:
            exponent, regressor = self.powers[name]
            unit += values.get(exponent, 0.0) * centre.logs[regressor]
        return np.log(value) - unit if value > 0 else -np.inf

    # what follows from fitted parameters

    def loss_at(self, c: Coefficients, logs: Mapping[str, Array]) -> Array:
        """Loss in the user's units at logarithms of the regressors, each (m,) or (b, m): (b, m)."""
        theta = np.stack([c["log_" + n] if n in self.log_names else c[n] for n in self.names], 1)
        logs = {column: logs[column] if column in logs else logs[self.stand_ins[column]] for column in self.columns}
        with np.errstate(over="ignore", invalid="ignore"):  # far from its runs a resample's law may be anything
            return self.value(theta, self.features(logs, Centre(0.0, dict.fromkeys(self.columns, 0.0))))

    def derived(self, c: Coefficients) -> dict[str, Array]:
        """Further numbers that follow from the parameters alone, by name, each (b,)."""
        return {}

    def sharings(self) -> list[tuple[str, ...]]:
        """Parameters that several arms may have in common, as hypotheses from none to all."""
        shape = tuple(n for n in self.names if n not in self.floors and n not in self.powers)
        single = [(name,) for name in (*self.floors, *shape)]
        return list(dict.fromkeys([(), *single, shape, (*self.floors, *shape), self.names]))

    @property
    def has_optimum(self) -> bool:
        """Whether the law trades parameters N for tokens D, so that a cost has an optimal split."""
        return {"N", "D"} <= set(self.columns)

    def lowest(self, c: Coefficients) -> Array:
        """Loss that no training gets below, (b,)."""
        return np.sum([c[name] for name in self.floors], axis=0) if self.floors else 0.0 * c[self.names[0]]

    def is_whole(self, c: Coefficients) -> Array:
        """Whether none of the terms vanished, (b,): a law without one has no optimum."""
        whole = np.ones(len(c[self.names[0]]), bool)
        for prefactor, (exponent, _) in self.powers.items():
            whole &= np.isfinite(c["log_" + prefactor]) & (c[exponent] > 0)
        return whole

    def optimal_log_n(self, c: Coefficients, cost: CostModel, log_c: Array) -> Array:
        """log N_opt at costs (k,) or (b, k), as (b, k); NaN where a law has none."""
        return numeric.optimal_log_n(self, c, cost, np.atleast_2d(log_c))

    def cheapest(self, c: Coefficients, cost: CostModel, loss: Array) -> tuple[Array, Array, Array]:
        """log C, log N and log D of the cheapest training that reaches a loss (b, k), each (b, k).

        Infinite where it is out of reach, NaN where the law has no optimum.
        """
        return numeric.cheapest(self, c, cost, loss)
