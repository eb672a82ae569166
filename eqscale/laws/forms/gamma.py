"""Kaplan's law with a floor: a power of a sum of powers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from eqscale.laws.forms.base import Centre, Evaluation, Features
from eqscale.laws.forms.sums import Balanced, add_power_curvature

Array = np.ndarray


class Gamma(Balanced):
    """L(N, D) = E + (A/N^α + B/D^β)^γ; γ < 1 couples the two terms. With E = 0, β = 1: Kaplan's law.

    Source: Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5, with a floor.
    """

    name = "gamma"
    formula = "E + (A/N^alpha + B/D^beta)^gamma"
    names: tuple[str, ...] = ("E", "A", "B", "alpha", "beta", "gamma")
    bounds: Mapping[str, tuple[float, float]] = {
        "E": (0.0, np.inf),
        "alpha": (0.0, 20.0),
        "beta": (0.0, 20.0),
        "gamma": (0.02, 50.0),
    }

    def loss_power(self, name: str, values: Mapping[str, Any]) -> Any:
        """A and B carry the unit of loss to the power 1/γ."""
        if name in self.powers:
            return 1.0 / values.get("gamma", 1.0)
        return super().loss_power(name, values)

    def centre_holding(self, centre: Centre, held: Collection[str]) -> Centre:
        """A held prefactor keeps the user's unit of loss too, which would change with γ."""
        kept = super().centre_holding(centre, held)
        return dataclasses.replace(kept, log_loss=0.0) if set(held) & set(self.powers) else kept

    def evaluate(self, theta: Array, x: Features) -> Evaluation:
        """See ``Form.evaluate``; derivatives through g = γ log(A/N^α + B/D^β)."""
        n, d = x["N"], x["D"]
        z1 = theta[:, 1:2] - theta[:, 3:4] * n
        z2 = theta[:, 2:3] - theta[:, 4:5] * d
        log_t = np.logaddexp(z1, z2)
        gamma = theta[:, 5:6]
        power = np.exp(gamma * log_t)

        def shares() -> tuple[Array, Array, Array, Array]:
            """Shares of the two terms, and derivatives of log_t by A, B, α, β and of g by these and γ."""
            p1, p2 = np.exp(z1 - log_t), np.exp(z2 - log_t)
            dt = np.stack([p1, p2, -p1 * n, -p2 * d], 1)
            return p1, p2, dt, np.concatenate([gamma[:, :, None] * dt, log_t[:, None]], 1)

        def jacobian() -> Array:
            *_, dg = shares()
            return np.concatenate([np.ones_like(power)[:, None], power[:, None] * dg], 1)

        def curvature(q: Array) -> Array:
            p1, p2, dt, dg = shares()
            qp = q * power
            h = np.zeros((len(theta), 6, 6))
            h[:, 1:, 1:] = (dg * qp[:, None]) @ dg.transpose(0, 2, 1)
            qg = qp * gamma
            h[:, 1:5, 1:5] -= (dt * qg[:, None]) @ dt.transpose(0, 2, 1)
            for i, p, z in ((1, p1, n), (2, p2, d)):
                add_power_curvature(h, i, i + 2, z, qg * p)
            cross = np.einsum("bkm,bm->bk", dt, qp)
            h[:, 1:5, 5] += cross
            h[:, 5, 1:5] += cross
            return h

        return Evaluation(theta[:, :1] + power, jacobian, curvature)

    def starts(self, x: Features, loss: Array, weights: Array, fixed: Mapping[int, float]) -> Array:
        """For a few (E, γ) the rest is a sum of powers of the transformed loss (L − E)^(1/γ)."""
        found = []
        gammas = [fixed[5]] if 5 in fixed else [0.3, 0.6, 1.0, 1.7, 3.0]
        floors = [fixed[0]] if 0 in fixed else [0.0, 0.5 * loss.min(), 0.8 * loss.min(), 0.95 * loss.min()]
        for gamma, floor in itertools.product(gammas, floors):
            # weights of the transformed target by the delta method: residuals stay those of the log loss
            gap = np.maximum(loss - floor, 1e-3 * loss)
            w = weights * (gamma * gap / loss) ** 2
            known = self.profile(x, gap ** (1.0 / gamma), w, fixed, 0.0)
            best = [known[name][:1] for name in self.names[1:5]]
            found.append(np.column_stack([[floor], *best, [gamma]]))
        return np.concatenate(found)
