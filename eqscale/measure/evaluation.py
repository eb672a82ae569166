"""Every metric of the benchmark for one predictor: a trained model, its group average, or ballistic motion."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eqscale.errors import InputError
from eqscale.laws.render import plain
from eqscale.rigid.batch import Batch
from eqscale.rigid.metrics import Evaluation, Predictor, averaged, equivariance, evaluate
from eqscale.rigid.rollout import Rollout, evaluate_rollout, last_start
from eqscale.rigid.windows import FRAMES, Windows
from eqscale.training.loop import evaluation_indices, symmetry_indices
from eqscale.training.spec import RunSpec


@dataclasses.dataclass(frozen=True)
class Assessment:
    """All metrics in one frame protocol."""

    frame: str
    """Frame protocol of the test windows."""
    average: int
    """Group elements averaged over; 1 is no averaging."""
    errors: Evaluation
    equivariance: dict[str, float]
    """As ``eqscale.rigid.metrics.equivariance`` gives it."""
    rollout: Rollout | None
    """None if no rollout was asked for."""


def evaluation_content(
    weights: Path, spec: RunSpec, measured: Sequence[tuple[str, Assessment]]
) -> dict[str, Any]:
    """Measurements as plain JSON; what is undefined, such as the relative error of a prediction of zero, is null."""
    results = [{"predictor": name} | dataclasses.asdict(assessment) for name, assessment in measured]
    return plain({"checkpoint": str(weights), "run_id": spec.run_id, "spec": spec, "results": results})


def ballistic(batch: Batch) -> Tensor:
    """The predictor that every error is relative to: no residual to ballistic motion."""
    return torch.zeros_like(batch.target)


def predictor(model: nn.Module) -> Predictor:
    """A trained model as a predictor of batches on the CPU; runs on a GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)

    def predict(batch: Batch) -> Tensor:
        with torch.inference_mode():
            return model(batch.to(device)).cpu()

    return predict


def rollout_steps(seconds: float, windows: Windows) -> int:
    """Steps of a rollout that lasts about so long; raises InputError if scenes are shorter."""
    longest = (FRAMES - 1) // windows.horizon
    steps = round(seconds / windows.time) if 0 <= seconds < 1e3 else -1
    if not 0 <= steps <= longest:
        raise InputError(
            f"a rollout of {seconds:g} s: choose from 0 (none) to {longest * windows.time:.3g} s, in steps of "
            f"{windows.time:.3g} s"
        )
    return steps


def assess(predict: Predictor, spec: RunSpec, windows: Windows, average: int, steps: int) -> Assessment:
    """Measure everything, on the windows that the run's own final evaluation used.

    Rollouts start once in every scene, at starts that take turns among those that leave room for ``steps`` steps.

    Args:
        predict: the predictor.
        spec: the run: says which test windows count.
        windows: test windows with ``spec.test_scenes`` scenes.
        average: group elements to average predictions over; 1 is none.
        steps: steps of a rollout; 0 for none.

    Raises:
        InputError: if ``average`` is less than 1.
    """
    predict = averaged(predict, windows.frame, average)
    indices = evaluation_indices(windows, spec.test_scenes, spec.test_windows_per_scene)
    rollout = None
    if steps:
        scene = np.arange(spec.test_scenes)
        starts = min(last_start(windows, steps), windows.windows_per_scene)
        rollout = evaluate_rollout(
            predict, windows, scene * windows.windows_per_scene + scene % starts, steps
        )
    return Assessment(
        windows.frame,
        average,
        evaluate(predict, windows, indices),
        equivariance(predict, windows, symmetry_indices(windows, spec.test_scenes)),
        rollout,
    )
