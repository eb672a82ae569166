"""How much one arm is worth in terms of another: compute, data, parameters, and where their lines cross."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eqscale.errors import InputError
from eqscale.laws.arms import ArmFit
from eqscale.laws.forms import Coefficients
from eqscale.laws.frontier import cost_to_reach, frontier_values

Array = np.ndarray

_BEYOND = 10.0
"""Crossings are searched from the cost of the cheapest run divided by this to that of the most expensive times this."""


@dataclass(frozen=True)
class Multiplier:
    """An arm's worth at one cost: the factors that the reference needs for the same loss."""

    C: float
    loss: float
    """The arm's compute-optimal loss at C."""
    compute: tuple[float, float, float]
    """Estimate, low, high (95 % bootstrap): infinite where the reference never gets there."""
    data: tuple[float, float, float]
    parameters: tuple[float, float, float]
    compute_model: tuple[float, float]
    """Gauss–Newton interval of the compute multiplier."""
    probability_better: float
    """Share of resamples in which the arm's loss at C is below the reference's."""
    extrapolated: bool
    """Whether C lies outside the runs of either arm, or the reference's equivalent outside its runs."""


@dataclass(frozen=True)
class Crossing:
    """Where the compute-optimal losses of two arms meet."""

    C: float | None
    """Of the point estimates; None if there is none in range."""
    interval: tuple[float, float] | None
    """95 % of the resamples that cross in range."""
    probability: float
    """Share of resamples that cross in range."""
    range: tuple[float, float]
    """Costs searched."""
    better_below: str
    better_above: str

    def describe(self) -> str:
        """In words."""
        if not self.better_below:
            return "undecidable: an arm's law lost a term and has no compute-optimal point (see its verdict)"
        low, high = self.range
        where = f"between C = {low:.3g} and {high:.3g}"
        if self.C is None:
            share = f"{100 * self.probability:.0f} % of resamples cross"
            return f"none in range ({where} {self.better_below} is ahead; {share})"
        low, high = self.interval or (np.nan, np.nan)
        return (
            f"at C = {self.C:.3g} [{low:.3g}, {high:.3g}]: {self.better_below} ahead below, "
            f"{self.better_above} above ({100 * self.probability:.0f} % of resamples cross {where})"
        )


@dataclass(frozen=True)
class Comparison:
    """One arm against a reference on one cost axis."""

    arm: str
    reference: str
    axis: str
    multipliers: tuple[Multiplier, ...]
    crossing: Crossing


def check_overlap(arm: str, C: Array, reference: str, reference_C: Array, axis: str) -> None:
    """Refuse to compare two arms whose runs, given by their costs (n,), do not overlap: it would take an extrapolation.

    Raises:
        InputError: no cost in common.
    """
    low, high = max(C.min(), reference_C.min()), min(C.max(), reference_C.max())
    if low > high * (1 + 1e-9):
        raise InputError(
            f"{axis}: the runs of {arm} ({C.min():.3g} to {C.max():.3g}) and {reference} "
            f"({reference_C.min():.3g} to {reference_C.max():.3g}) have no cost in common; "
            "comparing them would rest on extrapolation alone"
        )


def common_range(arms: Mapping[str, ArmFit]) -> tuple[float, float]:
    """Costs that all arms' runs cover."""
    return max(a.C.min() for a in arms.values()), min(a.C.max() for a in arms.values())


def compare_arms(
    arm: ArmFit, reference: ArmFit, *, C: Sequence[float] | Array | None = None, axis: str = "C"
) -> Comparison:
    """What an arm is worth against a reference: multipliers over C, P(better) and the crossing.

    To reach the loss that ``arm`` attains compute-optimally at cost C, the reference (trained compute-optimally too)
    needs ``compute`` times the cost, ``data`` times the tokens and ``parameters`` times the parameters; factors above
    one favour ``arm``.

    Args:
        arm, reference: fitted arms with bootstraps.
        C: costs; five over the range that both arms' runs cover if None.
        axis: name of the cost axis.

    Raises:
        InputError: no cost in common, or an arm without a bootstrap.
    """
    check_overlap(arm.name, arm.C, reference.name, reference.C, axis)
    if arm.boot is None or reference.boot is None:
        raise InputError("a comparison with intervals needs a bootstrap of each arm")
    low, high = common_range({"a": arm, "b": reference})
    C = np.geomspace(low, high, 5) if C is None else np.asarray(C, float)
    size = min(arm.boot.resamples, reference.boot.resamples)
    ours, theirs = (
        a.fit.coefficients.followed_by(boot.coefficients.each(lambda v: v[:size]))
        for a, boot in ((arm, arm.boot), (reference, reference.boot))
    )
    log_n, log_d, log_l = frontier_values(ours, arm.cost, C)
    _, _, log_l_ref = frontier_values(theirs, reference.cost, C)
    needs = cost_to_reach(theirs, reference.cost, np.exp(log_l))
    have = (np.log(C)[None], log_n, log_d)
    with np.errstate(invalid="ignore", over="ignore"):
        factors = [np.exp(np.minimum(a - b, 700.0)) for a, b in zip(needs, have, strict=True)]
    model = _model_interval(arm, reference, C)
    known = ~np.isnan(log_l + log_l_ref)[1:]
    with np.errstate(invalid="ignore"):
        better = np.sum((log_l < log_l_ref)[1:] & known, axis=0) / known.sum(0)
    better = np.where(np.isnan(log_l + log_l_ref)[0], np.nan, better)
    span = reference.C.min(), reference.C.max()
    out = []
    for i, c in enumerate(C):
        trip = [_percentiles(f[:, i]) for f in factors]
        equivalent = c * min(trip[0][0], 1e100)
        outside = not (low <= c * (1 + 1e-9) and c <= high * (1 + 1e-9) and span[0] <= equivalent <= span[1])
        loss, probability = float(np.exp(log_l[0, i])), float(better[i])
        out.append(Multiplier(float(c), loss, trip[0], trip[2], trip[1], model[i], probability, outside))
    return Comparison(arm.name, reference.name, axis, tuple(out), _crossing(arm, reference, ours, theirs))


def _percentiles(v: Array) -> tuple[float, float, float]:
    """Point estimate (first) and 95 % interval of the resamples; infinities are kept as such."""
    draws = v[1:][~np.isnan(v[1:])]
    if np.isnan(v[0]) or not len(draws):
        return np.nan, np.nan, np.nan
    low, high = np.percentile(draws, [2.5, 97.5], method="nearest")
    return float(v[0]), float(low), float(high)


def _model_interval(arm: ArmFit, reference: ArmFit, C: Array) -> list[tuple[float, float]]:
    """Gauss–Newton interval of the compute multiplier: independent errors of the two laws add."""
    loss = np.exp(frontier_values(arm.fit.coefficients, arm.cost, C)[2])
    needed = cost_to_reach(reference.fit.coefficients, reference.cost, loss)[0][0]

    def of_ours(c):
        reached = np.exp(frontier_values(c, arm.cost, C)[2])
        rows = reference.fit.coefficients.each(lambda v: np.repeat(v, len(reached)))
        return cost_to_reach(rows, reference.cost, reached)[0]

    def of_theirs(c):
        return cost_to_reach(c, reference.cost, loss)[0]

    with np.errstate(invalid="ignore"):
        se = np.hypot(arm.fit.standard_error(of_ours), reference.fit.standard_error(of_theirs))
        t = max(arm.fit.t_value(0.95), reference.fit.t_value(0.95))
        estimate = needed - np.log(C)
        low, high = np.exp(np.minimum(estimate - t * se, 700)), np.exp(np.minimum(estimate + t * se, 700))
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def _crossing(arm: ArmFit, reference: ArmFit, ours: Coefficients, theirs: Coefficients) -> Crossing:
    """The crossing nearest to the runs that both arms have, given their laws with those of all resamples."""
    low = min(arm.C.min(), reference.C.min()) / _BEYOND
    high = max(arm.C.max(), reference.C.max()) * _BEYOND
    grid = np.geomspace(low, high, 121)
    gap = frontier_values(ours, arm.cost, grid)[2] - frontier_values(theirs, reference.cost, grid)[2]
    with np.errstate(invalid="ignore"):
        change = (gap[:, :-1] * gap[:, 1:]) <= 0
    crosses = change.any(1)
    middle = 0.5 * np.sum(np.log(common_range({"a": arm, "b": reference})))
    log_grid = np.log(grid)
    distance = np.where(change, np.abs(0.5 * (log_grid[:-1] + log_grid[1:]) - middle), np.inf)
    k = np.argmin(distance, axis=1)
    rows = np.arange(len(gap))
    g0, g1 = gap[rows, k], gap[rows, k + 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        at = log_grid[k] + (log_grid[k + 1] - log_grid[k]) * np.where(g0 == g1, 0.0, g0 / (g0 - g1))
    names, C, interval = (arm.name, reference.name), None, None
    if crosses[0]:
        below, above = names if g0[0] < 0 else names[::-1]
        C, draws = float(np.exp(at[0])), np.exp(at[1:][crosses[1:]])
        if len(draws):
            interval = tuple(np.percentile(draws, [2.5, 97.5]).tolist())
    else:
        below = above = "" if np.isnan(gap[0]).any() else names[0 if gap[0, 0] < 0 else 1]
    return Crossing(C, interval, float(crosses[1:].mean()), (low, high), below, above)  # type: ignore[arg-type]
