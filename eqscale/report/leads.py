"""How far behind the best arm the others are at equal compute, by measured optima or single runs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from eqscale.laws.minima import Minima, loss_ratio, lowest_loss
from eqscale.report.analysis import pooled_noise
from eqscale.report.means import Mean


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


def best_run_ratios(best: Mapping[str, float], noise: pd.DataFrame) -> dict[str, Mean]:
    """Log of each arm's loss over the lowest of them, with the noise between seeds of each arm.

    Args:
        best: loss of the best run of each arm.
        noise: as ``pooled_noise``.
    """
    runs = {arm: Mean(math.log(loss), sd**2, df) for arm, loss in best.items() for sd, df in [pooled_noise(noise, arm)]}
    lowest = min(best, key=lambda arm: best[arm])
    return {arm: run - runs[lowest] for arm, run in runs.items() if arm != lowest}
