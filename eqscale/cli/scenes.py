"""``eqscale scenes``: look at a system of a task, or at a prediction."""

from __future__ import annotations

import argparse
from pathlib import Path

from eqscale.arguments import ArgumentParser
from eqscale.cli.plugins import load_plugins
from eqscale.errors import InputError
from eqscale.plugins import add_plugin_options

_HELP = """\
Make one system of a task and write a picture of it or, given a checkpoint, a test system's truth beside the model's
prediction. A task adds options of its own: eqscale scenes --task NAME --help lists them."""


def register(subparsers) -> None:
    """Add the verb ``scenes``."""
    parser = subparsers.add_parser("scenes", help="look at a system of a task, or at a prediction", add_help=False)
    parser.add_argument("--task", default="rigid", help="the task (default: rigid)")
    add_plugin_options(parser)
    parser.set_defaults(run=run, takes_rest=True)


def _parser(args: argparse.Namespace) -> ArgumentParser:
    from eqscale.tasks import get_task

    task = get_task(args.task)
    parser = ArgumentParser(
        prog="eqscale scenes",
        description=_HELP,
        epilog="Examples: eqscale scenes --family M --seed 3 --out scene.gif; "
        "eqscale scenes --checkpoint studies/quick/weights/RUN_ID.pt --index 7",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the data (default: 0)")
    parser.add_argument("--index", type=int, default=0, help="which system of the split (default: 0)")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="final weights of a run")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data sets (default: data)")
    parser.add_argument("--out", type=Path, help="file to write")
    group = parser.add_argument_group(f"options of task {task.name}")
    for option in (*task.options, *task.look_options):
        flag, help_text = f"--{option.name.replace('_', '-')}", f"{option.help} (default: {option.default})"
        group.add_argument(flag, metavar="VALUE", help=help_text, dest=option.name)
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the picture and say where."""
    from eqscale.measure.evaluation import open_test
    from eqscale.tasks import get_task
    from eqscale.training.loop import load_trained

    load_plugins(args)
    wanted = _parser(args).parse_args(args.rest)
    for name in ("seed", "index"):
        if getattr(wanted, name) < 0:
            raise InputError(f"--{name} {getattr(wanted, name)}: must be at least 0")
    if wanted.checkpoint is None:
        task, words = get_task(args.task), vars(wanted)
        given = {
            option.name: option.default if words[option.name] is None else option.parse(words[option.name])
            for option in (*task.options, *task.look_options)
        }
        options = given | task.check_options({option.name: given[option.name] for option in task.options})
        print(task.look(options, wanted.seed, wanted.index, wanted.out))
        return 0
    spec, model = load_trained(wanted.checkpoint)
    samples, out = open_test(spec, wanted.data), wanted.out or Path(f"{spec.name}-{wanted.index}.gif")
    print(f"wrote {get_task(spec.task).look_at_prediction(model, samples, wanted.index, out, spec.name)}")
    return 0
