"""The paper's three conclusions, decided by stated criteria for every arm that builds the symmetry in.

Such an arm is compared with the baseline, the best arm that learns the symmetry. A conclusion is a list of checks.
Those that compare arms over compute are made twice: by the laws, and by the measured optima of single budgets, which
need no law. Such a check holds or fails only if both say so; a law that has no vote (see ``checks``) is not asked. A
check that could not hold whatever the truth does not fail either: it is open. A conclusion is reproduced if all checks
hold, not reproduced if one fails, and otherwise not decidable at this scale. The conclusions are those of the abstract
and the figure captions of arXiv 2410.23179.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Container, Mapping, Sequence, Sized

from eqscale.laws.arms import ArmFit
from eqscale.laws.axes import AXES
from eqscale.laws.minima import Minima
from eqscale.laws.render import with_interval
from eqscale.report import checks
from eqscale.report.data_grid import REPEATED, DataGrid, Gap
from eqscale.report.exhibits import link
from eqscale.report.roles import Roles

CLOSED = 0.25
"""A closed gap: augmentation leaves less than this share of it."""
SUFFICIENT = 10.0
"""Epochs taken as sufficient for augmentation."""
_POWER = 0.5  # a check that even the best outcome would pass less often than this can't fail


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
    power: str = ""
    """What the check can tell with as many runs and as much noise as these."""


@dataclasses.dataclass(frozen=True)
class Conclusion:
    """One of the paper's conclusions for one arm on one axis."""

    number: int
    arm: str | None
    """The arm that builds the symmetry in; None if the study has none."""
    axis: str
    """Name of the compute axis; empty where the conclusion is about one budget."""
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> str:
        """``reproduced``, ``not reproduced`` or ``not decidable at this scale``."""
        outcomes = {check.outcome for check in self.checks}
        if "fails" in outcomes:
            return "not reproduced"
        return "reproduced" if outcomes == {"holds"} else "not decidable at this scale"


STATEMENTS = {
    1: "Equivariance improves data efficiency; a non-equivariant model trained with data augmentation closes that "
    "gap given enough epochs.",
    2: "Test loss falls as a power law of training compute for both; the equivariant model is ahead, by a similar "
    "factor, at every tested budget.",
    3: "The optimal split of a compute budget into model size and training duration differs: the equivariant model "
    "wants fewer parameters, and that gap closes at bigger budgets.",
}

EXHIBITS = {
    1: (link("data", "figure"), link("data")),
    2: (link("loss", "figure"), link("ratio", "figure"), link("minima")),
    3: (link("size", "figure"), link("allocation"), link("minima")),
}
"""What shows a conclusion, where the report has it."""

_DATA_CLAIMS = {
    "equivariance improves data efficiency": "log loss of the plain minus that of the equivariant arm above 0, mean "
    f"over all data sizes seen at least {REPEATED:g} times",
    "augmentation makes up for scarce data given enough epochs": "what repetition costs the augmented arm beyond what "
    f"it costs the equivariant one below {CLOSED:g} of the same for the plain arm, mean over all data sizes seen at "
    f"least {SUFFICIENT:g} times, against fresh data",
    "augmentation closes the whole gap given enough epochs": f"the gap that augmentation leaves below {CLOSED:g} of "
    f"the plain arm's gap, mean over all data sizes seen at least {SUFFICIENT:g} times",
}


def conclude(
    roles: Roles,
    arms: Mapping[str, Mapping[str, ArmFit]],
    minima: Mapping[str, Mapping[str, Minima]],
    grid: DataGrid | None,
) -> list[Conclusion]:
    """All conclusions for each built-in arm: the first from the data grid, the others on each axis.

    ``arms`` and ``minima`` are laws and measured optima by axis and arm, as in ``Analysis``.
    """
    out = []
    for arm in roles.built_in or (None,):
        if not arm or not roles.baseline:
            out.append(Conclusion(1, arm, "", _open(_DATA_CLAIMS, f"the study has {roles.missing}")))
            for (number, claims), axis in itertools.product(checks.CLAIMS.items(), AXES):
                out.append(Conclusion(number, arm, axis, _open(claims, f"the study has {roles.missing}")))
            continue
        pair = (arm, roles.baseline)
        out.append(Conclusion(1, arm, "", _data_checks(grid, pair, roles.augmented)))
        for axis, info in AXES.items():
            laws, optima = arms.get(axis, {}), minima.get(axis, {})
            by_laws, by_minima = checks.by_laws(pair, laws, info.unit), checks.by_minima(pair, optima, info.unit)
            for number, claims in checks.CLAIMS.items():
                law = by_laws.get(number) or _nothing(claims, pair, laws, "law")
                own = by_minima.get(number) or _nothing(claims, pair, optima, "measured optimum")
                both = zip(claims.items(), own, law, strict=True)
                out.append(Conclusion(number, arm, axis, tuple(_both(*findings) for findings in both)))
    return sorted(out, key=lambda conclusion: conclusion.number)


def _open(claims: Mapping[str, str], why: str) -> tuple[Check, ...]:
    return tuple(Check(*claim, "open", why) for claim in claims.items())


def _both(claim: tuple[str, str], measured: checks.Finding, by_law: checks.Finding) -> Check:
    """A check that is made with the measured optima and with the laws."""
    votes = {finding.outcome for finding in (measured, by_law)} - {checks.NO_VOTE}
    outcome = votes.pop() if len(votes) == 1 else "open"
    power = measured.power
    if by_law.power:
        power = f"measured: {power}; laws: {by_law.power}" if power else f"laws: {by_law.power}"
    shown, by_laws = (f.text + f" ({f.outcome})" * (f.outcome != outcome) for f in (measured, by_law))
    return Check(*claim, outcome, shown, by_laws, power)


def _nothing(claims: Sized, pair: checks.Pair, found: Container[str], what: str) -> list[checks.Finding]:
    missing = [f"`{name}`" for name in pair if name not in found]
    reason = f"no {what} of {' and '.join(missing)}" if missing else "no range of costs in common"
    return [checks.Finding("open", reason)] * len(claims)


def _data_checks(grid: DataGrid | None, pair: checks.Pair, augmented: str | None) -> tuple[Check, ...]:
    if grid is None:
        return _open(_DATA_CLAIMS, "there is no data grid")
    findings = [_on_efficiency(grid, *pair), *_on_augmentation(grid, *pair, augmented)]
    return tuple(
        Check(*claim, found.outcome, found.text, power=found.power)
        for claim, found in zip(_DATA_CLAIMS.items(), findings, strict=True)
    )


def _on_efficiency(grid: DataGrid, arm: str, base: str) -> checks.Finding:
    levels = grid.levels_with_epochs([base, arm], REPEATED)
    if not levels:
        return checks.Finding("open", _missing(grid, (base, arm), REPEATED))
    plain = grid.gap({base: 1.0, arm: -1.0}, levels)
    power = checks.sees(plain.high - plain.value)
    return checks.Finding(checks.positive(plain.low, plain.high), _gap_text(plain, "log loss gap"), power)


def _on_augmentation(grid: DataGrid, arm: str, base: str, augmented: str | None) -> list[checks.Finding]:
    """Whether augmentation makes up for repeated data, and whether it closes the whole gap."""
    if augmented is None:
        return [checks.Finding("open", "the study has no arm that learns from augmented data")] * 2
    trio = [base, augmented, arm]
    many, fresh = grid.levels_with_epochs(trio, SUFFICIENT), grid.fresh_levels(trio)
    if not many:
        return [checks.Finding("open", _missing(grid, trio, SUFFICIENT))] * 2
    return [_on_repetition(grid, trio, many, fresh), _on_whole_gap(grid, trio, many, fresh)]


def _on_repetition(grid: DataGrid, trio: Sequence[str], many: list[int], fresh: list[int]) -> checks.Finding:
    """What repetition costs, which leaves out the lead that an arm has with fresh data."""
    base, augmented, arm = trio
    whole = grid.excess({base: 1.0, arm: -1.0}, many)
    if not fresh or not whole.low > 0:
        why = f"no clear cost to make up for: {_gap_text(whole, 'plain minus equivariant')}"
        return checks.Finding("open", why if fresh else f"no data size was seen fewer than {REPEATED:g} times by all")
    left = grid.excess({augmented: 1.0, arm: -1.0}, many)
    beyond = grid.excess({augmented: 1.0, arm: CLOSED - 1.0, base: -CLOSED}, many)
    chance = checks.passing(CLOSED * whole.value, beyond.high - beyond.value)
    return checks.Finding(
        checks.positive(-beyond.high, -beyond.low), _share_text(left, whole),
        f"holds in {100 * chance:.0f} % if repetition costs both the same",
    )  # fmt: skip


def _on_whole_gap(grid: DataGrid, trio: Sequence[str], many: list[int], fresh: list[int]) -> checks.Finding:
    """The whole gap, with the lead at fresh data, which augmentation can't close: it may put the limit out of reach."""
    base, augmented, arm = trio
    whole = grid.gap({base: 1.0, arm: -1.0}, many)
    if not whole.low > 0:
        why = f"no clear gap to close at these data sizes: {_gap_text(whole, 'plain minus equivariant')}"
        return checks.Finding("open", why)
    left = grid.gap({augmented: 1.0, arm: -1.0}, many)
    beyond = grid.gap({augmented: 1.0, arm: CLOSED - 1.0, base: -CLOSED}, many)
    outcome, text = checks.positive(-beyond.high, -beyond.low), _share_text(left, whole)
    if len(many) > 1:
        parts = [(grid.gap({augmented: 1.0, arm: -1.0}, [n]), grid.gap({base: 1.0, arm: -1.0}, [n])) for n in many]
        text += f" (each: {', '.join(f'{100 * one.value / other.value:.0f}' for one, other in parts)} %)"
    # a perfect augmentation has with few data the loss that it has with fresh data
    lead = grid.gap({augmented: 1.0}, fresh).value - grid.gap({arm: 1.0}, many).value if fresh else math.nan
    chance = checks.passing(CLOSED * whole.value - lead, beyond.high - beyond.value) if fresh else 0.0
    if outcome == "fails" and not chance > _POWER:
        outcome = "open"
    power = "can't fail: without fresh data nobody knows what a perfect augmentation would leave"
    if fresh:
        power = f"holds in {100 * chance:.0f} % at best: a perfect augmentation leaves {_share(lead, whole.value)}"
    return checks.Finding(outcome, text, power)


def _share_text(left: Gap, whole: Gap) -> str:
    share = _share(left.value, whole.value)
    return f"{_gap_text(left, f'{share} is left:', at=False)} {_gap_text(whole, 'of')}"


def _share(part: float, whole: float) -> str:
    return "nothing" if part <= 0 < whole else f"{100 * part / whole:.0f} %"


def _missing(grid: DataGrid, arms: Sequence[str], epochs: float) -> str:
    absent = [f"`{arm}`" for arm in arms if arm not in grid.arms()]
    if absent:
        return f"the data grid has no {' and no '.join(absent)}"
    return f"no data size was seen {epochs:g} times by all of {', '.join(f'`{arm}`' for arm in arms)}"


def _gap_text(found: Gap, what: str, at: bool = True) -> str:
    if not found.known:
        return f"{what} {found.value:.3g} without seeds that would tell the noise"
    where = f" at {', '.join(map(str, found.levels))}"
    return f"{what} {with_interval(found.value, found.low, found.high)}{where * at}"
