"""What subnormal numbers cost: steps of a trained model with and without flushing them to zero.

    python benchmarks/subnormals.py studies/cpu/weights/RUN_ID.pt --data data

Both kinds of step alternate in one process, on one thread, from the run's final weights and on its own batches; times
are CPU seconds. Freshly initialised networks hold few subnormals: only trained ones show the difference.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from eqscale.cli import run_or_exit
from eqscale.console import make_console
from eqscale.tasks.dataset import open_stored
from eqscale.training.loop import _Trainer, load_trained

_STEPS = 20  # of one kind, before the other takes its turn
_ROUNDS = 3


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
        train, test = (
            open_stored(spec.task, spec.data, args.data, split, systems=systems, **spec.options)
            for split, systems in (("train", spec.train_systems), ("test", spec.test_systems))
        )
        # so low a rate that the weights stay those of the end of the run
        still = dataclasses.replace(spec, steps=10**9, learning_rate=1e-12)
        with tempfile.TemporaryDirectory() as folder:
            trainer = _Trainer(still, train, test, Path(folder))
        trainer.model.load_state_dict(model.state_dict())
        seen = list(itertools.islice(trainer._batches(), _STEPS))
        times: dict[bool, list[float]] = {False: [], True: []}
        for flush in (False, True) * _ROUNDS:
            torch.set_flush_denormal(flush)
            begin = time.process_time()
            for batch in seen:
                trainer._step(batch)
            times[flush].append((time.process_time() - begin) / _STEPS * 1e3)
        kept, flushed = (statistics.median(times[flush]) for flush in (False, True))
        console.print(
            f"{spec.name}, batches of {spec.batch_size}: {kept:.1f} ms a step with subnormals, {flushed:.1f} ms with "
            f"zeros: {kept / flushed:.2f} times"
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_or_exit(main))
