"""What a set of runs can tell: how far D varies beside N, and whether it tells the law's two terms apart.

Runs along a line D = k N^p show a law in one variable only: E + A/N^α + B/D^β hardly changes when its terms trade
places. Source: the conditioning of designs D = kN, arXiv 2605.08541.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from eqscale.laws.forms.sums import Balanced, Chinchilla
from eqscale.laws.noise import efficiency
from eqscale.laws.solver import minimise
from eqscale.laws.structure import some_runs

if TYPE_CHECKING:
    from eqscale.laws.fit import Fit

Array = np.ndarray

_ALPHA, _BETA = 0.34, 0.28  # Hoffmann et al. 2022, approach 3; any law whose terms are of like size says much the same
_STEEP = 3.0  # no published exponent of a law of loss comes near
_NEAR_LINE = 3.0  # a factor of D around its line below which the line, not the range of D/N, says what runs can tell


@dataclass(frozen=True)
class Spread:
    """How a design's D lies about the line D ∝ N^power through its runs."""

    power: float
    factor: float
    """Largest over smallest D/N^power."""
    ratio: float
    """Largest over smallest D/N."""

    def describe(self) -> str:
        """In words."""
        if self.factor < _NEAR_LINE and abs(self.power - 1) > 0.05:
            return f"D follows N^{self.power:.2f} within a factor of {self.factor:.2g}"
        ratio = f"{self.ratio:.1f}" if self.ratio < 10 else f"{float(f'{self.ratio:.2g}'):,.0f}"
        return f"D/N varies by {ratio}x"


def spread(N: Array, D: Array) -> Spread:
    """The line along which runs (n,) vary most, and how far they depart from it."""
    n, d = np.log(np.asarray(N, float)), np.log(np.asarray(D, float))
    along = np.linalg.svd(np.column_stack([n - n.mean(), d - d.mean()]), full_matrices=False)[2][0]
    power = float(along[1] / along[0]) if abs(along[0]) > 1e-9 else np.inf
    factor = float(np.exp(np.ptp(d - power * n))) if np.isfinite(power) else float(np.exp(np.ptp(n)))
    return Spread(power, factor, float(np.exp(np.ptp(d - n))))


@dataclass(frozen=True)
class Resolution:
    """How well a design is expected to tell the exponents of E + A/N^α + B/D^β, before any run is made."""

    spread: Spread
    noise: float
    """Assumed standard deviation of one run's log loss."""
    condition: float
    """Condition number of the scaled Gauss–Newton matrix."""
    alpha: float
    """Half width of the expected 95 % interval; so are the next two."""
    beta: float
    difference: float
    """Of α − β."""

    @property
    def apart(self) -> bool:
        """Whether the exponents can be told apart: from each other and from zero."""
        return self.difference < _ALPHA and self.alpha < _ALPHA and self.beta < _BETA

    def describe(self) -> str:
        """In words."""
        given = f"{100 * self.noise:.2g} % noise"
        if not self.apart:
            return f"{self.spread.describe()}: alpha and beta can't be told apart at {given}"
        return (
            f"{self.spread.describe()}: at {given}, expect alpha within ± {self.alpha:.2g} and beta within "
            f"± {self.beta:.2g} (condition {self.condition:.0f})"
        )


def resolution(N: Array, D: Array, noise: float) -> Resolution:
    """What runs (n,) at these sizes and tokens are expected to tell with ``noise`` of the log loss, whatever they give.

    The law is linearised where its floor and both terms are a third of the loss in the middle of the design, with the
    exponents of Hoffmann et al. 2022.
    """
    x = {name: np.log(v) - np.log(v).mean() for name, v in (("N", np.asarray(N, float)), ("D", np.asarray(D, float)))}
    theta = np.array([[1 / 3, np.log(1 / 3), np.log(1 / 3), _ALPHA, _BETA]])
    ev = Chinchilla().evaluate(theta, x)
    jac = (ev.jacobian() / ev.value[:, None])[0]
    scale = 1 / np.linalg.norm(jac, axis=1)
    values, vectors = np.linalg.eigh((jac * scale[:, None]) @ (jac * scale[:, None]).T)
    values = np.maximum(values, 1e-15)
    root = vectors / np.sqrt(values) * scale[:, None] * 1.96 * noise
    widths = (np.linalg.norm(row) for row in (root[3], root[4], root[3] - root[4]))
    return Resolution(spread(N, D), noise, float(values[-1] / values[0]), *map(float, widths))


def ambiguity(fit: Fit) -> str:
    """Which exponents the runs don't tell although the fit has them, and why, in words; empty if none.

    Either an exponent ran off to an upper bound beyond all that laws have: its term fits the noise of a few runs. Or
    the two terms can't be told apart, see ``confounded``.
    """
    exponents = [exponent for exponent, _ in fit.form.powers.values() if exponent not in {*fit.fixed, *fit.idle}]
    steep = [name for name in exponents if _STEEP < fit.upper[i := fit.index(name)] == fit.theta[i]]
    if steep:
        return f"{', '.join(steep)} (its term acts on the smallest runs alone)"
    alike = confounded(fit)
    return f"alpha–beta ({alike})" if alike else ""


def confounded(fit: Fit) -> str | None:
    """Why a law's two terms can't be told apart, or None.

    Either the runs lie so near a line that their noise hides what lies off it; or the terms trade places, the law is
    refitted from there, and another law, with exponents outside the intervals of these, explains the runs as well
    (within noise, at 95 %).
    """
    form = fit.form
    if not isinstance(form, Balanced) or {"A", "B", "alpha", "beta"} & {*fit.fixed, *fit.idle}:
        return None
    problem = fit.only(some_runs(np.arange(fit.n)))
    N, D = (problem.columns[c][problem.weights > 0] for c in ("N", "D"))
    expected = resolution(N, D, fit.spread)
    if expected.spread.factor < _NEAR_LINE and not expected.apart:
        return expected.describe()
    line = expected.spread
    if not 0.05 < line.power < 20:
        return None
    a, b, alpha, beta = (form.names.index(name) for name in ("A", "B", "alpha", "beta"))
    start = fit.theta.copy()
    start[[a, b]] = fit.theta[[b, a]]
    start[[alpha, beta]] = fit.theta[beta] * line.power, fit.theta[alpha] / line.power
    both = np.stack([fit.theta, np.clip(start, fit.lower, fit.upper)])
    delta, scale = fit.smoothed(1e-5)
    theta, f, _ = minimise(problem, both, delta=delta, tolerance=1e-12)
    dof = max(fit.degrees_of_freedom, 1)
    if 2 * efficiency(fit.noise, fit.loss) * scale * (f[1] - f[0]) > stats.f.ppf(0.95, 1, dof):
        return None
    # off a line, intervals that contain the other law say enough
    half = fit.t_value(0.95) * np.sqrt(np.diag(fit.covariance)) if line.factor >= _NEAR_LINE else 0 * fit.theta
    if all(abs(theta[1, i] - theta[0, i]) <= max(half[i], 1e-3) for i in (alpha, beta)):
        return None
    here, there = (f"alpha = {t[alpha]:.3g}, beta = {t[beta]:.3g}" for t in theta)
    return f"alpha and beta can't be told apart: {line.describe()}, and {there} fit as well as {here}"
