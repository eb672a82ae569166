"""What to train with a given compute: arm, size, duration and the loss to expect."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from eqscale.errors import InputError
from eqscale.laws.arms import ArmFit
from eqscale.laws.axes import AXES
from eqscale.laws.contrast import Estimate, contrast
from eqscale.laws.frontier import law_value
from eqscale.laws.plan import advise
from eqscale.laws.validate import predict_new_runs
from eqscale.report.analysis import find_minima
from eqscale.report.checks import doubt_about
from eqscale.report.parts import Study
from eqscale.report.prediction import SAME_COST, trend


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """One arm, trained with the given compute at the size that suits it best.

    The size is that of the arm's law. Where that misses structure, it is that of straight lines through the last
    measured optima, if there are any at so much compute: over both studies' validation these were nearer in
    the median (docs/report.md).
    """

    arm: str
    size: str
    """Rung of the arm's ladder as width x depth; empty for an arm whose ladder isn't known."""
    N: float
    N_optimal: float
    """The optimum itself, between rungs."""
    N_interval: tuple[float, float]
    """95 %, of the law robust."""
    D: float
    steps: int | None
    """Optimiser steps at the batch size of the study's runs."""
    batch_size: int | None
    loss: Estimate
    """By the law, at N."""
    new_run: tuple[float, float]
    """95 % limits of one run by the law, model-based."""
    trend: dict[str, Any]
    """Without a law, as ``eqscale.report.prediction.trend``; empty below the arm's last three measured optima."""
    doubt: str
    """Why the law is the wrong one for its runs; empty if nothing says so."""
    probability_best: float | None
    costs: dict[str, float]
    """What it costs on every axis."""
    beyond: float
    """Compute over that of the arm's most expensive run; above 1 it is an extrapolation."""

    @property
    def by_lines(self) -> bool:
        """Whether lines through measured optima stand in for the law."""
        return bool(self.doubt and self.trend)

    @property
    def expected(self) -> tuple[float, float, float]:
        """Loss of one run and its 95 % limits, by whichever the size is from."""
        return (
            (self.trend["loss"], *self.trend["new_run"]["model"]) if self.by_lines else (self.loss.value, *self.new_run)
        )


def suggest(
    runs: pd.DataFrame,
    arms: Mapping[str, Mapping[str, ArmFit]],
    axis: str,
    compute: float,
    rungs: Callable[[str, float], Sequence[tuple[str, int]]],
) -> list[Suggestion]:
    """What to train with ``compute`` on an axis; the best arm first.

    Args:
        runs: finished runs of the compute grid.
        arms: their laws by axis and arm.
        axis: one of ``AXES``.
        compute: in the axis's unit.
        rungs: arm and parameters to label and parameters of the sizes around that can be built, if known.

    Raises:
        InputError: no arm has an optimum at this compute, or ``compute`` is not positive and finite.
    """
    out, minima = [], find_minima(arms[axis], axis)
    for advice in advise(arms[axis], compute):
        if not math.isfinite(advice.loss):
            continue
        arm = arms[axis][advice.arm]
        doubt, optima = doubt_about(arm), minima.get(advice.arm)
        line = trend(optima, compute) if optima is not None and compute >= optima.cost[-3:][0] else {}
        if doubt and line:
            optimum, interval = line["N"], tuple(line["N_interval"]["model"])
            size, N = min(rungs(advice.arm, optimum) or [("", optimum)], key=lambda r: abs(math.log(r[1] / optimum)))
        else:
            optimum, interval = advice.N, advice.N_band
            size, N = _best_rung(arm, compute, rungs(advice.arm, optimum) or [("", optimum)])
        D = float(arm.cost.tokens(np.array([N]), compute)[0])
        own = runs[runs["arm"] == advice.arm]
        per_step = (own["D"] / own["steps"]).median() if "steps" in own else math.nan
        _, low, high = predict_new_runs(arm.fit, {"N": np.array([N]), "D": np.array([D])})
        log_n, log_d = np.log([[N]]), np.log([[D]])
        loss = contrast([(arm, lambda c, n=log_n, d=log_d: np.log(law_value(c, n, d)[:, 0]))])  # type: ignore[misc]
        costs = {name: float(arms[name][advice.arm].cost.cost(np.array([N]), np.array([D]))[0]) for name in AXES}
        out.append(
            Suggestion(
                advice.arm, size, N, optimum, interval, D,
                round(D / per_step) if per_step > 0 else None,
                int(own["batch_size"].median()) if "batch_size" in own else None,
                loss.exp(), (float(low[0]), float(high[0])),
                line, doubt,
                advice.probability_best, costs,
                compute / float(arm.C.max()),
            )
        )  # fmt: skip
    if not out:
        raise InputError("no arm's law has a compute-optimal point: see the verdicts of eqscale fit")
    return sorted(out, key=lambda s: s.expected[0])


def trained_at(study: Study, axis: str, compute: float) -> list[dict[str, Any]]:
    """Each arm's best size among the runs of compute grid and validation at a cost; the best arm first.

    A run's cost may be off by ``SAME_COST``.

    Returns:
        For each arm ``arm``, ``N``, ``loss`` (mean over the runs at that size) and ``runs``.
    """
    runs = pd.concat([study.part("compute"), study.part("validation")])
    near = runs[(runs[AXES[axis].column] / compute - 1).abs() <= SAME_COST]
    sizes = near.groupby(["arm", "N"], as_index=False).agg(loss=("loss", "mean"), runs=("loss", "size"))
    return sizes.sort_values("loss").drop_duplicates("arm").to_dict("records")


def _best_rung(arm: ArmFit, compute: float, sizes: Sequence[tuple[str, float]]) -> tuple[str, float]:
    """The size with the lowest loss by the law when trained with all of ``compute``."""
    N = np.array([float(n) for _, n in sizes])
    best = int(np.argmin(arm.fit.predict(N, arm.cost.tokens(N, compute))))
    return sizes[best][0], float(N[best])
