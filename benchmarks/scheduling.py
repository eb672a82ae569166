"""What the engine itself costs: time between trials, and core-seconds outside them, on a study of uneven trials.

    python benchmarks/scheduling.py                 # about five minutes on two cores

Runs a real study (Ray Tune, ledger, MLflow on SQLite) of one arm at many small budgets, so that trials take about
1 to 15 seconds, and prints a Markdown table. A trial counts from the moment in which its worker takes it up until
its record is in the ledger: reading data, building the network, training, evaluating, writing. Everything else of
the workers' time between the first trial's start and the last one's end is the engine's. Starting Ray and
simulating the scenes come before and are reported apart.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console

from eqscale.study import backend
from eqscale.study.estimate import Estimator
from eqscale.study.grid import compute_grid
from eqscale.study.job import open_study
from eqscale.study.options import parse_options
from eqscale.study.presets import COMPUTE_GRIDS
from eqscale.study.schedule import longest_first, wall_seconds
from eqscale.study.table import run_table

BUDGETS = ("3e9", "5e9", "8e9", "1.2e10", "2e10", "3e10", "4e10")


@dataclasses.dataclass(frozen=True)
class Span:
    """One trial on one worker: wall-clock times, and the CPU seconds of its process within them."""

    process: int
    begin: float
    end: float
    cpu: float


def recorded(folder: Path):
    """The engine's trial function, which also writes when it ran, and on how much CPU."""

    def run(config: dict) -> None:
        from eqscale.study.backend import _trial

        process = psutil.Process()
        begin, cpu = time.time(), sum(process.cpu_times()[:2])
        _trial(config)
        span = Span(process.pid, begin, time.time(), sum(process.cpu_times()[:2]) - cpu)
        (folder / f"{process.pid}-{begin:.6f}.json").write_text(json.dumps(dataclasses.asdict(span)))

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--budgets", nargs="+", default=BUDGETS, help="training budgets in FLOPs")
    parser.add_argument("--data", type=Path, help="folder of data sets, if the scenes of preset quick exist")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="eqscale-scheduling-") as folder:
        measure(Path(folder), args)


def measure(folder: Path, args: argparse.Namespace) -> None:
    spans_folder = folder / "spans"
    spans_folder.mkdir()
    words = ["--budgets", *args.budgets, "--arms", "transformer", "gatr", "--sizes-per-budget", "3"]
    words += ["--min-steps", "10", "--workers", str(args.workers), "--study", "scheduling"]
    words += ["--storage", str(folder / "studies"), "--results", str(folder / "results")]
    words += ["--data", str(args.data or folder / "data"), "--tracking-uri", f"sqlite:///{folder}/mlruns.db"]
    options = parse_options("", COMPUTE_GRIDS, command="grid", job="", argv=words)
    specs = compute_grid(options.preset)
    estimate = Estimator()
    backend._trial = recorded(spans_folder)
    begin, cpu = time.time(), sum(os.times()[:2])
    with open_study(options, Console(file=sys.stderr, width=140)) as study:
        study.train(longest_first(specs, estimate))
        trained, driver_cpu = time.time(), sum(os.times()[:2]) - cpu
        missing = study.missing(specs)
        table = run_table(specs, study.ledger)
        study.complete = not missing
    spans = [Span(**json.loads(path.read_text())) for path in spans_folder.glob("*.json")]
    if missing or len(spans) != len(specs):
        sys.exit(f"error: {len(spans)} trials ran of {len(specs)} planned; {len(missing)} have no record")
    report(spans, table, args.workers, begin, trained, driver_cpu)


def report(spans: list[Span], table, workers: int, begin: float, trained: float, driver_cpu: float) -> None:
    first, last = min(s.begin for s in spans), max(s.end for s in spans)
    inside = sum(s.end - s.begin for s in spans)
    paid = workers * (last - first)
    gaps = []
    ends = []
    for process in {s.process for s in spans}:
        own = sorted((s for s in spans if s.process == process), key=lambda s: s.begin)
        gaps += [later.begin - earlier.end for earlier, later in itertools.pairwise(own)]
        ends.append(last - own[-1].end)
    lengths = sorted(s.end - s.begin for s in spans)
    training = float(table["seconds"].sum() + table["evaluation_seconds"].sum())
    in_order = [s.end - s.begin for s in sorted(spans, key=lambda s: s.begin)]
    bound = max(wall_seconds(sorted(lengths, reverse=True), workers), sum(lengths) / workers)
    rows = [
        ("trials, workers", f"{len(spans)}, {workers} ({len({s.process for s in spans})} processes)"),
        ("a trial takes", f"{lengths[0]:.1f} to {lengths[-1]:.1f} s, median {statistics.median(lengths):.1f} s"),
        ("first trial's start to last one's end", f"{last - first:.1f} s"),
        ("worker-seconds inside trials", f"{inside / paid:.1%} of {paid:.0f}"),
        ("worker-seconds in training and evaluation loops", f"{training / paid:.1%}"),
        ("between two trials on a worker", f"median {statistics.median(gaps):.2f} s, largest {max(gaps):.2f} s"),
        ("in a trial, outside its loops", f"mean {(inside - training) / len(spans):.2f} s"),
        ("idle at the end, while the last trial runs", f"{sum(ends):.1f} worker-seconds"),
        ("wall time over the same trials run back to back, longest first", f"{(last - first) / bound:.3f}"),
        ("... and in the order in which they started", f"{(last - first) / wall_seconds(in_order, workers):.3f}"),
        ("before the first trial (data, Ray)", f"{first - begin:.1f} s"),
        ("after the last one", f"{trained - last:.1f} s"),
        ("CPU of the trials over their wall time", f"{sum(s.cpu for s in spans) / inside:.2f}"),
        ("CPU of the driver, MLflow thread included", f"{driver_cpu:.1f} s, {driver_cpu / len(spans):.2f} s a trial"),
    ]
    print("| quantity | measured |\n| --- | --- |")
    for name, value in rows:
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
