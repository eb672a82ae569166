"""What is minimised: a law, its runs, a loss function of the residuals, and the box of the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np
import pandas as pd

from eqscale.errors import InputError
from eqscale.laws.forms import Centre, Form
from eqscale.laws.table import positive

Array = np.ndarray

LOSSES = ("log-huber", "log-lsq", "huber", "lsq", "lad")
_LAD_DELTA = 1e-9


@dataclass(frozen=True)
class Loss:
    """The objective: sum over runs of weight × ρ(residual).

    ``log-huber``: ρ of log L − log L̂ is r²/2 up to |r| = delta and delta (|r| − delta/2) beyond;
    ``log-lsq``: r²/2 of the same residual; ``lad``: |r| of the same. ``huber`` and ``lsq`` are the first two of
    L − L̂, with delta in units of the loss.
    """

    kind: str = "log-huber"
    delta: float = 1e-3

    def __post_init__(self) -> None:
        """Raises InputError for an unknown kind or a delta that is not positive."""
        if self.kind not in LOSSES:
            raise InputError(f"unknown loss function {self.kind!r}; choose one of {', '.join(LOSSES)}")
        if not self.delta > 0:
            raise InputError(f"delta = {self.delta:g} is not positive")

    @property
    def is_log(self) -> bool:
        """Whether residuals are differences of logarithms."""
        return self.kind not in ("huber", "lsq")

    @property
    def threshold(self) -> float:
        """Residual, in the user's units, at which the loss turns from quadratic to linear while minimising."""
        return {"log-huber": self.delta, "huber": self.delta, "lad": _LAD_DELTA}.get(self.kind, np.inf)

    def rho(self, r: Array) -> Array:
        """The loss of residuals as reported: exact, without the smoothing that ``lad`` is minimised with."""
        if self.kind == "lad":
            return np.abs(r)
        if np.isinf(self.threshold):
            return 0.5 * r * r
        a = np.minimum(np.abs(r), self.threshold)
        return a * (np.abs(r) - 0.5 * a)


@dataclass(frozen=True)
class Problem:
    """A law to fit to n runs, in internal parameters (p,); equal bounds fix a parameter."""

    form: Form
    loss: Loss
    columns: dict[str, Array] = field(repr=False)
    """Regressors of the runs by name, each (n,)."""
    observed: Array = field(repr=False)
    """Loss of each run in the user's units, (n,)."""
    weights: Array = field(repr=False)
    centre: Centre = field(repr=False)
    lower: Array = field(repr=False)
    upper: Array = field(repr=False)
    fixed: dict[str, float]
    """Parameters that the user holds, in public units."""
    chosen: dict[str, Array] = field(repr=False, kw_only=True, default_factory=dict)
    """Further columns that were chosen for each run, such as depth or batch size, by name, each (n,): the law doesn't
    know them; the test of its structure does (see ``structure``)."""
    points: Array | None = field(repr=False, kw_only=True, default=None)
    """Label of each run's design point, (n,): runs with one label are replicates. None: runs that agree in the
    regressors and all columns of ``chosen`` are."""

    @property
    def n(self) -> int:
        """Number of runs."""
        return len(self.observed)

    @cached_property
    def features(self) -> dict[str, Array]:
        """Centred regressors of the runs."""
        return self.form.features({name: np.log(v) for name, v in self.columns.items()}, self.centre)

    @cached_property
    def scaled_loss(self) -> Array:
        """Observed loss over its geometric mean."""
        return self.observed / self.unit

    @property
    def unit(self) -> float:
        """Loss that is one in the centred units."""
        return float(np.exp(self.centre.log_loss))

    @property
    def residual_unit(self) -> float:
        """Residual, in the user's units, that is one in centred units: logarithms have none."""
        return 1.0 if self.loss.is_log else self.unit

    @property
    def threshold(self) -> float:
        """The loss function's threshold for residuals in centred units."""
        return self.loss.threshold / self.residual_unit

    def smoothed(self, least: float) -> tuple[float, float]:
        """Threshold in centred units for refits, no smaller than ``least``, where Newton's method takes long, and the
        factor that brings their objectives to the scale of the loss function's own.
        """
        delta = max(self.threshold, least)
        if self.loss.kind == "lad":
            return delta, 1 / delta
        # beyond the threshold, where residuals are if it is small, the objective is proportional to it
        return delta, self.residual_unit**2 * (self.threshold / delta if np.isfinite(delta) else 1.0)

    def predicted(self, theta: Array) -> Array:
        """Loss at the runs in centred units, (b, n), for parameters (b, p)."""
        return self.form.value(theta, self.features)

    def residuals_at(self, theta: Array) -> Array:
        """log L − log L̂, or L − L̂, in centred units: (b, n)."""
        value = self.predicted(theta)
        # log of a ratio near one keeps full absolute precision, a difference of two logarithms does not
        with np.errstate(divide="ignore"):
            return -np.log(value / self.scaled_loss) if self.loss.is_log else self.scaled_loss - value

    def jacobian_at(self, theta: Array) -> Array:
        """Derivatives of the (log) loss at the runs by the parameters (p,): (p, n)."""
        ev = self.form.evaluate(theta[None], self.features)
        return (ev.jacobian() / ev.value[:, None])[0] if self.loss.is_log else ev.jacobian()[0]

    def check(self, free: int, where: str) -> None:
        """Raise InputError if the runs with weight cannot determine ``free`` parameters."""
        used = self.weights > 0
        columns = {name: v[used] for name, v in self.columns.items()}
        check_design(self.form, columns, self.observed[used], free, where)

    def only(self, rows: Array) -> Self:
        """The same problem with some of its runs, boolean (n,) or indices."""
        return replace(
            self, form=self.form.for_runs(rows), columns={k: v[rows] for k, v in self.columns.items()},
            observed=self.observed[rows], weights=self.weights[rows],
            chosen={k: v[rows] for k, v in self.chosen.items()},
            points=None if self.points is None else self.points[rows],
        )  # fmt: skip

    def index(self, name: str) -> int:
        """Position of a parameter."""
        return self.form.names.index(name)


def check_design(form: Form, columns: Mapping[str, Array], loss: Array, free: int, where: str) -> None:
    """Refuse designs from which ``free`` parameters of the law cannot be known, and say why.

    ``columns`` are the regressors of the runs with weight and ``loss`` their losses, each (n,); ``where`` names them.

    Raises:
        InputError: too few runs, or all runs at one value of a regressor.
    """
    exponents = {regressor: exponent for exponent, regressor in form.powers.values()}
    for c in (c for c in form.columns if c in exponents):
        v = columns[c]
        if np.ptp(np.log(v)) <= 1e-9:
            raise InputError(
                f"{where}: all {len(v)} runs have {c} = {v[0]:g}: the exponent {exponents[c]} cannot be "
                f"known from them; add runs at another {c}, or fit a law in the other variable"
            )
    if free and np.ptp(np.log(loss)) <= 1e-12:
        raise InputError(f"{where}: all {len(loss)} losses are {loss[0]:g}: there is nothing to fit")
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


def read_columns(
    form: Form, values: Mapping[str, object], loss: object, weights: object, where: str
) -> tuple[dict[str, Array], Array, Array]:
    """The form's regressors, the loss and the weights (one by default) as arrays, each (n,).

    Raises:
        InputError: a missing column, unequal lengths, or a value that is no positive number (weights: or zero).
    """
    observed = positive(_series(loss), "loss", where)
    columns = {}
    for c in form.columns:
        if values.get(c) is None:
            raise InputError(f"{where}: the form {form.name!r} needs a column {c!r}")
        columns[c] = positive(_series(values[c]), c, where)
        if len(columns[c]) != len(observed):
            raise InputError(f"{where}: column {c!r} has {len(columns[c])} values, loss has {len(observed)}")
    if weights is None:
        return columns, observed, np.ones(len(observed))
    w = positive(_series(weights), "weights", where, zero=True)
    if len(w) != len(observed):
        raise InputError(f"{where}: {len(w)} weights for {len(observed)} runs")
    return columns, observed, w


def _series(values: object) -> pd.Series:
    return pd.Series(np.asarray(values).reshape(-1))


def check_fixed(form: Form, fix: Mapping[str, float], lowest_loss: float, where: str) -> dict[str, float]:
    """Values to hold, by parameter.

    Raises:
        InputError: an unknown parameter, a value outside its bounds, or a floor above the smallest loss.
    """
    for name, value in fix.items():
        if name not in form.names:
            raise InputError(f"{where}: cannot fix {name!r}; the form {form.name!r} has {', '.join(form.names)}")
        lowest = form.bounds.get(name, (0.0, np.inf))[0]
        if not (np.isfinite(value) and value >= lowest):
            raise InputError(f"{where}: cannot fix {name} = {value}; it must be a number ≥ {lowest:g}")
        if name in form.floors and value >= lowest_loss:
            raise InputError(f"{where}: fixed {name} = {value:g} is not below the smallest loss, {lowest_loss:g}")
    return {k: float(v) for k, v in fix.items()}
