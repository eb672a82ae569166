"""The checks that compare a built-in arm with the baseline over compute: by their laws and by measured optima.

A check holds, fails, or is open if its 95 % interval (the wider of the model-based and the robust one) allows both. A
law that misses structure has no vote, nor has one with E = 0 on whether it is a power law: it is one by construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

from eqscale.laws.arms import ArmFit
from eqscale.laws.compare import common_range
from eqscale.laws.contrast import Estimate, contrast, log_optimum, loss_gap, scaled, slope
from eqscale.laws.fit import Coefficients, Quantity
from eqscale.laws.minima import Minima, bend, combine, loss_ratio, weights_at
from eqscale.numbers import number
from eqscale.report.exhibits import wide

STRAIGHT = 1.5
"""Of a power law, the exponents at the top and at the bottom of the costs differ by less than this factor."""
SIMILAR = 1.25
"""A factor is similar if the ratio of the arms' losses changes by less than this over the costs."""

NO_VOTE = "no vote"


class Finding(NamedTuple):
    """What the measured optima, or the laws, say on one check."""

    outcome: str
    """``holds``, ``fails``, ``open`` or ``NO_VOTE``."""
    text: str
    """The numbers that show it."""
    power: str = ""
    """What the check can tell with intervals as wide as these."""


Pair = tuple[str, str]
"""A built-in arm and the baseline."""


def positive(low: float, high: float) -> str:
    """Outcome of a check that a value is above 0, from its interval; open if a limit is NaN."""
    return "holds" if low > 0 and high > 0 else "fails" if low < 0 and high < 0 else "open"


def _within(low: float, high: float, limit: float) -> str:
    """Outcome of a check that a value is within ±limit, from its interval."""
    return "fails" if low > limit or high < -limit else "holds" if -limit < low and high < limit else "open"


SEEN = 0.8
"""Share of studies that find what a check is said to see."""
_SIDE = float(stats.norm.ppf(0.975))


def sees(half: float) -> str:
    """The smallest factor that a check on the sign of its logarithm finds, from half the width of its interval."""
    if not math.isfinite(half):
        return "sees nothing: its interval is unbounded"
    factor = math.exp(half * (1 + float(stats.norm.ppf(SEEN)) / _SIDE))
    return f"sees a factor of {number(factor, 3)}"


def passing(margin: float, half: float) -> float:
    """Chance that an interval of half width ``half`` lies below a limit that is ``margin`` above the truth."""
    return float(stats.norm.cdf(_SIDE * (margin / half - 1))) if math.isfinite(half) and half > 0 else 0.0


def _holds_if_equal(halves: Iterable[float], limit: float) -> str:
    """How often a check that values are within ±limit holds if they are all 0."""
    chance = math.prod(max(2 * passing(limit, half) - 1, 0.0) for half in halves)
    return f"holds in {100 * chance:.0f} % if nothing changes"


def _half(e: Estimate) -> float:
    return (e.high - e.low) / 2


CLAIMS = {
    2: {
        "each arm's loss falls as a power law of compute": "the local exponent of L_opt(C) at the top over that at the "
        f"bottom of the common costs within [1/{STRAIGHT:g}, {STRAIGHT:g}], for both arms",
        "the equivariant arm is ahead at every tested budget": "the ratio of compute-optimal losses, baseline over "
        "equivariant, above 1 at each of the tested costs",
        "by a similar factor": "that ratio at the highest over the lowest common cost within "
        f"[1/{SIMILAR:g}, {SIMILAR:g}]",
    },
    3: {
        "the equivariant arm wants fewer parameters": "N_opt of the equivariant over that of the baseline arm below 1 "
        "at the lowest and the middle common cost",
        "that gap closes at bigger budgets": "the same ratio at the highest over that at the lowest common cost above "
        "1",
    },
}
"""By number of the conclusion, the claim of each check -> its criterion."""


def by_laws(pair: Pair, arms: Mapping[str, ArmFit], unit: str) -> dict[int, list[Finding]]:
    """Findings on ``CLAIMS`` by the laws of two arms; none if their runs share no range of costs."""
    if not set(pair) <= arms.keys():
        return {}
    arm, base = (arms[name] for name in pair)
    low, high = common_range(arms[name] for name in pair)
    if not low < high:
        return {}

    def change(what: str) -> Callable[[ArmFit], Quantity]:
        return lambda a: slope(log_optimum(a.cost, low, what), log_optimum(a.cost, high, what), 1.0)

    bends = {a.name: contrast([(a, _bend(a, low, high))]) for a in (arm, base)}
    budgets = len({b for a in arms.values() for b in a.budget})
    tested = np.geomspace(low, high, min(max(budgets, 2), 5))
    gaps = {float(C): loss_gap(arm, base, float(C)) for C in tested}
    costs = (low, math.sqrt(low * high), high)
    sizes = {C: _difference(arm, base, lambda a, C=C: log_optimum(a.cost, C, "N")) for C in costs}  # type: ignore[misc]
    found = {
        2: _on_compute(bends, gaps, _difference(base, arm, change("loss")), unit),
        3: _on_allocation(sizes, _difference(arm, base, change("N")), unit),
    }
    doubts = [doubt for a in (arm, base) if (doubt := doubt_about(a))]
    if doubts:
        return {n: [_without_vote(f, doubts) for f in findings] for n, findings in found.items()}
    if straight := [f"`{a.name}` has E = 0" for a in (arm, base) if not a.fit.form.lowest(a.fit.coefficients)[0]]:
        found[2][0] = _without_vote(found[2][0], [*straight, "a power law by construction"])
    return found


def doubt_about(arm: ArmFit) -> str:
    """Why a law is the wrong one for its runs, in words; empty if nothing says so."""
    test = arm.fit.lack_of_fit
    if test is not None and test.rejects:
        return f"`{arm.name}` lacks fit, p = {number(test.p_value, 2)}"
    if arm.fit.verdict.has("misfit"):
        return f"`{arm.name}` is a misfit, p = {number(arm.fit.structure.p_value, 2)}"  # type: ignore[union-attr]
    return ""


def cannot_tell(arm: ArmFit) -> bool:
    """Whether nothing beyond single costs may rest on a law: it is the wrong one, or its runs don't determine it."""
    return bool(doubt_about(arm)) or arm.fit.verdict.has("unidentified")


def _without_vote(finding: Finding, why: Iterable[str]) -> Finding:
    return Finding(NO_VOTE, f"{finding.text}; {', '.join(why)}")


def _difference(one: ArmFit, two: ArmFit, quantity: Callable[[ArmFit], Quantity]) -> Estimate:
    return contrast([(one, quantity(one)), (two, scaled(quantity(two), -1.0))])


def _bend(arm: ArmFit, low: float, high: float) -> Quantity:
    """log of the local exponent of L_opt in the top third over that in the bottom third of a range."""
    third = (high / low) ** (1 / 3)

    def of(c: Coefficients) -> np.ndarray:
        a, b, d, e = (log_optimum(arm.cost, C, "loss")(c) for C in (low, low * third, high / third, high))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log(np.maximum(d - e, 0.0) / np.maximum(a - b, 1e-300))

    return of


def by_minima(pair: Pair, minima: Mapping[str, Minima], unit: str) -> dict[int, list[Finding]]:
    """The same by measured optima at the costs that both arms have, if there are two.

    Sizes are those on straight lines through the measured log N_opt (approach 2 of Hoffmann et al. 2022).
    """
    if not set(pair) <= minima.keys():
        return {}
    arm, base = (minima[name] for name in pair)
    common = np.intersect1d(arm.cost, base.cost)
    if len(common) < 2:
        return {}
    bends = {m.name: bend(m, common) for m in (arm, base)} if len(common) > 2 else {}
    gaps = {float(C): loss_ratio(arm, base, C) for C in common}
    found = {2: _on_compute(bends, gaps, change_of_ratio(arm, base), unit)}
    common = common[np.isfinite(arm.N.value[arm.at(common)]) & np.isfinite(base.N.value[base.at(common)])]
    if len(common) < 2:
        return found
    x = np.log(common)
    low, high = x[[0, -1]]

    def size(row: list[float]) -> Estimate:
        weights = np.array(row) @ np.linalg.pinv(np.vander(x, 2))
        return combine([(m, m.N, weights_at(m, common, w)) for m, w in ((arm, weights), (base, -weights))])

    sizes = {float(np.exp(v)): size([v, 1.0]) for v in (low, 0.5 * (low + high), high)}
    return found | {3: _on_allocation(sizes, size([high - low, 0.0]), unit)}


def change_of_ratio(arm: Minima, base: Minima) -> Estimate:
    """log of the ratio of losses, baseline over arm, at the highest cost that both have over that at the lowest."""
    ends, rise = np.intersect1d(arm.cost, base.cost)[[0, -1]], np.array([-1.0, 1.0])
    return combine([(m, m.loss, weights_at(m, ends, w)) for m, w in ((base, rise), (arm, -rise))])


def _on_compute(
    bends: Mapping[str, Estimate], gaps: Mapping[float, Estimate], change: Estimate, unit: str
) -> list[Finding]:
    """The checks of conclusion 2."""
    straight = {_within(e.low, e.high, math.log(STRAIGHT)) for e in bends.values()} or {"open"}
    shown = "; ".join(f"`{name}` {wide(e.exp())}" for name, e in bends.items())
    ahead = {positive(e.low, e.high) for e in gaps.values()}
    steady = _within(change.low, change.high, math.log(SIMILAR))
    return [
        Finding(
            _worst(straight), shown or "too few budgets",
            _holds_if_equal(map(_half, bends.values()), math.log(STRAIGHT)) if bends else "",
        ),
        Finding(_worst(ahead), _least(gaps, unit), sees(max(map(_half, gaps.values())))),
        Finding(steady, wide(change.exp()), _holds_if_equal([_half(change)], math.log(SIMILAR))),
    ]  # fmt: skip


def _on_allocation(sizes: Mapping[float, Estimate], change: Estimate, unit: str) -> list[Finding]:
    """The checks of conclusion 3: at all costs but the highest, and from the lowest to the highest."""
    below = {C: e for C, e in sizes.items() if max(sizes) > C}
    fewer = {positive(-e.high, -e.low) for e in below.values()}
    closes = positive(change.low, change.high)
    return [
        Finding(_worst(fewer), _at_costs(sizes, unit), sees(max(map(_half, below.values())))),
        Finding(closes, wide(change.exp()), sees(_half(change))),
    ]


def _at_costs(found: Mapping[float, Estimate], unit: str) -> str:
    return "; ".join(f"at {number(C, 2)} {unit} {wide(e.exp())}" for C, e in found.items())


def _least(found: Mapping[float, Estimate], unit: str) -> str:
    cost = min(found, key=lambda C: found[C].low)
    return f"least at {number(cost, 2)} {unit}: {wide(found[cost].exp())}"


def _worst(outcomes: set[str]) -> str:
    """Outcome of several that must all hold."""
    return "fails" if "fails" in outcomes else "open" if "open" in outcomes else "holds"
