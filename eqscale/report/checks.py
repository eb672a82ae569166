"""The checks that compare a built-in arm with the baseline over compute: by their laws, and by measured optima.

Each holds, fails, or stays open where its 95 % interval (the wider of the model-based and the robust one) allows both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from eqscale.laws.arms import ArmFit
from eqscale.laws.compare import common_range
from eqscale.laws.contrast import Estimate, contrast, log_optimum, loss_gap, scaled, slope
from eqscale.laws.fit import Coefficients, Quantity
from eqscale.laws.minima import Minima, bend, combine, loss_ratio, weights_at
from eqscale.laws.render import interval_text, number

STRAIGHT = 1.5
"""A power law: its exponent at the top and at the bottom of the costs differ by less than this factor."""
SIMILAR = 1.25
"""A similar factor: the ratio of two arms' losses changes over the costs by less than this factor."""

Finding = tuple[str, str]
"""``holds``, ``fails`` or ``open``, and the figures that say so."""
Pair = tuple[str, str]
"""A built-in arm and the baseline."""


def positive(low: float, high: float) -> str:
    """Outcome of a check that a value is above 0, given its interval; open for limits that are NaN."""
    return "holds" if low > 0 and high > 0 else "fails" if low < 0 and high < 0 else "open"


def _within(low: float, high: float, limit: float) -> str:
    """Whether an interval lies within ±limit; fails if it lies on one side of it entirely."""
    return "fails" if low > limit or high < -limit else "holds" if -limit < low and high < limit else "open"


def _both_intervals(e: Estimate) -> str:
    return f"{number(e.value, 3)} {interval_text(e.model, 3)} {interval_text(e.robust, 3)}"


def _with_laws(pair: Pair, arms: Mapping[str, ArmFit]) -> tuple[ArmFit, ArmFit, float, float] | None:
    """Laws of both arms and the costs both cover, if they do."""
    if not set(pair) <= arms.keys():
        return None
    low, high = common_range({name: arms[name] for name in pair})
    return (arms[pair[0]], arms[pair[1]], low, high) if low < high else None


def _with_minima(pair: Pair, minima: Mapping[str, Minima]) -> tuple[Minima, Minima, np.ndarray] | None:
    """Measured optima of both arms and the budgets of both, if there are two."""
    if not set(pair) <= minima.keys():
        return None
    arm, base = (minima[name] for name in pair)
    common = np.intersect1d(arm.cost, base.cost)
    return (arm, base, common) if len(common) > 1 else None


COMPUTE_CLAIMS = (
    (
        "each arm's loss falls as a power law of compute",
        f"the local exponent of L_opt(C) at the top over that at the bottom of the common costs within "
        f"[1/{STRAIGHT:g}, {STRAIGHT:g}], for both arms",
    ),
    (
        "the equivariant arm is ahead at every tested budget",
        "the ratio of compute-optimal losses, baseline over equivariant, above 1 at each of the tested costs",
    ),
    (
        "by a similar factor",
        f"that ratio at the highest over the lowest common cost within [1/{SIMILAR:g}, {SIMILAR:g}]",
    ),
)


def laws_on_compute(pair: Pair, arms: Mapping[str, ArmFit], unit: str) -> list[Finding]:
    """Findings on ``COMPUTE_CLAIMS`` by the arms' laws; none if their runs share no range of costs."""
    found = _with_laws(pair, arms)
    if found is None:
        return []
    arm, base, low, high = found
    bends = {a.name: contrast([(a, _bend(a, low, high))]) for a in (arm, base)}
    budgets = len({b for a in arms.values() for b in a.budget})
    tested = np.geomspace(low, high, min(max(budgets, 2), 5))
    gaps = {float(C): loss_gap(arm, base, float(C)) for C in tested}
    return _on_compute(bends, gaps, _change(base, arm, low, high, "loss"), unit)


def minima_on_compute(pair: Pair, minima: Mapping[str, Minima], unit: str) -> list[Finding]:
    """The same by measured optima."""
    found = _with_minima(pair, minima)
    if found is None:
        return []
    arm, base, common = found
    bends = {m.name: bend(m, common) for m in (arm, base)} if len(common) > 2 else {}
    gaps = {float(C): loss_ratio(arm, base, C) for C in common}
    rise = np.array([-1.0, 1.0])
    change = combine([(m, m.loss, weights_at(m, common[[0, -1]], w)) for m, w in ((base, rise), (arm, -rise))])
    return _on_compute(bends, gaps, change, unit)


def _on_compute(
    bends: Mapping[str, Estimate], gaps: Mapping[float, Estimate], change: Estimate, unit: str
) -> list[Finding]:
    """The checks of conclusion 2, whatever its figures come from."""
    straight = {_within(e.low, e.high, math.log(STRAIGHT)) for e in bends.values()} or {"open"}
    shown = "; ".join(f"`{name}` {_both_intervals(e.exp())}" for name, e in bends.items())
    ahead = {positive(e.low, e.high) for e in gaps.values()}
    return [
        (_worst(straight), shown or "too few budgets"),
        (_worst(ahead), _at_costs(gaps, unit)),
        (_within(change.low, change.high, math.log(SIMILAR)), _both_intervals(change.exp())),
    ]


def _at_costs(found: Mapping[float, Estimate], unit: str) -> str:
    return "; ".join(f"at {C:.2g} {unit} {_both_intervals(e.exp())}" for C, e in found.items())


def _worst(outcomes: set[str]) -> str:
    """Of several outcomes that must all hold."""
    return "fails" if "fails" in outcomes else "open" if "open" in outcomes else "holds"


def _bend(arm: ArmFit, low: float, high: float) -> Quantity:
    """log of the local exponent of L_opt in the top third over that in the bottom third of a range."""
    third = (high / low) ** (1 / 3)

    def of(c: Coefficients) -> np.ndarray:
        a, b, d, e = (log_optimum(arm.cost, C, "loss")(c) for C in (low, low * third, high / third, high))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log(np.maximum(d - e, 0.0) / np.maximum(a - b, 1e-300))

    return of


ALLOCATION_CLAIMS = (
    (
        "the equivariant arm wants fewer parameters",
        "N_opt of the equivariant over that of the baseline arm below 1 at the lowest and the middle common cost",
    ),
    ("that gap closes at bigger budgets", "the same ratio at the highest over that at the lowest common cost above 1"),
)


def laws_on_allocation(pair: Pair, arms: Mapping[str, ArmFit], unit: str) -> list[Finding]:
    """Findings on ``ALLOCATION_CLAIMS`` by the arms' laws; none if their runs share no range of costs."""
    found = _with_laws(pair, arms)
    if found is None:
        return []
    arm, base, low, high = found
    ratios = {
        C: contrast([(a, scaled(log_optimum(a.cost, C, "N"), sign)) for a, sign in ((arm, 1.0), (base, -1.0))])
        for C in (low, math.sqrt(low * high), high)
    }
    return _on_allocation(ratios, _change(arm, base, low, high, "N"), unit)


def _change(first: ArmFit, second: ArmFit, low: float, high: float, what: str) -> Estimate:
    """log of the ratio of two arms' optima at the highest cost over that at the lowest."""
    ends = [(a, log_optimum(a.cost, low, what), log_optimum(a.cost, high, what)) for a in (first, second)]
    signs = zip(ends, (1.0, -1.0), strict=True)
    return contrast([(a, scaled(slope(at_low, at_high, 1.0), sign)) for (a, at_low, at_high), sign in signs])


def minima_on_allocation(pair: Pair, minima: Mapping[str, Minima], unit: str) -> list[Finding]:
    """From straight lines through the arms' measured log N_opt (approach 2 of Hoffmann et al. 2022)."""
    found = _with_minima(pair, minima)
    if found is None:
        return []
    arm, base, common = found
    common = common[np.isfinite(arm.N.value[arm.at(common)]) & np.isfinite(base.N.value[base.at(common)])]
    if len(common) < 2:
        return []
    x = np.log(common)
    low, high = x[[0, -1]]

    def ratio(row: list[float]) -> Estimate:
        weights = np.array(row) @ np.linalg.pinv(np.vander(x, 2))
        return combine([(m, m.N, weights_at(m, common, w)) for m, w in ((arm, weights), (base, -weights))])

    ratios = {float(np.exp(v)): ratio([v, 1.0]) for v in (low, 0.5 * (low + high), high)}
    return _on_allocation(ratios, ratio([high - low, 0.0]), unit)


def _on_allocation(ratios: Mapping[float, Estimate], change: Estimate, unit: str) -> list[Finding]:
    """The checks of conclusion 3: at all costs but the highest, and from the lowest to the highest."""
    fewer = {positive(-e.high, -e.low) for C, e in ratios.items() if max(ratios) > C}
    return [
        (_worst(fewer), _at_costs(ratios, unit)),
        (positive(change.low, change.high), _both_intervals(change.exp())),
    ]
