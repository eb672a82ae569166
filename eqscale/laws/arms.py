"""One law per arm of a study, with its cost model: what figures and comparisons are made of."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from eqscale.errors import InputError
from eqscale.laws.fit import Fit, fit
from eqscale.laws.frontier import CostModel, fit_cost, nd_cost
from eqscale.laws.uncertainty import Bootstrap, bootstrap

Array = np.ndarray


@dataclass(frozen=True)
class ArmFit:
    """One arm: its law, its resamples, what its runs cost and at which budget they were run."""

    name: str
    fit: Fit
    boot: Bootstrap | None
    cost: CostModel
    C: Array = field(repr=False)
    """Cost of each run on the axis of ``cost``, (n,)."""
    budget: Array = field(repr=False)
    """Nominal budget of each run, (n,): the runs of one isoFLOP panel share it."""
    rows: Array | None = field(default=None, repr=False)
    """Row of each run in the table it came from (its index), (n,): figures name their dots by it."""

    @property
    def N(self) -> Array:
        """Parameters of each run."""
        return self.fit.columns["N"]

    @property
    def D(self) -> Array:
        """Training tokens of each run."""
        return self.fit.columns["D"]

    @property
    def loss(self) -> Array:
        """Observed loss of each run."""
        return self.fit.observed

    @property
    def per_token(self) -> Array:
        """Cost of one training token in each run."""
        return self.C / self.D


def group_budgets(C: Array, tolerance: float = 0.25) -> Array:
    """Budgets of runs from their costs: from the smallest up, costs within ``tolerance`` (in log) of the
    first of a group are one budget, named by its median.
    """
    C = np.asarray(C, float)
    log_c = np.log(C)
    group, first, current = np.empty(len(C), int), -np.inf, -1
    for i in np.argsort(C, kind="stable"):
        if log_c[i] > first + tolerance:
            first, current = log_c[i], current + 1
        group[i] = current
    return np.array([np.median(C[group == g]) for g in range(current + 1)])[group]


def fit_arms(
    runs: pd.DataFrame,
    *,
    by: str = "arm",
    cost: str | None = "C",
    budget: str | None = None,
    form: str = "chinchilla",
    loss_fn: str = "log-huber",
    delta: float = 1e-3,
    fix: dict[str, float] | None = None,
    weights: str | None = None,
    kind: str = "case",
    cluster: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
    where: str = "",
) -> dict[str, ArmFit]:
    """Fit each arm of a checked run table by itself.

    Args:
        runs: table with N, D, loss (see ``check_runs``), one row a finished run.
        by: column that names the arm.
        cost: column with each run's cost on the axis of interest; None counts 6ND.
        budget: column with the nominal budget; grouped from the costs if None.
        form, loss_fn, delta, fix: see ``fit``; ``weights`` is a column.
        kind, resamples, seed: see ``bootstrap``; resamples 0 for none. Each arm gets its own seed, so that
            draws of different arms are independent.
        cluster: column of the clusters for ``kind="cluster"``.
        where: name of the table in messages.

    Returns:
        Arms by name, in order of first appearance.

    Raises:
        InputError: a missing column, or an arm whose runs cannot determine the law.
    """
    for column in filter(None, (by, cost, budget, cluster, weights)):
        if column not in runs.columns:
            raise InputError(
                f"{where or 'runs'}: no column {column!r}; columns: {', '.join(map(str, runs.columns))}"
            )
    out = {}
    for position, name in enumerate(dict.fromkeys(runs[by].astype(str))):
        part = runs[runs[by].astype(str) == name]
        found = fit(
            part["N"], part["D"], part["loss"],
            U=part["U"] if "U" in part.columns else None,
            form=form, loss_fn=loss_fn, delta=delta, fix=fix,
            weights=part[weights] if weights else None, where=f"{where}, {by} = {name}" if where else f"{by} = {name}",
        )  # fmt: skip
        spent = (part[cost] if cost else 6 * part["N"] * part["D"]).to_numpy(float)
        model = fit_cost(part["N"], part["D"], spent) if cost else nd_cost()
        boot = None
        if resamples:
            clusters = part[cluster].to_numpy() if cluster else None
            boot = bootstrap(found, kind, resamples=resamples, seed=seed + position, clusters=clusters)
        budgets = part[budget].to_numpy(float) if budget else group_budgets(spent)
        out[name] = ArmFit(name, found, boot, model, spent, budgets, part.index.to_numpy())
    return out
