"""The laws of a study on every compute axis, its noise, and whether its sizes bracket the optima."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from eqscale.errors import InputError
from eqscale.laws import Interval, fit_cost, intervals
from eqscale.laws.arms import ArmFit, fit_arms
from eqscale.laws.axes import AXES
from eqscale.laws.compare import Comparison, common_range, compare_arms
from eqscale.laws.minima import Minima, measured_minima
from eqscale.laws.plan import Advice, advise
from eqscale.laws.validate import HoldOut, Outlier, hold_out_top, outliers
from eqscale.report.parts import UNIQUE, Study
from eqscale.report.roles import Roles

Array = np.ndarray
Arms = Mapping[str, ArmFit]

RESAMPLES = 1000
POINT = "design_point"
"""Column of the label that replicates share."""


@dataclasses.dataclass(frozen=True)
class Edge:
    """A budget at which an arm's best size is the smallest or the largest that was run."""

    axis: str
    arm: str
    budget: float
    side: str
    N: float
    """The size at the edge."""
    suggested: float
    """A size that would bracket the optimum."""


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Everything that is computed from the compute grid."""

    arms: dict[str, dict[str, ArmFit]]
    """By axis and arm: the arm's law with the costs of that axis. Empty without a compute grid."""
    unfitted: dict[str, str]
    """Arms without a law, and why."""
    intervals: dict[str, dict[str, Interval]]
    outliers: dict[str, list[Outlier]]
    hold_out: dict[str, HoldOut | None]
    """The largest budget predicted from the others; None where the others can't determine the law."""
    noise: pd.DataFrame
    """See ``seed_noise``."""
    edges: list[Edge]
    comparisons: dict[str, list[Comparison | str]]
    """By axis, every pair of arms, or why it can't be compared."""
    minima: dict[str, dict[str, Minima]]
    """By axis and arm, optima of the runs at equal cost, without a law."""
    ranking: dict[str, list[list[Advice]]]
    """By axis, the arms at the lowest, middle and highest cost that the runs of all cover; best first."""


def analyse(study: Study) -> Analysis:
    """Fit every arm of the compute grid and compare them on every axis.

    Raises:
        NoLaw: no arm of the compute grid has enough finished runs; the message says how many each has.
    """
    grid = study.part("compute")
    if grid.empty and (study.runs["part"] != "compute").all():
        return Analysis({}, {}, {}, {}, {}, seed_noise(study.part("data_grid")), [], {}, {}, {})
    fitted, unfitted = fit_every_arm(grid)
    arms = {axis: {name: on_axis(arm, grid, axis) for name, arm in fitted.items()} for axis in AXES}
    return Analysis(
        arms,
        unfitted,
        {name: intervals(arm.fit, arm.boot) for name, arm in fitted.items()},
        {name: outliers(arm.fit) for name, arm in fitted.items()},
        {name: _hold_out(arm) for name, arm in fitted.items()},
        seed_noise(grid),
        [edge for axis, group in arms.items() for arm in group.values() for edge in find_edges(arm, axis)],
        {axis: _compare_pairs(group, AXES[axis].label, study.roles) for axis, group in arms.items()},
        {axis: find_minima(group, axis) for axis, group in arms.items()},
        {axis: _rank(group) for axis, group in arms.items()},
    )


class NoLaw(InputError):
    """No arm has enough finished runs for a law."""


def fit_every_arm(finished: pd.DataFrame, where: str = "", **options: Any) -> tuple[dict[str, ArmFit], dict[str, str]]:
    """Fit every arm that has enough runs, with costs in executed FLOPs; also why the others have no law.

    Args:
        finished: finished runs of a compute grid.
        where: name of the table in messages.
        options: fields of ``eqscale.laws.arms.Options`` that aren't the report's.

    Raises:
        NoLaw: no arm can be fitted.
    """
    options = {"resamples": RESAMPLES, "seed": 0} | options | {"replicates": POINT}
    fitted: dict[str, ArmFit] = {}
    unfitted: dict[str, str] = {}
    for position, (name, runs) in enumerate(finished.groupby("arm", sort=False)):
        try:
            # own seeds, so that draws of different arms are independent
            fitted |= fit_arms(
                with_points(runs), cost=AXES["executed"].column, budget="budget", where=where,
                **options | {"seed": options["seed"] + position},
            )  # fmt: skip
        except InputError as error:
            unfitted[str(name)] = str(error)
    if not fitted:
        raise NoLaw(f"no arm can be fitted: {'; '.join(unfitted.values()) or 'the table has no finished run'}")
    return fitted, unfitted


def on_axis(arm: ArmFit, runs: pd.DataFrame, axis: str) -> ArmFit:
    """The same law with its runs' costs on another compute axis."""
    cost = runs.loc[arm.rows, AXES[axis].column].to_numpy(float)
    return dataclasses.replace(arm, C=cost, cost=fit_cost(arm.N, arm.D, cost))


def with_points(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with a column ``POINT``: their budget and size, which seeds share although their token counts differ a
    little.
    """
    point = runs["budget"].map("{:.6g}".format) + " " + runs["N"].map("{:.0f}".format)
    return runs.assign(**{POINT: point})


def seed_noise(finished: pd.DataFrame) -> pd.DataFrame:
    """Scatter between seeds at each point with replicates: columns arm, budget, N, seeds, sd (of the log loss).

    ``unique_units`` is a further column if the table has it, since it tells the points of a data grid apart.
    """
    point = ["arm", "budget", "N"] + ([UNIQUE] if UNIQUE in finished else [])
    log_loss = np.log(finished["loss"].astype(float))
    cells = log_loss.groupby([finished[name] for name in point]).agg(seeds="size", sd="std").reset_index()
    return cells[cells["seeds"] > 1].reset_index(drop=True)


def pooled_noise(noise: pd.DataFrame, arm: str) -> tuple[float, int]:
    """Standard deviation of the log loss between seeds of an arm, and its degrees of freedom; NaN, 0 if none."""
    own = noise[noise["arm"] == arm]
    df = own["seeds"] - 1
    return (math.sqrt(np.average(own["sd"] ** 2, weights=df)), int(df.sum())) if len(own) else (math.nan, 0)


def moved(arm: ArmFit, cost: Array) -> ArmFit:
    """An arm's runs as they would be at other costs: tokens by the cost model, losses along the fitted law.

    Runs keep their residuals.
    """
    D = arm.D * (cost / arm.C) ** (1 / arm.cost.power)
    shift = arm.fit.predict(arm.N, D) / arm.fit.predict(arm.N, arm.D)
    fit = dataclasses.replace(arm.fit, columns={"N": arm.N, "D": D}, observed=arm.loss * shift)
    return dataclasses.replace(arm, fit=fit, C=cost, budget=cost)


def at_equal_cost(arms: Arms, axis: str) -> Arms:
    """Runs grouped by cost: by budget on executed FLOPs.

    On another axis they are moved along their laws to the nearest of as many costs as there are budgets.
    """
    if axis == "executed":
        return arms
    budgets = len({b for arm in arms.values() for b in arm.budget})
    costs = np.concatenate([arm.C for arm in arms.values()])
    # the middles of equal shares of the range
    ends = np.geomspace(costs.min(), costs.max(), budgets + 1)
    panels = np.array([float(f"{c:.3g}") for c in np.sqrt(ends[:-1] * ends[1:])])
    nearest = {name: np.abs(np.log(arm.C)[:, None] - np.log(panels)).argmin(1) for name, arm in arms.items()}
    return {name: moved(arm, panels[nearest[name]]) for name, arm in arms.items()}


def find_minima(arms: Arms, axis: str) -> dict[str, Minima]:
    """Measured optima of every arm that has enough sizes."""
    grouped = enumerate(at_equal_cost(arms, axis).items())
    found = {name: measured_minima(arm, resamples=RESAMPLES, seed=position) for position, (name, arm) in grouped}
    return {name: minima for name, minima in found.items() if minima is not None}


def find_edges(arm: ArmFit, axis: str) -> list[Edge]:
    """Budgets whose measured minimum is at an edge of the sizes.

    Losses are means over seeds; within a budget the runs are first moved to their mean cost on the axis.
    """
    out = []
    levels = {b: float(np.exp(np.log(arm.C[arm.budget == b]).mean())) for b in np.unique(arm.budget)}
    at_level = moved(arm, np.array([levels[b] for b in arm.budget]))
    for budget, cost in levels.items():
        here = arm.budget == budget
        sizes = np.unique(arm.N[here])
        if len(sizes) < 3:
            continue
        losses = [np.log(at_level.loss[here & (n == arm.N)]).mean() for n in sizes]
        best = int(np.argmin(losses))
        if 0 < best < len(sizes) - 1:
            continue
        ratio = float(np.median(sizes[1:] / sizes[:-1]))
        grid = np.geomspace(sizes[0] / 4, sizes[-1] * 4, 200)
        by_law = grid[np.argmin(arm.fit.predict(grid, arm.cost.tokens(grid, cost)))]
        side, suggested = "smallest", min(by_law, sizes[0]) / ratio
        if best:
            side, suggested = "largest", max(by_law, sizes[-1]) * ratio
        out.append(Edge(axis, arm.name, budget, side, sizes[best], suggested))
    return out


def _hold_out(arm: ArmFit) -> HoldOut | None:
    try:
        return hold_out_top(arm.fit, arm.budget)
    except InputError:
        return None


def _compare_pairs(arms: Arms, label: str, roles: Roles) -> list[Comparison | str]:
    # the first of a pair is compared with the second: built-in arms come first, the baseline last
    place = {name: i for i, name in enumerate(roles.built_in)} | {roles.baseline: math.inf}
    out: list[Comparison | str] = []
    for one, two in itertools.combinations(arms.values(), 2):
        if place.get(one.name, len(place)) > place.get(two.name, len(place)):
            one, two = two, one
        try:
            # of the multipliers, the report shows those at the top
            out.append(compare_arms(one, two, C=[min(one.C.max(), two.C.max())], axis=label))
        except InputError as error:
            out.append(f"`{one.name}` and `{two.name}`: {error}")
    return out


def _rank(arms: Arms) -> list[list[Advice]]:
    low, high = common_range(arms.values())
    return [advise(arms, float(c)) for c in np.geomspace(low, high, 3)] if low < high else []
