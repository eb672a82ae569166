"""What subnormal numbers cost: steps of a trained model with and without flushing them to zero.

    python benchmarks/subnormals.py studies/cpu/weights/RUN_ID.pt --data data

Both kinds of step alternate in one process, on one thread, from the run's final weights and on its own batches; times
are CPU seconds. Freshly initialised networks hold few subnormals: only trained ones show the difference.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

from eqscale.cli import run_or_exit
from eqscale.console import make_console
from eqscale.tasks import Batch, Prepared
from eqscale.tasks.dataset import open_stored
from eqscale.tasks.loader import batches
from eqscale.training.loop import accumulate_gradient, load_trained, prepared
from eqscale.training.optim import get_optimizer
from eqscale.training.order import DataOrder

_STEPS = 20  # of one kind, before the other takes its turn
_ROUNDS = 3


def _prepared(model: nn.Module, batch: Batch, steps: range) -> Batch | Prepared:
    return prepared(model, batch)


def main() -> int:
    """Time both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="+", help="final weights of runs")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = make_console()
    for path in args.weights:
        spec, model = load_trained(path)
        model.train()
        samples = open_stored(spec.task, spec.data, args.data, "train", systems=spec.train_systems, **spec.options)
        order = DataOrder(samples.tokens, samples.samples_per_system, spec.batch_size, spec.seed)
        source = batches(samples, order.batch, range(10**9), prepare=functools.partial(_prepared, model))
        optimizer = get_optimizer(spec.optimizer).build(model, spec.learning_rate, spec.weight_decay)
        parameters = list(model.parameters())
        for group in optimizer.param_groups:
            group["lr"] = 0.0  # the weights stay those of the end of the run
        times: dict[bool, list[float]] = {False: [], True: []}
        for flush in (False, True) * _ROUNDS:
            torch.set_flush_denormal(flush)
            begin = time.process_time()
            for batch in itertools.islice(source, _STEPS):
                optimizer.zero_grad()
                accumulate_gradient(model, batch, spec.batch_size, spec.batch_size)
                nn.utils.clip_grad_norm_(parameters, spec.clip)
                optimizer.step()
            times[flush].append((time.process_time() - begin) / _STEPS * 1e3)
        kept, flushed = (statistics.median(times[flush]) for flush in (False, True))
        console.print(
            f"{spec.name}, batches of {spec.batch_size}: {kept:.1f} ms a step with subnormals, {flushed:.1f} ms with "
            f"zeros: {kept / flushed:.2f} times"
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_or_exit(main))
