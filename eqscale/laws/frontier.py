"""The compute-optimal frontier: N_opt(C), D_opt(C) and L_opt(C) under a cost model of the runs themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eqscale.errors import InputError
from eqscale.laws.cost import CostModel, nd_cost
from eqscale.laws.fit import Fit, Quantity
from eqscale.laws.forms import Coefficients, Form
from eqscale.laws.profile import Region, limits, surface
from eqscale.laws.uncertainty import Bootstrap, percentiles

Array = np.ndarray


@dataclass(frozen=True)
class Band:
    """Lower and upper limit, each (k,)."""

    low: Array
    high: Array


@dataclass(frozen=True)
class Frontier:
    """Compute-optimal N, D and loss over costs C; 95 % bands are pointwise."""

    C: Array
    N: Array
    D: Array
    loss: Array
    cost: CostModel
    model: dict[str, Band]
    """Gauss–Newton t bands of ``N``, ``D``, ``per_token``, ``loss`` and ``new_run`` (a further run's loss)."""
    robust: dict[str, Band]
    """Bootstrap bands of the same, empty without a bootstrap."""
    recommended: dict[str, Band]
    """Profile limits of ``N``, ``D``, ``loss`` and ``new_run``, which hold beside a floor of zero and beyond the runs;
    empty unless asked for."""
    inside: Array
    """Whether C lies within the cost of the runs that were fitted; elsewhere it extrapolates."""

    @property
    def per_token(self) -> Array:
        """Cost of one training token at the optimal size: model size in the units that are paid."""
        with np.errstate(divide="ignore"):  # a law that says nothing has optima anywhere
            return self.C / self.D


def law_value(c: Coefficients, log_n: Array, log_d: Array) -> Array:
    """Loss for b sets of coefficients at (b, k) or (k,) logarithms of N and D, (b, k)."""
    return c.form.loss_at(c, {"N": log_n, "D": log_d})


def cost_to_reach(c: Coefficients, cost: CostModel, loss: Array) -> tuple[Array, Array, Array]:
    """log C, log N and log D of the cheapest training to losses (b, k) or (k,), each (b, k): see ``Form.cheapest``."""
    return c.form.cheapest(c, cost, np.atleast_2d(loss))


def frontier_values(c: Coefficients, cost: CostModel, C: Array) -> tuple[Array, Array, Array]:
    """log N_opt, log D_opt and log L_opt at costs (k,) or (b, k), each (b, k)."""
    log_c = np.atleast_2d(np.log(np.asarray(C, float)))
    log_n = c.form.optimal_log_n(c, cost, log_c)
    log_d = cost.log_tokens(log_n, log_c)
    return log_n, log_d, np.log(law_value(c, log_n, log_d))


def _nth(quantities: Quantity, i: int) -> Quantity:
    return lambda c: quantities(c)[:, i]


def require_optimum(form: Form) -> None:
    """Raise InputError for a law without N and D."""
    if not form.has_optimum:
        raise InputError(f"the form {form.name!r} has no split into N and D, hence no frontier")


def frontier(
    fit: Fit, C: Array, cost: CostModel | None = None, boot: Bootstrap | None = None, profile: bool = False
) -> Frontier:
    """The compute-optimal frontier at costs C.

    Args:
        fit: a law in N and D; regressors beside them take their stand-ins.
        C: costs (k,), in the units of ``cost``.
        cost: cost model; 6ND by default.
        boot: for robust bands.
        profile: also find the recommended limits, which takes some ten milliseconds for each cost.

    Raises:
        InputError: the law has no N and D, or C is not positive.
    """
    require_optimum(fit.form)
    C = np.atleast_1d(np.asarray(C, float))
    if not (np.isfinite(C).all() and (C > 0).all()):
        raise InputError("frontier: every C must be positive and finite")
    cost = cost or nd_cost()
    k = len(C)

    def stacked(c: Coefficients) -> Array:
        return np.concatenate(frontier_values(c, cost, C), axis=1)

    centre = stacked(fit.coefficients)[0]
    n, d, loss = np.exp(centre).reshape(3, k)
    t = fit.t_value(0.95)
    se = fit.standard_error(stacked)

    def bands(low: Array, high: Array) -> dict[str, Band]:
        with np.errstate(over="ignore"):  # what the runs leave open has an infinite bound
            low, high = np.exp(low).reshape(3, k), np.exp(high).reshape(3, k)
        found = {name: Band(low[i], high[i]) for i, name in enumerate(("N", "D", "loss"))}
        return found | {"per_token": Band(C / found["D"].high, C / found["D"].low)}

    model = bands(centre - t * se, centre + t * se)
    noise = fit.spread_at(loss)
    wide = t * np.hypot(se[2 * k :], noise)
    model["new_run"] = Band(loss * np.exp(-wide), loss * np.exp(wide))
    robust: dict[str, Band] = {}
    if boot is not None:
        values = boot.values(stacked)
        robust = bands(*percentiles(values))
        r = fit.residuals if fit.loss.is_log else np.log1p(fit.residuals / (fit.observed - fit.residuals))
        drawn = np.random.default_rng(boot.seed).choice(r, (boot.resamples, 1))
        new = percentiles(values[:, 2 * k :] + drawn)
        robust["new_run"] = Band(np.exp(new[0]), np.exp(new[1]))
    recommended = {}
    if profile:
        region = Region([boot.surface if boot else surface(fit)])
        quantities = [_nth(stacked, i) for i in range(3 * k)]
        low, high = np.sort([centre, *limits(region, quantities).T], axis=0)[[0, 2]]
        recommended = {name: band for name, band in bands(low, high).items() if name != "per_token"}
        log_loss = centre[2 * k :]
        below, above = (np.hypot(side[2 * k :] - log_loss, t * noise) for side in (low, high))
        recommended["new_run"] = Band(loss * np.exp(-below), loss * np.exp(above))
    spent = cost.cost(fit.columns["N"], fit.columns["D"])
    inside = (spent.min() * (1 - 1e-9) <= C) & (spent.max() * (1 + 1e-9) >= C)
    return Frontier(C, n, d, loss, cost, model, robust, recommended, inside)
