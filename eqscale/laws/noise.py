"""The noise of the runs, estimated from the residuals of a fit."""

from __future__ import annotations

import numpy as np
from scipy import special

from eqscale.laws.problem import Loss

Array = np.ndarray

_NORMAL_PEAK = 1 / np.sqrt(2 * np.pi)


def _psi_moments(k: float) -> tuple[float, float]:
    """E ψ' and E ψ² of Huber's ψ with threshold k for a standard normal residual."""
    if k < 1e-4:  # the sign function, up to the factor k of ψ
        slope = 2 * k * _NORMAL_PEAK
        return slope, k * k
    inside = float(2 * special.ndtr(k) - 1)
    density = _NORMAL_PEAK * np.exp(-k * k / 2)
    return inside, float(inside - 2 * k * density + 2 * k * k * special.ndtr(-k))


def efficiency(noise: float, loss: Loss) -> float:
    """Factor c such that 2c × a drop of the objective is χ² distributed: E ψ' / E ψ² for normal noise."""
    if noise == 0.0:
        return np.inf
    if np.isinf(loss.threshold):
        return 1 / noise**2
    if loss.kind == "lad":  # the objective is Σ|r|: ψ is the sign
        return 2 * _NORMAL_PEAK / noise
    slope, square = _psi_moments(loss.threshold / noise)
    return slope / square / noise**2


_WINSOR = 1.5  # residuals beyond this many scales count as if at it
_WINSOR_MEAN = 0.7785  # E min(z², 1.5²) of a standard normal


def residual_spread(r: Array, weights: Array, parameters: int, loss: Loss) -> float:
    """Standard deviation of the noise with n − p degrees of freedom; for robust losses winsorised at 1.5 times itself
    (Huber's proposal 2), which outliers cannot inflate.
    """
    used = weights > 0
    r, w = r[used], weights[used]
    n = len(r)
    df = max(n - parameters, 1)
    rms = float(np.sqrt(np.sum(w * r * r) / df))
    if np.isinf(loss.threshold):
        return rms
    # a robust fit passes through up to p runs: they say nothing about the noise
    scale = 1.4826 * float(np.median(np.sort(np.abs(r))[min(parameters, n - 1) :])) or rms
    for _ in range(50):
        if scale == 0.0:
            return 0.0
        clipped = np.minimum(r * r, (_WINSOR * scale) ** 2)
        new = float(np.sqrt(np.sum(w * clipped) / df / _WINSOR_MEAN))
        if abs(new - scale) <= 1e-9 * scale:
            break
        scale = new
    return scale


def noise_scale(r: Array, weights: Array, parameters: int, loss: Loss) -> float:
    """Scale s such that s² (JᵀWJ)⁻¹ is the covariance of the estimate.

    The spread of the residuals, for robust losses times the M-estimator's loss of efficiency τ at that scale
    (Huber 1981, eq. 6.5), taken for normal noise, since counting the residuals below delta to estimate their
    density is hopeless for a few dozen runs. With p/n not small the fit follows the noise and τ overstates
    the spread; the correction 1 − 2p/n is from our coverage simulation (``benchmarks/laws.py``).
    """
    scale, n = residual_spread(r, weights, parameters, loss), int((weights > 0).sum())
    if np.isinf(loss.threshold) or scale == 0.0:
        return scale
    slope, square = _psi_moments(loss.threshold / scale)
    tau = np.sqrt(square) / slope
    return scale * (1 + (tau - 1) * max(1 - 2 * parameters / n, 0.0))


def aicc_penalty(k: int, n: int) -> float:
    """What AICc charges for k parameters and n runs (Hurvich & Tsai 1989)."""
    return 2 * k + 2 * k * (k + 1) / max(n - k - 1, 1)
