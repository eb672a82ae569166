"""The functional forms of a scaling law, each one small class with exact first and second derivatives.

Inside a fit a law is evaluated in centred variables: n = log N − mean(log N) and so on, loss divided by its
geometric mean. The coefficients of a power law are then of order one whatever the units, and an exponent is
nearly uncorrelated with its own prefactor. The floor E enters linearly, so that E = 0 is an ordinary bound
of the parameter space; prefactors enter as logarithms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from eqscale.laws.varpro import exponent_grid, nonnegative_profile

Array = np.ndarray
Features = Mapping[str, Array]
"""Centred regressors by name, each of shape (m,)."""


_GONE = -600.0  # internal logarithm of a prefactor that is zero


@dataclass(frozen=True)
class Evaluation:
    """A law at b parameter vectors and m runs."""

    value: Array
    """Predicted loss, (b, m)."""
    jacobian: Array
    """Derivative of ``value`` by the internal parameters, (b, p, m)."""
    curvature: Callable[[Array], Array]
    """q (b, m) -> sum over runs of q times the second derivatives of ``value``, (b, p, p)."""


@dataclass(frozen=True)
class Centre:
    """Shifts between the user's units and the centred variables of a fit."""

    log_loss: float
    logs: Mapping[str, float]
    """Mean logarithm of each regressor."""


class Form(ABC):
    """A scaling law as the fitter sees it; subclass and list the instance in ``FORMS`` to add one.

    ``names`` are the public parameters in the order of the internal ones. A parameter in ``log_names`` is
    stored as a logarithm; E is stored as it is; ``powers`` maps a prefactor to (exponent, regressor), which
    is what changes when units change.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    names: ClassVar[tuple[str, ...]]
    log_names: ClassVar[tuple[str, ...]] = ()
    powers: ClassVar[Mapping[str, tuple[str, str]]] = {}
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {}
    floors: ClassVar[tuple[str, ...]] = ("E",)
    """Parameters in units of loss that enter linearly."""

    def features(self, columns: Mapping[str, Array], centre: Centre) -> dict[str, Array]:
        """Centred logarithms of the regressors."""
        return {c: np.log(columns[c]) - centre.logs[c] for c in self.columns}

    @abstractmethod
    def evaluate(self, theta: Array, x: Features, curvature: bool = True) -> Evaluation:
        """Loss (in units of the centre) and exact derivatives at ``theta`` (b, p)."""

    @abstractmethod
    def starts(self, x: Features, loss: Array, weights: Array, fixed: Mapping[int, float]) -> Array:
        """Starting points (k, p), best first, given internal values of the fixed parameters by index."""

    def internal_bounds(self) -> tuple[Array, Array]:
        """Lower and upper bounds of the internal parameters, each (p,)."""
        low = np.full(len(self.names), -np.inf)
        high = np.full(len(self.names), np.inf)
        for i, name in enumerate(self.names):
            if name in self.bounds:
                lo, hi = self.bounds[name]
                if name in self.log_names:
                    lo, hi = np.log(lo) if lo > 0 else -np.inf, np.log(hi)
                low[i], high[i] = lo, hi
        return low, high

    def loss_power(self, name: str, values: Mapping[str, Any]) -> Any:
        """Power of the unit of loss that parameter ``name`` carries."""
        return 1.0 if name in self.floors or name in self.powers else 0.0

    def to_natural(self, theta: Array, centre: Centre) -> dict[str, Array]:
        """Public parameters in the user's units from internal ones (b, p); logs stay logs under 'log_…'.

        Extended precision keeps prefactors A = A' exp(α mean log N) exact to the last digits of α.
        """
        t = np.atleast_2d(np.asarray(theta)).astype(np.longdouble)
        by_name = {name: t[:, i] for i, name in enumerate(self.names)}
        out: dict[str, Array] = {}
        for name, v in by_name.items():
            if name in self.log_names:
                unit = np.longdouble(centre.log_loss) * self.loss_power(name, by_name)
                if name in self.powers:
                    exponent, regressor = self.powers[name]
                    unit = unit + by_name[exponent] * np.longdouble(centre.logs[regressor])
                v = np.where(v <= _GONE, -np.inf, v)
                out["log_" + name] = (v + unit).astype(float)
                out[name] = np.exp(v + unit).astype(float)
            elif name in self.floors:
                out[name] = (v * np.exp(np.longdouble(centre.log_loss))).astype(float)
            else:
                out[name] = v.astype(float)
        return out

    def to_internal(self, values: Mapping[str, float], centre: Centre) -> Array:
        """Inverse of ``to_natural`` for one full set of public parameters; a zero prefactor gives −inf."""
        theta = np.empty(len(self.names))
        for i, name in enumerate(self.names):
            v = float(values[name])
            if name in self.log_names:
                unit = centre.log_loss * float(self.loss_power(name, values))
                if name in self.powers:
                    exponent, regressor = self.powers[name]
                    unit += values[exponent] * centre.logs[regressor]
                theta[i] = np.log(v) - unit if v > 0 else -np.inf
            elif name in self.floors:
                theta[i] = v / np.exp(centre.log_loss)
            else:
                theta[i] = v
        return theta


def _sum_of_powers_starts(x1: Array, x2: Array, loss: Array, weights: Array, fixed, pinned_e) -> Array:
    """Best (E, log A, log B, α, β) of a variable-projection grid; fixed exponents shrink the grid."""
    grid_a = np.array([fixed[3]]) if 3 in fixed else exponent_grid()
    grid_b = np.array([fixed[4]]) if 4 in fixed else exponent_grid()
    return nonnegative_profile(x1, x2, loss, weights, grid_a, grid_b, pinned_e)


class Chinchilla(Form):
    """L(N, D) = E + A/N^α + B/D^β."""

    name = "chinchilla"
    formula = "E + A/N^alpha + B/D^beta"
    source = "Hoffmann et al. 2022, arXiv 2203.15556, eq. 2"
    columns = ("N", "D")
    names = ("E", "A", "B", "alpha", "beta")
    log_names = ("A", "B")
    powers: ClassVar = {"A": ("alpha", "N"), "B": ("beta", "D")}
    bounds: ClassVar = {"E": (0.0, np.inf), "alpha": (0.0, 10.0), "beta": (0.0, 10.0)}

    def evaluate(self, theta: Array, x: Features, curvature: bool = True) -> Evaluation:
        """See ``Form.evaluate``."""
        n, d = x["N"], x["D"]
        t1 = np.exp(theta[:, 1:2] - theta[:, 3:4] * n)
        t2 = np.exp(theta[:, 2:3] - theta[:, 4:5] * d)
        value = t1 + t2
        value += theta[:, :1]
        jac = np.empty((theta.shape[0], 5, n.size))
        jac[:, 0] = 1.0
        jac[:, 1] = t1
        jac[:, 2] = t2
        np.multiply(t1, -n, out=jac[:, 3])
        np.multiply(t2, -d, out=jac[:, 4])

        def contract(q: Array) -> Array:
            h = np.zeros((theta.shape[0], 5, 5))
            for i, t, z in ((1, t1, n), (2, t2, d)):
                m = (q * t) @ np.stack([np.ones_like(z), z, z * z], 1)
                h[:, i, i] = m[:, 0]
                h[:, i, i + 2] = h[:, i + 2, i] = -m[:, 1]
                h[:, i + 2, i + 2] = m[:, 2]
            return h

        return Evaluation(value, jac, contract)

    def starts(self, x: Features, loss: Array, weights: Array, fixed: Mapping[int, float]) -> Array:
        """Local minima of the profile over an exponent grid (see ``varpro``)."""
        return _sum_of_powers_starts(x["N"], x["D"], loss, weights, fixed, fixed.get(0))


class Gamma(Form):
    """L(N, D) = E + (A/N^α + B/D^β)^γ; γ < 1 couples the two terms. With E = 0, β = 1: Kaplan's law."""

    name = "gamma"
    formula = "E + (A/N^alpha + B/D^beta)^gamma"
    source = "Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5, with a floor"
    columns = ("N", "D")
    names = ("E", "A", "B", "alpha", "beta", "gamma")
    log_names = ("A", "B")
    powers: ClassVar = {"A": ("alpha", "N"), "B": ("beta", "D")}
    bounds: ClassVar = {
        "E": (0.0, np.inf),
        "alpha": (0.0, 20.0),
        "beta": (0.0, 20.0),
        "gamma": (0.02, 50.0),
    }

    def loss_power(self, name, values):
        """A and B carry the unit of loss to the power 1/γ."""
        if name in ("A", "B"):
            return 1.0 / values["gamma"]
        return 1.0 if name == "E" else 0.0

    def evaluate(self, theta: Array, x: Features, curvature: bool = True) -> Evaluation:
        """See ``Form.evaluate``; derivatives through g = γ log(A/N^α + B/D^β)."""
        n, d = x["N"], x["D"]
        z1 = theta[:, 1:2] - theta[:, 3:4] * n
        z2 = theta[:, 2:3] - theta[:, 4:5] * d
        log_t = np.logaddexp(z1, z2)
        p1, p2 = np.exp(z1 - log_t), np.exp(z2 - log_t)
        gamma = theta[:, 5:6]
        power = np.exp(gamma * log_t)
        dt = np.stack([p1, p2, -p1 * n, -p2 * d], 1)  # of log_t by a, b, alpha, beta
        dg = np.concatenate([gamma[:, :, None] * dt, log_t[:, None]], 1)
        jac = np.concatenate([np.ones_like(power)[:, None], power[:, None] * dg], 1)

        def contract(q: Array) -> Array:
            qp = q * power
            h = np.zeros((theta.shape[0], 6, 6))
            h[:, 1:, 1:] = (dg * qp[:, None]) @ dg.transpose(0, 2, 1)
            qg = qp * gamma
            h[:, 1:5, 1:5] -= (dt * qg[:, None]) @ dt.transpose(0, 2, 1)
            for i, p, z in ((1, p1, n), (2, p2, d)):
                m = (qg * p) @ np.stack([np.ones_like(z), z, z * z], 1)
                h[:, i, i] += m[:, 0]
                h[:, i, i + 2] -= m[:, 1]
                h[:, i + 2, i] -= m[:, 1]
                h[:, i + 2, i + 2] += m[:, 2]
            cross = np.einsum("bkm,bm->bk", dt, qp)
            h[:, 1:5, 5] += cross
            h[:, 5, 1:5] += cross
            return h

        return Evaluation(jac[:, 0] * theta[:, :1] + power, jac, contract)

    def starts(self, x: Features, loss: Array, weights: Array, fixed: Mapping[int, float]) -> Array:
        """For a few (E, γ) the rest is a sum of powers of the transformed loss (L − E)^(1/γ)."""
        found = []
        gammas = [fixed[5]] if 5 in fixed else [0.3, 0.6, 1.0, 1.7, 3.0]
        floors = [fixed[0]] if 0 in fixed else [0.0, 0.5 * loss.min(), 0.8 * loss.min(), 0.95 * loss.min()]
        for gamma in gammas:
            for floor in floors:
                # weights of the transformed target by the delta method: residuals stay those of the log loss
                gap = np.maximum(loss - floor, 1e-3 * loss)
                target = gap ** (1.0 / gamma)
                w = weights * (gamma * gap / loss) ** 2
                best = _sum_of_powers_starts(x["N"], x["D"], target, w, fixed, 0.0)[:1]
                best[:, 0] = floor
                found.append(np.column_stack([best, np.full(len(best), gamma)]))
        return np.concatenate(found)


class Repetition(Form):
    """E + A/N^α + B/D_eff^β with D_eff = U (1 + R* (1 − exp(−(D/U − 1)/R*))): repeated tokens lose value.

    U is the number of unique tokens, D those seen. R* is in epochs beyond the first: after many epochs the
    data are worth at most (1 + R*) U unique tokens. Source: Muennighoff et al. 2023, arXiv 2305.16264, eq. 5
    (their decay of excess parameters is left out: it needs runs far beyond the optimum to be seen).
    """

    name = "repetition"
    formula = "E + A/N^alpha + B/D_eff^beta, D_eff = U (1 + R (1 - exp(-(D/U - 1)/R)))"
    source = "Muennighoff et al. 2023, arXiv 2305.16264, eq. 5"
    columns = ("N", "D", "U")
    names = ("E", "A", "B", "alpha", "beta", "R")
    log_names = ("A", "B", "R")
    powers: ClassVar = {"A": ("alpha", "N"), "B": ("beta", "D")}
    bounds: ClassVar = {
        "E": (0.0, np.inf),
        "alpha": (0.0, 10.0),
        "beta": (0.0, 10.0),
        "R": (1e-3, 1e5),
    }

    def features(self, columns: Mapping[str, Array], centre: Centre) -> dict[str, Array]:
        """Centred logs of N and D, and the repetitions D/U − 1 (zero where a run saw less than one epoch)."""
        unique = np.minimum(columns["U"], columns["D"])
        return {
            "N": np.log(columns["N"]) - centre.logs["N"],
            "U": np.log(unique) - centre.logs["D"],
            "repeats": columns["D"] / unique - 1.0,
        }

    @staticmethod
    def _log_effective(rho: Array, x: Features) -> tuple[Array, Array, Array]:
        """log D_eff (centred) and its first two derivatives by ρ = log R*."""
        rstar = np.exp(rho)
        u = x["repeats"] / rstar
        decay = np.exp(-u)
        gain = -rstar * np.expm1(-u)
        d_gain = gain - rstar * u * decay  # by rho
        dd_gain = d_gain - rstar * u * decay * u
        w = 1.0 + gain
        first = d_gain / w
        return x["U"] + np.log(w), first, dd_gain / w - first**2

    def evaluate(self, theta: Array, x: Features, curvature: bool = True) -> Evaluation:
        """See ``Form.evaluate``."""
        n = x["N"]
        beta = theta[:, 4:5]
        d, d1, d2 = self._log_effective(theta[:, 5:6], x)
        t1 = np.exp(theta[:, 1:2] - theta[:, 3:4] * n)
        t2 = np.exp(theta[:, 2:3] - beta * d)
        jac = np.stack([np.ones_like(t1), t1, t2, -t1 * n, -t2 * d, -t2 * beta * d1], 1)

        def contract(q: Array) -> Array:
            h = np.zeros((theta.shape[0], 6, 6))
            q1, q2 = q * t1, q * t2
            m = q1 @ np.stack([np.ones_like(n), n, n * n], 1)
            h[:, 1, 1], h[:, 3, 3] = m[:, 0], m[:, 2]
            h[:, 1, 3] = h[:, 3, 1] = -m[:, 1]
            h[:, 2, 2] = q2.sum(1)
            h[:, 2, 4] = h[:, 4, 2] = -(q2 * d).sum(1)
            h[:, 4, 4] = (q2 * d * d).sum(1)
            h[:, 2, 5] = h[:, 5, 2] = -(q2 * beta * d1).sum(1)
            h[:, 4, 5] = h[:, 5, 4] = (q2 * d1 * (beta * d - 1.0)).sum(1)
            h[:, 5, 5] = (q2 * beta * (beta * d1**2 - d2)).sum(1)
            return h

        return Evaluation(theta[:, :1] + t1 + t2, jac, contract)

    def starts(self, x: Features, loss: Array, weights: Array, fixed: Mapping[int, float]) -> Array:
        """The best minima of the plain law's grid on effective tokens, for a ladder of R*."""
        found = []
        ladder = [fixed[5]] if 5 in fixed else np.log([0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1e3])
        for rho in ladder:
            d = self._log_effective(np.array([[rho]]), x)[0][0]
            best = _sum_of_powers_starts(x["N"], d, loss, weights, fixed, fixed.get(0))[:4]
            found.append(np.column_stack([best, np.full(len(best), rho)]))
        return np.concatenate(found)


class Power(Form):
    """L(x) = E + A/x^α in one variable: compute C, data D or parameters N."""

    formula = "E + A/x^alpha"
    source = "Hestness et al. 2017, arXiv 1712.00409; Kaplan et al. 2020, arXiv 2001.08361"
    names = ("E", "A", "alpha")
    log_names = ("A",)
    bounds: ClassVar = {"E": (0.0, np.inf), "alpha": (0.0, 10.0)}

    def __init__(self, column: str):
        self.name = f"power:{column}"  # type: ignore[misc]
        self.formula = f"E + A/{column}^alpha"  # type: ignore[misc]
        self.columns = (column,)  # type: ignore[misc]
        self.powers = {"A": ("alpha", column)}  # type: ignore[misc]

    def evaluate(self, theta: Array, x: Features, curvature: bool = True) -> Evaluation:
        """See ``Form.evaluate``."""
        z = x[self.columns[0]]
        t = np.exp(theta[:, 1:2] - theta[:, 2:3] * z)
        jac = np.stack([np.ones_like(t), t, -t * z], 1)

        def contract(q: Array) -> Array:
            h = np.zeros((theta.shape[0], 3, 3))
            m = (q * t) @ np.stack([np.ones_like(z), z, z * z], 1)
            h[:, 1, 1], h[:, 2, 2] = m[:, 0], m[:, 2]
            h[:, 1, 2] = h[:, 2, 1] = -m[:, 1]
            return h

        return Evaluation(theta[:, :1] + t, jac, contract)

    def starts(self, x: Features, loss: Array, weights: Array, fixed: Mapping[int, float]) -> Array:
        """One-dimensional exponent grid: the two-variable profile without its second term."""
        grid = np.array([fixed[2]]) if 2 in fixed else exponent_grid(96)
        best = nonnegative_profile(x[self.columns[0]], None, loss, weights, grid, np.ones(1), fixed.get(0))
        return best[:, [0, 1, 3]]


FORMS: dict[str, Form] = {
    f.name: f for f in (Chinchilla(), Gamma(), Repetition(), Power("C"), Power("D"), Power("N"))
}
