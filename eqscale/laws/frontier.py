"""The compute-optimal frontier: N_opt(C), D_opt(C) and L_opt(C) under a cost model of one's own runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eqscale.errors import InputError
from eqscale.laws.fit import Coefficients, Fit
from eqscale.laws.uncertainty import Bootstrap, percentiles

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

    def _log_per_token(self, log_n: Array) -> tuple[Array, Array]:
        """c0 + c1 u + c2 u² and its slope; its tangent outside the span."""
        c0, c1, c2 = self.polynomial
        u = log_n - self.origin
        if c2 == 0.0:
            return c0 + c1 * u, np.full_like(u, c1)
        v = np.clip(u, *self.span)
        slope = c1 + 2 * c2 * v
        return c0 + c1 * v + c2 * v * v + slope * (u - v), slope

    def cost(self, N: Array, D: Array) -> Array:
        """Cost of training N parameters on D tokens."""
        return np.exp(self._log_per_token(np.log(N))[0] + self.power * np.log(D))

    def tokens(self, N: Array, C: Array | float) -> Array:
        """Tokens that cost C pays for at N parameters."""
        return np.exp(self.log_tokens(np.log(N), np.log(C)))

    def log_tokens(self, log_n: Array, log_c: Array) -> Array:
        """``tokens`` in logarithms."""
        return (log_c - self._log_per_token(log_n)[0]) / self.power

    def slope(self, log_n: Array) -> Array:
        """Tokens given up for parameters at equal cost: −d log D / d log N."""
        return self._log_per_token(log_n)[1] / self.power

    def describe(self) -> str:
        """One line in words."""
        c0, c1, c2 = self.polynomial
        if self.kind == "kND":
            return f"C = {np.exp(c0):.4g} N D, residual {100 * self.residual:.2g} %"
        bend = f" and {c2:+.3f} u² around N = {np.exp(self.origin):.3g}" if c2 else ""
        return f"C ∝ N^{c1:.3f}{bend} · D^{self.power:.3f}, residual {100 * self.residual:.2g} %"


def nd_cost(kappa: float = 6.0) -> CostModel:
    """C = κND; κ = 6 is the dense transformer's count (Kaplan et al. 2020)."""
    return CostModel((float(np.log(kappa)), 1.0, 0.0))


_EXACT = 1e-3  # residuals of log C below this are as good as exact and earn no further terms


def fit_cost(N: Array, D: Array, C: Array) -> CostModel:
    """Fit a cost model to the runs' own FLOPs or seconds.

    From κND up to a quadratic in log N with a free power of D; the simplest by AICc among those whose cost
    rises with N all over the range of the runs.

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
    best, best_score = None, np.inf
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
    if best is None:  # cost does not rise with N: noise; κND is the least that can be assumed
        x0 = float(np.mean(c - u - d))
        rms = float(np.std(c - u - d))
        best = CostModel((x0 - origin, 1.0, 0.0), residual=rms)
    return best


def optimal_log_n(c: Coefficients, cost: CostModel, C: Array) -> Array:
    """log N_opt(C) for b sets of coefficients and costs (k,) or (b, k), as (b, k).

    The optimum of A/N^α + B/D^β at equal cost satisfies α A/N^α = s β B/D^β with s = −d log D/d log N:
    closed form where cost is a power of N, by bisection where it bends.
    """
    alpha, beta = c["alpha"][:, None], c["beta"][:, None]
    log_c = np.atleast_2d(np.log(np.asarray(C, float)))
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.log(alpha) + c["log_A"][:, None] - np.log(beta) - c["log_B"][:, None]

        def tangent_root(at: float) -> Array:
            """Root where cost is the power law that touches it at log N = ``at``."""
            h, slope = cost._log_per_token(np.array(at))
            s = slope / cost.power
            return (gain - np.log(s) + beta * (log_c - h + slope * at) / cost.power) / (alpha + beta * s)

        if not cost.polynomial[2]:  # a power of N all over
            return tangent_root(cost.origin)
        low, high = cost.origin + cost.span[0], cost.origin + cost.span[1]

        def excess(log_n: Array) -> Array:
            return gain - alpha * log_n - np.log(cost.slope(log_n)) + beta * cost.log_tokens(log_n, log_c)

        shape = np.broadcast_shapes(gain.shape, log_c.shape)
        left, right = np.full(shape, low), np.full(shape, high)
        below = excess(left) < 0
        above = excess(right) > 0
        for _ in range(50):
            middle = 0.5 * (left + right)
            up = excess(middle) > 0
            left, right = np.where(up, middle, left), np.where(up, right, middle)
        return np.where(below, tangent_root(low), np.where(above, tangent_root(high), 0.5 * (left + right)))


def law_value(c: Coefficients, log_n: Array, log_d: Array) -> Array:
    """Loss for b sets of coefficients at (b, k) or (k,) logarithms of N and D, (b, k)."""
    with np.errstate(invalid="ignore"):  # a law without one of its terms has no optimum: NaN
        t = np.logaddexp(
            c["log_A"][:, None] - c["alpha"][:, None] * log_n,
            c["log_B"][:, None] - c["beta"][:, None] * log_d,
        )
    gamma = c["gamma"][:, None] if "gamma" in c else 1.0
    with np.errstate(over="ignore"):  # a resample's law may be infinite far from its runs
        return c["E"][:, None] + np.exp(gamma * t)


@dataclass(frozen=True)
class Band:
    """Lower and upper limit, each (k,)."""

    low: Array
    high: Array


@dataclass(frozen=True)
class Frontier:
    """Compute-optimal N, D and loss over costs C; bands are pointwise."""

    C: Array
    N: Array
    D: Array
    loss: Array
    cost: CostModel
    level: float
    model: dict[str, Band]
    """Gauss–Newton t bands of ``N``, ``D``, ``per_token``, ``loss`` and ``new_run`` (a further run's loss)."""
    robust: dict[str, Band]
    """Bootstrap bands of the same, empty without a bootstrap."""
    inside: Array
    """Whether C lies within the cost of the runs that were fitted; elsewhere it extrapolates."""

    @property
    def per_token(self) -> Array:
        """Cost of one training token at the optimal size: model size in the units that are paid."""
        return self.C / self.D


def cost_to_reach(
    c: Coefficients, cost: CostModel, loss: Array, span: tuple[float, float] = (-60.0, 140.0)
) -> tuple[Array, Array, Array]:
    """log C, log N and log D of the cheapest training that reaches a loss, each (b, k).

    The frontier is walked by N: at each N the optimal D is explicit (α A/N^α = s β B/D^β), so one bisection
    suffices under any cost model.

    Args:
        c: coefficients, b sets.
        cost: cost model.
        loss: (b, k) or (k,); what lies at or below E is out of reach: infinite. NaN for a law that lost a
            term, which has no optimum.
        span: range of log N searched.
    """
    alpha, beta = c["alpha"][:, None], c["beta"][:, None]
    loss = np.atleast_2d(loss)

    def tokens(log_n: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            balance = np.log(beta / alpha * cost.slope(log_n)) + c["log_B"][:, None] - c["log_A"][:, None]
            return (balance + alpha * log_n) / beta

    shape = np.broadcast_shapes(alpha.shape, loss.shape)
    left, right = np.full(shape, span[0]), np.full(shape, span[1])
    for _ in range(64):
        middle = 0.5 * (left + right)
        worse = law_value(c, middle, tokens(middle)) > loss
        left, right = np.where(worse, middle, left), np.where(worse, right, middle)
    log_n = np.where(loss > c["E"][:, None], 0.5 * (left + right), np.inf)
    whole = np.isfinite(c["log_A"] + c["log_B"])[:, None] & (alpha > 0) & (beta > 0)
    log_n = np.where(whole & ~np.isnan(loss), log_n, np.nan)  # without one of its terms a law has no optimum
    finite = np.isfinite(log_n)
    at = np.where(finite, log_n, 0.0)
    log_d = np.where(finite, tokens(at), log_n)
    spent = cost._log_per_token(at)[0] + cost.power * log_d
    return np.where(finite, spent, log_n), log_n, log_d


def _require_allocation(fit: Fit) -> None:
    if not {"N", "D"} <= set(fit.form.columns):
        raise InputError(f"the form {fit.form.name!r} has no split into N and D, hence no frontier")


def frontier_values(c: Coefficients, cost: CostModel, C: Array) -> tuple[Array, Array, Array]:
    """log N_opt, log D_opt and log L_opt, each (b, k)."""
    log_n = optimal_log_n(c, cost, C)
    log_d = cost.log_tokens(log_n, np.atleast_2d(np.log(C)))
    return log_n, log_d, np.log(law_value(c, log_n, log_d))


def frontier(
    fit: Fit, C: Array, cost: CostModel | None = None, boot: Bootstrap | None = None, level: float = 0.95
) -> Frontier:
    """The compute-optimal frontier at costs C.

    Args:
        fit: a law in N and D; for ``repetition`` every token is taken as unique.
        C: costs (k,), in the units of ``cost``.
        cost: cost model; 6ND by default.
        boot: for robust bands.
        level: of the bands.

    Raises:
        InputError: the law has no N and D, or C is not positive.
    """
    _require_allocation(fit)
    C = np.atleast_1d(np.asarray(C, float))
    if not (np.isfinite(C).all() and (C > 0).all()):
        raise InputError("frontier: every C must be positive and finite")
    cost = cost or nd_cost()
    names = ("N", "D", "loss")
    k = len(C)

    def stacked(c: Coefficients) -> Array:
        return np.concatenate(frontier_values(c, cost, C), axis=1)

    centre = stacked(fit.coefficients)[0]
    n, d, loss = (np.exp(centre[i * k : (i + 1) * k]) for i in range(3))
    t = fit.t_value(level)
    se = fit.standard_error(stacked)

    def bands(low: Array, high: Array) -> dict[str, Band]:
        with np.errstate(over="ignore"):  # what the runs leave open has an infinite bound
            low, high = np.exp(low), np.exp(high)
        found = {
            name: Band(low[i * k : (i + 1) * k], high[i * k : (i + 1) * k]) for i, name in enumerate(names)
        }
        return found | {"per_token": Band(C / found["D"].high, C / found["D"].low)}

    model = bands(centre - t * se, centre + t * se)
    noise = fit.spread if fit.loss.is_log else fit.spread / loss
    wide = t * np.hypot(se[2 * k :], noise)
    model["new_run"] = Band(loss * np.exp(-wide), loss * np.exp(wide))
    robust: dict[str, Band] = {}
    if boot is not None:
        values = boot.values(stacked)
        robust = bands(*percentiles(values, level))
        r = fit.residuals if fit.loss.is_log else np.log1p(fit.residuals / (fit.observed - fit.residuals))
        drawn = np.random.default_rng(boot.seed).choice(r, (boot.resamples, 1))
        new = percentiles(values[:, 2 * k :] + drawn, level)
        robust["new_run"] = Band(np.exp(new[0]), np.exp(new[1]))
    spent = cost.cost(fit.columns["N"], fit.columns["D"])
    inside = (spent.min() * (1 - 1e-9) <= C) & (spent.max() * (1 + 1e-9) >= C)
    return Frontier(C, n, d, loss, cost, level, model, robust, inside)
