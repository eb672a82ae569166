"""Does the answer depend on the optimiser? Arms trained with several, each at its best size: table and report."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

from eqscale.errors import InputError
from eqscale.laws.render import with_interval
from eqscale.numbers import number
from eqscale.report.exhibits import paragraphs, table_of
from eqscale.report.means import Mean, best_of_sizes
from eqscale.roles import Role
from eqscale.storage import write_text


def compare_optimizers(runs: pd.DataFrame) -> pd.DataFrame:
    """Losses of each arm, budget and optimiser, and how far an arm that builds the symmetry in leads with each.

    Args:
        runs: a run table with the columns arm, role, optimizer, budget, N, loss, status.

    Returns:
        One row per arm, budget and optimiser with the columns arm, budget, optimizer, loss (geometric mean over the
        seeds of the best size), ratio (to the arm's loss with the first optimiser of the table), and of each arm with
        role build_in the loss relative to that arm's with the same optimiser (``over ARM``); each followed by its 95 %
        interval from the noise between seeds, ``low`` and ``high`` of it (NaN without seeds).

    Raises:
        InputError: a missing column, or fewer than two optimisers.
    """
    if missing := {"arm", "role", "optimizer", "budget", "N", "loss", "status"} - set(runs):
        raise InputError(f"the run table lacks the column {min(missing)!r}, which comparing optimisers needs")
    finished = runs[runs["status"] == "finished"]
    finished = finished.assign(value=np.log(finished["loss"].astype(float)))
    optimizers = list(finished["optimizer"].unique())
    if len(optimizers) < 2:
        raise InputError(f"runs with one optimiser ({', '.join(optimizers) or 'none'}): there is nothing to compare")
    found = {
        (str(arm), str(optimizer), budget): mean
        for (arm, optimizer), own in finished.groupby(["arm", "optimizer"], sort=False)
        for budget, mean in best_of_sizes(own).items()
    }
    leaders = list(finished.loc[finished["role"] == Role.BUILD_IN, "arm"].unique())
    rows = []
    for (arm, optimizer, budget), mean in found.items():
        others = {"ratio": (arm, optimizers[0], budget)}
        others |= {f"over {leader}": (leader, optimizer, budget) for leader in leaders if leader != arm}
        row: dict[str, object] = {"arm": arm, "budget": budget, "optimizer": optimizer}
        row |= _with_limits("loss", mean)
        for name, other in others.items():
            if other in found and found[other] is not mean:
                row |= _with_limits(name, mean - found[other])
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["budget", "arm", "optimizer"], ignore_index=True)


def _with_limits(name: str, mean: Mean) -> dict[str, float]:
    low, high = mean.limits()
    return {name: math.exp(mean.value), f"{name} low": math.exp(low), f"{name} high": math.exp(high)}


def write_optimizers(runs: pd.DataFrame, folder: Path) -> None:
    """Write ``optimizers.csv`` and ``report.md`` from a run table.

    Raises:
        InputError: as ``compare_optimizers``.
    """
    table = compare_optimizers(runs)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "optimizers.csv", table.to_csv(index=False))
    first = runs.loc[runs["status"] == "finished", "optimizer"].iloc[0]
    columns = {"loss": "loss", "ratio": f"over that with {first}"}
    columns |= {name: f"over `{name[5:]}`" for name in table if name.startswith("over ") and name.count(" ") == 1}
    rows = [
        {"budget": number(row["budget"]), "arm": f"`{row['arm']}`", "optimiser": row["optimizer"]}
        | {title: _cell(row, name) for name, title in columns.items()}
        for _, row in table.iterrows()
    ]
    parts = [
        "# Does the answer depend on the optimiser?",
        "Each arm by its recipe with each optimiser, at the best of its sizes. Losses are geometric means over seeds; "
        "ratios are of losses, with 95 % intervals from the noise between seeds. The last columns compare arms with "
        "the same optimiser: an answer that doesn't depend on it has equal ratios there.",
        table_of(rows),
    ]
    write_text(folder / "report.md", paragraphs(parts))


def _cell(row: pd.Series, name: str) -> str:
    if name not in row or pd.isna(row[name]):
        return ""
    return with_interval(row[name], row[f"{name} low"], row[f"{name} high"])
