"""Which further runs of a study would tell most."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from eqscale.errors import InputError
from eqscale.laws.arms import ArmFit, fit_arms
from eqscale.laws.axes import AXES
from eqscale.laws.contrast import log_optimum
from eqscale.laws.plan import Candidates, Plan, Question, choose_runs, gradient, limits_of

BEYOND = 3.0
"""The losses that should become more certain are those at so many times the largest budget."""


def choose_next(runs: pd.DataFrame, candidates: Mapping[str, Candidates], count: int) -> tuple[Plan, dict[str, ArmFit]]:
    """The runs that make the arms' compute-optimal losses beyond the largest budget most certain together.

    They cost at most as much as ``count`` average runs of the study so far.

    Args:
        runs: finished runs of the compute grid.
        candidates: what each arm could train, with costs in executed FLOPs; those whose D/N lies outside twice the
            range of the arm's runs are left out.
        count: most runs to choose.

    Returns:
        The plan and the laws it rests on, by arm.

    Raises:
        InputError: an arm whose runs cannot determine a law.
    """
    column = AXES["executed"].column
    arms: dict[str, ArmFit] = {}
    for name in candidates:
        own = runs[runs["arm"] == name]
        if own.empty:
            raise InputError(f"{name} has no finished run to choose further ones by: train the grid first")
        arms |= fit_arms(own, cost=column, budget="budget", resamples=0)
    near = {name: _near(candidates[name], arm) for name, arm in arms.items()}
    C = BEYOND * float(runs["budget"].max())
    gradients = {name: gradient(arm, log_optimum(arm.cost, C, "loss")) for name, arm in arms.items()}
    question = Question(f"optimal losses of all arms at {C:g} FLOPs (root of the sum of squares)", np.nan, gradients)
    cheapest = min(float(choice.C.min()) for choice in near.values())
    spend = max(count * float(runs[column].mean()), cheapest)
    return choose_runs(question, arms, near, budget=spend, runs=count), arms


def _near(choice: Candidates, arm: ArmFit) -> Candidates:
    low, high = limits_of(arm).ratio
    ratio = choice.D / choice.N
    near = (low <= ratio) & (ratio <= high)
    return Candidates(choice.N[near], choice.D[near], choice.C[near])
