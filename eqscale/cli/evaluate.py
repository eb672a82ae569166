"""``eqscale evaluate``: every metric of the task for the final weights of a run."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqscale.cli.plugins import load_plugins
from eqscale.plugins import add_plugin_options

if TYPE_CHECKING:
    from rich.table import Table

    from eqscale.measure.evaluation import Assessment
    from eqscale.tasks import Task
    from eqscale.training.spec import RunSpec


def register(subparsers) -> None:
    """Add the verb ``evaluate``."""
    parser = subparsers.add_parser(
        "evaluate",
        help="print every metric of the task for the final weights of a run",
        description="Evaluate final weights on the run's test samples: the error with its standard error, the task's "
        "own metrics, the equivariance error |f(gx) - g f(x)| / |f(x)|, and rollouts. Predicting zero is shown for "
        "comparison.",
        epilog="Examples: eqscale evaluate studies/quick/weights/RUN_ID.pt; "
        "eqscale evaluate studies/quick/weights/RUN_ID.pt --view frame=random --average 8 --json metrics.json",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="final weights of a run")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data sets (default: data)")
    parser.add_argument(
        "--view",
        nargs="+",
        metavar="NAME=VALUE",
        help="options of the task under which to look at the test samples, each a column (default: the run's own, and "
        "the task's variant if it has one)",
    )
    parser.add_argument(
        "--average",
        type=int,
        default=1,
        metavar="K",
        help="also average predictions over K elements of the symmetry group (default: 1, no averaging)",
    )
    parser.add_argument(
        "--rollout",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="length of the rollouts, where the task has them; 0 for none (default: 1)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file as well")
    add_plugin_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print, and write the JSON file if one is asked for."""
    from eqscale.console import make_console
    from eqscale.errors import InputError
    from eqscale.measure.evaluation import assess, evaluation_content, open_test, predictor, zero
    from eqscale.tasks import get_task
    from eqscale.training.loop import load_trained

    load_plugins(args)
    if args.average < 1:
        raise InputError(f"--average {args.average}: must be at least 1 (1: no averaging)")
    if args.json is not None and not args.json.parent.is_dir():
        raise InputError(f"--json {args.json}: there is no folder {str(args.json.parent)!r}")
    spec, model = load_trained(args.checkpoint)
    task = get_task(spec.task)
    try:
        opened = [open_test(spec, args.data, view) for view in _views(args.view, task, spec)]
    except InputError as error:
        raise InputError(
            f"{error}; checkpoint {str(args.checkpoint)!r} was tested on them: name their folder with --data"
        ) from error

    console = make_console()
    columns = []
    for samples in opened:
        contestants = [("zero", zero, 1), ("model", predictor(model), 1)]
        if args.average > 1:
            contestants.append((f"model, mean of {args.average}", predictor(model), args.average))
        for name, predict, average in contestants:
            with console.status(name):
                columns.append((name, assess(predict, spec, samples, average, args.rollout)))
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    console.print(
        f"{spec.name}: {parameters:,} parameters, trained for {spec.steps:,} steps on {spec.train_systems:,} "
        f"{task.words.unit.many}; data {spec.data[:12]}",
        highlight=False,
    )
    console.print(_errors(columns, task, spec))
    if columns[0][1].rollout is not None:
        console.print(_rollouts(columns, task))
    if args.json is not None:
        content = evaluation_content(args.checkpoint, spec, columns)
        args.json.write_text(json.dumps(content, indent=1) + "\n")
        console.print(f"written: {args.json}", highlight=False)
    return 0


def _views(words: Sequence[str] | None, task: Task, spec: RunSpec) -> list[dict[str, Any]]:
    from eqscale.errors import InputError

    if words is None:
        own = spec.options
        return [own] if not task.variant or {**own, **task.variant} == own else [own, {**own, **task.variant}]
    kinds = {option.name: type(option.default) for option in task.options if not option.of_data}
    views = []
    for word in words:
        name, _, value = word.partition("=")
        if name not in kinds:
            raise InputError(f"--view {word}: write NAME=VALUE, with a name of {', '.join(kinds) or 'none here'}")
        views.append({name: kinds[name](value)})
    return views


def _table(title: str, columns: Sequence[tuple[str, Assessment]], *leading: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for name in leading:
        table.add_column(name)
    for name, assessment in columns:
        view = ", ".join(f"{key} {value}" for key, value in assessment.view.items())
        table.add_column(f"{view}\n{name}".strip(), justify="right")
    return table


def _errors(columns: Sequence[tuple[str, Assessment]], task: Task, spec: RunSpec) -> Table:
    words = task.words
    samples = spec.test_systems * spec.test_samples_per_system
    title = f"{samples:,} test {words.sample.many} of {spec.test_systems:,} {words.unit.many}"
    table = _table(title, columns, "error")

    def row(label: str, value: Callable[[Assessment], str], end_section: bool = False) -> None:
        table.add_row(label, *(value(assessment) for _, assessment in columns), end_section=end_section)

    def error(name: str) -> Callable[[Assessment], str]:
        return lambda a: f"{a.errors[name]:.4g}"

    row(f"NMSE ({words.trivial} = 1)", lambda a: f"{a.errors['nmse']:.4f}")
    row(f"  standard error over {words.unit.many}", lambda a: f"± {a.errors['nmse_se']:.4f}")
    for metric in task.metrics:
        if metric.name in columns[0][1].errors:
            row(words.metrics.get(metric.name, metric.name), error(metric.name))
    table.add_section()
    table.add_row("equivariance error (relative)")

    def symmetry(name: str, form: str) -> Callable[[Assessment], str]:
        return lambda a: "-" if math.isnan(value := a.equivariance[name]) else format(value, form)

    share = "equivariance_loss_share"
    for name in columns[0][1].equivariance:
        if name != share:
            row(f"  {name.removeprefix('equivariance_')}", symmetry(name, ".2g"))
    row("share of the loss that full averaging removes", symmetry(share, ".2%"))
    return table


def _rollouts(columns: Sequence[tuple[str, Assessment]], task: Task) -> Table:
    rollouts = [assessment.rollout for _, assessment in columns if assessment.rollout is not None]
    table = _table("rollouts; rms error, and its growth since the first step", columns, "error", "after")
    for name, label in task.words.rollout.items():
        values = [rollout[name] for rollout in rollouts]
        times = rollouts[0]["time_s"]
        for k, time in enumerate(times):
            cells = [f"{value[k]:.3g}  x {value[k] / value[0]:.1f}" for value in values]
            last = k == len(times) - 1
            table.add_row(label if k == 0 else "", f"{time:.3g} s", *cells, end_section=last)
    return table
