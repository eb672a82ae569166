"""Laws that are sums of powers, or functions of one, in N and D."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from eqscale.laws.cost import CostModel
from eqscale.laws.forms.base import Coefficients, Evaluation, Features, Form
from eqscale.laws.forms.numeric import SPAN, bisect, root

Array = np.ndarray

_FLAT = 0.05  # an exponent below which a term is hardly told from the floor


class SumOfPowers(Form):
    """L = E + Σ A/x^α over the terms of ``powers``; E is the first parameter."""

    def evaluate(self, theta: Array, x: Features) -> Evaluation:
        """See ``Form.evaluate``."""
        terms = []
        for prefactor, (exponent, regressor) in self.powers.items():
            i, j, z = self.names.index(prefactor), self.names.index(exponent), x[regressor]
            terms.append((i, j, z, np.exp(theta[:, i : i + 1] - theta[:, j : j + 1] * z)))
        value = sum(t for *_, t in terms) + theta[:, :1]

        def jacobian() -> Array:
            jac = np.zeros((len(theta), len(self.names), value.shape[1]))
            jac[:, 0] = 1.0
            for i, j, z, t in terms:
                jac[:, i] = t
                np.multiply(t, -z, out=jac[:, j])
            return jac

        def curvature(q: Array) -> Array:
            h = np.zeros((len(theta), len(self.names), len(self.names)))
            for i, j, z, t in terms:
                add_power_curvature(h, i, j, z, q * t)
            return h

        return Evaluation(value, jacobian, curvature)

    def without(self, theta: Array, prefactor: str) -> Array:
        """A constant term becomes part of the floor."""
        out = super().without(theta, prefactor)
        if theta[self.names.index(self.powers[prefactor][0])] < 1e-6:
            out[0] += np.exp(theta[self.names.index(prefactor)])
        return out

    def folded(self, theta: Array) -> Array:
        """For terms with an exponent near zero: the law without floor that has the same value and slope in the middle
        of the runs. Towards a logarithm E and A trade places along a valley so flat that Newton only crawls in it,
        and the minimum is at its end, on the face E = 0.
        """
        found = []
        for prefactor, (exponent, _) in self.powers.items():
            i, j = self.names.index(prefactor), self.names.index(exponent)
            part = theta[(theta[:, j] < _FLAT) & (theta[:, 0] > 0)].copy()
            term = np.exp(part[:, i])
            part[:, i] = np.log(term + part[:, 0])
            part[:, j] *= term / (term + part[:, 0])
            part[:, 0] = 0.0
            found.append(part)
        return np.concatenate(found)


def add_power_curvature(h: Array, i: int, j: int, z: Array, weight: Array) -> None:
    """Add Σ over runs of weight (b, m) times the second derivatives of log(A/x^α) squared, at A = i and α = j."""
    powers = np.stack([np.ones_like(z), z, z * z], -1)
    m = weight @ powers if z.ndim == 1 else np.einsum("bm,bmk->bk", weight, powers)
    h[:, i, i] += m[:, 0]
    h[:, i, j] -= m[:, 1]
    h[:, j, i] -= m[:, 1]
    h[:, j, j] += m[:, 2]


class Balanced(Form):
    """A law in N and D through A/N^α + B/D^β: at an optimum α A/N^α = s β B/D^β with s = −d log D/d log N at equal
    cost.
    """

    columns: tuple[str, ...] = ("N", "D")
    log_names: tuple[str, ...] = ("A", "B")
    powers: Mapping[str, tuple[str, str]] = {"A": ("alpha", "N"), "B": ("beta", "D")}
    bounds: Mapping[str, tuple[float, float]] = {"E": (0.0, np.inf), "alpha": (0.0, 10.0), "beta": (0.0, 10.0)}
    derived_bounds: Mapping[str, tuple[float, float]] = {"a": (0.0, 1.0), "b": (0.0, 1.0)}

    def derived(self, c: Coefficients) -> dict[str, Array]:
        """Exponents of N_opt ∝ C^a and D_opt ∝ C^b for C = κND."""
        total = c["alpha"] + c["beta"]
        with np.errstate(invalid="ignore", divide="ignore"):
            return {"a": c["beta"] / total, "b": c["alpha"] / total}

    def optimal_log_n(self, c: Coefficients, cost: CostModel, log_c: Array) -> Array:
        """Closed form where cost is a power of N, by Newton's method where it bends."""
        alpha, beta = c["alpha"][:, None], c["beta"][:, None]
        log_c = np.atleast_2d(log_c)
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = np.log(alpha) + c["log_A"][:, None] - np.log(beta) - c["log_B"][:, None]

            def tangent_root(at: float) -> Array:
                """Root where cost is the power law that touches it at log N = ``at``."""
                h, slope = cost.log_per_token(np.array(at))
                s = slope / cost.power
                return (gain - np.log(s) + beta * (log_c - h + slope * at) / cost.power) / (alpha + beta * s)

            if not cost.polynomial[2]:  # a power of N all over
                return tangent_root(cost.origin)
            low, high = cost.origin + cost.span[0], cost.origin + cost.span[1]

            def excess(log_n: Array) -> tuple[Array, Array]:
                h, slope = cost.log_per_token(log_n)
                value = gain - alpha * log_n - np.log(slope / cost.power) + beta * ((log_c - h) / cost.power)
                return value, -alpha - 2 * cost.polynomial[2] / slope - beta * slope / cost.power

            shape = np.broadcast_shapes(gain.shape, log_c.shape)
            below = excess(np.full(shape, low))[0] < 0
            above = excess(np.full(shape, high))[0] > 0
            at = root(excess, np.where(above, high, low), np.where(below, low, high))
            return np.where(below, tangent_root(low), np.where(above, tangent_root(high), at))

    def cheapest(self, c: Coefficients, cost: CostModel, loss: Array) -> tuple[Array, Array, Array]:
        """The optimal D of each N is explicit, so that one bisection over N suffices under any cost model."""
        alpha, beta = c["alpha"][:, None], c["beta"][:, None]

        def tokens(log_n: Array) -> Array:
            with np.errstate(divide="ignore", invalid="ignore"):
                balance = np.log(beta / alpha * cost.slope(log_n)) + c["log_B"][:, None] - c["log_A"][:, None]
                return (balance + alpha * log_n) / beta

        shape = np.broadcast_shapes(alpha.shape, loss.shape)
        left, right = np.full(shape, SPAN[0]), np.full(shape, SPAN[1])
        log_n = bisect(lambda n: self.loss_at(c, {"N": n, "D": tokens(n)}) > loss, left, right, 64)
        log_n = np.where(loss > self.lowest(c)[:, None], log_n, np.inf)
        log_n = np.where(self.is_whole(c)[:, None] & ~np.isnan(loss), log_n, np.nan)
        finite = np.isfinite(log_n)
        at = np.where(finite, log_n, 0.0)
        log_d = np.where(finite, tokens(at), log_n)
        spent = cost.log_per_token(at)[0] + cost.power * log_d
        return np.where(finite, spent, log_n), log_n, log_d


class Chinchilla(Balanced, SumOfPowers):
    """L(N, D) = E + A/N^α + B/D^β. Source: Hoffmann et al. 2022, arXiv 2203.15556, eq. 2."""

    name = "chinchilla"
    formula = "E + A/N^alpha + B/D^beta"
    names: tuple[str, ...] = ("E", "A", "B", "alpha", "beta")


class Power(SumOfPowers):
    """L(x) = E + A/x^α in one variable: compute C, data D or parameters N.

    Source: Hestness et al. 2017, arXiv 1712.00409; Kaplan et al. 2020, arXiv 2001.08361.
    """

    names: tuple[str, ...] = ("E", "A", "alpha")
    log_names: tuple[str, ...] = ("A",)
    bounds: Mapping[str, tuple[float, float]] = {"E": (0.0, np.inf), "alpha": (0.0, 10.0)}

    def __init__(self, column: str):
        self.name = f"power:{column}"
        self.formula = f"E + A/{column}^alpha"
        self.columns = (column,)
        self.powers = {"A": ("alpha", column)}
