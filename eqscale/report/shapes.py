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
from eqscale.laws.render import number
from eqscale.report.exhibits import paragraphs, table_of
from eqscale.storage import write_text

if TYPE_CHECKING:
    from eqscale.study.grid import ShapeGroup

GOAL = 0.02
"""Largest relative excess of a rung's loss over the best shape's."""


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
    relative), se (of the excess, from the seeds' scatter pooled over the arm's shapes; NaN with one seed), best.

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
    shapes["best"] = shapes["loss"] == shapes.groupby("group")["loss"].transform("min")
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
                panel.plot(group["depth"], group["loss"], color=colour, label=f"{number(group['cost'].mean(), 2)}")
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


def _report(shapes: pd.DataFrame) -> str:
    rows = [
        {
            "arm": str(row.arm), "budget": number(row.budget), "width": str(row.width), "depth": str(row.depth),
            "ladder": "yes" if row.rung else "", "N": f"{row.N:,}", "FLOPs / token": number(row.cost, 3),
            "seeds": str(row.seeds), "loss": f"{row.loss:.4f}",
            "against the ladder": "" if row.rung else _signed(row.excess, row.se), "seconds": f"{row.seconds:.0f}",
        }
        for row in shapes.itertuples()
    ]  # fmt: skip
    parts = [
        "# Wide or deep?",
        "For rungs of each arm's ladder, other depths with the width that costs as much per token. All runs of a "
        "budget spend the same executed FLOPs, with batch size and learning rate by the arm's recipe. ± is the "
        "standard error of a difference of two shapes, from the scatter between seeds, pooled over the arm's shapes.",
        table_of(rows),
        "![loss against depth at equal cost](aspect_ratio.png)",
        "Numbers are widths, rings the ladder's shapes, dots single runs.",
        "## Is the ladder the bottleneck?",
        *(_verdict(group) for _, group in shapes.groupby("group")),
    ]
    return paragraphs(parts)


def _signed(excess: float, se: float) -> str:
    uncertain = "" if math.isnan(se) else f" ± {100 * se:.1f}"
    return f"{100 * excess:+.1f}{uncertain} %"


def _verdict(group: pd.DataFrame) -> str:
    """One sentence on one group of shapes."""
    first = group.iloc[0]
    where = f"**{first.arm}**, {number(group['cost'].mean(), 2)} FLOPs per token, {number(first.budget)} FLOPs: "
    if not group["rung"].any():
        return where + "the ladder's shape has not finished."
    rung, best = group[group["rung"]].iloc[0], group.loc[group["loss"].idxmin()]
    name = f"{rung.width} x {rung.depth} (width x depth)"
    if len(group) == 1:
        return where + f"no shape beside the ladder's {name} costs as much."
    if best.rung:
        return where + f"the ladder's {name} is the best of {len(group)} shapes."
    text = f"{best.width} x {best.depth} ends {_signed(best.excess, best.se)} from the ladder's {name}; "
    if -best.excess <= GOAL:
        return where + text + f"the ladder is within {100 * GOAL:.0f} %."
    if math.isnan(best.se) or -best.excess < 2 * best.se:
        return where + text + "the seeds' scatter could explain it."
    return where + text + "more than the seeds' scatter explains."
