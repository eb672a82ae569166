"""The lead of GATr over the plain transformer, split into what the symmetry does and what else does: table and figure.

The parts are ratios of losses between neighbours on a path from one arm to the other, so that they add up to the lead
in logarithms. Each arm counts with its best size at a budget.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eqscale.errors import InputError
from eqscale.laws.plots import PALETTE, WIDTH, save, style
from eqscale.laws.render import number
from eqscale.report.exhibits import UNSEEN, paragraphs, table_of
from eqscale.report.means import best_of_sizes
from eqscale.storage import write_text

PLAIN, LOCAL, SLIM, GATR = "transformer", "transformer_local", "gatr_slim", "gatr"
SHARE = "equivariance_loss_share"
LEAD = "lead"
PARTS = {
    "asymmetry": f"what averaging over the group would take off `{PLAIN}`, by its equivariance_loss_share",
    "frames": f"`{PLAIN}` so averaged over `{LOCAL}`: the same backbone in learnt frames of tokens, thus exact",
    "features": f"`{LOCAL}` over `{SLIM}`: vectors that turn, and their products, and all that else differs",
    "multivectors": f"`{SLIM}` over `{GATR}`",
    LEAD: f"`{PLAIN}` over `{GATR}`: the sum of the parts",
}
"""Parts of the lead, in the order of the path, and what each is measured by."""


def split_lead(runs: pd.DataFrame) -> pd.DataFrame:
    """The parts of the lead at each budget that all four arms have finished runs at, then its controls.

    Intervals are of the noise between seeds, pooled over an arm's points; that the best of several sizes was chosen is
    not in them.

    Args:
        runs: a run table.

    Returns:
        One row per budget and part with the columns budget, part, ratio (of losses), low and high (its 95 % interval,
        NaN without seeds), share (of the lead, in logarithms; NaN for controls). A control's part is ``control of
        arm``, its ratio that of their losses.

    Raises:
        InputError: a missing column, or no budget with all four arms.
    """
    if missing := {"arm", "control_of", "budget", "N", "loss", "status", SHARE} - set(runs):
        raise InputError(f"the run table lacks the column {min(missing)!r}, which splitting the lead needs")
    finished = runs[runs["status"] == "finished"]
    finished = finished.assign(value=np.log(finished["loss"].astype(float)))
    losses = {str(arm): best_of_sizes(own) for arm, own in finished.groupby("arm", sort=False)}
    path = (PLAIN, LOCAL, SLIM, GATR)
    budgets = sorted(set.intersection(*(set(losses.get(arm, {})) for arm in path)))
    if not budgets:
        raise InputError(f"no budget has finished runs of all of {', '.join(path)}: the lead can't be split")
    plain = finished[finished["arm"] == PLAIN]
    # Of the size that is best by loss.
    shares = best_of_sizes(plain.assign(value=-np.log1p(-plain[SHARE].astype(float))), by="loss")
    controls = finished[["arm", "control_of"]].dropna().drop_duplicates()
    rows = []
    for budget in budgets:
        at = {arm: means[budget] for arm, means in losses.items() if budget in means}
        steps = dict(zip(("frames", "features", "multivectors"), itertools.pairwise(path), strict=True))
        parts = {"asymmetry": shares[budget]} | {part: at[a] - at[b] for part, (a, b) in steps.items()}
        parts["frames"] -= shares[budget]
        parts[LEAD] = at[PLAIN] - at[GATR]
        parts |= {f"{arm} of {of}": at[arm] - at[of] for arm, of in controls.values if {arm, of} <= at.keys()}
        for part, mean in parts.items():
            low, high = mean.limits()
            share = mean.value / parts[LEAD].value if part in PARTS else math.nan
            ratio, low, high = np.exp([mean.value, low, high]).tolist()
            rows.append({"budget": budget, "part": part, "ratio": ratio, "low": low, "high": high, "share": share})
    return pd.DataFrame(rows)


def write_split(runs: pd.DataFrame, folder: Path) -> None:
    """Write ``split.csv``, ``split.png``, ``split.svg`` and ``report.md`` from a run table.

    Raises:
        InputError: as ``split_lead``.
    """
    split = split_lead(runs)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "split.csv", split.to_csv(index=False))
    save(_figure(split), folder / "split")
    write_text(folder / "report.md", _report(split))


def _figure(split: pd.DataFrame) -> Figure:
    """Every part at every budget, a dot with its interval on a logarithmic axis."""
    with style():
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        axes = figure.subplots()
        budgets = sorted(split["budget"].unique())
        for i, (budget, colour) in enumerate(zip(budgets, itertools.cycle(PALETTE), strict=False)):
            own = split[(split["budget"] == budget) & split["part"].isin(PARTS)].set_index("part").loc[list(PARTS)]
            y = np.arange(len(own)) + 0.6 * ((i + 0.5) / len(budgets) - 0.5)
            bars = np.abs(own[["low", "high"]].sub(own["ratio"], axis=0).fillna(0.0)).to_numpy().T
            axes.errorbar(own["ratio"], y, xerr=bars, fmt="o", ms=4, lw=1.2, color=colour, label=f"{budget:.0e} FLOPs")
        axes.axvline(1.0, color="0.6", lw=0.8, zorder=0)
        axes.set_yticks(range(len(PARTS)), list(PARTS))
        axes.set(xscale="log", xlabel="ratio of losses (parts multiply to the lead)")
        axes.xaxis.set_major_formatter("{x:.2f}")
        axes.xaxis.set_minor_formatter("{x:.2f}")
        axes.invert_yaxis()
        axes.legend()
    return figure


def _report(split: pd.DataFrame) -> str:
    def rows_of(parts: list[str]) -> str:
        rows = []
        for part in parts:
            cells = {"part": part, "measured by": PARTS[part]} if part in PARTS else {"control": part}
            for budget, own in split.groupby("budget"):
                found = own[own["part"] == part]
                cells[f"{budget:.0e} FLOPs"] = _cell(found.iloc[0]) if len(found) else UNSEEN
            rows.append(cells)
        return table_of(rows) if rows else ""

    controls = [part for part in split["part"].unique() if part not in PARTS]
    return paragraphs([
        f"# What the lead of `{GATR}` over `{PLAIN}` is made of",
        "Ratios of losses with 95 % intervals from the noise between seeds, each arm at the best of its sizes, and the "
        "share of the lead in logarithms. The parts multiply to the lead.",
        rows_of(list(PARTS)),
        "![parts of the lead](split.png)",
        "## Controls" * bool(controls),
        "The loss of each control over that of the arm whose symmetry it breaks: 1 would mean that the symmetry is "
        "worth nothing there." * bool(controls),
        rows_of(controls),
    ])  # fmt: skip


def _cell(row: pd.Series) -> str:
    interval = "" if math.isnan(row["low"]) else f" [{number(row['low'], 3)}, {number(row['high'], 3)}]"
    share = "" if math.isnan(row["share"]) or row["part"] == LEAD else f", {100 * row['share']:.0f} %"
    return f"× {number(row['ratio'], 3)}{interval}{share}"
