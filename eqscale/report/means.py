"""Means over seeds at the best of several sizes, and their differences."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
from scipy import stats

from eqscale.laws.render import with_interval


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean with the square of its standard error and the degrees of freedom of that."""

    value: float
    variance: float
    df: float

    def __sub__(self, other: Mean) -> Mean:
        """Difference of independent means; degrees of freedom by Welch and Satterthwaite, none if one has none."""
        total = self.variance + other.variance
        parts = sum(m.variance**2 / m.df for m in (self, other)) if self.df and other.df else 0.0
        return Mean(self.value - other.value, total, total**2 / parts if parts else 0.0)

    def limits(self) -> tuple[float, float]:
        """The 95 % interval; NaN without seeds to tell the noise."""
        half = float(stats.t.ppf(0.975, self.df)) * math.sqrt(self.variance) if self.df else math.nan
        return self.value - half, self.value + half

    def ratio(self) -> str:
        """The ratio, with its 95 % interval, that a difference of log losses is."""
        return with_interval(*np.exp([self.value, *self.limits()]))


def best_of_sizes(runs: pd.DataFrame) -> dict[float, Mean]:
    """Budget -> mean of ``value`` over the seeds of the size where it is lowest; one arm's runs.

    The noise between seeds is pooled over all budgets and sizes.
    """
    points = runs.groupby(["budget", "N"])
    df = int((points.size() - 1).sum())
    scatter = float(((runs["value"] - points["value"].transform("mean")) ** 2).sum())
    found = {}
    for budget, means in points["value"].mean().groupby("budget"):
        own = points.get_group(means.idxmin())["value"]
        found[float(budget)] = Mean(float(own.mean()), scatter / df / len(own) if df else 0.0, df)
    return found
