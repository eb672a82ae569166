"""Is the form right? Patterns in the residuals of a fit along its regressors and along whatever else was chosen.

Score tests (Rao 1948; robust: Sen 1982, Hampel et al. 1986, ch. 7): the law is refitted with Huber's loss at 1.345
times the noise, its bounded residuals ψ are projected on candidate patterns made orthogonal to the law's own
derivatives, and the share that a pattern takes is compared with what noise would leave it (F). The patterns are all
products of two logarithms of the regressors, a parabola along each further column that was chosen, and the means of
replicates (pure error). Neither replicates nor normal noise are needed, and outliers count no more than other runs.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_hashable, is_numeric_dtype
from scipy import stats

from eqscale.laws.problem import Problem
from eqscale.laws.solver import minimise

if TYPE_CHECKING:
    from eqscale.laws.fit import Fit

Array = np.ndarray

LEVEL = 0.02
"""Share of data sets that follow the law and are called a misfit all the same."""
LEAST = 10
"""Degrees of freedom below which the residuals can't tell structure from noise."""
EXACT = 1e-9
"""Noise of log losses below which residuals are rounding errors."""
_MOST = 20_000  # runs looked at: more would only slow it down
REPLICATES = "replicates"
HUBER = 1.345
"""Threshold over noise at which Huber's loss is 95 % efficient for normal noise."""
_MOST_LABELS = 10  # labels of one column that a pattern may run along
_CHOSEN = (
    r"learning_?rate|optimi[sz]er|batch_?size|weight_?decay|(^|[^a-z])(lr|wd|batch|depth|width|layers?|heads?|d_model|d_ff|"
    r"warmup|momentum|dropout|schedule|vocab|seq_?len|context|aspect|epochs?)([^a-z]|$)"
)
_NOT_CHOSEN = (
    r"loss|mse|metric|score|perplexity|entropy|equivariance|seconds|memory|hardware|device|host|status|outcome|reason|seed|"
    r"(^|[^a-z])(err|error|acc|accuracy|nll|ppl|bpb|bpt|ece|auc|f1|time|date|started|finished|created|hours|id|name|run|path|"
    r"code|commit|version|notes?|tags?)([^a-z]|$)|^[nduc]$"
)


@dataclass(frozen=True)
class Pattern:
    """One pattern that was looked for in the residuals."""

    along: str
    """Columns it runs along, or ``REPLICATES`` for the means of the design points."""
    f_statistic: float
    degrees: tuple[int, int]
    """Degrees of freedom of the F statistic."""
    p_value: float


@dataclass(frozen=True)
class Structure:
    """What the residuals of a fit say about its form."""

    patterns: tuple[Pattern, ...]
    """Clearest first; empty if there are too few runs to tell."""
    direction: str
    """What the clearest pattern looks like, in words."""

    @property
    def p_value(self) -> float:
        """Of the clearest pattern, corrected for the number of those tried (Bonferroni); NaN where none can be."""
        return min(len(self.patterns) * self.patterns[0].p_value, 1.0) if self.patterns else np.nan

    @property
    def rejects(self) -> bool:
        """Whether the form misses structure."""
        return bool(self.p_value < LEVEL)

    def describe(self) -> str:
        """In words."""
        if not self.patterns:
            return "can't tell: too few runs for a test of the form"
        tried = ", ".join(pattern.along for pattern in self.patterns)
        if self.rejects:
            return f"{self.direction} (p = {self.p_value:.2g})"
        return f"no pattern in the residuals along {tried} (p = {self.p_value:.2g})"


def structure_test(fit: Fit) -> Structure | None:
    """Test the form of a fit; None where there is no noise to compare a pattern with.

    ``fit.chosen`` holds the further columns that are looked along.
    """
    scale = fit.spread / fit.residual_unit
    if not scale > EXACT or not np.isfinite(fit.objective):
        return None
    law, theta = _robust_refit(fit, scale)
    root = np.sqrt(law.weights)
    residuals = law.residuals_at(theta[None])[0]
    psi = root * np.clip(residuals / scale, -HUBER, HUBER)
    inside = (law.lower < theta) & (theta < law.upper)
    free = [i for i, name in enumerate(fit.form.names) if inside[i] and name not in fit.idle]
    own = _basis((law.jacobian_at(theta)[free] * root).T)
    if law.n - own.shape[1] < LEAST:
        return Structure((), "")
    found = [_test(along, psi, root, own, columns) for along, columns in _candidates(law).items()]
    found.append(_pure_error(law, psi, root, own.shape[1]))
    ordered = sorted((p for p in found if p is not None), key=lambda p: p.p_value)
    if not ordered:
        return Structure((), "")
    shift = np.clip(residuals, -3 * scale, 3 * scale)
    shift = np.expm1(shift) if fit.loss.is_log else shift / law.predicted(theta[None])[0]
    # of clear patterns one that has a direction
    clear = [p.along for p in ordered if p.along != REPLICATES and len(ordered) * p.p_value < LEVEL]
    return Structure(tuple(ordered), _in_words(law, next(iter(clear), ordered[0].along), shift, psi, root, own))


def some_runs(rows: Array) -> Array:
    """The given rows, of very many a sample of 20,000, ascending."""
    return rows if len(rows) <= _MOST else np.sort(np.random.default_rng(0).choice(rows, _MOST, replace=False))


def _robust_refit(fit: Fit, scale: float) -> tuple[Problem, Array]:
    """The runs with weight, of very many a sample, and the parameters (p,) that Huber's loss gives them."""
    rows = some_runs(np.flatnonzero(fit.weights > 0))
    law: Problem = fit if len(rows) == fit.n else fit.only(rows)
    theta, *_ = minimise(law, fit.theta[None], delta=HUBER * scale, tolerance=1e-10, iterations=60)
    return law, theta[0]


def _basis(columns: Array) -> Array:
    """Orthonormal basis of the span of columns (n, k) of any scale, (n, rank)."""
    norm = np.linalg.norm(columns, axis=0)
    columns = columns[:, norm > 0] / norm[norm > 0]
    if not columns.shape[1]:
        return columns
    u, s, _ = np.linalg.svd(columns, full_matrices=False)
    return u[:, s > 1e-6 * s[0]]


def _beyond(columns: Array, root: Array, own: Array) -> Array:
    """Orthonormal basis of what weighted columns (n, k) hold beyond the law's own derivatives, (n, q)."""
    columns = root[:, None] * columns
    rest = columns - own @ (own.T @ columns)
    return _basis(rest[:, np.linalg.norm(rest, axis=0) > 1e-4 * np.linalg.norm(columns, axis=0)])


def _test(along: str, psi: Array, root: Array, own: Array, columns: Array) -> Pattern | None:
    """F test of what ``columns`` (n, k) explain beyond the law; None if they add nothing or too few runs are left."""
    basis = _beyond(columns, root, own)
    q = basis.shape[1]
    df = len(psi) - own.shape[1] - q
    if not q or df < LEAST:
        return None
    score = basis.T @ psi
    rest = psi - basis @ score
    # equal noise, and noise of each run's own size (HC3, MacKinnon & White 1985): noisy corners are no structure
    equal = float(score @ score) * df / float(rest @ rest)
    leverage = np.minimum(np.sum(own**2, axis=1) + np.sum(basis**2, axis=1), 0.95)
    meat = (basis * (rest / (1 - leverage))[:, None] ** 2).T @ basis
    own_size = float(score @ np.linalg.pinv(meat, hermitian=True) @ score)
    f = min(equal, own_size) / q
    return Pattern(along, f, (q, df), float(stats.f.sf(f, q, df)))


def _pure_error(law: Problem, psi: Array, root: Array, parameters: int) -> Pattern | None:
    """F test of the means of the design points against the scatter within them; None without replicates."""
    point = design_points(law)
    points = int(point.max()) + 1
    q, df = points - parameters, len(psi) - points
    if df < 1 or q < 1:
        return None
    mean = root * (np.bincount(point, root * psi) / np.bincount(point, root**2))[point]
    between, within = float(mean @ mean), float(np.sum((psi - mean) ** 2))
    if within == 0.0:
        return None
    f = (between / q) / (within / df)
    return Pattern(REPLICATES, f, (q, df), float(stats.f.sf(f, q, df)))


def design_columns(runs: pd.DataFrame, known: Collection[str | None]) -> dict[str, Array]:
    """Columns of a run table that were chosen for each run, as far as names and values tell, each (n,).

    Those are hyperparameters by their name, and other columns in which at least every other run shares its value with
    another; not ``known`` ones, what was measured, what merely names a run, the seed, or what is equal or empty.
    """
    found = {}
    for name in runs.columns:
        values, label = runs[name], str(name).lower()
        if name in known or re.search(_NOT_CHOSEN, label) or not is_hashable(values.iloc[0]):
            continue
        levels = values.nunique()
        if levels < 2 or values.isna().any() or values.equals(runs["loss"]):
            continue
        if re.search(_CHOSEN, label) or levels <= len(runs) / 2:
            number = is_numeric_dtype(values) and not is_bool_dtype(values)
            found[str(name)] = values.to_numpy(float if number else object)
    return found


def design_points(problem: Problem) -> Array:
    """Number of each run's design point, (n,): replicates share one (see ``Problem.points``)."""
    if problem.points is not None:
        return pd.factorize(problem.points)[0]
    columns = {name: np.round(np.log(v), 6) for name, v in problem.columns.items()} | problem.chosen
    return pd.DataFrame(columns).groupby(list(columns), sort=False).ngroup().to_numpy()


def _standardised(values: Array) -> Array:
    """Values, as logarithms where positive, with mean 0 and spread 1."""
    x = np.log(values) if np.all(values > 0) else values
    return (x - x.mean()) / (x.std() or 1.0)


def _candidates(law: Problem) -> dict[str, Array]:
    """Patterns to look for, (n, k) each, by the columns that they run along."""
    own = {name: _standardised(v) for name, v in law.columns.items()}
    products = itertools.combinations_with_replacement(own.values(), 2)
    found = {", ".join(own): np.column_stack([a * b for a, b in products])}
    known = np.column_stack([np.ones(law.n), *own.values()])
    for name, values in law.chosen.items():
        if values.dtype.kind in "iuf":
            x = _standardised(values.astype(float))
            if np.linalg.norm(x - known @ np.linalg.lstsq(known, x, rcond=None)[0]) < 0.02 * np.sqrt(law.n):
                continue  # a product of powers of the regressors, such as compute
            found[name] = np.column_stack([x, x * x])
        elif len(np.unique(values.astype(str))) <= _MOST_LABELS:
            found[name] = (values[:, None].astype(str) == np.unique(values.astype(str))).astype(float)
    return found


def _in_words(law: Problem, along: str, shift: Array, psi: Array, root: Array, own: Array) -> str:
    """What the clearest pattern looks like; ``shift`` is observed over fitted loss minus one, (n,)."""
    if along == REPLICATES:
        return "the means of replicates are further from the law than the scatter within them explains"
    if along in law.chosen:
        values = law.chosen[along]
        if values.dtype.kind in "iuf":
            x = _standardised(values.astype(float))
            low, middle, high = _three_means(x, shift)
            return f"loss depends on {along}: {_percent(high - low)} from its low to its high end"
        names, level = np.unique(values.astype(str), return_inverse=True)
        means = np.bincount(level, shift) / np.bincount(level)
        k = int(np.argmax(np.abs(means)))
        return f"loss depends on {along}: runs with {names[k]} end {_percent(means[k])} from the law"
    logs = {name: np.log(v) for name, v in law.columns.items()}
    axes = {f"{name}": (v, f"the largest {name}") for name, v in logs.items()}
    if {"N", "D"} <= set(logs):
        axes |= {
            "compute": (logs["N"] + logs["D"], "the top budgets"),
            "D/N": (logs["D"] - logs["N"], "the most tokens per parameter"),
        }

    def clarity(axis: str) -> float:
        x = axes[axis][0] - axes[axis][0].mean()
        return float(np.sum((_beyond((x * x)[:, None], root, own).T @ psi) ** 2))

    # of equally clear ones compute, which an extrapolation goes along
    axis = max(reversed(axes), key=clarity)
    x, where = axes[axis]
    low, middle, high = _three_means(x, shift)
    shown = f"residuals {_percent(low)}, {_percent(middle)}, {_percent(high)} at low, middle and high {axis}"
    if high * middle > 0 and abs(high) < abs(middle):
        return f"loss bends otherwise than the law along {axis}: {shown}"
    return f"loss falls {'faster' if high < 0 else 'slower'} than the law at {where}: {shown}"


def _three_means(x: Array, shift: Array) -> tuple[float, float, float]:
    """Means of ``shift`` over the lowest, the middle and the highest fifth of the runs along x."""
    fifths = np.array_split(np.argsort(x, kind="stable"), 5)
    return tuple(float(shift[fifths[k]].mean()) for k in (0, 2, 4))  # type: ignore[return-value]


def _percent(share: float) -> str:
    return f"{100 * share:+.2g} %"
