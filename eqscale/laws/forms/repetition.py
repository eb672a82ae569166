"""Repeated data are worth less than new data, and parameters beyond what unique data pay for less than others.

Source: Muennighoff et al. 2023, arXiv 2305.16264, eqs. 5 and 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from eqscale.laws.forms.base import Centre, Evaluation, Features, Form
from eqscale.laws.forms.sums import Chinchilla

Array = np.ndarray

_DECAYS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1e3)
"""Where searches start."""
_MOST = 100.0  # an excess beyond e^100 is worth no more


class _Worth(NamedTuple):
    """log(1 + R (1 − exp(−(e^s − 1)/R))) with its derivatives by s and by ρ = log R: how many times its unique part an
    amount e^s times as large is worth.
    """

    value: Array
    s: Array
    rho: Array
    ss: Array
    s_rho: Array
    rho_rho: Array


def _worth(s: Array, rho: Array) -> _Worth:
    """At s ≥ 0; what is less than its unique part, s < 0, is worth itself: s."""
    size, decay = np.exp(np.clip(s, 0.0, _MOST)), np.exp(rho)
    u = (size - 1.0) / decay
    left = np.exp(-u)
    total = 1.0 - decay * np.expm1(-u)
    by_s = size * left / total
    by_rho = (total - 1.0 - decay * u * left) / total
    ss = by_s * (1.0 - size / decay - by_s)
    s_rho = by_s * (u - by_rho)
    rho_rho = (total - 1.0 - decay * u * left * (1.0 + u)) / total - by_rho**2
    less = s < 0
    parts = [np.log(total), by_s, by_rho, ss, s_rho, rho_rho]
    nothing = np.zeros_like(s)
    unique = [s, nothing + 1.0, nothing, nothing, nothing, nothing]
    return _Worth(*(np.where(less, one, other) for one, other in zip(unique, parts, strict=True)))


class Repetition(Chinchilla):
    """E + A/N^α + B/D_eff^β with D_eff = U (1 + R_D (1 − exp(−(D/U − 1)/R_D))): repeated tokens lose value.

    U is the number of unique tokens, D those seen. R_D is in epochs beyond the first: after many epochs the data are
    worth at most (1 + R_D) U unique tokens. Optima take every token as unique.
    """

    name = "repetition"
    formula = "E + A/N^alpha + B/D_eff^beta, D_eff = U (1 + R_D (1 - exp(-(D/U - 1)/R_D)))"
    columns: tuple[str, ...] = ("N", "D", "U")
    names: tuple[str, ...] = ("E", "A", "B", "alpha", "beta", "R_D")
    log_names: tuple[str, ...] = ("A", "B", "R_D")
    bounds: Mapping[str, tuple[float, float]] = {**Chinchilla.bounds, "R_D": (1e-3, 1e5)}
    stand_ins: Mapping[str, str] = {"U": "D"}

    def features(self, logs: Mapping[str, Array], centre: Centre) -> dict[str, Array]:
        """Centred logs of N and of unique tokens, and log D/U (zero where a run saw less than one epoch)."""
        unique = np.minimum(logs["U"], logs["D"])
        return {"N": logs["N"] - centre.logs["N"], "U": unique - centre.logs["D"], "epochs": logs["D"] - unique}

    def evaluate(self, theta: Array, x: Features) -> Evaluation:
        """The plain law on effective tokens, which move with R_D."""
        beta, data = theta[:, 4:5], _worth(x["epochs"], theta[:, 5:6])
        d = x["U"] + data.value
        plain = super().evaluate(theta, {"N": x["N"], "D": d})
        term = np.exp(theta[:, 2:3] - beta * d)

        def jacobian() -> Array:
            jac = plain.jacobian()
            jac[:, 5] = -term * beta * data.rho
            return jac

        def curvature(q: Array) -> Array:
            h, weight = plain.curvature(q), q * term
            h[:, 2, 5] = h[:, 5, 2] = -(weight * beta * data.rho).sum(1)
            h[:, 4, 5] = h[:, 5, 4] = (weight * data.rho * (beta * d - 1.0)).sum(1)
            h[:, 5, 5] = (weight * beta * (beta * data.rho**2 - data.rho_rho)).sum(1)
            return h

        return Evaluation(plain.value, jacobian, curvature)

    def starts(self, x: Features, loss: Array, weights: Array, fixed: Mapping[int, float]) -> Array:
        """The best minima of the plain law's grid on effective tokens, for a ladder of R_D."""
        found = []
        for rho in [fixed[5]] if 5 in fixed else np.log(_DECAYS):
            d = x["U"] + _worth(x["epochs"], np.array(rho)).value
            known = self.profile({"N": x["N"], "D": d}, loss, weights, fixed, fixed.get(0))
            best = np.column_stack([known[name][:4] for name in self.names[:5]])
            found.append(np.column_stack([best, np.full(len(best), rho)]))
        return np.concatenate(found)


class Muennighoff(Repetition):
    """``Repetition`` in which parameters lose value, too, beyond the number U_N that the unique tokens pay for.

    N_eff = U_N (1 + R_N (1 − exp(−(N/U_N − 1)/R_N))) where N > U_N, else N; U_N is the compute-optimal size for U
    tokens at a cost of 6ND: α A/U_N^α = β B/U^β. R_N needs runs with more parameters than that.
    """

    name = "muennighoff"
    formula = (
        "E + A/N_eff^alpha + B/D_eff^beta, D_eff = U (1 + R_D (1 - exp(-(D/U - 1)/R_D))), "
        "N_eff = U_N (1 + R_N (1 - exp(-(N/U_N - 1)/R_N))), U_N = (alpha A/(beta B) U^beta)^(1/alpha)"
    )
    names: tuple[str, ...] = (*Repetition.names, "R_N")
    log_names: tuple[str, ...] = (*Repetition.log_names, "R_N")
    bounds: Mapping[str, tuple[float, float]] = {**Repetition.bounds, "R_N": (1e-3, 1e5)}
    # the closed forms hold while no parameter is in excess: at another cost than 6ND an optimum may have some
    optimal_log_n = Form.optimal_log_n
    cheapest = Form.cheapest

    def evaluate(self, theta: Array, x: Features) -> Evaluation:
        """``Repetition`` at effective parameters log N + h, h = worth(s) − s of the excess s = log N/U_N."""
        a, b = theta[:, 1:2], theta[:, 2:3]
        alpha, beta = (np.maximum(theta[:, i : i + 1], 1e-6) for i in (3, 4))  # without an exponent there is no U_N
        balance = np.log(alpha / beta) + a - b + beta * x["U"]
        s = x["N"] - balance / alpha
        size = _worth(s, theta[:, 6:7])
        n = x["N"] + size.value - s
        data = super().evaluate(theta, {**x, "N": n})
        term = np.exp(a - alpha * n)
        moved = (1, 2, 3, 4)  # what U_N depends on

        def excess() -> Array:
            """Derivatives of s by A, B, α and β, (b, 4, m)."""
            one = np.ones_like(s)
            by_beta = (1 / beta - x["U"]) / alpha
            return np.stack([-one / alpha, one / alpha, (balance - 1.0) / alpha**2, by_beta * one], 1)

        def effective(ds: Array) -> Array:
            """Derivatives of log N_eff by all parameters, (b, 7, m)."""
            out = np.zeros((len(theta), 7, s.shape[1]))
            out[:, moved] = (size.s - 1.0)[:, None] * ds
            out[:, 6] = size.rho
            return out

        def jacobian() -> Array:
            jac = data.jacobian()
            jac -= (term * alpha)[:, None] * effective(excess())
            return jac

        def curvature(q: Array) -> Array:
            h, ds, weight = data.curvature(q), excess(), q * term
            dn = effective(ds)
            # the term is exp(z), z = log A − α n: what moves through n, beside what the plain law has already
            dz = np.zeros_like(dn)
            dz[:, 1], dz[:, 3] = 1.0, -n
            along = -alpha[:, None] * dn
            cross = (weight[:, None] * along) @ dz.transpose(0, 2, 1)
            h += cross + cross.transpose(0, 2, 1) + (weight[:, None] * along) @ along.transpose(0, 2, 1)
            slide = (dn * weight[:, None]).sum(2)
            h[:, 3] -= slide
            h[:, :, 3] -= slide
            pull = -alpha * weight
            h[:, 1:5, 1:5] += (ds * (pull * size.ss)[:, None]) @ ds.transpose(0, 2, 1)
            mixed = (ds * (pull * size.s_rho)[:, None]).sum(2)
            h[:, 1:5, 6] += mixed
            h[:, 6, 1:5] += mixed
            h[:, 6, 6] += (pull * size.rho_rho).sum(1)
            bend = pull * (size.s - 1.0)
            total, by_u, by_balance = bend.sum(1), (bend * x["U"]).sum(1), (bend * balance).sum(1)
            al, be = alpha[:, 0], beta[:, 0]
            for i, j, second in (
                (1, 3, total / al**2),
                (2, 3, -total / al**2),
                (3, 3, (3 * total - 2 * by_balance) / al**3),
                (3, 4, (by_u - total / be) / al**2),
                (4, 4, -total / (be**2 * al)),
            ):
                h[:, i, j] += second
                if i != j:
                    h[:, j, i] += second
            return h

        return Evaluation(data.value, jacobian, curvature)

    def starts(self, x: Features, loss: Array, weights: Array, fixed: Mapping[int, float]) -> Array:
        """The best starts of ``Repetition`` with every decay of the parameters' ladder."""
        plain = super().starts(x, loss, weights, fixed)
        ladder = [fixed[6]] if 6 in fixed else np.log(_DECAYS)
        return np.concatenate([np.column_stack([plain, np.full(len(plain), rho)]) for rho in ladder])
