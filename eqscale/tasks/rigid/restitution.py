"""The project's table from coefficient of restitution to the damping ratio of the engine's contacts.

A contact of the engine is a spring-damper in acceleration units: overlap x < 0 and speed v give the
acceleration max(0, -omega^2 x - 2 zeta omega v), stepped by semi-implicit Euler. It ends when the *force*
vanishes, before the overlap does, so the textbook zeta(e) rebounds too fast. Here the discrete update itself
is run for an impact, averaged over the sub-step phase at which the surfaces meet, and inverted.
"""

from __future__ import annotations

import functools

import numpy as np

_PHASES = 64
_STEPS = 4000


def rebound(zeta: np.ndarray, omega_dt: float) -> np.ndarray:
    """Rebound over impact speed for damping ratios (Z,) and all sub-step phases, (Z, phases).

    In units of the time step and the impact speed, where the result depends on ``omega_dt`` alone.
    """
    phase = (np.arange(_PHASES) + 0.5) / _PHASES
    x = np.broadcast_to(phase, (len(zeta), _PHASES)).copy()
    v = -np.ones_like(x)
    damping = 2 * np.asarray(zeta)[:, None] * omega_dt
    for _ in range(_STEPS):
        force = np.where(x < 0, np.maximum(0.0, -(omega_dt**2) * x - damping * v), 0.0)
        v = v + force
        x = x + v
        if ((v > 0) & ((x >= 0) | (force == 0))).all():
            break
    return v


@functools.cache
def table(omega_dt: float) -> tuple[np.ndarray, np.ndarray]:
    """Damping ratios and mean restitutions, (K,) each, restitution falling from about 1.

    Ends where more damping would make the explicit update overshoot and bounce more: 2 zeta omega dt = 1.
    """
    zeta = np.linspace(0.0, 0.6 / omega_dt, 241)
    mean = rebound(zeta, omega_dt).mean(axis=1)
    rising = np.flatnonzero(np.diff(mean) >= 0)
    stop = int(rising[0]) + 1 if len(rising) else len(mean)
    return zeta[:stop], mean[:stop]


def damping_ratio(restitution: float, omega_dt: float) -> float:
    """Damping ratio whose mean rebound is the restitution, clipped to what the update can reach."""
    zeta, mean = table(omega_dt)
    return float(np.interp(restitution, mean[::-1], zeta[::-1]))
