"""``eqscale time``: step times of all shapes of a study in one session, for the axis of seconds."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from eqscale.cli.plugins import load_plugins
from eqscale.errors import InputError
from eqscale.places import RESULTS_HELP, find_results
from eqscale.plugins import add_plugin_options

_HELP = """\
Time a training step of every shape (arm, size, batch size) of a study, and write the times to step_times.csv in the
results folder. eqscale report then takes the axis of seconds from it: steps x time of a step.

The seconds that runs record depend on the machine and on its other load: on shared hardware, two sessions can differ by
half. Here all shapes take turns in one process on one thread, three rounds each, and the median counts. Run it on an
otherwise idle machine that has the study's data, once the last run has ended.

    eqscale time results/cpu && eqscale report results/cpu
"""


def register(verbs: argparse._SubParsersAction) -> None:
    """Add the verb ``time``."""
    parser = verbs.add_parser(
        "time",
        help="time a step of every shape of a study in one session, for the axis of seconds",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", help=RESULTS_HELP)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data sets (default: data)")
    help_text = "how long to time a shape in each round, at least 20 steps (default: 1.5)"
    parser.add_argument("--seconds", type=float, default=1.5, metavar="S", help=help_text)
    add_plugin_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    import torch
    from rich.progress import Progress

    from eqscale.console import make_console
    from eqscale.measure.step_times import ROUNDS, open_shapes, time_shapes
    from eqscale.report.parts import PARTS, part_folder, read_study
    from eqscale.report.step_times import FILE
    from eqscale.storage import write_atomically
    from eqscale.study.records import read_records

    load_plugins(args)
    if not 0 < args.seconds < math.inf:
        raise InputError(f"--seconds must be positive and finite, not {args.seconds:g}")
    folder = find_results(args.folder)
    runs = read_study(folder).runs
    wanted = set(runs.loc[runs["status"] == "finished"].get("run_id", ()))
    specs = []
    for part in PARTS:
        published = read_records(part_folder(folder, part))
        published.require_sound()
        specs += [record.spec for run_id, record in published.records.items() if run_id in wanted]
    if not specs:
        raise InputError(f"{str(folder)!r} holds no records.jsonl with runs of the current results version")
    shapes = open_shapes(specs, args.data)
    torch.set_num_threads(1)  # as trials do
    with Progress(console=make_console()) as progress:
        task = progress.add_task(f"timing {len(shapes)} shapes", total=ROUNDS * len(shapes))
        table = time_shapes(shapes, args.seconds, lambda: progress.advance(task))
    path = folder / FILE
    write_atomically(path, table.to_csv(index=False).encode())
    print(f"written: {path} ({len(table)} shapes, median spread over rounds {table['spread'].median():.1%})")
    return 0
