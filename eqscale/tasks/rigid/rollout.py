"""Rollouts: a predictor fed with its own predictions, by default for one second, six times 1/6 s.

The target holds positions only, so each step turns a predicted displacement into a state: a Kabsch fit
gives position and orientation, and the velocities follow from taking the residual to ballistic motion as one
impulse at an unknown moment of the interval. If that moment is uniform, the least-squares estimate of the
impulse is 3/2 of residual / T. What this guess costs a perfect predictor is measured in docs/benchmark.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqscale.errors import InputError
from eqscale.tasks.fields import Batch
from eqscale.tasks.metrics import Predictor
from eqscale.tasks.rigid.motion import Objects, ballistic, kabsch, place, rotation_vector, squared_errors
from eqscale.tasks.rigid.windows import FRAMES, Windows
from eqscale.tasks.symmetry import translate

STEPS = 6

_IMPULSE = 1.5
"""E[impulse x residual] T / E[residual^2] for residual = impulse (T - moment), moment uniform in 0..T."""


def step(batch: Batch, residual: Tensor, windows: Windows) -> Batch:
    """The state that a residual (B, T, 3) in m leads to after the horizon, as a batch of rigid objects.

    Coordinates stay those of ``batch`` (not centred again); target and contact are unknown and zero.
    """
    objects = Objects(batch)
    flight = ballistic(batch, objects, windows.time, windows.time_step)
    rotation, center = kabsch(batch, objects, flight.position + residual * batch.mask[..., None])
    velocity = flight.velocity + _IMPULSE / windows.time * (center - flight.center)
    kick = rotation_vector(rotation @ flight.rotation.transpose(-1, -2))
    omega = flight.spin + _IMPULSE / windows.time * kick
    position = place(batch, objects, rotation, center)
    token_center = objects.spread(center) * batch.mask[..., None]
    token_velocity = objects.spread(velocity) * batch.mask[..., None]
    return batch.replace(
        target=torch.zeros_like(batch.target),
        position=position,
        velocity=token_velocity + torch.linalg.cross(objects.spread(omega), position - token_center),
        center=token_center,
        center_velocity=token_velocity,
        contact=torch.zeros_like(batch["contact"]),
    )


def centred(batch: Batch) -> Batch:
    """The batch about the mean of its centres of mass, as in training."""
    objects = Objects(batch)
    mean = objects.mean(batch["center"]).sum(1) / objects.exists.sum(1, keepdim=True)
    return translate(batch, -mean)


def last_start(windows: Windows, steps: int = STEPS) -> int:
    """Last frame at which a rollout of that many steps can start; less than 1 if none can."""
    return FRAMES - steps * windows.horizon


def rollout(
    predict: Predictor, windows: Windows, indices: np.ndarray, steps: int = STEPS, *, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Batch]:
    """Roll out ``steps`` steps from each window.

    Returns predicted and true vertices, (steps + 1, B, T, 3) each, m, in the coordinates of the first batch,
    and that batch. Raises InputError if a window's scene ends before the last step.
    """
    indices = np.asarray(indices, np.int64)
    start = indices % windows.samples_per_system + 1
    last = last_start(windows, steps)
    if last < 1 or (start > last).any():
        raise InputError(
            f"rollouts of {steps} x {windows.horizon} frames start in frames 1..{last} of a scene's {FRAMES}"
        )
    first = windows.batch(indices, dtype)
    truth = windows.track(indices, windows.horizon * np.arange(steps + 1), dtype)
    state = first
    track = [first["position"]]
    with torch.no_grad():
        for _ in range(steps):
            residual = predict(centred(state)).to(dtype) * windows.sigma
            state = step(state, residual, windows)
            track.append(state["position"])
    return torch.stack(track), truth, first


def evaluate_rollout(
    predict: Predictor,
    windows: Windows,
    indices: np.ndarray,
    steps: int = STEPS,
    batch_size: int = 256,
    *,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Errors of rollouts from the windows of those indices; objects, then windows have equal weight.

    Returns:
        time_s and the root mean squared errors translation_rmse_m, of the centres of mass, and rotation_rmse_deg, lists
        with an entry a step; n_windows and n_scenes.
    """
    squares = torch.zeros(2, steps, dtype=torch.float64)
    for begin in range(0, len(indices), batch_size):
        track, truth, batch = rollout(predict, windows, indices[begin : begin + batch_size], steps, dtype=dtype)
        objects = Objects(batch)
        for k in range(steps):
            rotation, center = kabsch(batch, objects, track[k + 1])
            squares[:, k] += torch.stack(squared_errors(batch, objects, rotation, center, truth[k + 1]))
    rms = (squares / len(indices)).sqrt().numpy()
    return {
        "time_s": (windows.time * np.arange(1, steps + 1)).tolist(),
        "translation_rmse_m": rms[0].tolist(),
        "rotation_rmse_deg": np.degrees(rms[1]).tolist(),
        "n_windows": len(indices),
        "n_scenes": len(np.unique(np.asarray(indices) // windows.samples_per_system)),
    }
