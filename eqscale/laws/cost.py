"""What training costs: FLOPs or seconds as a function of N and D, fitted to the runs' own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eqscale.errors import InputError
from eqscale.numbers import number

Array = np.ndarray


@dataclass(frozen=True)
class CostModel:
    """Training cost as log C = c0 + c1 u + c2 u² + k log D with u = log N − ``origin``.

    Beyond the range of N it was fitted on, the quadratic continues as its tangent. C = κND is
    c = (log κ, 1, 0), k = 1, origin 0.
    """

    polynomial: tuple[float, float, float]
    power: float = 1.0
    origin: float = 0.0
    span: tuple[float, float] = (-np.inf, np.inf)
    """Range of u that the polynomial holds on."""
    residual: float = 0.0
    """Root mean square of log C around the model."""
    kind: str = "kND"

    def log_per_token(self, log_n: Array) -> tuple[Array, Array]:
        """log C at D = 1, c0 + c1 u + c2 u², and its slope; its tangent outside the span."""
        c0, c1, c2 = self.polynomial
        u = log_n - self.origin
        if c2 == 0.0:
            return c0 + c1 * u, np.full_like(u, c1)
        v = np.clip(u, *self.span)
        slope = c1 + 2 * c2 * v
        return c0 + c1 * v + c2 * v * v + slope * (u - v), slope

    def cost(self, N: Array, D: Array) -> Array:
        """Cost of training N parameters on D tokens."""
        return np.exp(self.log_per_token(np.log(N))[0] + self.power * np.log(D))

    def tokens(self, N: Array, C: Array | float) -> Array:
        """Tokens that cost C pays for at N parameters."""
        return np.exp(self.log_tokens(np.log(N), np.log(C)))

    def log_tokens(self, log_n: Array, log_c: Array) -> Array:
        """``tokens`` in logarithms."""
        return (log_c - self.log_per_token(log_n)[0]) / self.power

    def slope(self, log_n: Array) -> Array:
        """Tokens given up for parameters at equal cost: −d log D / d log N."""
        return self.log_per_token(log_n)[1] / self.power

    @property
    def warning(self) -> str | None:
        """What is wrong with costs that hardly follow from size and tokens, None where nothing is."""
        if self.residual <= _LOOSE:
            return None
        return (
            "cost hardly follows from N and D: it scatters around what they explain by a factor of "
            f"{np.exp(min(self.residual, 99)):.3g}; is it what each run cost? Every figure about cost rests on it"
        )

    def describe(self) -> str:
        """One line in words."""
        c0, c1, c2 = self.polynomial
        if self.kind == "kND":
            return f"C = {np.exp(c0):.4g} N D, residual {100 * self.residual:.2g} %"
        bend = f" and {c2:+.3f} u² around N = {number(np.exp(self.origin), 3)}" if c2 else ""
        return f"C ∝ N^{c1:.3f}{bend} · D^{self.power:.3f}, residual {100 * self.residual:.2g} %"


def nd_cost(kappa: float = 6.0) -> CostModel:
    """C = κND; κ = 6 is the dense transformer's count (Kaplan et al. 2020)."""
    return CostModel((float(np.log(kappa)), 1.0, 0.0))


_LOOSE = 0.5  # residuals of log C beyond this are no property of hardware or implementation
_EXACT = 1e-3  # residuals of log C below this are as good as exact and earn no further terms


def fit_cost(N: Array, D: Array, C: Array) -> CostModel:
    """Fit a cost model to the runs' own FLOPs or seconds.

    From κND, which always qualifies, up to a quadratic in log N with a free power of D: the best by AICc among the
    models whose cost rises with N over the whole range of the runs.

    Raises:
        InputError: lengths differ, or costs are not positive.
    """
    n, d, c = (np.log(np.asarray(v, float)) for v in (N, D, C))
    if not (len(n) == len(d) == len(c)):
        raise InputError(f"cost model: {len(n)} N, {len(d)} D and {len(c)} C values")
    if not np.isfinite(c).all():
        raise InputError(f"cost: row {int(np.flatnonzero(~np.isfinite(c))[0]) + 1}: not positive and finite")
    origin = float(n.mean())
    u = n - origin
    span = (float(u.min()), float(u.max()))
    one = np.ones_like(u)
    # (columns fitted, what is subtracted from log C, kind); the power of D is free where D varies at equal N
    candidates = [([one], u + d, "kND"), ([one, u], d, "power"), ([one, u, u * u], d, "quadratic")]
    if np.linalg.matrix_rank(np.column_stack([one, u, d - d.mean()]), tol=1e-6 * np.sqrt(len(u))) == 3:
        candidates += [([one, u, d], 0 * d, "power-D"), ([one, u, u * u, d], 0 * d, "quadratic-D")]
    best, best_score = nd_cost(), np.inf
    for columns, offset, kind in candidates:
        k, m = len(columns), len(u)
        if m < k + 3 and kind != "kND":
            continue
        design = np.column_stack(columns)
        x, *_ = np.linalg.lstsq(design, c - offset, rcond=None)
        r = c - offset - design @ x
        spread = max(float(r @ r) / m, _EXACT**2)
        score = m * np.log(spread) + 2 * (k + 1) * m / max(m - k - 2, 1)
        power = float(x[-1]) if kind.endswith("-D") else 1.0
        c1 = 1.0 if kind == "kND" else float(x[1])
        c2 = float(x[2]) if kind.startswith("quadratic") else 0.0
        rising = power > 0.05 and min(c1 + 2 * c2 * span[0], c1 + 2 * c2 * span[1]) > 0.05
        if rising and score < best_score:
            rms = float(np.sqrt(r @ r / max(m - k, 1)))
            if kind == "kND":
                best = CostModel((float(x[0]) - origin, 1.0, 0.0), residual=rms)
            else:
                best = CostModel((float(x[0]), c1, c2), power, origin, span, rms, kind)
            best_score = score
    return best


def complete_costs(N: Array, D: Array, C: Array) -> tuple[CostModel, Array]:
    """The cost model of the runs whose cost is known, and the costs of all: the model's where C (n,) is NaN.

    Raises:
        InputError: see ``fit_cost``; also if no cost is known.
    """
    n, d, spent = (np.asarray(v, float) for v in (N, D, C))
    known = ~np.isnan(spent)
    if not known.any():
        raise InputError("cost: no run has one")
    model = fit_cost(n[known], d[known], spent[known])
    return model, np.where(known, spent, model.cost(n, d))
