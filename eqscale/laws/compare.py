"""How much one arm is worth in terms of another: compute, data, parameters, and where their lines cross.

What is claimed (ahead, a crossing) holds for all costs of a comparison together at 95 %: where two arms have the same
law, anything at all is claimed in one of twenty comparisons.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from eqscale.errors import InputError
from eqscale.laws.arms import ArmFit
from eqscale.laws.forms import Coefficients
from eqscale.laws.frontier import cost_to_reach, frontier_values
from eqscale.laws.profile import Joint, Region, limits
from eqscale.laws.render import with_interval
from eqscale.numbers import number

Array = np.ndarray

_BEYOND = 10.0
"""Crossings are searched from the cost of the cheapest run divided by this to that of the most expensive times this."""
_LEVEL = 0.95
_PRECISION = 9  # halvings of a step between costs to locate the limits of a crossing


@dataclass(frozen=True)
class Multiplier:
    """An arm's worth at one cost: the factors that the reference needs for the same loss."""

    C: float
    loss: float
    """The arm's compute-optimal loss at C."""
    ahead: str
    """The arm that is shown to be ahead at C, or empty."""
    advantage: tuple[float, float, float]
    """Loss of the reference over that of the arm: estimate, low, high (95 % for all costs together)."""
    compute: tuple[float, float, float]
    """Estimate, low, high (95 %, profile limits): infinite where the reference never gets there. The interval
    includes 1 where neither arm is shown to be ahead."""
    data: tuple[float, float, float]
    """Estimate, low, high (95 % bootstrap)."""
    parameters: tuple[float, float, float]
    compute_model: tuple[float, float]
    """Gauss–Newton interval of the compute multiplier."""
    compute_robust: tuple[float, float]
    """Its bootstrap percentiles."""
    probability_better: float
    """Share of resamples in which the arm's loss at C is below the reference's."""
    extrapolated: bool
    """Whether C lies outside the runs of either arm, or the reference's equivalent outside its runs."""


@dataclass(frozen=True)
class Crossing:
    """Where the compute-optimal losses of two arms are shown to meet."""

    C: float | None
    """Of the point estimates; None unless one arm is shown to be ahead below, the other above."""
    interval: tuple[float, float] | None
    """Costs at which neither arm is shown to be ahead, between those where they are: C lies within."""
    range: tuple[float, float]
    """Costs searched."""
    better_below: str
    """The arm ahead at the lower costs, or empty where none is shown to be."""
    better_above: str

    def describe(self) -> str:
        """In words."""
        where = f"between C = {number(self.range[0], 3)} and {number(self.range[1], 3)}"
        if self.C is None or self.interval is None:
            return f"none shown {where}"
        at = with_interval(self.C, *self.interval)
        return f"at C = {at}: {self.better_below} ahead below, {self.better_above} above"


@dataclass(frozen=True)
class Comparison:
    """One arm against a reference on one cost axis."""

    arm: str
    reference: str
    axis: str
    summary: str
    """What the runs support, in a sentence."""
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
            f"{axis}: the runs of {arm} ({number(C.min(), 3)} to {number(C.max(), 3)}) and {reference} "
            f"({number(reference_C.min(), 3)} to {number(reference_C.max(), 3)}) have no cost in common; "
            "comparing them would rest on extrapolation alone"
        )


def common_range(arms: Iterable[ArmFit]) -> tuple[float, float]:
    """Costs that all arms' runs cover."""
    spent = [arm.C for arm in arms]
    return max(C.min() for C in spent), min(C.max() for C in spent)


def log_gap(arm: ArmFit, reference: ArmFit, C: float) -> Joint:
    """log L_opt of the reference minus that of the arm at cost C, of the laws of both: positive where the arm leads."""
    at = np.array([C])

    def of(ours: Coefficients, theirs: Coefficients) -> Array:
        return (frontier_values(theirs, reference.cost, at)[2] - frontier_values(ours, arm.cost, at)[2])[:, 0]

    return of


def log_multiplier(arm: ArmFit, reference: ArmFit, C: float) -> Joint:
    """log of how many times C the reference needs for the arm's loss at C, of the laws of both."""
    at = np.array([C])

    def of(ours: Coefficients, theirs: Coefficients) -> Array:
        with np.errstate(over="ignore"):
            reached = np.exp(frontier_values(ours, arm.cost, at)[2])
        return cost_to_reach(theirs, reference.cost, reached)[0][:, 0] - np.log(C)

    return of


class _Pair:
    """Two arms, and the laws of both that their runs allow."""

    def __init__(self, arm: ArmFit, reference: ArmFit):
        if arm.boot is None or reference.boot is None:
            raise InputError("a comparison with intervals needs a bootstrap of each arm")
        self.arm, self.reference = arm, reference
        self.laws = (arm.fit.coefficients, reference.fit.coefficients)
        boots = (arm.boot, reference.boot)
        size = min(boot.resamples for boot in boots)
        self.drawn = [boot.coefficients.each(lambda v: v[:size]) for boot in boots]
        self.region = Region([boot.surface for boot in boots])

    def level_for_all(self, costs: Array) -> float:
        """Confidence of each gap so that all hold together at 95 % (Hothorn, Bretz & Westfall 2008)."""
        gaps = [log_gap(self.arm, self.reference, c) for c in costs]
        slopes = np.array([self.region.slopes(g, self.region.theta[None])[1][0] for g in gaps])
        if not np.isfinite(slopes).all():
            return _LEVEL
        covariance = slopes @ self.region.inverse @ slopes.T
        se = np.sqrt(np.maximum(np.diag(covariance), 1e-300))
        values, vectors = np.linalg.eigh(covariance / np.outer(se, se))
        rng, df = np.random.default_rng(0), self.region.df
        z = rng.standard_normal((20000, len(values))) * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
        largest = np.abs(z).max(1) / np.sqrt(rng.chisquare(df, len(z)) / df)
        each = 1 - 2 * special.stdtr(df, -np.quantile(largest, _LEVEL))
        return float(np.ceil(1000 * each) / 1000)

    def gaps(self, costs: Array, level: float) -> Array:
        """log gap at each cost: estimate, low, high, (k, 3); no narrower than the bootstraps of the arms say."""
        gaps = [log_gap(self.arm, self.reference, c) for c in costs]
        value = np.array([g(*self.laws)[0] for g in gaps])
        low, high = limits(self.region, gaps, level, [self._resampled(g) for g in gaps]).T
        return np.column_stack([value, np.fmin(low, value), np.fmax(high, value)])

    def _resampled(self, gap: Joint) -> float:
        """Standard error of a gap by the bootstraps, from their middle 68 %; 0 if too few of them have the gap."""
        draws = gap(*self.drawn)
        known = np.isfinite(draws)
        if known.sum() < 0.9 * len(draws):
            return 0.0
        return float(np.diff(np.percentile(draws[known], [16, 84]))[0]) / 2

    def name(self, sign: float) -> str:
        """The arm that a gap of this sign favours."""
        return "" if sign == 0 else self.arm.name if sign > 0 else self.reference.name


def _shown(gaps: Array) -> Array:
    """Sign of each gap (k, 3) that its interval excludes 0 with, or 0."""
    return np.where(gaps[:, 1] > 0, 1, np.where(gaps[:, 2] < 0, -1, 0))


def compare_arms(
    arm: ArmFit, reference: ArmFit, *, C: Sequence[float] | Array | None = None, axis: str = "C", unit: str = ""
) -> Comparison:
    """What an arm is worth against a reference: who is ahead, multipliers over C, and the crossing.

    To reach the loss that ``arm`` attains compute-optimally at cost C, the reference (trained compute-optimally too)
    needs ``compute`` times the cost, ``data`` times the tokens and ``parameters`` times the parameters; factors above
    one favour ``arm``.

    Args:
        arm, reference: fitted arms with bootstraps.
        C: costs; five over the range that both arms' runs cover if None.
        axis: name of the cost axis.
        unit: its unit, for the summary, which names the axis where there is none.

    Raises:
        InputError: no cost in common, or an arm without a bootstrap.
    """
    check_overlap(arm.name, arm.C, reference.name, reference.C, axis)
    low, high = common_range((arm, reference))
    C = np.geomspace(low, high, 5) if C is None else np.asarray(C, float)
    pair = _Pair(arm, reference)
    searched = min(arm.C.min(), reference.C.min()) / _BEYOND, max(arm.C.max(), reference.C.max()) * _BEYOND
    costs = np.unique([*searched, *np.geomspace(low, high, 5), *C])
    level = pair.level_for_all(costs)
    gaps = pair.gaps(costs, level)
    crossing = _crossing(pair, costs, gaps, level, searched)
    multipliers = _multipliers(pair, C, gaps[np.searchsorted(costs, C)])
    return Comparison(
        arm.name, reference.name, axis,
        _summary(pair, unit or f"of {axis}", costs, gaps, (low, high), crossing, multipliers), multipliers, crossing,
    )  # fmt: skip


def _multipliers(pair: _Pair, C: Array, gaps: Array) -> tuple[Multiplier, ...]:
    """Multipliers at costs (k,) with the gaps there, (k, 3)."""
    arm, reference = pair.arm, pair.reference
    low, high = common_range((arm, reference))
    ours, theirs = (law.followed_by(drawn) for law, drawn in zip(pair.laws, pair.drawn, strict=True))
    log_n, log_d, log_l = frontier_values(ours, arm.cost, C)
    _, _, log_l_ref = frontier_values(theirs, reference.cost, C)
    needs = cost_to_reach(theirs, reference.cost, np.exp(log_l))
    have = (np.log(C)[None], log_n, log_d)
    with np.errstate(invalid="ignore", over="ignore"):
        factors = [np.exp(np.minimum(a - b, 700.0)) for a, b in zip(needs, have, strict=True)]
        profiled = np.exp(limits(pair.region, [log_multiplier(arm, reference, c) for c in C]))
    model = _model_interval(arm, reference, C)
    known = ~np.isnan(log_l + log_l_ref)[1:]
    with np.errstate(invalid="ignore"):
        better = np.sum((log_l < log_l_ref)[1:] & known, axis=0) / known.sum(0)
    better = np.where(np.isnan(log_l + log_l_ref)[0], np.nan, better)
    span = reference.C.min(), reference.C.max()
    out = []
    for i, (c, sign) in enumerate(zip(C, _shown(gaps), strict=True)):
        compute, parameters, data = (_percentiles(f[:, i]) for f in factors)
        floor, ceiling = (compute[0], compute[0]) if sign else (min(compute[0], 1.0), max(compute[0], 1.0))
        recommended = (compute[0], float(min(profiled[i, 0], floor)), float(max(profiled[i, 1], ceiling)))
        equivalent = c * min(compute[0], 1e100)
        outside = not (low <= c * (1 + 1e-9) and c <= high * (1 + 1e-9) and span[0] <= equivalent <= span[1])
        ratio = tuple(np.exp(gaps[i]).tolist())
        robust = (data, parameters, model[i], compute[1:], float(better[i]), outside)
        out.append(Multiplier(float(c), float(np.exp(log_l[0, i])), pair.name(sign), ratio, recommended, *robust))
    return tuple(out)


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


def _crossing(pair: _Pair, costs: Array, gaps: Array, level: float, searched: tuple[float, float]) -> Crossing:
    """The crossing nearest to the runs that both arms have, from the gaps (k, 3) at ascending costs."""
    signs = _shown(gaps)
    known = np.flatnonzero(signs)
    turns = [(i, j) for i, j in itertools.pairwise(known) if signs[i] != signs[j]]
    if not turns:
        leader = pair.name(signs[known[0]]) if len(known) else ""
        return Crossing(None, None, searched, leader, leader)
    log_c = np.log(costs)
    middle = 0.5 * np.sum(np.log(common_range((pair.arm, pair.reference))))
    i, j = min(turns, key=lambda turn: abs(0.5 * (log_c[turn[0]] + log_c[turn[1]]) - middle))
    sure, unsure = log_c[[i, j]], log_c[[i + 1, j - 1]]  # either limit lies between these two
    if j == i + 1:
        unsure = np.full(2, _root(pair, *sure))
    for _ in range(_PRECISION):
        half = 0.5 * (sure + unsure)
        still = _shown(pair.gaps(np.exp(half), level)) == signs[[i, j]]
        sure, unsure = np.where(still, half, sure), np.where(still, unsure, half)
    low, high = np.exp(sure).tolist()
    return Crossing(float(np.exp(_root(pair, *sure))), (low, high), searched, pair.name(signs[i]), pair.name(signs[j]))


def _root(pair: _Pair, low: float, high: float) -> float:
    """log C between two at which the gap of the point estimates has different signs, where it is zero."""
    return float(
        optimize.brentq(lambda c: log_gap(pair.arm, pair.reference, float(np.exp(c)))(*pair.laws)[0], low, high)
    )


def _summary(
    pair: _Pair, unit: str, costs: Array, gaps: Array, shared: tuple[float, float], crossing: Crossing,
    multipliers: Sequence[Multiplier],
) -> str:  # fmt: skip
    """What the runs support, as a person would say it."""
    arm, reference = pair.arm.name, pair.reference.name
    inside = (costs >= shared[0] * (1 - 1e-9)) & (costs <= shared[1] * (1 + 1e-9))
    costs, gaps = costs[inside], gaps[inside]
    if np.isnan(gaps[:, 0]).any():
        return (
            f"{arm} and {reference} can't be compared: an arm's law lost a term and has no compute-optimal point "
            "(see its verdict)."
        )
    signs = _shown(gaps)
    if crossing.C is not None and crossing.interval is not None:
        at = with_interval(crossing.C, *crossing.interval)
        return f"{crossing.better_above} overtakes {crossing.better_below} at {at} {unit}."
    if not signs.any():
        most = 100 * np.expm1(np.abs(gaps[:, 1:]).max())
        size = f"at most {most:.2g} %" if most < 1000 else "the runs set no useful limit"
        return f"No difference between {arm} and {reference} is shown {_span(costs)} {unit}: {size} in loss."
    where = np.flatnonzero(signs)
    leader = pair.name(signs[where[0]])
    other = reference if leader == arm else arm
    at, ahead_where = costs[where[-1]], _span(costs[where])
    known = [m for m in multipliers if m.ahead == leader and not m.extrapolated]
    if known:
        factors = [m.compute[0] ** (1 if leader == arm else -1) for m in known]
        least, most = f"{min(factors):.2g}", f"{max(factors):.2g}"
        times, here = least if least == most else f"{least} to {most}", _span([m.C for m in known])
        what = f"reaches {other}'s loss with {times} times less compute {here} {unit}"
        what += f", and is ahead {ahead_where}" * (here != ahead_where)
    else:
        what = f"is ahead of {other} {ahead_where} {unit}"
    open_ = "" if len(where) == len(signs) else "; elsewhere no difference is shown"
    ratio = np.sort(np.exp(np.abs(gaps[where[-1]])))  # low, estimate, high: all have one sign here
    if ratio[1] < 1.2:
        low, value, high = 100 * (ratio - 1)
        size = f"{value:.2g} % [{low:.2g}, {high:.2g}] higher"
    else:
        low, value, high = ratio
        size = f"{with_interval(value, low, high)} times as high"
    return f"{leader} {what}{open_}; at {number(at, 3)}, {other}'s loss is {size}."


def _span(costs: Sequence[float] | Array) -> str:
    low, high = min(costs), max(costs)
    return f"at {number(low, 3)}" if low == high else f"between {number(low, 3)} and {number(high, 3)}"
