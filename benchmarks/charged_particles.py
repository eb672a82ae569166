"""Test errors on charged particles at the published set-up, beside published figures (docs/your_own_task.md).

    python benchmarks/charged_particles.py [--folder studies/charged_particles]

Every arm trains with AdamW, briefly at three learning rates, then longer at the best of them; of its runs the one with
the least error on 2,000 validation trajectories counts, and is measured on 2,000 others. Prints Markdown tables; about
25 minutes on one core. What is in the folder isn't trained again.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import torch

from eqscale.arms import Size, get_arm
from eqscale.tasks import Task, get_task, load_task_files, register
from eqscale.tasks.dataset import DataSpec, open_split, prepare
from eqscale.tasks.metrics import Predictor
from eqscale.tasks.samples import StoredSamples
from eqscale.tasks.symmetry import random_orthogonal, transform
from eqscale.training.loop import load_trained, train
from eqscale.training.spec import RunRecord, RunSpec

load_task_files([str(Path(__file__).parents[1] / "docs/examples/charged_particles.py")])
OWN = get_task("charged_particles")

TRAIN, HELD_OUT = 3000, 2000
FACTORS = (0.5, 1.0, 2.0)
"""Learning rates that are tried, over the recipe's."""
PLAN = {
    "transformer": (Size(64, 3, 8), 5000, 12000),
    "transformer_aug": (Size(64, 3, 8), 5000, 15000),
    "gatr": (Size(12, 4, 4), 2000, 15000),
}
"""Size, steps of the short runs and of the long one."""


class Published(type(OWN)):  # type: ignore[misc]
    """The data of the published figures, where the force's components are capped one by one."""

    words = dataclasses.replace(OWN.words, name="charged_particles_published")
    symmetry_tolerance = math.inf  # capped components break the symmetry: `label_noise` measures how much

    def cap(self, force: np.ndarray) -> np.ndarray:
        return force.clip(-100.0, 100.0)


PUBLISHED = register(Published())


def spec_of(arm: str, task: Task, steps: int, factor: float) -> RunSpec:
    size, recipe = PLAN[arm][0], get_arm(arm).recipe_with("adamw")
    assert recipe
    flops, parameters = get_arm(arm).flops(size, task).executed, get_arm(arm).parameters(size, task)
    batch = recipe.batch_size(1e12)  # about what the runs spend
    return RunSpec(
        arm=arm,
        size=size,
        budget=steps * flops.total(5 * batch, 25 * batch),
        steps=steps,
        batch_size=batch,
        learning_rate=factor * recipe.learning_rate(parameters, steps, batch),
        seed=0,
        data=data_of(task).digest,
        train_systems=TRAIN,
        test_systems=HELD_OUT,
        test_samples_per_system=1,
        task=task.name,
        optimizer=recipe.optimizer,
        warmup=recipe.warmup,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )


def data_of(task: Task) -> DataSpec:
    """The first half of the test split is for validation."""
    return DataSpec(task.name, train_systems=TRAIN, test_systems=2 * HELD_OUT)


def record_of(spec: RunSpec, folder: Path) -> RunRecord:
    """The record of a run, which is trained if there is none; its errors are those of validation."""
    stored = folder / "records" / f"{spec.run_id}.json"
    if stored.exists():
        return RunRecord.from_json(stored.read_text())
    data = data_of(get_task(spec.task))
    splits = [open_split(data, folder / "data", split) for split in ("train", "test")]
    checkpoints = folder / "checkpoints" / spec.run_id
    record = train(spec, *splits, checkpoints=checkpoints, weights=weights_of(spec, folder))
    stored.parent.mkdir(exist_ok=True)
    stored.write_text(record.to_json())
    shutil.rmtree(checkpoints, ignore_errors=True)
    print(
        f"{spec.name}, {spec.steps} steps of {spec.batch_size} at {spec.learning_rate:.4g}: {record.status}, "
        f"validation {record.test.get('mse', math.nan):.4f}, {record.cpu_seconds:.0f} s",
        flush=True,
    )
    return record


def weights_of(spec: RunSpec, folder: Path) -> Path:
    return folder / "weights" / f"{spec.run_id}.pt"


def error_of(record: RunRecord) -> float:
    return record.test.get("mse", math.inf)


def tested(predict: Predictor, samples: StoredSamples) -> tuple[float, float]:
    """Error on the test trajectories, as published, and its standard error."""
    batch = samples.batch(np.arange(HELD_OUT, 2 * HELD_OUT))
    with torch.inference_mode():
        gap = (predict(batch) - batch.target).double() * samples.target_rms
    return mean_and_error(gap.square())


def mean_and_error(squares: torch.Tensor) -> tuple[float, float]:
    each = squares.mean((1, 2))
    return float(each.mean()), float(each.std()) / math.sqrt(len(each))


def fitted_time(task: Task, folder: Path) -> float:
    """The time of free flight with the least training error: the publication's linear model."""
    samples = open_split(data_of(task), folder / "data", "train")
    assert isinstance(samples, StoredSamples)
    batch = samples.batch(np.arange(TRAIN), dtype=torch.float64)
    velocity = batch["velocity"]
    return 1 + float((velocity * batch.target).sum() * samples.target_rms / velocity.square().sum())


def label_noise(task: Task, samples: StoredSamples) -> tuple[float, float]:
    """Least error of exactly equivariant predictors: half the mean of |y(g x) - g y(x)|^2, g uniform on O(3)."""
    batch = samples.batch(np.arange(HELD_OUT, 2 * HELD_OUT), dtype=torch.float64)
    labelled = batch.replace(task.relabel(samples.options, batch))
    turn = random_orthogonal(len(batch), torch.Generator().manual_seed(0), torch.float64)
    turned = transform(labelled, turn)
    again = task.relabel(samples.options, turned)
    assert again is not None
    return mean_and_error((again - turned.target).square() / 2)


def measure(task: Task, arms: list[str], folder: Path) -> None:
    samples = open_split(data_of(task), folder / "data", "test")
    assert isinstance(samples, StoredSamples)
    time, rms = fitted_time(task, folder), samples.target_rms
    found = {
        "free flight": tested(lambda batch: torch.zeros_like(batch.target), samples),
        f"free flight for {time:.2f}": tested(lambda batch: (time - 1) / rms * batch["velocity"], samples),
        "least error of equivariant predictors": label_noise(task, samples),
    }
    for name, (error, spread) in found.items():
        print(f"{task.name}, {name}: {error:.4f} ± {spread:.4f}", flush=True)
    rows = []
    for arm in arms:
        _, short, long = PLAN[arm]
        tried = {factor: record_of(spec_of(arm, PUBLISHED, short, factor), folder) for factor in FACTORS}
        factor = min(tried, key=lambda factor: error_of(tried[factor]))
        records = [record_of(spec_of(arm, task, long, factor), folder)]
        records += tried.values() if task is PUBLISHED else ()
        best = min(records, key=error_of)
        _, model = load_trained(weights_of(best.spec, folder))
        error, spread = tested(model, samples)
        rows.append(
            f"| `{arm}` {best.spec.size} | {best.parameters:,} | {error:.4f} ± {spread:.4f} | {best.epochs:.0f} | "
            f"{best.cpu_seconds:.0f} s | {best.test['equivariance_rotation']:.1g} |"
        )
    print("\n| arm | parameters | test MSE | epochs | CPU time | change under rotation |")
    print("|---" * 6 + "|")
    print("\n".join(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("studies/charged_particles"))
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    for task, arms in ((PUBLISHED, list(PLAN)), (OWN, ["gatr"])):
        prepare(data_of(task), folder / "data", workers=1)  # other processes don't know the task of this file
        measure(task, arms, folder)


if __name__ == "__main__":
    main()
