"""Does the law predict? Hold-outs and outliers."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import numpy as np
from scipy import special

from eqscale.errors import InputError
from eqscale.laws.certificate import Verdict
from eqscale.laws.fit import Fit
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
    verdict: Verdict

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


def predict_new_runs(fit: Fit, columns: dict[str, Array]) -> tuple[Array, Array, Array]:
    """Predicted loss of new runs with 95 % limits that contain coefficient error and noise: (loss, low, high)."""
    ev = fit.evaluate_at(fit.columns_from(**columns))
    loss, slope = ev.value[0] * fit.unit, ev.jacobian()[0] / ev.value[0]
    se = np.sqrt(np.einsum("pm,pq,qm->m", slope, fit.covariance, slope))
    wide = fit.t_value(0.95) * np.hypot(se, fit.spread_at(loss))
    return loss, loss * np.exp(-wide), loss * np.exp(wide)


def _hold_out(fit: Fit, held: Array, budgets: tuple[float, ...], starts: Array | None = None) -> HoldOut:
    rest = fit.refit(~held, starts)
    columns = {k: v[held] for k, v in fit.columns.items()}
    loss, low, high = predict_new_runs(rest, columns)
    return HoldOut(budgets, fit.observed[held], loss, low, high, rest.params, rest.verdict)


def hold_out_top(fit: Fit, budget: Array, top: int = 1, starts: Array | None = None) -> HoldOut:
    """Fit without the ``top`` largest budgets and predict their runs; ``budget`` is that of each run, (n,).

    The fit starts from ``starts`` (k, p) or from those of its form.

    Raises:
        InputError: not enough budgets or runs are left.
    """
    values = np.unique(budget)
    if not 0 < top < len(values):
        raise InputError(f"cannot hold out {top} of {len(values)} budgets")
    return _hold_out(fit, np.isin(budget, values[-top:]), tuple(values[-top:].tolist()), starts)


def leave_one_budget_out(fit: Fit, budget: Array) -> list[HoldOut]:
    """For each budget, fit without it and predict its runs; budgets without which no fit is possible are left out."""
    found = []
    for value in np.unique(budget):
        with contextlib.suppress(InputError):
            found.append(_hold_out(fit, budget == value, (float(value),)))
    return found


@dataclass(frozen=True)
class Outlier:
    """A run that the law does not explain."""

    index: int
    """Position among the fitted runs, from 0."""
    residual: float
    """Log loss observed minus fitted."""
    score: float
    """Studentised residual."""


def outliers(fit: Fit) -> list[Outlier]:
    """Runs whose studentised residual exceeds what one of 20 clean data sets would show anywhere.

    The Bonferroni bound of the Student t; the scale is the robust one of the fit.
    """
    if fit.spread == 0.0:
        return []
    h = np.clip(fit_leverage(fit), 0.0, 0.95)
    r = fit.residuals if fit.loss.is_log else fit.residuals / fit.observed
    score = r / (fit.spread_at(np.median(fit.observed)) * np.sqrt(1 - h))
    limit = special.stdtrit(max(fit.degrees_of_freedom, 1), 1 - 0.05 / (2 * fit.n))
    return [Outlier(int(i), float(r[i]), float(score[i])) for i in np.flatnonzero(np.abs(score) > limit)]
