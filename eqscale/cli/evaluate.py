"""``eqscale evaluate``: every metric of the task for the final weights of a run."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqscale.cli.plugins import load_plugins
from eqscale.errors import InputError
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
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="final weights of a run")
    add("--data", type=Path, default=Path("data"), help="folder of data sets (default: data)")
    help_text = (
        "options of the task under which to look at the test samples, one column for each (default: those of the run "
        "and the task's variant, if it has one)"
    )
    add("--view", nargs="+", metavar="NAME=VALUE", help=help_text)
    help_text = "also average predictions over K elements of the symmetry group (default: 1, no averaging)"
    add("--average", type=int, default=1, metavar="K", help=help_text)
    help_text = "length of the rollouts, if the task has them; 0 for none (default: 1)"
    add("--rollout", type=float, default=1.0, metavar="SECONDS", help=help_text)
    add("--json", type=Path, metavar="FILE", help="write the numbers to this file as well")
    add_plugin_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print, and write the JSON file if one is asked for."""
    from eqscale.console import make_console
    from eqscale.measure.evaluation import assess, open_test, predictor, write_evaluation, zero
    from eqscale.storage import check_outputs
    from eqscale.tasks import get_task
    from eqscale.training.loop import load_trained

    load_plugins(args)
    if args.average < 1:
        raise InputError(f"--average {args.average}: must be at least 1 (1: no averaging)")
    check_outputs(args.json)
    spec, model = load_trained(args.checkpoint)
    task = get_task(spec.task)
    views = _views(args.view, task, spec)
    try:
        opened = [open_test(spec, args.data, **view) for view in views]
    except InputError as error:
        raise InputError(
            f"{error}; checkpoint {str(args.checkpoint)!r} was tested on them: name their folder with --data"
        ) from error

    console = make_console()
    contestants = [("zero", zero, 1), ("model", predictor(model), 1)]
    if args.average > 1:
        contestants.append((f"model, mean of {args.average}", predictor(model), args.average))
    columns = []
    for samples in opened:
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
        write_evaluation(args.json, args.checkpoint, spec, columns)
        console.print(f"written: {args.json}", highlight=False)
    return 0


def _views(words: Sequence[str] | None, task: Task, spec: RunSpec) -> list[dict[str, Any]]:
    if words is None:
        own = spec.options
        varied = {**own, **(task.variant or {})}
        return [own] if varied == own else [own, varied]
    options = {option.name: option for option in task.options if not option.of_data}
    views = []
    for word in words:
        name, _, value = word.partition("=")
        if name not in options:
            raise InputError(f"--view {word}: write NAME=VALUE, with a name of {', '.join(options) or 'none here'}")
        views.append({name: options[name].parse(value)})
    return views


def _table(title: str, columns: Sequence[tuple[str, Assessment]], *leading: str) -> Table:
    from rich.table import Table

    table = Table(*leading, title=title, title_justify="left", title_style="bold")
    for name, assessment in columns:
        view = ", ".join(f"{key} {value}" for key, value in assessment.view.items())
        table.add_column(f"{view}\n{name}".strip(), justify="right")
    return table


def _errors(columns: Sequence[tuple[str, Assessment]], task: Task, spec: RunSpec) -> Table:
    words = task.words
    samples = spec.test_systems * spec.test_samples_per_system
    title = f"{samples:,} test {words.sample.many} of {spec.test_systems:,} {words.unit.many}"
    table = _table(title, columns, "error")

    def row(label: str, name: str, form: str) -> None:
        values = [(a.errors | a.equivariance)[name] for _, a in columns]
        table.add_row(label, *("-" if math.isnan(value) else form.format(value) for value in values))

    row(f"NMSE ({words.trivial} = 1)", "nmse", "{:.4f}")
    row(f"  standard error over {words.unit.many}", "nmse_se", "± {:.4f}")
    for metric in task.metrics:
        if metric.name in columns[0][1].errors:
            row(words.metrics.get(metric.name, metric.name), metric.name, "{:.4g}")
    table.add_section()
    table.add_row("equivariance error (relative)")
    share = "equivariance_loss_share"
    for name in columns[0][1].equivariance:
        if name != share:
            row(f"  {name.removeprefix('equivariance_')}", name, "{:.2g}")
    found = (assessment.asymmetry for _, assessment in columns)
    shares = (f"{100 * a['share']:.2g} ± {100 * a['share_se']:.2g} %" if a else "-" for a in found)
    table.add_row("share of the loss that full averaging removes", *shares)
    return table


def _rollouts(columns: Sequence[tuple[str, Assessment]], task: Task) -> Table:
    rollouts = [assessment.rollout for _, assessment in columns if assessment.rollout is not None]
    table = _table("rollouts; rms error, and its growth since the first step", columns, "error", "after")
    for name, label in task.words.rollout.items():
        for k, time in enumerate(rollouts[0]["time_s"]):
            cells = [f"{rollout[name][k]:.3g}  x {rollout[name][k] / rollout[name][0]:.1f}" for rollout in rollouts]
            table.add_row(label if k == 0 else "", f"{time:.3g} s", *cells)
        table.add_section()
    return table
