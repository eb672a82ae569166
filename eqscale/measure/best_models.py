"""The best trained model of each arm, measured from its weights: test-time averaging, rollouts, an animation.

Weights are large and stay in the study's storage. The measurements are small and go into the folder ``evaluation`` of
the results, where reports find them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from eqscale.errors import InputError
from eqscale.measure.evaluation import Assessment, assess, open_test, predictor, write_evaluation
from eqscale.report.parts import Study
from eqscale.report.wording import read_json
from eqscale.tasks import get_task
from eqscale.tasks.metrics import Predictor
from eqscale.training.loop import load_trained
from eqscale.training.spec import RunSpec

EXACT_SHARE = 1e-6
"""An arm is equivariant if averaging would remove a smaller share of its loss; then its models aren't averaged."""


@dataclasses.dataclass(frozen=True)
class BestModel:
    """The run with the lowest loss of an arm at its largest budget."""

    arm: str
    task: str
    name: str
    run_id: str
    weights: Path
    averages: tuple[int, ...]
    """Numbers of group elements to average predictions over; empty for an equivariant arm."""

    @functools.cached_property
    def trained(self) -> tuple[RunSpec, Predictor]:
        """Its run and its predictions; raises InputError if its weights are not there."""
        if not self.weights.is_file():
            raise InputError(
                f"the weights of {self.name}, the best run of {self.arm}, are not in {str(self.weights.parent)!r}: "
                "measure it where it was trained, or leave the arm out of --arms"
            )
        spec, net = load_trained(self.weights)
        return spec, predictor(net)


def choose(study: Study, storage: Path, name: str, averages: Sequence[int], arms: Sequence[str]) -> list[BestModel]:
    """The models of some arms, the one with the lowest loss first.

    Args:
        storage: folder of studies.
        name: of the study; the weights of its validation runs are in the study NAME-validation.
        averages: numbers of group elements to average predictions over.
    """
    chosen = []
    for _, run in study.best[study.best["arm"].isin(arms)].sort_values("loss").iterrows():
        folder = name if run["part"] == "compute" else f"{name}-{run['part']}"
        useful = () if run.get("equivariance_loss_share", math.nan) < EXACT_SHARE else tuple(averages)
        weights = storage / folder / "weights" / f"{run['run_id']}.pt"
        chosen.append(BestModel(run["arm"], run["task"], run["name"], run["run_id"], weights, useful))
    return chosen


def measure(model: BestModel, data: Path, seconds: float) -> Iterator[tuple[str, Assessment]]:
    """Measure a model on the test samples of its run: with rollouts of some length, then averaged.

    Raises:
        InputError: its weights or its data are not there, or a bad length.
    """
    spec, predict = model.trained
    samples = open_test(spec, data)
    yield "model", assess(predict, spec, samples, 1, seconds)
    for k in model.averages:
        yield f"model, mean of {k}", assess(predict, spec, samples, k, 0)


def measurements_path(model: BestModel, results: Path, suffix: str = ".json") -> Path:
    """``evaluation/ARM.json`` of a results folder, or its animation (``.gif``)."""
    return results / "evaluation" / f"{model.arm}{suffix}"


def is_measured(model: BestModel, results: Path) -> bool:
    """Whether the results folder has measurements of this very run, with all averages."""
    content = read_json(measurements_path(model, results))
    if content is None:
        return False
    averages = {result["average"] for result in content["results"]}
    return content["run_id"] == model.run_id and set(model.averages) <= averages


def write_measurements(model: BestModel, measured: Sequence[tuple[str, Assessment]], results: Path) -> Path:
    """Write ``evaluation/ARM.json`` of a results folder."""
    path = measurements_path(model, results)
    write_evaluation(path, Path(model.weights.name), model.trained[0], measured)
    return path


def write_animation(model: BestModel, data: Path, system: int, results: Path) -> Path:
    """Write ``evaluation/ARM.gif``: a prediction for a test system beside the truth."""
    spec, predict = model.trained
    path = measurements_path(model, results, ".gif")
    path.parent.mkdir(parents=True, exist_ok=True)
    return get_task(spec.task).look_at_prediction(predict, open_test(spec, data), system, path, model.arm)
