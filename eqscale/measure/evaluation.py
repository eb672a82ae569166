"""Every metric of a task for one predictor: a trained model, its group average, or the prediction of zero."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eqscale.laws.render import plain
from eqscale.tasks import Batch, Options, Samples, get_task
from eqscale.tasks.dataset import open_stored
from eqscale.tasks.metrics import Predictor, averaged
from eqscale.training.loop import evaluation_indices, symmetry_indices
from eqscale.training.spec import RunSpec


@dataclasses.dataclass(frozen=True)
class Assessment:
    """All metrics on one view of the data."""

    view: Options
    """Options of the task with which the test samples were opened."""
    average: int
    """Group elements averaged over; 1 is no averaging."""
    errors: dict[str, float]
    """As ``Task.evaluate`` gives them."""
    equivariance: dict[str, float]
    """As ``Task.equivariance`` gives them."""
    rollout: dict[str, Any] | None
    """As ``Task.rollout`` gives it; None if none was asked for."""


def evaluation_content(weights: Path, spec: RunSpec, measured: Sequence[tuple[str, Assessment]]) -> dict[str, Any]:
    """Measurements as plain JSON; what is undefined, such as the relative error of a prediction of zero, is null."""
    results = []
    for name, assessment in measured:
        fields = dataclasses.asdict(assessment)
        results.append({"predictor": name, **fields.pop("view"), **fields})
    return plain({"checkpoint": str(weights), "run_id": spec.run_id, "spec": spec.to_dict(), "results": results})


def zero(batch: Batch) -> Tensor:
    """The predictor that every error is relative to."""
    return torch.zeros_like(batch.target)


def predictor(model: nn.Module) -> Predictor:
    """A trained model as a predictor of batches on the CPU; runs on a GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)

    def predict(batch: Batch) -> Tensor:
        with torch.inference_mode():
            return model(batch.to(device)).cpu()

    return predict


def open_test(spec: RunSpec, data: Path, view: Mapping[str, Any] | None = None) -> Samples:
    """Test samples of a run's own final evaluation, or another view of them; errors as ``open_stored``."""
    options = {**spec.options, **(view or {})}
    return open_stored(spec.task, spec.data, data, "test", systems=spec.test_systems, **options)


def assess(predict: Predictor, spec: RunSpec, samples: Samples, average: int, seconds: float) -> Assessment:
    """Measure everything, on the samples that the run's own final evaluation used.

    Args:
        predict: the predictor.
        spec: the run: says which test samples count.
        samples: test samples of ``spec.test_systems`` systems.
        average: group elements to average predictions over; 1 is none.
        seconds: length of the rollouts, of a task that has them; 0 for none.

    Raises:
        InputError: if ``average`` is less than 1, or for a length that the task's systems don't have.
    """
    task = get_task(spec.task)
    predict = averaged(predict, task.elements(samples.options), average)
    rollout = task.rollout(predict, samples, spec.test_systems, seconds) if seconds else None
    indices = evaluation_indices(samples, spec.test_systems, spec.test_samples_per_system)
    return Assessment(
        {name: samples.options[name] for name in spec.options},
        average,
        task.evaluate(predict, samples, indices),
        task.equivariance(predict, samples, symmetry_indices(samples, spec.test_systems)),
        rollout,
    )
