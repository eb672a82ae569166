"""Lack of fit from replicates: is a form further from the means of seeds than these scatter?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import special

from eqscale.laws.structure import design_points

if TYPE_CHECKING:
    from eqscale.laws.fit import Fit

Array = np.ndarray


@dataclass(frozen=True)
class LackOfFit:
    """Classical test of the form against pure error (Draper & Smith 1998, ch. 2)."""

    pure_error: float
    """Standard deviation of the log loss between replicates of one design point, at weight 1."""
    replicates: int
    """Degrees of freedom of the pure error."""
    f_statistic: float
    p_value: float

    @property
    def rejects(self) -> bool:
        """Whether the form misses structure, at the level of 5 %."""
        return self.p_value < 0.05

    def describe(self) -> str:
        """In words."""
        verdict = "the form misses structure that seeds cannot explain" if self.rejects else "no lack of fit seen"
        return (
            f"{verdict}: F = {self.f_statistic:.2f}, p = {self.p_value:.3g}, seed noise "
            f"{100 * self.pure_error:.2g} % from {self.replicates} degrees of freedom"
        )


def pure_error_test(squares: Fit, points: Array | None = None) -> LackOfFit | None:
    """Test the form with seeds as replicates; None without replicates or spare design points.

    Args:
        squares: the law, fitted by least squares of the log loss, for which the test is exact.
        points: label of each run's design point, (n,), for replicates whose N or D differ a little (another data order
            has other token counts); by default those of ``Problem.points``.
    """
    point = design_points(squares) if points is None else pd.factorize(np.asarray(points))[0]
    w = squares.weights
    _, point = np.unique(point.ravel()[w > 0], return_inverse=True)
    log_loss, r, w = np.log(squares.observed)[w > 0], squares.residuals[w > 0], w[w > 0]
    means = np.bincount(point, w * log_loss) / np.bincount(point, w)
    pure = float(np.sum(w * (log_loss - means[point]) ** 2))
    df_pure = len(w) - len(means)
    df_lack = len(means) - len(squares.free)
    if df_pure < 1 or df_lack < 1 or pure == 0.0:
        return None
    lack = max(float(np.sum(w * r**2)) - pure, 0.0)
    f = (lack / df_lack) / (pure / df_pure)
    return LackOfFit(float(np.sqrt(pure / df_pure)), df_pure, f, float(special.fdtrc(df_lack, df_pure, f)))
