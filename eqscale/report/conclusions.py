"""The paper's three conclusions, each decided by stated criteria from the fitted laws and measured optima.

A conclusion is a list of checks. What compares arms over compute is checked twice: by the laws, and by the measured
optima of single budgets, which need no law and so can't miss structure with it. Each holds, fails, or stays open
where its 95 % interval (the wider of the model-based and the robust one) allows both; a check holds or fails if both
do. All checks hold: reproduced; one fails: not reproduced; otherwise not decidable at this scale. The conclusions are
those of the abstract and the figure captions of arXiv 2410.23179.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from eqscale.laws.arms import ArmFit
from eqscale.laws.axes import AXES
from eqscale.laws.compare import common_range
from eqscale.laws.contrast import Estimate, contrast, log_optimum, loss_gap, scaled, slope
from eqscale.laws.fit import Coefficients, Quantity
from eqscale.laws.minima import Minima, bend, combine, loss_ratio, weights_at
from eqscale.laws.render import interval_text, number
from eqscale.report.axes import AUGMENTED, BASELINE, EQUIVARIANT
from eqscale.report.data_grid import REPEATED, DataGrid, Gap, gap, levels_with_epochs

STRAIGHT = 1.5
"""A power law: its exponent at the top and at the bottom of the costs differ by less than this factor."""
SIMILAR = 1.25
"""A similar factor: the ratio of two arms' losses changes over the costs by less than this factor."""
CLOSED = 0.25
"""A closed gap: augmentation leaves less than this share of the gap in log loss."""
SUFFICIENT = 10.0
"""Epochs taken as sufficient for augmentation."""

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
UNDECIDABLE = "not decidable at this scale"


@dataclasses.dataclass(frozen=True)
class Check:
    """One statement with what the runs say about it."""

    claim: str
    criterion: str
    outcome: str
    """``holds``, ``fails`` or ``open``."""
    measured: str
    """What single budgets or means over seeds give."""
    by_law: str = ""
    """What the laws give, where the check is made with them too."""


@dataclasses.dataclass(frozen=True)
class Conclusion:
    """One of the paper's conclusions on one axis."""

    number: int
    axis: str
    """Name of the compute axis; empty where the conclusion is about one budget."""
    checks: tuple[Check, ...]
    sources: tuple[str, ...]
    """The figures and tables that show it, such as ``Figure 1``; none if nothing was run for it."""

    @property
    def verdict(self) -> str:
        """``reproduced``, ``not reproduced`` or ``not decidable at this scale``."""
        outcomes = {check.outcome for check in self.checks}
        if "fails" in outcomes:
            return NOT_REPRODUCED
        return REPRODUCED if outcomes == {"holds"} else UNDECIDABLE


STATEMENTS = {
    1: "Equivariance improves data efficiency; a non-equivariant model trained with data augmentation closes that "
    "gap given enough epochs.",
    2: "Test loss falls as a power law of training compute for both; the equivariant model is ahead, by a similar "
    "factor, at every tested budget.",
    3: "The optimal split of a compute budget into model size and training duration differs: the equivariant model "
    "wants fewer parameters, and that gap closes at bigger budgets.",
}


def conclude(
    arms: Mapping[str, Mapping[str, ArmFit]],
    minima: Mapping[str, Mapping[str, Minima]],
    grid: DataGrid | None,
) -> list[Conclusion]:
    """All conclusions: the first from the data grid, the others on each axis.

    Args:
        arms: laws by axis and arm, as in ``Analysis``.
        minima: measured optima by axis and arm.
        grid: the data grid, if there is one.
    """
    out = [Conclusion(1, "", _data_checks(grid), ("Figure 2", "Table 5") if grid else ())]
    sources: dict[int, tuple[str, ...]] = {}
    if arms:
        seen = ("Figure 10", "Table 17") if any(minima.values()) else ()
        sources = {2: ("Figure 1", "Table 3", "Table 4", *seen), 3: ("Figure 5", "Table 2", *seen[1:])}
    for conclusion, claims, by_law, by_minima in (
        (2, _COMPUTE_CLAIMS, _laws_on_compute, _minima_on_compute),
        (3, _ALLOCATION_CLAIMS, _laws_on_allocation, _minima_on_allocation),
    ):
        for axis, info in AXES.items():
            law = by_law(arms.get(axis, {}), info.unit) or _nothing(claims, arms.get(axis, {}), "law")
            own = by_minima(minima.get(axis, {}), info.unit)
            own = own or _nothing(claims, minima.get(axis, {}), "measured optimum")
            checks = tuple(_both(claim, a, b) for claim, a, b in zip(claims, own, law, strict=True))
            out.append(Conclusion(conclusion, axis, checks, sources.get(conclusion, ())))
    return out


Finding = tuple[str, str]
"""``holds``, ``fails`` or ``open``, and the figures that say so."""


def _both(claim: tuple[str, str], measured: Finding, by_law: Finding) -> Check:
    """A check that is made with the measured optima and with the laws."""
    outcome = measured[0] if measured[0] == by_law[0] else "open"
    return Check(*claim, outcome, *(f"{text} ({said})" for said, text in (measured, by_law)))


def _nothing(claims: Sequence[tuple[str, str]], found: Mapping[str, object], what: str) -> list[Finding]:
    missing = [f"`{name}`" for name in (EQUIVARIANT, BASELINE) if name not in found]
    reason = f"no {what} of {' and '.join(missing)}" if missing else "no range of costs in common"
    return [("open", reason)] * len(claims)


def _decide(low: float, high: float, holds: Callable[[float], bool], fails: Callable[[float], bool]) -> str:
    """Whether a whole interval holds or fails; NaN limits leave the check open."""
    if math.isnan(low) or math.isnan(high):
        return "open"
    if holds(low) and holds(high):
        return "holds"
    return "fails" if fails(low) and fails(high) else "open"


def _positive(low: float, high: float) -> str:
    return _decide(low, high, lambda v: v > 0, lambda v: v < 0)


def _within(low: float, high: float, limit: float) -> str:
    """Whether an interval lies within ±limit; fails if it lies on one side of it entirely."""
    if low > limit or high < -limit:
        return "fails"
    return _decide(low, high, lambda v: abs(v) < limit, lambda v: False)


def both_intervals(e: Estimate, digits: int = 3) -> str:
    """An estimate as ``value [model-based] [robust]``."""
    limits = " ".join(interval_text(limits, digits) for limits in (e.model, e.robust))
    return f"{number(e.value, digits)} {limits}"


def _pair(arms: Mapping[str, ArmFit]) -> tuple[ArmFit, ArmFit, float, float] | None:
    """The equivariant arm, the baseline and the costs both cover, if they do."""
    if EQUIVARIANT not in arms or BASELINE not in arms:
        return None
    pair = {name: arms[name] for name in (EQUIVARIANT, BASELINE)}
    low, high = common_range(pair)
    return (pair[EQUIVARIANT], pair[BASELINE], low, high) if low < high else None


def _measured_pair(minima: Mapping[str, Minima]) -> tuple[Minima, Minima, np.ndarray] | None:
    """Measured optima of the equivariant arm and the baseline and the budgets of both, if there are two."""
    if EQUIVARIANT not in minima or BASELINE not in minima:
        return None
    arm, base = minima[EQUIVARIANT], minima[BASELINE]
    common = np.intersect1d(arm.cost, base.cost)
    return (arm, base, common) if len(common) > 1 else None


def tested_costs(arms: Mapping[str, ArmFit], low: float, high: float) -> np.ndarray:
    """As many costs as there are budgets (at least two, at most five) over a range."""
    budgets = len({b for arm in arms.values() for b in arm.budget})
    return np.geomspace(low, high, min(max(budgets, 2), 5))


_COMPUTE_CLAIMS = (
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


def _laws_on_compute(arms: Mapping[str, ArmFit], unit: str) -> list[Finding]:
    pair = _pair(arms)
    if pair is None:
        return []
    arm, base, low, high = pair
    bends = {a.name: contrast([(a, _bend(a, low, high))]) for a in (arm, base)}
    gaps = {float(C): loss_gap(arm, base, float(C)) for C in tested_costs(arms, low, high)}
    change = contrast(
        [
            (a, scaled(slope(log_optimum(a.cost, low, "loss"), log_optimum(a.cost, high, "loss"), 1.0), sign))
            for a, sign in ((base, 1.0), (arm, -1.0))
        ]
    )
    return _on_compute(bends, gaps, change, unit)


def _minima_on_compute(minima: Mapping[str, Minima], unit: str) -> list[Finding]:
    pair = _measured_pair(minima)
    if pair is None:
        return []
    arm, base, common = pair
    bends = {m.name: bend(m, common) for m in (arm, base)} if len(common) > 2 else {}
    gaps = {float(C): loss_ratio(arm, base, C) for C in common}
    ends = common[[0, -1]]
    change = combine(
        [
            (m, m.loss, weights_at(m, ends, sign * np.array([-1.0, 1.0])))
            for m, sign in ((base, 1.0), (arm, -1.0))
        ]
    )
    return _on_compute(bends, gaps, change, unit)


def _on_compute(
    bends: Mapping[str, Estimate], gaps: Mapping[float, Estimate], change: Estimate, unit: str
) -> list[Finding]:
    """The checks of conclusion 2, whatever its figures come from."""
    straight = {_within(e.low, e.high, math.log(STRAIGHT)) for e in bends.values()} or {"open"}
    shown = "; ".join(f"`{name}` {both_intervals(e.exp())}" for name, e in bends.items())
    ahead = {_positive(e.low, e.high) for e in gaps.values()}
    return [
        (_worst(straight), shown or "too few budgets"),
        (_worst(ahead), _at_costs(gaps, unit)),
        (_within(change.low, change.high, math.log(SIMILAR)), both_intervals(change.exp())),
    ]


def _at_costs(found: Mapping[float, Estimate], unit: str) -> str:
    return "; ".join(f"at {C:.2g} {unit} {both_intervals(e.exp())}" for C, e in found.items())


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


_ALLOCATION_CLAIMS = (
    (
        "the equivariant arm wants fewer parameters",
        "N_opt of the equivariant over that of the baseline arm below 1 at the lowest and the middle common cost",
    ),
    (
        "that gap closes at bigger budgets",
        "the same ratio at the highest over that at the lowest common cost above 1",
    ),
)


def _laws_on_allocation(arms: Mapping[str, ArmFit], unit: str) -> list[Finding]:
    pair = _pair(arms)
    if pair is None:
        return []
    arm, base, low, high = pair
    ratios = {C: size_ratio(arm, base, C) for C in (low, math.sqrt(low * high), high)}
    change = contrast(
        [
            (a, scaled(slope(log_optimum(a.cost, low, "N"), log_optimum(a.cost, high, "N"), 1.0), sign))
            for a, sign in ((arm, 1.0), (base, -1.0))
        ]
    )
    return _on_allocation(ratios, change, unit)


def _minima_on_allocation(minima: Mapping[str, Minima], unit: str) -> list[Finding]:
    """From straight lines through the arms' measured log N_opt (approach 2 of Hoffmann et al. 2022)."""
    pair = _measured_pair(minima)
    if pair is None:
        return []
    arm, base, common = pair
    common = common[np.isfinite(arm.N.value[arm.at(common)]) & np.isfinite(base.N.value[base.at(common)])]
    if len(common) < 2:
        return []
    x = np.log(common)
    low, high = x[[0, -1]]

    def ratio(row: list[float]) -> Estimate:
        weights = np.array(row) @ np.linalg.pinv(np.vander(x, 2))
        return combine(
            [(m, m.N, weights_at(m, common, sign * weights)) for m, sign in ((arm, 1.0), (base, -1.0))]
        )

    ratios = {float(np.exp(v)): ratio([v, 1.0]) for v in (low, 0.5 * (low + high), high)}
    return _on_allocation(ratios, ratio([high - low, 0.0]), unit)


def _on_allocation(ratios: Mapping[float, Estimate], change: Estimate, unit: str) -> list[Finding]:
    """The checks of conclusion 3: at all costs but the highest, and from the lowest to the highest."""
    fewer = {_positive(-e.high, -e.low) for C, e in ratios.items() if max(ratios) > C}
    return [
        (_worst(fewer), _at_costs(ratios, unit)),
        (_positive(change.low, change.high), both_intervals(change.exp())),
    ]


def size_ratio(arm: ArmFit, base: ArmFit, C: float) -> Estimate:
    """log N_opt of the arm minus that of the baseline at cost C."""
    return contrast(
        [(arm, log_optimum(arm.cost, C, "N")), (base, scaled(log_optimum(base.cost, C, "N"), -1.0))]
    )


_DATA_CLAIMS = (
    (
        "equivariance improves data efficiency",
        f"log loss of the plain minus that of the equivariant arm above 0, mean over all data sizes seen at least "
        f"{REPEATED:g} times",
    ),
    (
        "augmentation closes the gap given enough epochs",
        f"the gap that augmentation leaves below {CLOSED:g} of the plain arm's gap, mean over all data sizes seen "
        f"at least {SUFFICIENT:g} times",
    ),
)


def _data_checks(grid: DataGrid | None) -> tuple[Check, ...]:
    if grid is None:
        return tuple(Check(*claim, "open", "there is no data grid") for claim in _DATA_CLAIMS)
    (efficient, efficient_how), (closed, closed_how) = _DATA_CLAIMS
    levels = levels_with_epochs(grid, [BASELINE, EQUIVARIANT], REPEATED)
    plain = gap(grid, {BASELINE: 1.0, EQUIVARIANT: -1.0}, levels) if levels else None
    checks = [
        Check(efficient, efficient_how, _positive(plain.low, plain.high), _gap_text(plain, "log loss gap"))
        if plain
        else Check(efficient, efficient_how, "open", _missing(grid, (BASELINE, EQUIVARIANT), REPEATED))
    ]
    trio = [BASELINE, AUGMENTED, EQUIVARIANT]
    many = levels_with_epochs(grid, trio, SUFFICIENT)
    if not many:
        return (*checks, Check(closed, closed_how, "open", _missing(grid, trio, SUFFICIENT)))
    whole = gap(grid, {BASELINE: 1.0, EQUIVARIANT: -1.0}, many)
    left = gap(grid, {AUGMENTED: 1.0, EQUIVARIANT: -1.0}, many)
    beyond = gap(grid, {AUGMENTED: 1.0, EQUIVARIANT: CLOSED - 1.0, BASELINE: -CLOSED}, many)
    if whole.low > 0:
        outcome = _positive(-beyond.high, -beyond.low)
        shown = (
            f"{_gap_text(left, 'left')}; {_gap_text(whole, 'of')}: "
            f"{100 * left.value / whole.value:.0f} % is left"
        )
    else:
        outcome = "open"
        shown = f"no clear gap to close at these data sizes: {_gap_text(whole, 'plain minus equivariant')}"
    return (*checks, Check(closed, closed_how, outcome, shown))


def _missing(grid: DataGrid, arms: Sequence[str], epochs: float) -> str:
    absent = [f"`{arm}`" for arm in arms if arm not in grid.arms()]
    if absent:
        return f"the data grid has no {' and no '.join(absent)}"
    return f"no data size was seen {epochs:g} times by all of {', '.join(f'`{arm}`' for arm in arms)}"


def _gap_text(found: Gap, what: str) -> str:
    if not found.known:
        return f"{what} {found.value:.3g} without seeds that would tell the noise"
    scenes = ", ".join(map(str, found.levels))
    return f"{what} {found.value:.3g} [{found.low:.3g}, {found.high:.3g}] at {scenes} scenes"
