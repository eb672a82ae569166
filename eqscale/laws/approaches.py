"""The two classical shortcuts to optimal allocation beside the surface fit, with the bias they carry.

Approach 1 takes the best run of each budget, approach 2 the vertex of a parabola through each budget's losses
(Hoffmann et al. 2022, sections 3.1 and 3.2); both then fit a power of C. Applied to noise-free losses of a
fitted surface, whose true optimum is known, the same computation shows the bias of the design.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from eqscale.errors import InputError
from eqscale.laws.cost import CostModel
from eqscale.laws.fit import Fit
from eqscale.laws.frontier import cost_to_reach, frontier_values, law_value
from eqscale.laws.minima import vertex

Array = np.ndarray


@dataclass(frozen=True)
class Allocation:
    """N_opt ∝ C^a and D_opt ∝ C^b from optima of single budgets."""

    approach: int
    budgets: Array
    N: Array
    """Optimal size of each budget, (k,)."""
    D: Array
    loss: Array
    a: float
    b: float
    a_interval: tuple[float, float]
    """95 % Student t of the straight line through the optima; NaN with fewer than three budgets."""
    at_edge: tuple[float, ...]
    """Budgets left out of the line: their optimum is at or beyond the sizes that were run."""
    left_out: int
    """Runs left out as outliers."""
    _lines: tuple[tuple[float, float], tuple[float, float]] = field(repr=False)

    def optimum(self, C: float | Array) -> tuple[Array, Array]:
        """N and D that the straight lines predict at cost C."""
        (n0, a), (d0, b) = self._lines
        return np.exp(n0 + a * np.log(C)), np.exp(d0 + b * np.log(C))


def isoflop_optima(
    N: Array, D: Array, loss: Array, budget: Array, approach: int = 2, keep: Array | None = None
) -> Allocation:
    """Approach 1 or 2 from finished runs.

    Args:
        N, D, loss: runs, (n,).
        budget: budget of each run, (n,); see ``arms.group_budgets``.
        approach: 1 (best run of each budget) or 2 (parabola of the loss in log N, and in log D for D_opt).
        keep: runs that are no outliers, boolean (n,): one run can move a parabola or be the best of its budget. All
            if None.

    Raises:
        InputError: fewer than two budgets have an optimum within their sizes.
    """
    keep = np.ones(len(N), bool) if keep is None else keep
    N, D, loss, budget = (np.asarray(v, float)[keep] for v in (N, D, loss, budget))
    rows, edge = [], []
    for value in np.unique(budget):
        here = budget == value
        n, d, y = np.log(N[here]), np.log(D[here]), loss[here]
        if len(np.unique(n)) < 3:
            continue
        if approach == 1:
            k = int(np.argmin(y))
            best, inside = (n[k], d[k], y[k]), n.min() < n[k] < n.max() and d.min() < d[k] < d.max()
        else:
            (lowest, log_n, n_inside), (_, log_d, d_inside) = (vertex(v, y) for v in (n, d))
            best, inside = (log_n, log_d, lowest), n_inside and d_inside
        if inside:
            rows.append((value, *best))
        else:
            edge.append(float(value))
    if len(rows) < 2:
        raise InputError(
            f"approach {approach}: {len(rows)} budget(s) have their best size strictly within the sizes run; "
            "at least 2 are needed: add sizes beyond the edges"
        )
    C, n, d, y = np.array(rows).T
    of_n, of_d = (stats.linregress(np.log(C), v) for v in (n, d))
    a, b = float(of_n.slope), float(of_d.slope)
    half = stats.t.ppf(0.975, len(C) - 2) * of_n.stderr if len(C) > 2 else np.nan
    left_out = int((~keep).sum())
    lines = ((float(of_n.intercept), a), (float(of_d.intercept), b))
    return Allocation(approach, C, np.exp(n), np.exp(d), y, a, b, (a - half, a + half), tuple(edge), left_out, lines)


@dataclass(frozen=True)
class ApproachBias:
    """What an approach gets wrong on noise-free losses of the fitted surface: the design's own error."""

    approach: int
    C: float
    a: float
    """Exponent that the approach finds."""
    a_local: float
    """Exponent of the surface's own optimum over the same budgets."""
    N_error: float
    """Relative error of N_opt(C)."""
    D_error: float


def approach_bias(
    fit: Fit, cost: CostModel, budget: Array, C: float, approach: int = 2, keep: Array | None = None
) -> ApproachBias:
    """Bias of approach 1 or 2 at cost C if the fitted surface were the truth and its runs had no noise.

    ``cost`` is the cost model of those runs and ``budget`` the budget of each, (n,); ``keep`` as for
    ``isoflop_optima``.
    """
    N, D = fit.columns["N"], fit.columns["D"]
    found = isoflop_optima(N, D, fit.predict(**fit.columns), budget, approach, keep)
    log_n, log_d, _ = (v[0] for v in frontier_values(fit.coefficients, cost, np.array([C])))
    true_n = frontier_values(fit.coefficients, cost, found.budgets)[0][0]
    n, d = found.optimum(C)
    local = float(np.polyfit(np.log(found.budgets), true_n, 1)[0])
    return ApproachBias(approach, C, found.a, local, float(n / np.exp(log_n[0]) - 1), float(d / np.exp(log_d[0]) - 1))


@dataclass(frozen=True)
class Misallocation:
    """The price of training the wrong size at a cost."""

    factor: float
    """Size over the optimal size."""
    loss: float
    waste: float
    """Share of the cost that optimal training to the same loss would save."""


def misallocation(fit: Fit, cost: CostModel, C: float, factors: Array) -> list[Misallocation]:
    """Loss and wasted compute when N is ``factors`` times the optimum at cost C."""
    c, factors = fit.coefficients, np.asarray(factors, float)
    log_n = frontier_values(c, cost, np.array([C]))[0] + np.log(factors)
    loss = law_value(c, log_n, cost.log_tokens(log_n, np.log(C)))
    waste = np.maximum(1 - np.exp(cost_to_reach(c, cost, loss)[0]) / C, 0.0)
    return [Misallocation(*map(float, row)) for row in zip(factors, loss[0], waste[0], strict=True)]
