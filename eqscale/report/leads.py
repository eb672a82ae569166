"""How far behind the best arm the others are at equal compute, by measured optima."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from eqscale.laws.minima import Minima, loss_ratio, lowest_loss


def leads(minima: Mapping[str, Minima]) -> pd.DataFrame:
    """The loss of each arm over that of the best one at the same budget.

    Returns:
        One row per budget and arm with the columns budget, arm, loss, ratio (1 of the best arm), low and high (the
        wider 95 % interval of the ratio).
    """
    rows = []
    for budget in sorted({float(cost) for m in minima.values() for cost in m.cost}):
        here = {name: m for name, m in minima.items() if budget in m.cost}
        losses = {name: lowest_loss(m, budget).exp().value for name, m in here.items()}
        best = min(losses, key=lambda name: losses[name])
        for name, m in here.items():
            limits = (1.0, 1.0, 1.0)
            if name != best:
                over = loss_ratio(here[best], m, budget).exp()
                limits = (over.value, over.low, over.high)
            rows.append((budget, name, losses[name], *limits))
    return pd.DataFrame(rows, columns=["budget", "arm", "loss", "ratio", "low", "high"])


def best_arms(table: pd.DataFrame) -> dict[float, tuple[str, bool]]:
    """By budget, the arm of lowest loss, and whether all others are behind by their intervals; from ``leads``."""
    found = {}
    for budget, here in table.groupby("budget"):
        best = here.loc[here["ratio"].idxmin(), "arm"]
        others = here[here["arm"] != best]
        found[float(budget)] = (str(best), bool(len(others) and (others["low"] > 1).all()))
    return found
