"""The lead of GATr over the plain transformer, split into what the symmetry does and what else does.

The parts are ratios of losses between neighbours on a path from one arm to the other, so that they add up to the lead
in logarithms. Each arm counts with its best size at a budget.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eqscale.laws.plots import PALETTE, WIDTH, finish, style
from eqscale.laws.render import interval_text, number
from eqscale.report.exhibits import Table, link
from eqscale.report.means import best_of_sizes

PLAIN, LOCAL, SLIM, GATR = "transformer", "transformer_local", "gatr_slim", "gatr"
SHARE = "equivariance_loss_share"
LEAD = "lead"
PARTS = {
    "asymmetry": f"what averaging over the group would take off `{PLAIN}`, by its equivariance_loss_share",
    "frames": f"`{PLAIN}` so averaged over `{LOCAL}`: the same backbone in learnt frames of tokens, thus exact",
    "features": f"`{LOCAL}` over `{SLIM}`: vectors that turn, and their products, and all that else differs",
    "multivectors": f"`{SLIM}` over `{GATR}`",
    LEAD: f"`{PLAIN}` over `{GATR}`: the product of the parts",
}
"""Parts of the lead, in the order of the path, and what each is measured by."""
_SHOWN = 3


def split_lead(runs: pd.DataFrame) -> pd.DataFrame:
    """The parts of the lead at each budget at which all four arms have runs; empty if there is none.

    Intervals are of the noise between seeds, pooled over an arm's points; that the best of several sizes was chosen is
    not in them.

    Args:
        runs: finished runs of a compute grid.

    Returns:
        One row per budget and part with the columns budget, part, ratio (of losses), low and high (its 95 % interval,
        NaN without seeds).
    """
    rows = []
    own = {str(arm): group for arm, group in runs.assign(value=np.log(runs["loss"].astype(float))).groupby("arm")}
    path = (PLAIN, LOCAL, SLIM, GATR)
    if SHARE in runs and all(arm in own for arm in path):
        losses = {arm: best_of_sizes(own[arm]) for arm in path}
        # of the size that is best by loss
        shares = best_of_sizes(own[PLAIN].assign(value=-np.log1p(-own[PLAIN][SHARE].astype(float))), by="loss")
        for budget in sorted(set.intersection(*(set(means) for means in losses.values()))):
            at = {arm: means[budget] for arm, means in losses.items()}
            steps = dict(zip(("frames", "features", "multivectors"), itertools.pairwise(path), strict=True))
            parts = {"asymmetry": shares[budget]} | {part: at[a] - at[b] for part, (a, b) in steps.items()}
            parts["frames"] -= shares[budget]
            parts[LEAD] = at[PLAIN] - at[GATR]
            for part, mean in parts.items():
                rows.append((budget, part, *np.exp([mean.value, *mean.limits()]).tolist()))
    return pd.DataFrame(rows, columns=["budget", "part", "ratio", "low", "high"])


def split_lines(split: pd.DataFrame) -> list[str]:
    """The parts at the largest budget, as one sentence."""
    if split.empty:
        return []
    top = split[split["budget"] == split["budget"].max()].set_index("part")
    said = {part: ratio_text(row) for part, row in top.iterrows()}
    parts = ", ".join(f"{part} {said[part]}" for part in PARTS if part != LEAD)
    return [
        f"At {top['budget'].iloc[0]:.3g} executed FLOPs the loss of `{PLAIN}` over that of `{GATR}`, {said[LEAD]}, is "
        f"the product of {parts} ({link('split')}, {link('split', 'figure')})."
    ]


def split_table(split: pd.DataFrame) -> Table:
    """The parts at the lowest, a middle and the highest budget."""
    budgets = sorted(split["budget"].unique())
    shown = budgets if len(budgets) <= _SHOWN else [budgets[0], budgets[len(budgets) // 2], budgets[-1]]
    found = split.set_index(["part", "budget"])
    rows = [
        [part, means, *(ratio_text(found.loc[(part, budget)]) for budget in shown)] for part, means in PARTS.items()
    ]
    return Table(
        "split", f"What the lead of {GATR} over {PLAIN} is made of",
        ["part", "measured by", *(f"{budget:.3g} FLOPs" for budget in shown)], rows if shown else [],
        "Ratios of losses with 95 % intervals from the noise between seeds, each arm at the best of its sizes. The "
        "parts multiply to the lead. `split.csv` has all budgets.",
    )  # fmt: skip


def split_figure(split: pd.DataFrame) -> Figure:
    """Every part at every budget, a dot with its interval on a logarithmic axis."""
    with style():
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        axes = figure.subplots()
        budgets = sorted(split["budget"].unique())
        for i, (budget, colour) in enumerate(zip(budgets, itertools.cycle(PALETTE), strict=False)):
            own = split[split["budget"] == budget].set_index("part").loc[list(PARTS)]
            y = np.arange(len(own)) + 0.6 * ((i + 0.5) / len(budgets) - 0.5)
            bars = np.abs(own[["low", "high"]].sub(own["ratio"], axis=0).fillna(0.0)).to_numpy().T
            axes.errorbar(own["ratio"], y, xerr=bars, fmt="o", ms=4, lw=1.2, color=colour, label=f"{budget:.0e} FLOPs")
        axes.axvline(1.0, color="0.6", lw=0.8, zorder=0)
        axes.set_yticks(range(len(PARTS)), list(PARTS))
        axes.set(xscale="log", xlabel="ratio of losses (parts multiply to the lead)")
        axes.invert_yaxis()
        axes.legend()
        return finish(figure)


def ratio_text(row: pd.Series) -> str:
    """The ratio of a row with its interval."""
    interval = "" if math.isnan(row["low"]) else f" {interval_text((row['low'], row['high']), 3)}"
    return f"{number(row['ratio'], 3)}{interval}"
