"""Shapes of equal cost compared: table, figure and report on the aspect ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eqscale.errors import InputError
from eqscale.laws.plots import PALETTE, panel_grid, save, style
from eqscale.numbers import number
from eqscale.report.exhibits import paragraphs, table_of
from eqscale.storage import write_text

if TYPE_CHECKING:
    from eqscale.study.grid import ShapeGroup


def write_shape_report(runs: pd.DataFrame, groups: Sequence[ShapeGroup], folder: Path) -> None:
    """Write ``shapes.csv``, ``aspect_ratio.png``, ``aspect_ratio.svg`` and ``report.md`` from a run table.

    Raises:
        InputError: no run of the groups has finished.
    """
    shapes = compare_shapes(runs, groups)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "shapes.csv", shapes.to_csv(index=False))
    save(_figure(runs, shapes), folder / "aspect_ratio")
    write_text(folder / "report.md", _report(shapes))


def compare_shapes(runs: pd.DataFrame, groups: Sequence[ShapeGroup]) -> pd.DataFrame:
    """One row per group and shape with finished runs.

    Columns: group (its number), arm, budget, width, depth, N, cost (executed FLOPs per token), steps, seeds, loss
    (mean over seeds), seconds (mean), rung (whether it is the ladder's shape), excess (of the loss over the rung's,
    relative), se (of the excess, from the seeds' scatter pooled over the arm's shapes; NaN with one seed), above (the
    lowest loss of the group, relative), best.

    Raises:
        InputError: no run of the groups has finished.
    """
    finished = runs[runs["status"] == "finished"]
    rows: list[dict[str, Any]] = []
    for index, group in enumerate(groups):
        here = finished[(finished["arm"] == group.arm) & (finished["budget"] == group.budget)]
        for shape in group.shapes:
            some = here[(here["width"] == shape.width) & (here["depth"] == shape.depth)]
            if some.empty:
                continue
            rows.append({
                "group": index, "arm": group.arm, "budget": group.budget, "width": shape.width, "depth": shape.depth,
                "N": int(some["N"].iloc[0]), "cost": some["flops_executed"].sum() / some["D"].sum(),
                "steps": int(some["steps"].iloc[0]), "seeds": len(some), "loss": some["loss"].mean(),
                "variance": np.log(some["loss"].astype(float)).var(ddof=1), "seconds": some["seconds"].mean(),
                "rung": shape == group.rung,
            })  # fmt: skip
    if not rows:
        raise InputError("no run has finished")
    shapes = pd.DataFrame(rows)
    rung = shapes.loc[shapes["rung"]].set_index("group")
    shapes["excess"] = shapes["loss"] / shapes["group"].map(rung["loss"]) - 1
    pooled = shapes.groupby("arm")["variance"].transform("mean")
    both = 1 / shapes["seeds"] + 1 / shapes["group"].map(rung["seeds"])
    shapes["se"] = np.sqrt(pooled * both).where(~shapes["rung"], 0.0)
    shapes["above"] = shapes["loss"] / shapes.groupby("group")["loss"].transform("min") - 1
    shapes["best"] = shapes["above"] == 0
    return shapes.drop(columns="variance")


def _figure(runs: pd.DataFrame, shapes: pd.DataFrame) -> Figure:
    """Loss against depth: a panel per arm, a line per rung and budget, a dot per run, a ring around the rung."""
    with style():
        arms = list(shapes["arm"].unique())
        figure, axes = panel_grid(len(arms), height=2.7)
        for panel, arm in zip(axes, arms, strict=True):
            for colour, (_, group) in zip(PALETTE, shapes[shapes["arm"] == arm].groupby("group"), strict=False):
                keys = ["arm", "budget", "width", "depth"]
                dots = runs[runs["status"] == "finished"].merge(group[keys], on=keys)
                panel.scatter(dots["depth"], dots["loss"], s=9, color=colour, alpha=0.5, lw=0)
                panel.plot(group["depth"], group["loss"], color=colour, label=number(group["cost"].mean(), 2))
                for row in group.itertuples():
                    panel.annotate(
                        str(row.width), (row.depth, row.loss), (3, 4), textcoords="offset points",
                        fontsize=7, color=colour,
                    )  # fmt: skip
                rung = group[group["rung"]]
                panel.scatter(rung["depth"], rung["loss"], s=60, facecolors="none", edgecolors=colour)
            panel.set(title=arm, xlabel="depth")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.margins(x=0.12, y=0.1)
            low, high = panel.get_ylim()
            panel.set_ylim(low, high + 0.4 * (high - low))  # room for the legend
            panel.legend(title="FLOPs per token", title_fontsize=7, fontsize=7, ncols=2, loc="upper center")
        axes[0].set_ylabel("test NMSE")
    return figure


def depth_rule(shapes: pd.DataFrame, by: str) -> tuple[dict[float, int], float]:
    """The best rule from one column to a depth, which never falls, and what it costs.

    Args:
        shapes: one arm's rows of ``compare_shapes``.
        by: "N" (the group's median) or "budget".

    Returns:
        The least value of each depth that the rule uses; and the geometric mean, over groups, of the loss at the rule's
        depth over the lowest of the group, minus 1 (inf if no depth is in all groups of a value).
    """
    excess: dict[float, dict[int, float]] = {}
    for value, groups in shapes.groupby(shapes.groupby("group")[by].transform("median")):
        lowest = groups.groupby("group")["loss"].transform("min")
        logs = np.log(groups["loss"] / lowest).groupby(groups["depth"]).agg(["sum", "size"])
        excess[float(value)] = logs.loc[logs["size"] == groups["group"].nunique(), "sum"].to_dict()
    ends: dict[int, tuple[float, dict[float, int]]] = {0: (0.0, {})}  # last depth -> lowest sum so far, rule
    for value, costs in excess.items():
        ends = {
            depth: min(
                (
                    (total + cost, rule if depth in rule.values() else rule | {value: depth})
                    for last, (total, rule) in ends.items()
                    if last <= depth
                ),
                key=lambda end: end[0],
                default=(math.inf, {}),
            )
            for depth, cost in costs.items()
        }
    total, rule = min(ends.values(), key=lambda end: end[0], default=(math.inf, {}))
    return rule, math.expm1(total / shapes["group"].nunique())


def _report(shapes: pd.DataFrame) -> str:
    depths = sorted(shapes["depth"].unique())
    grid, rules = [], []
    for _, group in shapes.groupby("group"):
        first = group.iloc[0]
        by_depth = {int(row.depth): _cell(row) for row in group.itertuples()}
        at = {"arm": str(first.arm), "budget": number(first.budget), "N": number(group["N"].median(), 2)}
        grid.append(at | {f"{depth} deep": by_depth.get(depth, "") for depth in depths})
    for arm, own in shapes.groupby("arm", sort=False):
        for by in ("N", "budget"):
            rule, excess = depth_rule(own, by)
            words = ", ".join(f"{depth} from {number(value, 2)}" for value, depth in rule.items())
            above = f"{100 * excess:.1f} %" if rule else ""
            words = words or "none: too few depths were tried"
            rules.append({"arm": str(arm), "depth by": by, "rule": words, "above the best": above})
    noise = shapes.loc[~shapes["rung"], "se"]
    parts = [
        "# Wide or deep?",
        "For rungs of each arm's ladder, other depths with the width that costs as much per token. All runs of a "
        "budget spend the same executed FLOPs, with batch size and learning rate by the arm's recipe.",
        "Cells: width, loss, and what it is above the best of its row, which is bold; the ladder's shape in brackets. "
        + (
            "One seed each: differences of the size of the seed noise say nothing."
            if noise.isna().all()
            else f"A difference from the ladder's shape has a standard error of {100 * noise.mean():.1f} %, from the "
            "scatter between seeds."
        ),
        table_of(grid),
        "![loss against depth at equal cost](aspect_ratio.png)",
        "Numbers are widths, rings the ladder's shapes, dots single runs.",
        "## Does the best depth follow from the parameters alone?",
        "The best rule by which depth rises with parameters, or with the budget, and how far the losses that it picks "
        "lie above the lowest of each row, on geometric average.",
        table_of(rules),
    ]
    return paragraphs(parts)


def _cell(row: Any) -> str:
    loss = f"{row.loss:.3f}"
    text = f"{row.width}: {f'**{loss}**' if row.best else f'{loss}, +{100 * row.above:.0f} %'}"
    return f"({text})" if row.rung else text
