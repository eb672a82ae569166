"""Repeated data are worth less than new data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from eqscale.laws.forms.base import Centre, Evaluation, Features
from eqscale.laws.forms.sums import Chinchilla

Array = np.ndarray


class Repetition(Chinchilla):
    """E + A/N^α + B/D_eff^β with D_eff = U (1 + R* (1 − exp(−(D/U − 1)/R*))): repeated tokens lose value.

    U is the number of unique tokens, D those seen. R* is in epochs beyond the first: after many epochs the data are
    worth at most (1 + R*) U unique tokens. Optima take every token as unique. Source: Muennighoff et al. 2023, arXiv
    2305.16264, eq. 5 (their decay of excess parameters is left out: it needs runs far beyond the optimum to be seen).
    """

    name = "repetition"
    formula = "E + A/N^alpha + B/D_eff^beta, D_eff = U (1 + R (1 - exp(-(D/U - 1)/R)))"
    columns: tuple[str, ...] = ("N", "D", "U")
    names: tuple[str, ...] = ("E", "A", "B", "alpha", "beta", "R")
    log_names: tuple[str, ...] = ("A", "B", "R")
    bounds: Mapping[str, tuple[float, float]] = {**Chinchilla.bounds, "R": (1e-3, 1e5)}
    stand_ins: Mapping[str, str] = {"U": "D"}

    def features(self, logs: Mapping[str, Array], centre: Centre) -> dict[str, Array]:
        """Centred logs of N and of unique tokens, and the repetitions D/U − 1 (zero where a run saw less than one
        epoch).
        """
        unique = np.minimum(logs["U"], logs["D"])
        return {
            "N": logs["N"] - centre.logs["N"],
            "U": unique - centre.logs["D"],
            "repeats": np.expm1(logs["D"] - unique),
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

    def evaluate(self, theta: Array, x: Features) -> Evaluation:
        """The plain law on effective tokens, which move with R*."""
        beta = theta[:, 4:5]
        d, d1, d2 = self._log_effective(theta[:, 5:6], x)
        plain = super().evaluate(theta, {"N": x["N"], "D": d})
        t2 = np.exp(theta[:, 2:3] - beta * d)

        def jacobian() -> Array:
            jac = plain.jacobian()
            jac[:, 5] = -t2 * beta * d1
            return jac

        def curvature(q: Array) -> Array:
            h, q2 = plain.curvature(q), q * t2
            h[:, 2, 5] = h[:, 5, 2] = -(q2 * beta * d1).sum(1)
            h[:, 4, 5] = h[:, 5, 4] = (q2 * d1 * (beta * d - 1.0)).sum(1)
            h[:, 5, 5] = (q2 * beta * (beta * d1**2 - d2)).sum(1)
            return h

        return Evaluation(plain.value, jacobian, curvature)

    def starts(self, x: Features, loss: Array, weights: Array, fixed: Mapping[int, float]) -> Array:
        """The best minima of the plain law's grid on effective tokens, for a ladder of R*."""
        found = []
        ladder = [fixed[5]] if 5 in fixed else np.log([0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1e3])
        for rho in ladder:
            d = self._log_effective(np.array([[rho]]), x)[0][0]
            known = self.profile({"N": x["N"], "D": d}, loss, weights, fixed, fixed.get(0))
            best = np.column_stack([known[name][:4] for name in self.names[:5]])
            found.append(np.column_stack([best, np.full(len(best), rho)]))
        return np.concatenate(found)
