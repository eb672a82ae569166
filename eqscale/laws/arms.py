"""One law per arm of a study, with its cost model: what figures and comparisons are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from eqscale.laws.cost import CostModel, complete_costs, nd_cost
from eqscale.laws.fit import Fit, fit
from eqscale.laws.forms import get_form
from eqscale.laws.frontier import require_optimum
from eqscale.laws.structure import design_columns
from eqscale.laws.table import require_columns
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
    """Budgets of runs from their costs: from the smallest up, costs within ``tolerance`` (in log) of the first of a
    group are one budget, named by its median.
    """
    C = np.asarray(C, float)
    log_c = np.log(C)
    group, first, current = np.empty(len(C), int), -np.inf, -1
    for i in np.argsort(C, kind="stable"):
        if log_c[i] > first + tolerance:
            first, current = log_c[i], current + 1
        group[i] = current
    return np.array([np.median(C[group == g]) for g in range(current + 1)])[group]


@dataclass(frozen=True)
class Options:
    """How the law of an arm is fitted and resampled."""

    form: str = "chinchilla"
    loss_fn: str = "log-huber"
    delta: float = 1e-3
    fix: Mapping[str, float] = field(default_factory=dict)
    weights: str | None = None
    """Column with the weight of each run."""
    kind: str = "case"
    """See ``bootstrap``."""
    cluster: str | None = None
    """Column of the clusters for ``kind="cluster"``."""
    replicates: str | None = None
    """Column whose equal values mark replicates; None: runs that agree in all columns of their design are."""
    resamples: int = 1000
    """0 for no bootstrap."""
    seed: int = 0


def fit_table(runs: pd.DataFrame, options: Options, where: str) -> tuple[Fit, Bootstrap | None]:
    """Fit and resample the law of all runs of a checked table.

    Raises:
        InputError: see ``fit`` and ``bootstrap``.
    """
    form = get_form(options.form)
    found = fit(
        loss=runs["loss"], form=form, loss_fn=options.loss_fn, delta=options.delta, fix=options.fix,
        weights=runs[options.weights] if options.weights else None, where=where,
        chosen=design_columns(runs, (*form.columns, options.weights, options.replicates)),
        points=runs[options.replicates] if options.replicates else None,
        **{column: runs[column] for column in form.columns if column in runs.columns},
    )  # fmt: skip
    if not options.resamples:
        return found, None
    clusters = runs[options.cluster].to_numpy() if options.cluster else None
    return found, bootstrap(found, options.kind, resamples=options.resamples, seed=options.seed, clusters=clusters)


def run_costs(runs: pd.DataFrame, cost: str | None) -> tuple[CostModel, Array]:
    """The cost model of some runs and what each cost, (n,): the column ``cost``, completed, or 6ND if None."""
    N, D = runs["N"].to_numpy(float), runs["D"].to_numpy(float)
    return complete_costs(N, D, runs[cost]) if cost else (nd_cost(), 6 * N * D)


def make_arm(
    name: str, runs: pd.DataFrame, law: tuple[Fit, Bootstrap | None], cost: str | None, budget: str | None = None
) -> ArmFit:
    """A law with what its runs cost: the column ``cost`` of the table that it was fitted to, 6ND if None.

    ``budget`` is the column with the nominal budgets; without one, runs are grouped by their costs.
    """
    model, spent = run_costs(runs, cost)
    budgets = runs[budget].to_numpy(float) if budget else group_budgets(spent)
    return ArmFit(name, *law, model, spent, budgets, runs.index.to_numpy())


def fit_arms(
    runs: pd.DataFrame,
    *,
    by: str = "arm",
    cost: str | None = "C",
    budget: str | None = None,
    where: str = "",
    **options: Any,
) -> dict[str, ArmFit]:
    """Fit each arm of a checked run table by itself.

    Args:
        runs: table with N, D, loss (see ``check_runs``), one row a finished run.
        by: column that names the arm.
        cost: see ``make_arm``.
        budget: column with the nominal budgets; without one, the runs of all arms are grouped by their costs.
        where: name of the table in messages.
        options: fields of ``Options``. Each arm gets its own seed, so that draws of different arms are independent.

    Returns:
        Arms by name, in order of first appearance.

    Raises:
        InputError: a missing column, a law without N and D, or an arm whose runs cannot determine the law.
    """
    chosen = Options(**options)
    require_optimum(get_form(chosen.form))
    require_columns(runs, (by, cost, budget, chosen.cluster, chosen.weights, chosen.replicates), where or "runs")
    out = {}
    for position, name in enumerate(dict.fromkeys(runs[by].astype(str))):
        part = runs[runs[by].astype(str) == name]
        title = f"{where}, {by} = {name}" if where else f"{by} = {name}"
        law = fit_table(part, replace(chosen, seed=chosen.seed + position), title)
        out[name] = make_arm(name, part, law, cost, budget)
    return out if budget else with_common_budgets(out)


def with_common_budgets(arms: Mapping[str, ArmFit]) -> dict[str, ArmFit]:
    """The same arms with budgets grouped from the costs of all their runs, so that arms share them."""
    ends = np.cumsum([len(arm.C) for arm in arms.values()])
    budgets = np.split(group_budgets(np.concatenate([arm.C for arm in arms.values()])), ends[:-1])
    return {name: replace(arm, budget=own) for (name, arm), own in zip(arms.items(), budgets, strict=True)}
