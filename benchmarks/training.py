"""Where the time of a run goes, for each arm at three sizes, and what padding costs.

    python benchmarks/training.py                       # about two minutes on one core
    python benchmarks/training.py --arms gatr --batch-size 64 --json profile.json

The training loop itself runs, on one thread of a machine that must be idle, with clocks around its parts. Steps are
timed over a few seconds; curve points, a checkpoint and the final evaluation, which a run has a fixed number of, are
timed each and put together for a whole run: of the budget at which a compute grid has that size in the middle of its
sizes, or of --budget FLOPs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from eqscale.arms import Arm, Size, TokenCounts, get_arm
from eqscale.arms.recipe import BATCH
from eqscale.console import make_console
from eqscale.study.grid import data_spec, design_run, expected_batch
from eqscale.study.job import prepare_data
from eqscale.study.presets import COMPUTE_GRIDS
from eqscale.tasks import Samples, Task, get_task
from eqscale.tasks.dataset import open_split
from eqscale.training import loop
from eqscale.training.group import Group
from eqscale.training.order import DataOrder
from eqscale.training.spec import RunSpec

PARTS = ("data", "gradient", "optimiser", "logging", "evaluation", "other")
_WARM_UP = 10
_CHECKPOINT_EVERY = 30.0  # seconds, as in the loop


class Stopwatch:
    """Seconds by part; a part inside another one is not counted twice."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open = ["other"]
        self._since = time.perf_counter()

    def _turn(self) -> None:
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def timed(self, name: str, function: Callable) -> Callable:
        """The function, counted as ``name``."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self._open.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self._turn()
                self._open.pop()

        return wrapper

    def items(self, name: str, source: Iterator) -> Iterator:
        """The items, the making of which counts as ``name``."""
        return iter(self.timed(name, functools.partial(next, source, None)), None)

    def stop(self) -> dict[str, float]:
        """Seconds so far."""
        self._turn()
        return dict(self.seconds)


@contextlib.contextmanager
def clocks(watch: Stopwatch, trainer: loop._Trainer) -> Iterator[None]:
    """Put clocks around the parts of the training loop, and take them away again."""
    places = [
        (trainer, "elements", "data: augmentation"),
        (loop, "transform", "data: augmentation"),
        (loop, "prepared", "data: inputs"),
        (loop, "add_gradient", "gradient"),
        (loop, "clip_gradients", "optimiser: clipping"),
        (trainer.optimizer, "step", "optimiser"),
        (trainer, "_read_losses", "logging"),
        (trainer, "_add_curve_point", "curve point"),
    ]
    before = [(owner, name, owner.__dict__.get(name)) for owner, name, _ in places]
    batches = loop.batches
    for owner, name, part in places:
        setattr(owner, name, watch.timed(part, getattr(owner, name)))
    loop.batches = lambda *args, **options: watch.items("data", batches(*args, **options))  # type: ignore[assignment]
    try:
        yield
    finally:
        loop.batches = batches
        for owner, name, function in before:
            if function is None:
                delattr(owner, name)
            else:
                setattr(owner, name, function)


def nearest(arm: Arm, task: Task, parameters: float) -> Size:
    """Rung of the ladder closest to a number of parameters."""
    return min(arm.ladder, key=lambda size: abs(math.log(arm.parameters(size, task) / parameters)))


def central_budget(arm: Arm, size: Size, task: Task, batch: TokenCounts) -> float:
    """FLOPs for which the size is the guessed optimum, to one digit."""
    return float(f"{(arm.executed_flops(size, task, batch) / batch.tokens / arm.optimal_cost) ** 2:.0e}")


@dataclasses.dataclass(frozen=True)
class Profile:
    """Seconds of one arm at one size."""

    arm: str
    size: str
    parameters: int
    batch_size: int
    steps_timed: int
    budget: float
    steps: int
    """Of a run of the budget."""
    step: dict[str, float]
    """Seconds of a step by part."""
    curve_point: float
    checkpoint: float
    evaluation: float
    """The final one."""
    parts: dict[str, float]
    """Seconds of a whole run by ``PARTS``."""

    @property
    def share(self) -> dict[str, float]:
        """Share of the run by part."""
        total = sum(self.parts.values())
        return {name: value / total for name, value in self.parts.items()}


def evaluation_seconds(trainer: loop._Trainer) -> float:
    """Of the final evaluation, from a sixth of its systems and the whole equivariance error."""
    spec, task, samples = trainer.spec, trainer.task, trainer.test_samples
    systems = max(1, spec.test_systems // 6)
    chosen = loop.evaluation_indices(samples, systems, spec.test_samples_per_system)
    begin = time.perf_counter()
    task.evaluate(trainer._predict, samples, chosen)
    middle = time.perf_counter()
    task.equivariance(trainer._predict, samples, loop.symmetry_indices(samples, spec.test_systems))
    return (middle - begin) * spec.test_systems / systems + time.perf_counter() - middle


def profile(arm: Arm, size: Size, samples: tuple[Samples, Samples], spec: RunSpec, seconds: float) -> Profile:
    """Train for about ``seconds``, and put a whole run together from the parts."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = loop._Trainer(spec, *samples, Path(folder), lambda point: None, lambda step: None, None, Group())
        begin = time.perf_counter()
        trainer.spec = dataclasses.replace(spec, steps=_WARM_UP)
        trainer.curve_steps = {_WARM_UP}
        trainer.run()
        per_step = (time.perf_counter() - begin) / _WARM_UP
        timed = max(20, round(seconds / per_step))
        trainer.spec = dataclasses.replace(spec, steps=_WARM_UP + timed)
        trainer.curve_steps = {_WARM_UP + timed}
        watch = Stopwatch()
        with clocks(watch, trainer):
            trainer.run()
            found = watch.stop()
        curve_point = found.pop("curve point")
        begin = time.perf_counter()
        trainer._save()
        checkpoint = time.perf_counter() - begin
        evaluation = evaluation_seconds(trainer)
    step = {name: value / timed for name, value in sorted(found.items())}
    parts = {
        part: spec.steps * sum(value for name, value in step.items() if name.split(":")[0] == part) for part in PARTS
    }
    checkpoints = sum(parts.values()) // _CHECKPOINT_EVERY
    parts["logging"] += loop.CURVE_POINTS * curve_point + checkpoints * checkpoint
    parts["evaluation"] = evaluation
    return Profile(
        arm=arm.name,
        size=str(size),
        parameters=arm.parameters(size, trainer.task),
        batch_size=spec.batch_size,
        steps_timed=timed,
        budget=spec.budget,
        steps=spec.steps,
        step=step,
        curve_point=curve_point,
        checkpoint=checkpoint,
        evaluation=evaluation,
        parts=parts,
    )


def print_profiles(profiles: list[Profile]) -> None:
    """Print the shares of a run as a Markdown table, and the costs that the shares are made of."""
    print("\nPer cent of the time of a run\n")
    columns = ["arm", "size", "N", "FLOPs", "batch", "steps", "run s", *PARTS]
    print(f"| {' | '.join(columns)} | gradient + optimiser |")
    print("| --- " * (1 + len(columns)) + "|")
    for p in profiles:
        share = p.share
        core = share["gradient"] + share["optimiser"]
        shares = " | ".join(f"{100 * share[part]:.1f}" for part in PARTS)
        seconds = sum(p.parts.values())
        print(
            f"| {p.arm} | {p.size} | {p.parameters:,} | {p.budget:.0e} | {p.batch_size} | {p.steps:,} | "
            f"{seconds:.0f} | {shares} | {100 * core:.1f} |"
        )
    names = sorted({name for p in profiles for name in p.step})
    print("\nMilliseconds: of a step by part, and of what a run has a fixed number of\n")
    print(f"| arm | N | {' | '.join(names)} | curve point | checkpoint | final evaluation |")
    print("| --- " * (5 + len(names)) + "|")
    for p in profiles:
        cells = " | ".join(f"{1e3 * p.step.get(name, 0):.2f}" for name in names)
        fixed = " | ".join(f"{1e3 * value:.0f}" for value in (p.curve_point, p.checkpoint, p.evaluation))
        print(f"| {p.arm} | {p.parameters:,} | {cells} | {fixed} |")


def padding(samples: Samples, batch_size: int) -> tuple[float, float]:
    """Padded over real, minus one, in one pass over the data: of tokens, and of pairs of tokens."""
    order = DataOrder(samples.tokens, samples.samples_per_system, batch_size, seed=0)
    steps = order.batches_per_epoch
    widths = list(itertools.islice(order.padded_tokens(), steps))
    tokens = [order.tokens[order.batch(step) // samples.samples_per_system] for step in range(steps)]
    real, pairs = sum(int(t.sum()) for t in tokens), sum(int((t**2).sum()) for t in tokens)
    return batch_size * sum(widths) / real - 1, batch_size * sum(w * w for w in widths) / pairs - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=["transformer", "transformer_aug", "transformer_aligned", "gatr"])
    parser.add_argument("--parameters", type=float, nargs="+", default=[3e3, 3e4, 3e5])
    parser.add_argument("--batch-size", type=int, default=0, help="samples in a batch (default: by the arm's recipe)")
    parser.add_argument("--budget", type=float, help="executed FLOPs of every run (default: by size)")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of steps to time (default: 2)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data sets (default: data)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file as well")
    args = parser.parse_args()
    console: Console = make_console()
    torch.set_num_threads(1)
    preset = dataclasses.replace(COMPUTE_GRIDS["quick"], batch_size=args.batch_size)
    data, task = data_spec(preset), get_task(preset.task)
    prepare_data(data, args.data, console)
    samples = open_split(data, args.data, "train"), open_split(data, args.data, "test")
    batch = expected_batch(preset, args.batch_size or BATCH)
    profiles = []
    for name, parameters in itertools.product(args.arms, args.parameters):
        arm = get_arm(name)
        size = nearest(arm, task, parameters)
        spec = design_run(arm, size, args.budget or central_budget(arm, size, task, batch), preset, seed=0)
        with console.status(f"{name} {size}"):
            profiles.append(profile(arm, size, samples, spec, args.seconds))
    print_profiles(profiles)
    print("\nPadding of a pass over the data, padded over real, minus one\n")
    print("| batch | tokens | pairs |\n| --- | --- | --- |")
    paddings = {count: padding(samples[0], count) for count in (16, 32, 64)}
    for batch_size, (tokens, pairs) in paddings.items():
        print(f"| {batch_size} | {100 * tokens:.1f} % | {100 * pairs:.1f} % |")
    if args.json:
        content = {
            "profiles": [dataclasses.asdict(p) | {"share": p.share} for p in profiles],
            "padding": {size: {"tokens": t, "pairs": p} for size, (t, p) in paddings.items()},
        }
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
