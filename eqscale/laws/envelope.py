"""A law for each class of a column, such as depth, and the lower envelope over the classes.

A loss that depends on a shape beside N and D has no law in N and D alone where the shape changes with the budget. Each
class has its own floor and prefactors, all share the exponents: the runs of one class rarely determine those.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from eqscale.errors import InputError
from eqscale.laws.arms import group_budgets
from eqscale.laws.cost import CostModel
from eqscale.laws.fit import Fit, fit_problem
from eqscale.laws.forms import Coefficients
from eqscale.laws.frontier import Band, frontier_values, require_optimum
from eqscale.laws.joint import JointForm, start_from
from eqscale.laws.noise import aicc_penalty, efficiency
from eqscale.laws.problem import Problem
from eqscale.laws.replicates import LackOfFit, pure_error_test
from eqscale.laws.solver import minimise
from eqscale.laws.uncertainty import percentiles, with_residuals

Array = np.ndarray

_REACH = 3.0
"""A class is looked at up to so many times beyond the costs of its own runs."""
_SAME = 0.02  # seeds differ in D by less than this (in log): another order of the data has other token counts


@dataclass(frozen=True)
class Classes:
    """The classes of a column and which each run is in."""

    column: str
    labels: tuple[str, ...]
    member: Array = field(repr=False)
    """Number of each run's class, (n,)."""


def read_classes(column: pd.Series, N: Array, D: Array, needed: int, where: str) -> Classes:
    """The classes of a column; numbers join, from the smallest on, until their class has ``needed`` distinct points. A
    last class with fewer goes with the one before.

    Args:
        column: number or label of each run, (n,).
        N, D: of each run, (n,).
        needed: distinct points that a class must have.
        where: name of the data in messages.

    Raises:
        InputError: an empty cell, fewer than two classes, or a class of labels with too few points.
    """
    name = str(column.name)
    if column.isna().any():
        raise InputError(f"{where}: row {int(column.isna().to_numpy().argmax()) + 1}, column {name!r}: empty class")
    numeric = pd.api.types.is_numeric_dtype(column)
    values = column.to_numpy()
    points = _points(np.zeros(len(N)), N, D)
    groups: list[list] = []
    for value in sorted(set(values), key=None if numeric else str):
        count = _count(points, values, [value])
        if count < needed and not numeric:
            raise InputError(
                f"{where}: {name} = {value} has {count} distinct points; a class needs {needed} (leave it out: --where)"
            )
        if groups and _count(points, values, groups[-1]) < needed:
            groups[-1].append(value)
        else:
            groups.append([value])
    if len(groups) > 1 and _count(points, values, groups[-1]) < needed:
        groups[-2:] = [groups[-2] + groups[-1]]
    if len(groups) < 2:
        raise InputError(f"{where}: column {name!r} has fewer than two classes with {needed} distinct points")
    labels = tuple(f"{g[0]:g}–{g[-1]:g}" if len(g) > 1 else f"{g[0]:g}" if numeric else str(g[0]) for g in groups)
    member = np.empty(len(values), int)
    for k, group in enumerate(groups):
        member[np.isin(values, group)] = k
    return Classes(name, labels, member)


def _count(points: Array, values: Array, group: list) -> int:
    return len(set(points[np.isin(values, group)]))


def _points(member: Array, N: Array, D: Array) -> Array:
    """Label of each run's design point, which seeds share."""
    near = group_budgets(D, _SAME)
    return np.array([f"{g:g} {n:.6g} {d:.6g}" for g, n, d in zip(member, N, near, strict=True)])


@dataclass(frozen=True)
class Envelope:
    """Laws of all classes with their lower envelope."""

    classes: Classes
    fit: Fit
    """Of the joint law, with parameters named E[class] and so on."""
    theta: Array = field(repr=False)
    """Resampled internal parameters, (K, p)."""
    cost: CostModel
    C: Array = field(repr=False)
    """Cost of each run, (n,)."""
    lack_of_fit: LackOfFit | None
    """Of the joint law; runs of one class at equal N and D are replicates."""
    plain_lack_of_fit: LackOfFit | None
    """Of the one law of all runs, with the same replicates."""
    aicc_gain: float
    """AICc of the one law minus that of the joint law: positive where classes are worth their parameters."""

    def laws(self, theta: Array) -> list[Coefficients]:
        """The law of each class at internal parameters (b, p)."""
        form: JointForm = self.fit.form  # type: ignore[assignment]
        return [form.base.to_natural(theta[:, place], self.fit.centre) for place in form.places]

    @cached_property
    def reach(self) -> Array:
        """Lowest and highest cost at which each class is looked at, (classes, 2)."""
        own = [self.C[self.classes.member == g] for g in range(len(self.classes.labels))]
        return np.array([[c.min() / _REACH, c.max() * _REACH] for c in own])


@dataclass(frozen=True)
class Lowest:
    """The lower envelope over the classes at costs C, each (k,)."""

    C: Array
    best: tuple[str, ...]
    """Class with the lowest loss."""
    share: Array
    """Share of resamples in which it has the lowest loss."""
    N: Array
    D: Array
    loss: Array
    bands: dict[str, Band]
    """95 % of ``N``, ``D`` and ``loss``: percentiles of the resamples' own envelopes, whatever their best class."""
    inside: Array
    """Whether C lies within the costs of the runs."""


def fit_envelope(
    plain: Fit, classes: Classes, cost: CostModel, C: Array, *, resamples: int = 1000, seed: int = 0
) -> Envelope:
    """Fit the laws of all classes at once, their exponents shared, and resample them.

    Args:
        plain: the one law of all runs.
        classes: see ``read_classes``.
        cost, C: what the runs cost.
        resamples: refits for the bands.
        seed: of the resampling.

    Raises:
        InputError: a law without N and D.
    """
    require_optimum(plain.form)
    joint = _joint_problem(plain, classes)
    fitted = fit_problem(joint, _starts(joint, plain))
    points = _points(classes.member, plain.columns["N"], plain.columns["D"])
    test, plain_test = (pure_error_test(law.least_squares(), points) for law in (fitted, plain))
    return Envelope(
        classes, fitted, _resample(fitted, resamples, seed), cost, C, test, plain_test,
        _aicc(plain, fitted.noise) - _aicc(fitted, fitted.noise),
    )  # fmt: skip


def _joint_problem(plain: Fit, classes: Classes) -> Problem:
    base = plain.form
    shared = [name for name in base.names if name not in base.floors and name not in base.powers]
    form = JointForm(base, classes.labels, shared, classes.member)
    lower, upper = form.internal_bounds()
    for place in form.places:
        for name in plain.fixed:
            i = base.names.index(name)
            lower[place[i]] = upper[place[i]] = plain.theta[i]
    return Problem(
        form, plain.loss, plain.columns, plain.observed, plain.weights, plain.centre, lower, upper, {},
        chosen={classes.column: classes.member},
    )  # fmt: skip


def _starts(joint: Problem, plain: Fit) -> Array:
    """The one law's exponents times a few factors, with floor and prefactors of each class refitted to them."""
    form: JointForm = joint.form  # type: ignore[assignment]
    base = form.base
    exponents = [base.names.index(e) for e, _ in base.powers.values() if e not in plain.fixed]
    centre = np.maximum(plain.theta, np.where([n in base.log_names for n in base.names], -6.0, -np.inf))
    out = []
    for factors in itertools.product((0.6, 1.0, 1.6), repeat=len(exponents)):
        local = centre.copy()
        local[exponents] = np.clip(local[exponents], 0.05, 2.0) * factors
        out.append(start_from(joint, np.tile(local, (len(form.places), 1))))
    return np.array(out)


def _resample(fitted: Fit, resamples: int, seed: int) -> Array:
    """Refits to the fitted losses with normal noise of the fit's spread, (K, p).

    Runs aren't drawn: of a class of six, half would be lost now and then, and with them its law. Nor are residuals: a
    robust fit passes through many runs, and those zeros aren't noise.
    """
    drawn = np.random.default_rng(seed).standard_normal((resamples, fitted.n))
    losses = with_residuals(fitted, fitted.spread / fitted.residual_unit * drawn)
    logs = [name in fitted.form.log_names for name in fitted.form.names]
    start = np.maximum(fitted.theta, np.where(logs, -6.0, -np.inf))
    delta = max(fitted.threshold, 1e-4)
    return minimise(fitted, np.repeat(start[None], resamples, 0), loss=losses, delta=delta, tolerance=1e-7)[0]


def _aicc(fit: Fit, noise: float) -> float:
    k = int(np.sum(fit.lower < fit.upper))
    return 2 * efficiency(noise, fit.loss) * fit.objective + aicc_penalty(k, fit.n)


def lower_envelope(envelope: Envelope, C: Array) -> Lowest:
    """The lower envelope at costs C (k,).

    A class counts up to three times beyond the costs of its own runs; further off, the classes whose runs are nearest
    do.
    """
    C = np.atleast_1d(np.asarray(C, float))
    low, high = envelope.reach[:, :1], envelope.reach[:, 1:]
    off = np.maximum(np.log(low / C), np.log(C / high))
    counts = off <= np.maximum(off.min(0), 0.0) + 1e-9

    def stacked(theta: Array) -> tuple[Array, Array]:
        """Best class and (log N, log D, log L) there: (b, k), (3, b, k)."""
        values = np.array([frontier_values(law, envelope.cost, C) for law in envelope.laws(theta)])
        losses = np.where(counts[:, None] & np.isfinite(values[:, 2]), values[:, 2], np.inf)
        best = losses.argmin(0)
        found = np.take_along_axis(values, best[None, None], 0)[0]
        return best, np.where(np.isfinite(losses.min(0)), found, np.nan)

    (best, values), (drawn_best, drawn) = stacked(envelope.fit.theta[None]), stacked(envelope.theta)
    with np.errstate(over="ignore"):
        log_n, log_d, log_loss = values[:, 0]
        bands = {
            name: Band(*map(np.exp, percentiles(draws))) for name, draws in zip(("N", "D", "loss"), drawn, strict=True)
        }
    inside = (envelope.C.min() * (1 - 1e-9) <= C) & (envelope.C.max() * (1 + 1e-9) >= C)
    labels = tuple(envelope.classes.labels[g] for g in best[0])
    share = np.mean(drawn_best == best, axis=0)
    return Lowest(C, labels, share, np.exp(log_n), np.exp(log_d), np.exp(log_loss), bands, inside)
