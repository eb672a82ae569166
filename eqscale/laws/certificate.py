"""Is a fit the minimum that it claims to be, and do the runs determine the law?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eqscale.laws.design import ambiguity
from eqscale.laws.lad import subgradient_excess
from eqscale.laws.solver import derivatives
from eqscale.numbers import number

if TYPE_CHECKING:
    from eqscale.laws.fit import Fit

Array = np.ndarray


@dataclass(frozen=True)
class Certificate:
    """Evidence that a fit is the minimum it claims to be."""

    gradient: float
    """Scaled gradient norm: max_i |g_i| / sqrt(2 f M_ii), M the Gauss–Newton majoriser; 0 at a minimum.
    For ``lad`` the excess over the subgradient condition instead."""
    decrement: float
    """Relative decrease of the objective that one more Newton step promises."""
    eigenvalues: tuple[float, ...]
    """Of the Hessian scaled to a unit diagonal, on the free parameters, ascending; all positive at a strict minimum."""
    condition: float
    """Condition number of the scaled Gauss–Newton matrix: how nearly the design confounds parameters."""
    starts: int
    basins: int
    """Distinct local minima that the starts led to."""
    basin_objectives: tuple[float, ...]
    active_bounds: tuple[str, ...]
    weakest_direction: str
    """The combination of parameters that the runs say least about."""


def certify(fit: Fit) -> Certificate:
    """Gather the evidence."""
    free, minima, active = fit.free, tuple(fit.minima), _active_bounds(fit)
    if not len(free):
        return Certificate(0.0, 0.0, (), 1.0, fit.starts, len(minima), minima, active, "none")
    gauss_newton = fit.gauss_newton[np.ix_(free, free)]
    scale = 1.0 / np.sqrt(np.maximum(np.diag(gauss_newton), 1e-290))
    values, vectors = np.linalg.eigh(gauss_newton * np.outer(scale, scale))
    condition = float(values[-1] / max(values[0], 1e-18))
    if fit.loss.kind == "lad":
        gradient = decrement = subgradient_excess(fit.residuals, fit.jacobian[free], fit.weights)
        eigenvalues = values
    else:
        gradient, decrement, eigenvalues = _newton_evidence(fit)
    weakest = vectors[:, 0]
    order = np.argsort(-np.abs(weakest))
    names = [fit.form.names[free[i]] for i in order if abs(weakest[i]) > 0.3]
    return Certificate(
        gradient, decrement, tuple(float(v) for v in eigenvalues), condition, fit.starts, len(minima),
        minima, active, "–".join(names),
    )  # fmt: skip


def _active_bounds(fit: Fit) -> tuple[str, ...]:
    """Free parameters that ended on a bound, in words."""
    active = [
        f"{name} = {fit.params[name]:g} ({'lower' if t <= low else 'upper'} bound)"
        for name, t, low, high in zip(fit.form.names, fit.theta, fit.lower, fit.upper, strict=True)
        if name not in fit.fixed and name not in fit.idle and not low < t < high
    ]
    return (*active, *(f"{p} = 0 (lower bound)" for p in fit.vanished))


def _newton_evidence(fit: Fit) -> tuple[float, float, np.ndarray]:
    """Scaled gradient norm, relative decrement and eigenvalues of the scaled Hessian."""
    free, one = fit.free, fit.theta[None]
    d = derivatives(fit, one, fit.scaled_loss[None], fit.weights[None], fit.threshold)
    # an objective at the rounding level of the residuals is zero (noise-free data): its slope is rounding too
    size = 1.0 if fit.loss.is_log else np.max(fit.scaled_loss)
    rounding = float(np.sum(fit.weights)) * (4e-16 * size) ** 2
    f = float(d.f[0]) if d.f[0] > 100 * rounding else np.inf
    m = np.maximum(np.diag(d.majoriser[0])[free], 1e-290)
    gradient = float(np.max(np.abs(d.g[0][free]) / np.sqrt(2 * f * m)))
    scale = 1.0 / np.sqrt(m)
    eigenvalues, basis = np.linalg.eigh(d.h[0][np.ix_(free, free)] * np.outer(scale, scale))
    slope = basis.T @ (d.g[0][free] * scale)
    decrement = float(np.sum(slope**2 / np.maximum(np.abs(eigenvalues), 1e-14)) / (2 * f))
    return gradient, decrement, eigenvalues


STATES = ("not converged", "unidentified", "misfit", "on boundary", "converged")
"""What a fit can be, worst first."""


@dataclass(frozen=True)
class Verdict:
    """What a fit is worth, in words: read it before the parameters."""

    findings: tuple[tuple[str, str], ...]
    """(one of ``STATES``, reason in one line), worst first; of a good fit ``("converged", "")``."""

    @property
    def state(self) -> str:
        """The worst of its findings: one of ``STATES``."""
        return self.findings[0][0]

    @property
    def reason(self) -> str:
        """Why, in one line; empty for a fit that simply converged."""
        return self.findings[0][1]

    @property
    def good(self) -> bool:
        """Whether nothing speaks against the fit."""
        return self.state == "converged"

    @property
    def determined(self) -> bool:
        """Whether the runs tell the law at all, so that what follows from it is an answer."""
        return self.state not in ("not converged", "unidentified")

    def has(self, state: str) -> bool:
        """Whether one of the findings is of this state."""
        return any(found == state for found, _ in self.findings)

    def __str__(self) -> str:
        """``state: reason``, one after the other."""
        return "; ".join(f"{state}: {reason}" if reason else state for state, reason in self.findings)


def verdict_of(fit: Fit) -> Verdict:
    """The state of the fit in words."""
    c = fit.certificate
    if not np.isfinite(fit.objective) or not np.isfinite(c.decrement):
        return Verdict((("not converged", "the objective is not finite"),))
    found = []
    if c.decrement > 1e-9 and c.gradient > 1e-6:
        found.append(("not converged", f"one more step would lower the objective by {c.decrement:.1e} (relative)"))
    if what := _unidentified(fit):
        found.append(("unidentified", what))
        if c.condition >= 1e10:  # a flat valley: that Newton crawls in it is no news
            found.sort(key=lambda finding: finding[0] == "not converged")
    if fit.structure is not None and fit.structure.rejects:
        found.append(("misfit", "; ".join(filter(None, (fit.structure.describe(), fit.remark)))))
    if c.active_bounds:
        found.append(("on boundary", ", ".join(c.active_bounds)))
    nothing_fitted = len(fit.fixed) == len(fit.form.names)
    good = ("converged", "all parameters are fixed, nothing was fitted" if nothing_fitted else "")
    return Verdict(tuple(found) or (good,))


def _unidentified(fit: Fit) -> str:
    """The combination of parameters that the runs don't tell, in words; empty if there is none."""
    c = fit.certificate
    idle = [fit.form.powers[p][0] for p in fit.vanished]
    if idle:
        return f"direction {', '.join(idle)} (its term vanished)"
    if unclear := ambiguity(fit):
        return f"direction {unclear}"
    if vague := _vague_parameters(fit):
        return f"direction {c.weakest_direction} ({'; '.join(vague)})"
    return f"direction {c.weakest_direction} (condition {c.condition:.0e})" if c.condition > 1e12 else ""


def _vague_parameters(fit: Fit) -> list[str]:
    """Exponents whose 95 % interval is as wide as they are, and logarithmic ones uncertain by more than a factor of 10.

    Prefactors are left out: in the user's units they are extrapolations to N = 1 or D = 1.
    """
    out = []
    half = fit.t_value(0.95) * np.sqrt(np.maximum(np.diag(fit.covariance), 0.0))
    for i in fit.free:
        name = fit.form.names[i]
        if name in fit.form.powers or name in fit.form.floors:
            continue
        value = fit.params[name]
        if name in fit.form.log_names:
            if half[i] > np.log(10):
                out.append(f"{name} = {number(value, 3)} within a factor of {np.exp(min(half[i], 50)):.2g}")
        elif half[i] >= value:
            out.append(f"{name} = {number(value, 3)} ± {half[i]:.2g}")
    return out
