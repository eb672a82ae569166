"""The best trained model of each arm, measured from its weights: test-time averaging, rollouts, an animation.

Weights are large and stay in the study's storage; what is measured here is small, lies in the folder ``evaluation``
of the results, and is all that a report needs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from eqscale.errors import InputError
from eqscale.measure.evaluation import Assessment, assess, evaluation_content, open_test, predictor
from eqscale.report.parts import Study
from eqscale.tasks import Samples, get_task
from eqscale.tasks.metrics import Predictor
from eqscale.training.loop import load_trained
from eqscale.training.spec import RunSpec

EXACT_SHARE = 1e-6
"""Averaging can't help an arm whose errors have a smaller share that it would remove: it is equivariant."""


@dataclasses.dataclass(frozen=True)
class BestModel:
    """The run with the lowest loss of an arm at its largest budget."""

    arm: str
    name: str
    run_id: str
    weights: Path
    averages: tuple[int, ...]
    """Numbers of group elements to average predictions over; empty for an equivariant arm."""


def choose(study: Study, storage: Path, name: str, averages: Sequence[int], arms: Sequence[str]) -> list[BestModel]:
    """The models to measure, the one with the lowest loss first.

    Args:
        study: what was run.
        storage: folder of studies.
        name: the study's name: weights of validation runs lie in the folder of NAME-validation.
        averages: numbers of group elements.
        arms: which arms.
    """
    chosen = []
    for _, run in study.best[study.best["arm"].isin(arms)].sort_values("loss").iterrows():
        folder = name if run["part"] == "compute" else f"{name}-{run['part']}"
        share = run.get("equivariance_loss_share", float("nan"))
        exact = pd.notna(share) and share < EXACT_SHARE
        weights = storage / folder / "weights" / f"{run['run_id']}.pt"
        useful = () if exact else tuple(averages)
        chosen.append(BestModel(run["arm"], run["name"], run["run_id"], weights, useful))
    return chosen


def _load(model: BestModel, data: Path) -> tuple[RunSpec, Predictor, Samples]:
    if not model.weights.is_file():
        raise InputError(
            f"the weights of {model.name}, the best run of {model.arm}, are not in {str(model.weights.parent)!r}: "
            "measure it where it was trained, or leave the arm out of --arms"
        )
    spec, net = load_trained(model.weights)
    return spec, predictor(net), open_test(spec, data)


def measure(model: BestModel, data: Path, seconds: float) -> Iterator[tuple[str, Assessment]]:
    """Measurements of a model on its own test samples: as it is, with rollouts, then averaged.

    Args:
        model: what to measure.
        data: folder of data sets.
        seconds: length of the rollouts.

    Raises:
        InputError: its weights or its data are not there, or a bad length.
    """
    spec, predict, samples = _load(model, data)
    yield "model", assess(predict, spec, samples, 1, seconds)
    for k in model.averages:
        yield f"model, mean of {k}", assess(predict, spec, samples, k, 0)


def write_evaluation(model: BestModel, measured: Sequence[tuple[str, Assessment]], results: Path) -> Path:
    """Write ``evaluation/ARM.json`` of a results folder."""
    spec, _ = load_trained(model.weights)
    path = results / "evaluation" / f"{model.arm}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = evaluation_content(Path(model.weights.name), spec, measured)  # wherever it lay
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def write_animation(model: BestModel, data: Path, system: int, results: Path) -> Path:
    """Write ``evaluation/ARM.gif``: a prediction for a test system beside the truth."""
    spec, predict, samples = _load(model, data)
    path = results / "evaluation" / f"{model.arm}.gif"
    path.parent.mkdir(parents=True, exist_ok=True)
    return get_task(spec.task).look_at_prediction(predict, samples, system, path, model.arm)


def measured_already(model: BestModel, results: Path) -> bool:
    """Whether the results folder has measurements of this very run, with all averages."""
    path = results / "evaluation" / f"{model.arm}.json"
    if not path.is_file():
        return False
    content = json.loads(path.read_text())
    averages = {result["average"] for result in content["results"]}
    return content["run_id"] == model.run_id and set(model.averages) <= averages


def to_animate(models: Sequence[BestModel], study: Study) -> list[BestModel]:
    """The best model of all, and that of the arm that learns the symmetry."""
    return [model for k, model in enumerate(models) if k == 0 or model.arm == study.roles.baseline]
