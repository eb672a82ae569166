"""The command line that all tune jobs share."""

from __future__ import annotations

import argparse
import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from eqscale.arguments import ArgumentParser
from eqscale.arms import arm_names, get_arm
from eqscale.errors import InputError
from eqscale.places import STUDIES, check_name, remembered_results
from eqscale.plugins import add_plugin_options, given_files
from eqscale.storage import RemotePath, open_place
from eqscale.study.presets import Preset, overridden
from eqscale.study.trials import Storage
from eqscale.study.watch import SILENT_SECONDS
from eqscale.tasks import Task, get_task
from eqscale.tracking import TRACKING_HELP, tracking_uri
from eqscale.training.optim import get_optimizer, optimizer_names
from eqscale.training.plugins import load_plugins

P = TypeVar("P", bound=Preset, covariant=True)

_MAY_BE_ZERO = ("batch_size", "warmup", "replicate_up_to", "data_seed", "seeds")


@dataclasses.dataclass(frozen=True)
class JobOptions(Generic[P]):
    """The parsed command line of a tune job."""

    preset_name: str
    preset: P
    largest_budgets: dict[str, float]
    """Of each of the job's presets that names budgets: tells which of them a machine can train."""
    study: str
    """Name of the study: its folder under the storage and its MLflow experiment."""
    storage: Storage
    results: Path
    adopt: Path | None
    """Results folder whose published records the study takes over."""
    tracking_uri: str
    address: str | None
    workers: int | None
    devices_per_trial: int | None
    """Most devices of one trial; None: what the policy finds best on GPUs, one on CPU cores."""
    max_seconds: float | None
    silent_seconds: float
    """Least silence after which a trial counts as hanging."""
    checkpoint_seconds: float
    dry_run: bool
    export: Path | None
    """File that receives the runs to go; then it is a dry run."""
    own: dict[str, Any]
    """Values of the job's own options."""


def parse_options(
    description: str,
    presets: Mapping[str, P],
    command: str,
    job: str,
    argv: Sequence[str],
    job_options: argparse.ArgumentParser | None = None,
) -> JobOptions[P]:
    """Parse the command line that all tune jobs share.

    Args:
        description: text of ``--help``.
        presets: the job's presets; the first is the default, and each of their values has an option.
        command: name of the job in ``eqscale run``.
        job: suffix of the study's name, so that several jobs of one study lie side by side; the results get a
            subfolder of this name.
        argv: the words after that name.
        job_options: options that only this job has, none required.

    Raises:
        InputError: for an unknown preset, a file that can't be imported, or an impossible value.
    """
    first, _ = _first_parser(presets).parse_known_args(argv)
    if first.preset not in presets:
        raise InputError(f"unknown preset {first.preset!r}; choose from {', '.join(presets)}")
    load_plugins(given_files(first))
    task = get_task(first.task or presets[first.preset].task)
    args = _parser(description, presets, command, job, task, job_options).parse_args(argv)
    preset = overridden(presets[args.preset], _given(args, presets[args.preset], task))
    _check_preset(preset)
    _check_engine(args)
    own = task.name == presets[args.preset].task
    name = args.study or (args.preset if own else f"{task.name}-{args.preset}")
    check_name(name)
    study = f"{name}-{job}" if job else name
    studies = open_place(args.storage)
    default_results = remembered_results(studies / study) or Path("results") / name / job
    default_data = str(studies / "data") if isinstance(studies, RemotePath) else "data"
    return JobOptions(
        preset_name=args.preset,
        preset=preset,
        largest_budgets={n: max(p.budgets) for n, p in presets.items() if hasattr(p, "budgets")},
        study=study,
        storage=Storage(studies / study, open_place(args.data or default_data)),
        results=args.results or default_results,
        adopt=args.adopt,
        tracking_uri=tracking_uri(args.tracking_uri),
        address=args.address,
        workers=args.workers,
        devices_per_trial=args.devices_per_trial,
        max_seconds=args.max_hours * 3600 if args.max_hours else None,
        silent_seconds=args.hang_minutes * 60,
        checkpoint_seconds=args.checkpoint_seconds,
        dry_run=args.dry_run or args.export is not None,
        export=args.export,
        own={name: getattr(args, name) for name in vars(job_options.parse_args([]))} if job_options else {},
    )


def _first_parser(presets: Mapping[str, Preset]) -> ArgumentParser:
    """Preset, files and task: the other options depend on them."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    default = next(iter(presets))
    help_text = f"what to run: {', '.join(presets)} (default: {default})"
    parser.add_argument("--preset", default=default, help=help_text)
    parser.add_argument("--task", metavar="NAME", help="task to train on (default: the preset's)")
    add_plugin_options(parser)
    return parser


def _parser(
    description: str,
    presets: Mapping[str, Preset],
    command: str,
    job: str,
    task: Task,
    own: argparse.ArgumentParser | None,
) -> ArgumentParser:
    lines = ["arms:", *(f"  {name:<22} {get_arm(name).description}" for name in arm_names()), "", "optimisers:"]
    lines += [f"  {name:<22} {get_optimizer(name).description}" for name in optimizer_names()]
    parser = ArgumentParser(
        prog=f"eqscale run {command}",
        description=description,
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # as of the first parser: both must read a word alike
        parents=[_first_parser(presets), *([own] if own else [])],
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop before anything is spent")
    help_text = "write the runs that are still to be trained to a plan for eqscale train, and stop"
    parser.add_argument("--export", type=Path, metavar="FILE", help=help_text)
    _add_places(parser, job)
    _add_engine(parser)
    group = parser.add_argument_group("preset values", "each overrides the preset's value")
    first = next(iter(presets.values()))
    types = typing.get_type_hints(type(first))
    for field in _flagged(first):
        values = ", ".join(f"{name}: {_show(getattr(p, field.name))}" for name, p in presets.items())
        item, *rest = typing.get_args(types[field.name]) or (types[field.name],)  # tuple[T, ...]: several values
        help_text = f"{field.metadata['help']} ({values})"
        group.add_argument(_flag(field.name), type=item, nargs="+" if rest else None, metavar="VALUE", help=help_text)
    group = parser.add_argument_group(f"options of task {task.name}", task.words.sentence)
    for option in task.options:
        help_text = f"{option.help} (default: {option.default})"
        try:
            group.add_argument(_flag(option.name), metavar="VALUE", help=help_text, dest=option.name)
        except argparse.ArgumentError as error:
            raise InputError(
                f"task {task.name!r}: option {option.name!r} has the name of an option of every job"
            ) from error
    return parser


def _flagged(preset: Preset) -> list[dataclasses.Field]:
    """The values of a preset that have an option of their own."""
    return [field for field in dataclasses.fields(preset) if field.name not in ("task", "task_options")]


def _add_places(parser: argparse.ArgumentParser, job: str) -> None:
    add = parser.add_argument_group("where things live").add_argument
    add(
        "--study",
        help="name of the study (default: the preset's, after that of another task); the same name continues it",
    )
    help_text = "folder of studies that every node sees, or a URI: s3://bucket/path, gs://… (default: studies)"
    add("--storage", default=STUDIES, help=help_text)
    add("--data", help="folder or URI of data sets (default: data, or under --storage if that is a URI)")
    default = Path("results") / "STUDY" / job
    help_text = f"folder of table, figures and report (default: the study's so far, or else {default})"
    add("--results", type=Path, help=help_text)
    help_text = (
        "take over the published runs of a results folder, e.g. results/cpu; from another than --results, those planned"
    )
    add("--adopt", type=Path, metavar="FOLDER", help=help_text)
    add("--tracking-uri", help=TRACKING_HELP)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("engine").add_argument
    add("--address", help="Ray cluster to use, e.g. auto (default: start Ray on this machine)")
    add("--workers", type=int, help="trials side by side on this machine (default: all cores)")
    help_text = (
        "most GPUs (without any: cores) of a node that one planned trial may use; which trials get several follows "
        "from the estimated times (default: all GPUs of a node, or one core)"
    )
    add("--devices-per-trial", type=int, metavar="N", help=help_text)
    add("--max-hours", type=float, help="stop after this time; the same command continues")
    help_text = "time between two checkpoints of a trial, the most that a kill costs (default: %(default)g)"
    add("--checkpoint-seconds", type=float, default=30.0, help=help_text)
    help_text = (
        "kill and retry a trial without a sign of life for this long, or for a tenth of its estimated time if that "
        "is more (default: %(default)g)"
    )
    add("--hang-minutes", type=float, default=SILENT_SECONDS / 60, help=help_text)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _given(args: argparse.Namespace, preset: Preset, task: Task) -> dict[str, Any]:
    """The values of a preset that the command line overrides."""
    given = {field.name: value for field in _flagged(preset) if (value := getattr(args, field.name)) is not None}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    options = dict(preset.task_options) if task.name == preset.task else {}
    options |= {o.name: o.parse(text) for o in task.options if (text := getattr(args, o.name)) is not None}
    task.check_options(options)
    return given | {"task": task.name, "task_options": tuple(options.items())}


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(_show(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_engine(args: argparse.Namespace) -> None:
    for name in ("workers", "devices_per_trial"):
        if (count := getattr(args, name)) is not None and count < 1:
            raise InputError(f"{_flag(name)} must be at least 1, not {count}")
    if args.workers is not None and args.address is not None:
        raise InputError("--workers is for this machine; a cluster named by --address has its own: give one")
    for name in ("max_hours", "hang_minutes", "checkpoint_seconds"):
        if (value := getattr(args, name)) is not None and not value > 0:
            raise InputError(f"{_flag(name)} must be positive, not {value:g}")
    if args.checkpoint_seconds > args.hang_minutes * 30:
        raise InputError(
            f"--checkpoint-seconds {args.checkpoint_seconds:g} is more than half of --hang-minutes "
            f"{args.hang_minutes:g}: a checkpoint is a trial's sign of life, and without one it counts as hanging"
        )


def _check_preset(preset: Preset) -> None:
    for name in preset.arms:
        get_arm(name)
    if preset.optimizer:
        get_optimizer(preset.optimizer)
    for field in _flagged(preset):
        value = getattr(preset, field.name)
        values = value if isinstance(value, tuple) else (value,)
        for number in (value for value in values if not isinstance(value, str)):
            _check_number(field.name, number)
        if not values and field.default is dataclasses.MISSING:
            raise InputError(f"{_flag(field.name)} needs at least one value")
        if len(set(values)) < len(values):
            raise InputError(f"{_flag(field.name)} names a value twice: {_show(value)}")


def _check_number(name: str, number: float) -> None:
    if not (number > 0 or (number == 0 and name in _MAY_BE_ZERO)):
        least = "must not be negative" if name in _MAY_BE_ZERO else "must be positive"
        raise InputError(f"{_flag(name)} {least}, not {number:g}")
    if math.isinf(number) and name != "replicate_up_to":
        raise InputError(f"{_flag(name)} must be finite")
