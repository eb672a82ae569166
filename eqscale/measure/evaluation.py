"""Every metric of a task for one predictor: a trained model, its group average, or the prediction of zero."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eqscale.laws.render import write_json
from eqscale.tasks import Batch, Options, Samples, get_task
from eqscale.tasks.dataset import open_stored
from eqscale.tasks.metrics import Predictor, asymmetry, averaged
from eqscale.training.loop import evaluation_indices, symmetry_indices
from eqscale.training.spec import RunSpec


@dataclasses.dataclass(frozen=True)
class Assessment:
    """All metrics on one view of the data, as the task's methods of the same names return them."""

    view: Options
    """Options of the task with which the test samples were opened."""
    average: int
    """Group elements averaged over; 1 is no averaging."""
    errors: dict[str, float]
    """Of ``Task.evaluate``."""
    equivariance: dict[str, float]
    """Of ``Task.equivariance``, on few samples."""
    asymmetry: dict[str, float]
    """Of ``asymmetry``, on all samples; empty for averaged predictions."""
    rollout: dict[str, Any] | None
    """None if none was asked for."""


def write_evaluation(path: Path, weights: Path, spec: RunSpec, measured: Sequence[tuple[str, Assessment]]) -> None:
    """Write measurements as JSON; what is undefined, such as the relative error of a prediction of zero, is null."""
    fields = [(name, dataclasses.asdict(assessment)) for name, assessment in measured]
    results = [{"predictor": name, **own.pop("view"), **own} for name, own in fields]
    content = {"checkpoint": str(weights), "run_id": spec.run_id, "spec": spec.to_dict(), "results": results}
    write_json(path, content)


def zero(batch: Batch) -> Tensor:
    """The predictor that every error is relative to."""
    return torch.zeros_like(batch.target)


def predictor(model: nn.Module) -> Predictor:
    """A trained model as a predictor that takes and returns CPU tensors; it runs on a GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)

    def predict(batch: Batch) -> Tensor:
        with torch.inference_mode():
            return model(batch.to(device)).cpu()

    return predict


def open_test(spec: RunSpec, data: Path, **view: Any) -> Samples:
    """Test samples of a run's final evaluation, or another view of them; errors as ``open_stored``."""
    return open_stored(spec.task, spec.data, data, "test", systems=spec.test_systems, **{**spec.options, **view})


def assess(predict: Predictor, spec: RunSpec, samples: Samples, average: int, seconds: float) -> Assessment:
    """Measure everything on the samples of the run's final evaluation.

    Args:
        predict: the predictor.
        spec: the run.
        samples: test samples of ``spec.test_systems`` systems.
        average: group elements to average predictions over; 1 is no averaging.
        seconds: length of the rollouts, if the task has them; 0 for none.

    Raises:
        InputError: ``average`` is less than 1, or the rollouts are longer than the task's systems.
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
        asymmetry(predict, samples, indices, task.elements(samples.options)) if average == 1 else {},
        rollout,
    )
