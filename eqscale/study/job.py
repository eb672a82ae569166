"""What every tune job does around its grid: options, data, plan, trials, table, tracking."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import re
import subprocess
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Generic, TypeVar

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eqscale.console import make_console
from eqscale.errors import InputError
from eqscale.rigid.dataset import DatasetSpec, prepare
from eqscale.rigid.families import family
from eqscale.rigid.windows import HORIZONS
from eqscale.storage import RemotePath, check_writable, open_place, write_atomically
from eqscale.study import shared_data
from eqscale.study.engine import (
    Storage,
    StudyEvents,
    TrialSource,
    gpu_names,
    load_arm_files,
    ray_session,
    run_trials,
    smallest_share,
)
from eqscale.study.estimate import Estimator, device_guess
from eqscale.study.grid import dataset_spec
from eqscale.study.lease import only_driver
from eqscale.study.preflight import check_devices
from eqscale.study.presets import Preset, overridden
from eqscale.study.progress import StudyProgress, human_time, plan_table
from eqscale.study.records import read_records, write_records
from eqscale.study.schedule import Cluster, longest_first, plan, run_list
from eqscale.study.table import is_outdated, run_table, write_table
from eqscale.study.tracking import Tracker, default_tracking_uri, experiment_link
from eqscale.study.watch import SILENT_SECONDS, silence_limit
from eqscale.training.arms import arm_names
from eqscale.training.spec import CurvePoint, RunSpec

P = TypeVar("P", bound=Preset, covariant=True)

PUBLISH_SECONDS = 120.0
"""While trials run, table and records of the results folder are at most about this much behind the ledger."""


@dataclasses.dataclass(frozen=True)
class JobOptions(Generic[P]):
    """What the command line of a tune job says."""

    preset_name: str
    preset: P
    largest_budgets: dict[str, float]
    """Of each of the job's presets: says which of them a machine can train."""
    study: str
    """Name of the study: its folder under the storage and its MLflow experiment."""
    storage: Storage
    results: Path
    tracking_uri: str
    address: str | None
    workers: int | None
    devices_per_trial: int | None
    """Most devices of one trial; None: what the policy finds best on GPUs, one on CPU cores."""
    arm_files: tuple[str, ...]
    max_seconds: float | None
    silent_seconds: float
    """Least silence after which a trial hangs."""
    checkpoint_seconds: float
    dry_run: bool


def parse_options(
    description: str, presets: Mapping[str, P], job: str, argv: Sequence[str] | None = None
) -> JobOptions[P]:
    """Parse the command line that all tune jobs share.

    Args:
        description: text of ``--help``.
        presets: the job's presets; the first is the default, and each of their values has an option.
        job: what the job adds to the name of the study, so that several jobs of one study lie side by side;
            its results are a folder of the study's.
        argv: the words, from ``sys.argv`` if None.

    Raises:
        InputError: for an unknown preset or an arm file that can't be imported.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--preset", default="quick", help=f"what to run: {', '.join(presets)} (default: quick)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan and stop before anything is spent"
    )
    places = parser.add_argument_group("where things live")
    places.add_argument(
        "--study", help="name of the study (default: the preset's); the same name continues it"
    )
    places.add_argument(
        "--storage",
        default="studies",
        help="folder of studies that every node sees, or a URI: s3://bucket/path, gs://… (default: studies)",
    )
    places.add_argument(
        "--data", help="folder or URI of data sets (default: data, or under --storage if that is a URI)"
    )
    places.add_argument(
        "--results",
        type=Path,
        help=f"folder of table, figures and report (default: {Path('results') / 'STUDY' / job})",
    )
    places.add_argument("--tracking-uri", help="MLflow tracking URI (default: sqlite:///mlruns.db)")
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--address", help="Ray cluster to use, e.g. auto (default: start Ray on this machine)"
    )
    engine.add_argument(
        "--workers", type=int, help="trials side by side on this machine (default: all cores)"
    )
    engine.add_argument(
        "--devices-per-trial",
        type=int,
        metavar="N",
        help="most GPUs (without any: cores) of a node that one planned trial may use; which trials get several "
        "follows from the estimated times (default: all GPUs of a node, or one core)",
    )
    engine.add_argument("--max-hours", type=float, help="stop after this time; the same command continues")
    engine.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=30.0,
        help="time between two checkpoints of a trial, the most that a kill costs (default: %(default)g)",
    )
    engine.add_argument(
        "--hang-minutes",
        type=float,
        default=SILENT_SECONDS / 60,
        help="kill and retry a trial without a sign of life for this long, or for a tenth of its estimated time "
        "if that is more (default: %(default)g)",
    )
    engine.add_argument(
        "--arm-file", action="append", default=[], metavar="FILE.py", help="Python file that registers an arm"
    )
    override = parser.add_argument_group("preset values", "each overrides the preset's value")
    kind_of_preset = type(presets["quick"])
    types = typing.get_type_hints(kind_of_preset)
    for field in dataclasses.fields(kind_of_preset):
        flag, kind = f"--{field.name.replace('_', '-')}", types[field.name]
        values = ", ".join(
            f"{name}: {_show(getattr(preset, field.name))}" for name, preset in presets.items()
        )
        text = f"{field.metadata['help']} ({values})"
        if typing.get_origin(kind) is tuple:
            override.add_argument(flag, nargs="+", type=typing.get_args(kind)[0], help=text, metavar="VALUE")
        else:
            override.add_argument(flag, type=kind, help=text, metavar="VALUE")
    args = parser.parse_args(argv)

    if args.preset not in presets:
        raise InputError(f"unknown preset {args.preset!r}; choose from {', '.join(presets)}")
    load_arm_files(args.arm_file)
    given = {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(kind_of_preset)
        if getattr(args, field.name) is not None
    }
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    preset = overridden(presets[args.preset], given)
    _check(preset)
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers must be at least 1, not {args.workers}")
    if args.devices_per_trial is not None and args.devices_per_trial < 1:
        raise InputError(f"--devices-per-trial must be at least 1, not {args.devices_per_trial}")
    if args.workers is not None and args.address is not None:
        raise InputError("--workers is for this machine; a cluster named by --address has its own: give one")
    if args.max_hours is not None and not args.max_hours > 0:
        raise InputError(f"--max-hours must be positive, not {args.max_hours:g}")
    for option in ("hang_minutes", "checkpoint_seconds"):
        if not getattr(args, option) > 0:
            raise InputError(f"--{option.replace('_', '-')} must be positive, not {getattr(args, option):g}")
    if args.checkpoint_seconds > args.hang_minutes * 30:
        raise InputError(
            f"--checkpoint-seconds {args.checkpoint_seconds:g} is more than half of --hang-minutes "
            f"{args.hang_minutes:g}: a checkpoint is a trial's sign of life, and without one it counts as hanging"
        )
    name = args.study or args.preset
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
        raise InputError(f"--study {name!r}: use letters, digits, '.', '_' and '-' only")
    study = f"{name}-{job}" if job else name
    studies = open_place(args.storage)
    default_data = str(studies / "data") if isinstance(studies, RemotePath) else "data"
    return JobOptions(
        preset_name=args.preset,
        preset=preset,
        largest_budgets={name: _largest_budget(other) for name, other in presets.items()},
        study=study,
        storage=Storage(studies / study, open_place(args.data or default_data)),
        results=args.results or Path("results") / name / job,
        tracking_uri=args.tracking_uri or default_tracking_uri(Path.cwd()),
        address=args.address,
        workers=args.workers,
        devices_per_trial=args.devices_per_trial,
        arm_files=tuple(args.arm_file),
        max_seconds=args.max_hours * 3600 if args.max_hours else None,
        silent_seconds=args.hang_minutes * 60,
        checkpoint_seconds=args.checkpoint_seconds,
        dry_run=args.dry_run,
    )


def _largest_budget(preset: Preset) -> float:
    return max(getattr(preset, "budgets", None) or (getattr(preset, "budget"),))  # noqa: B009


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(_show(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check(preset: Preset) -> None:
    for name in preset.arms:
        if name not in arm_names():
            raise InputError(f"unknown arm {name!r}; choose from {', '.join(arm_names())}")
    family(preset.family)
    if preset.frame not in ("random", "upright"):
        raise InputError(f"unknown frame {preset.frame!r}; choose from random, upright")
    if preset.horizon not in HORIZONS:
        raise InputError(
            f"unknown horizon {preset.horizon}; choose from {', '.join(map(str, HORIZONS))} frames"
        )
    may_be_zero = ("batch_size", "warmup", "replicate_up_to", "data_seed", "seeds")
    for field in dataclasses.fields(preset):
        value = getattr(preset, field.name)
        values = value if isinstance(value, tuple) else (value,)
        option = f"--{field.name.replace('_', '-')}"
        for number in values:
            if isinstance(number, str):
                continue
            if not (number > 0 or (number == 0 and field.name in may_be_zero)) or math.isnan(number):
                least = "must not be negative" if field.name in may_be_zero else "must be positive"
                raise InputError(f"{option} {least}, not {number:g}")
            if math.isinf(number) and field.name != "replicate_up_to":
                raise InputError(f"{option} must be finite")
        if not values and field.default is dataclasses.MISSING:
            raise InputError(f"{option} needs at least one value")
        if len(set(values)) < len(values):
            raise InputError(f"{option} names a value twice: {_show(value)}")


def _git_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def prepare_data(data: DatasetSpec, root: Path, console: Console, backend: str = "processes") -> None:
    """Generate what is missing of a data set, with a progress bar; see ``eqscale.rigid.dataset.prepare``."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("preparing scenes", total=None)
        prepare(
            data,
            root,
            backend=backend,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


class OpenStudy:
    """An open study: this driver alone trains its trials, keeps its ledger and writes its MLflow runs."""

    def __init__(self, options: JobOptions[Preset], tracker: Tracker, console: Console) -> None:
        self.options, self.tracker, self.console = options, tracker, console
        self.ledger = options.storage.ledger
        self.complete = False
        """Set by the job once every run has ended; until then the study's MLflow run counts as killed."""
        self.stage_seconds: dict[str, float] = {}
        self._begin = time.monotonic()

    def train(
        self,
        trials: Sequence[RunSpec] | TrialSource,
        stage: str = "training",
        publish: Callable[[], None] = lambda: None,
    ) -> None:
        """Train trials, data first; returns when all have ended or the time is up.

        Args:
            trials: runs without a record, planned by the scheduling policy, or a source that chooses them.
            stage: name of the stage in ``study.json``.
            publish: writes what has ended so far; called every few minutes while runs end.
        """
        if not len(trials):
            return
        options, ledger = self.options, self.ledger
        data = dataset_spec(options.preset)
        source = None if isinstance(trials, Sequence) else trials
        estimate = Estimator(ended=ledger.records())
        with contextlib.ExitStack() as stack:
            # Ray first: an address that doesn't answer, or a lack of GPUs, must show before data are made.
            devices = stack.enter_context(ray_session(options.address, options.workers))
            estimate.assume(device_guess(gpu_names()))
            known = trials if isinstance(trials, Sequence) else []
            check_devices(known, estimate, devices.cpus, devices.gpus, options.largest_budgets)
            begin = time.monotonic()
            prepare_data(data, shared_data.fetch(data, options.storage.data), self.console, backend="ray")
            shared_data.publish(data, options.storage.data)
            self._count("data", begin)
            begin = time.monotonic()
            # A run too large for the GPUs must show before any starts.
            smallest = smallest_share(data, devices.gpus)
            largest = options.devices_per_trial or (devices.per_node if devices.gpus else 1)
            planned = plan(known, estimate, devices.cluster, smallest=smallest, largest=largest)
            gangs = {a.spec.run_id: a.devices for a in planned if a.devices > 1}

            def seconds(spec: RunSpec) -> float:
                return estimate(spec, gangs.get(spec.run_id, 1.0))

            display = stack.enter_context(
                StudyProgress(
                    planned, estimate, devices.gpus or devices.cpus, self.console, len(trials) - len(known)
                )
            )

            publication = _NowAndThen(publish)

            def started(spec: RunSpec) -> None:
                display.started(spec)
                self.tracker.run_started(spec)

            def point(spec: RunSpec, point: CurvePoint) -> None:
                display.point(spec, point)
                self.tracker.point(spec.run_id, point)
                publication.look()

            def ended(spec: RunSpec) -> None:
                record = ledger.read(spec.run_id)
                estimate.add(record)
                display.ended(spec, record)
                self.tracker.run_ended(record)
                publication.due = True
                if source is not None:
                    source.tell(spec, record)

            def pruned(spec: RunSpec) -> None:
                display.pruned(spec)
                self.tracker.run_pruned(spec)
                assert source is not None
                source.tell(spec, None)

            def failed(spec: RunSpec, error: str) -> None:
                with contextlib.suppress(OSError):  # a full disk: without a note the run is just not done
                    ledger.write_failure(spec, error)
                display.failed(spec, error)
                self.tracker.run_failed(spec, error)
                publication.due = True

            run_trials(
                planned if source is None else source,
                data,
                options.storage,
                StudyEvents(started, point, ended, display.retried, failed, pruned),
                smallest=smallest,
                gpus=devices.gpus,
                silence=lambda spec: silence_limit(seconds(spec), options.silent_seconds),
                checkpoint_seconds=options.checkpoint_seconds,
                arm_files=options.arm_files,
                max_seconds=self.seconds_left(),
            )
        self._count(stage, begin)

    def seconds_left(self) -> float | None:
        """Time that ``--max-hours`` leaves, at least one second; None without a limit."""
        limit = self.options.max_seconds
        return None if limit is None else max(1.0, limit - (time.monotonic() - self._begin))

    def missing(self, specs: Sequence[RunSpec]) -> list[RunSpec]:
        """The runs that have neither a record nor a failure."""
        failures = self.ledger.failures()
        return [s for s in specs if s.run_id not in self.ledger and s.run_id not in failures]

    def _count(self, stage: str, begin: float) -> None:
        self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + time.monotonic() - begin

    def describe(self, specs: Iterable[RunSpec]) -> None:
        """Write ``study.json``: what was asked for, and the wall time of each stage when it last ran; ``task.json``."""
        options, path = self.options, self.options.results / "study.json"
        earlier = json.loads(path.read_text())["stage_seconds"] if path.is_file() else {}
        measured = {name: round(seconds, 1) for name, seconds in self.stage_seconds.items()}
        content = {
            "study": options.study,
            "preset": options.preset_name,
            "values": dataclasses.asdict(options.preset),
            "stage_seconds": earlier | measured,
            "runs": sorted(spec.run_id for spec in specs),
        }
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
        wording = resources.files("eqscale.rigid").joinpath("task.json").read_bytes()
        write_atomically(path.with_name("task.json"), wording)

    def publish(self, specs: Sequence[RunSpec]) -> pd.DataFrame:
        """Write run table, records and ``study.json`` as the ledger has them now; returns the table."""
        table = run_table(specs, self.ledger, aside=True)
        write_table(table, self.options.results)
        write_records(self.ledger, self.options.results)
        self.describe(specs)
        return table

    def track(self, specs: Iterable[RunSpec]) -> None:
        """Bring MLflow up to date with the ledger, mark what is outdated, and attach the results."""
        data = {dataset_spec(self.options.preset).digest}
        self.tracker.mark_outdated(r.run_id for r in self.ledger.records() if is_outdated(r, data))
        self.tracker.sync(self.ledger.read(spec.run_id) for spec in specs if spec.run_id in self.ledger)
        self.tracker.artifacts(self.options.results)


class _NowAndThen:
    """Publishes when it is due and the last time is long enough ago: no more than a twentieth of the time."""

    def __init__(self, publish: Callable[[], None]) -> None:
        self._publish = publish
        self._next = time.monotonic() + PUBLISH_SECONDS
        self.due = False

    def look(self) -> None:
        begin = time.monotonic()
        if not self.due or begin < self._next:
            return
        with contextlib.suppress(
            OSError
        ):  # a full disk: the ledger has it, and the end of the job tries again
            self._publish()
            self.due = False
        now = time.monotonic()
        self._next = now + max(PUBLISH_SECONDS, 20 * (now - begin))


@contextlib.contextmanager
def open_study(options: JobOptions[Preset], console: Console) -> Iterator[OpenStudy]:
    """Open a study for this driver, and close its MLflow runs however the job ends.

    Raises:
        InputError: before any compute is spent, for folders or addresses that can't be used, or if another
            driver runs the study.
    """
    check_writable(options.results, "results folder")
    check_writable(options.storage.study, "study folder")
    check_writable(options.storage.data, "data folder")
    with only_driver(options.storage.study):
        published = read_records(options.results)
        published.require_sound()
        if adopted := published.adopt(options.storage.ledger):
            console.print(f"adopted {adopted} records from {published.path}", markup=False)
        options.storage.sweep()
        tags = {
            "study": options.study,
            "preset": options.preset_name,
            "git_commit": _git_commit(),
            "data": dataset_spec(options.preset).digest,
        }
        tracker = Tracker(options.tracking_uri, f"eqscale-{options.study}", tags)
        study = OpenStudy(options, tracker, console)
        try:
            yield study
        finally:
            tracker.close("FINISHED" if study.complete else "KILLED")
        if tracker.outages:
            console.print(f"MLflow stopped answering {tracker.outages} times; trials were not held up")
        if tracker.errors:
            console.print(
                f"[yellow]{len(tracker.errors)} writes to MLflow failed[/yellow]; the next start mends them"
            )
        console.print(f"results: {options.results}")
        console.print(
            f"compare the runs: eqscale ui, then {experiment_link(tracker.uri, tracker.experiment_id)}"
        )


def run_study(
    specs: list[RunSpec],
    options: JobOptions[Preset],
    publish: Callable[[pd.DataFrame], None],
    console: Console | None = None,
) -> int:
    """Run the planned trials that have no record yet, then publish; returns the exit code.

    Args:
        specs: the runs of the study.
        options: where and how.
        publish: writes fits, figures and report from the run table into ``options.results``.
        console: where to print.

    Raises:
        InputError: before any compute is spent, for folders, addresses or budgets that can't work.
    """
    console = console or make_console()
    ledger = options.storage.ledger
    published = read_records(options.results)
    published.require_sound()
    elsewhere = published.missing(ledger)  # which the ledger adopts once the study is open
    done = {spec.run_id for spec in specs if spec.run_id in ledger or spec.run_id in elsewhere}
    estimate = Estimator(ended=(elsewhere.get(run_id) or ledger.read(run_id) for run_id in done))
    todo = longest_first([spec for spec in specs if spec.run_id not in done], estimate)

    console.print(plan_table(specs, options.preset.family, estimate, done))
    workers = options.workers or os.cpu_count() or 1
    if todo:
        cluster, largest = Cluster(workers, workers), options.devices_per_trial or 1
        planned = plan(todo, estimate, cluster, largest=largest)
        wall = max(placement.end for placement in run_list(planned, estimate, cluster))
        console.print(
            f"{len(done)} runs are done, {len(todo)} to go: about {human_time(wall)} on {workers} workers"
        )
    else:
        console.print(f"all {len(specs)} runs are done: nothing to train")
    if options.dry_run:
        return 0

    with open_study(options, console) as study:
        study.train(todo, publish=lambda: study.publish(specs))
        missing = study.missing(specs)
        table = study.publish(specs)
        try:
            publish(table)
        except InputError as error:
            if not missing:
                raise
            console.print(f"no report yet: {error}", markup=False)
        study.track(specs)
        study.complete = not missing
        if missing:
            console.print(
                f"[yellow]stopped with {len(missing)} runs to go[/yellow]: the same command continues"
            )
            return 130
    return 1 if ledger.failures().keys() & {spec.run_id for spec in specs} else 0
