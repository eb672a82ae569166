"""What all tune jobs share: data, plan, trials, table, tracking."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eqscale.console import doing, make_console
from eqscale.cores import allowed_cores
from eqscale.description import description_path, read_description
from eqscale.errors import InputError
from eqscale.numbers import number
from eqscale.places import remember_results
from eqscale.storage import check_writable, remove_folder, write_atomically
from eqscale.study import progress, shared_data
from eqscale.study.alone import Planned, write_plan
from eqscale.study.estimate import Estimator, device_guess
from eqscale.study.grid import data_spec
from eqscale.study.lease import StillOurs, only_driver
from eqscale.study.options import JobOptions
from eqscale.study.preflight import check_devices
from eqscale.study.presets import Preset
from eqscale.study.progress import StudyProgress, human_time, plan_table
from eqscale.study.records import PublishedRecords, read_records, write_records
from eqscale.study.schedule import Cluster, longest_first, plan, run_list
from eqscale.study.table import is_outdated, run_table, write_table
from eqscale.study.trials import Devices, StudyEvents, TrialSource
from eqscale.study.watch import silence_limit
from eqscale.tasks import get_task
from eqscale.tasks.dataset import DataSpec, left_out, prepare
from eqscale.tracking import tracking_uri
from eqscale.training.spec import CurvePoint, RunSpec

if TYPE_CHECKING:
    from eqscale.study.tracking import Tracker  # MLflow takes seconds to import, which a wrong option needn't wait for

PUBLISH_SECONDS = 120.0
"""While trials run, table and records of the results folder are at most about this much behind the ledger."""


def _git_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def prepare_data(data: DataSpec, root: Path, console: Console, backend: str = "processes") -> None:
    """Generate what is missing of a data set, with a progress bar; see ``eqscale.tasks.dataset.prepare``.

    Elsewhere than on a terminal, a line says every ``QUIET_SECONDS`` how much is done.
    """
    many, said = get_task(data.task).words.unit.many, time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal said
        bar.update(task, completed=done, total=total)
        if not console.is_terminal and time.monotonic() - said >= progress.QUIET_SECONDS:
            said = time.monotonic()
            console.print(f"prepared {done:,} of {total:,} {many}", highlight=False)

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"preparing {many}", total=None)
        folder = prepare(data, root, backend=backend, progress=show)
    if reasons := left_out(folder):
        counts = ", ".join(f"{count} by {reason}" for reason, count in reasons.items())
        console.print(f"attempts at {many} left out: {counts}", highlight=False)


class OpenStudy:
    """An open study: this driver alone trains its trials, keeps its ledger and writes its MLflow runs."""

    def __init__(
        self,
        options: JobOptions[Preset],
        tracker: Tracker,
        console: Console,
        resources: contextlib.ExitStack,
        still_ours: StillOurs,
    ) -> None:
        self.options, self.tracker, self.console, self._resources = options, tracker, console, resources
        self._still_ours = still_ours
        self._ray: Devices | None = None
        self.ledger = options.storage.ledger
        self.complete = False
        """Set by the job once every run has ended; until then the study's MLflow run counts as killed."""
        self.stage_seconds: dict[str, float] = {}
        self._failed: set[str] = set()
        self._begin = time.monotonic()

    def train(
        self,
        trials: Sequence[RunSpec] | TrialSource,
        stage: str = "training",
        publish: Callable[[], None] = lambda: None,
    ) -> None:
        """Make the data, then train trials until all have ended or the time is up.

        Args:
            trials: runs without a record, in any order, or a source that chooses them.
            stage: name of the stage in ``study.json``.
            publish: writes what has ended so far; called every few minutes while runs end.
        """
        if not len(trials):
            return
        from eqscale import native
        from eqscale.study.backend import gpu_names, ray_session, run_trials, smallest_share

        options, estimate = self.options, Estimator(ended=self.ledger.records())
        known, source = (trials, None) if isinstance(trials, Sequence) else ((), trials)
        # Ray first: an address that doesn't answer, or a lack of GPUs, must show before data are made.
        if self._ray is None:  # once for all rounds of a search: to start it takes seconds
            with doing(self.console, "starting Ray"):
                self._ray = self._resources.enter_context(ray_session(options.address, options.workers))
        devices = self._ray
        if not devices.gpus and options.address is None:
            native.load()  # here, and not in the workers only, whose output nobody reads
        estimate.assume(device_guess(gpu_names()))
        check_devices(known, estimate, devices.cpus, devices.gpus, options.largest_budgets)
        data = data_spec(options.preset)
        with self._timed("data"):
            prepare_data(data, shared_data.fetch(data, options.storage.data), self.console, backend="ray")
            shared_data.publish(data, options.storage.data)
        with self._timed(stage):
            # A run too large for the GPUs must show before any starts.
            smallest = smallest_share(data, devices.gpus)
            largest = options.devices_per_trial or (devices.per_node if devices.gpus else 1)
            planned = plan(known, estimate, devices.cluster, smallest=smallest, largest=largest)
            planned_devices = {allotment.spec.run_id: allotment.devices for allotment in planned}
            workers, chosen = devices.gpus or devices.cpus, len(trials) - len(known)

            def silence(spec: RunSpec) -> float:
                return silence_limit(estimate(spec, planned_devices.get(spec.run_id, 1.0)), options.silent_seconds)

            with StudyProgress(planned, estimate, workers, self.console, chosen) as display:
                run_trials(
                    planned if source is None else source,
                    data,
                    options.storage,
                    self._events(display, estimate, source, _NowAndThen(publish)),
                    smallest=smallest,
                    gpus=devices.gpus,
                    silence=silence,
                    checkpoint_seconds=options.checkpoint_seconds,
                    max_seconds=self.seconds_left(),
                )

    def _events(
        self, display: StudyProgress, estimate: Estimator, source: TrialSource | None, publication: _NowAndThen
    ) -> StudyEvents:
        def started(spec: RunSpec) -> None:
            display.started(spec)
            self.tracker.run_started(spec)

        def point(spec: RunSpec, point: CurvePoint) -> None:
            display.point(spec, point)
            self.tracker.point(spec.run_id, point)
            publication.look()

        def ended(spec: RunSpec) -> None:
            record = self.ledger.read(spec.run_id)
            estimate.add(record)
            display.ended(spec, record)
            self.tracker.run_ended(record)
            publication.due = True
            publication.look()
            if source is not None:
                source.tell(spec, record)

        def pruned(spec: RunSpec) -> None:
            remove_folder(self.options.storage.checkpoints(spec.run_id))
            display.pruned(spec)
            self.tracker.run_pruned(spec)
            assert source is not None
            source.tell(spec, None)

        def failed(spec: RunSpec, error: str) -> None:
            self._failed.add(spec.run_id)
            with contextlib.suppress(OSError):  # a full disk: without a note the run is just not done
                self.ledger.write_failure(spec, error)
            display.failed(spec, error)
            self.tracker.run_failed(spec, error)
            publication.due = True

        return StudyEvents(started, point, ended, display.retried, failed, pruned, display.stopping, self._still_ours)

    def seconds_left(self) -> float | None:
        """Time that ``--max-hours`` leaves, at least one second; None without a limit."""
        limit = self.options.max_seconds
        return None if limit is None else max(1.0, limit - (time.monotonic() - self._begin))

    def missing(self, specs: Sequence[RunSpec]) -> list[RunSpec]:
        """The runs without a record that didn't fail since this driver started; earlier failures are tried again."""
        return [s for s in specs if s.run_id not in self.ledger and s.run_id not in self._failed]

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + time.monotonic() - begin

    def describe(self, specs: Iterable[RunSpec]) -> None:
        """Write ``study.json``: what was asked for, and the wall time of each stage when it last ran; ``task.json``."""
        options, path = self.options, description_path(self.options.results)
        earlier = (read_description(options.results) or {}).get("stage_seconds", {})
        measured = {name: round(seconds, 1) for name, seconds in self.stage_seconds.items()}
        content = {
            "study": options.study,
            "preset": options.preset_name,
            "values": dataclasses.asdict(options.preset),
            "stage_seconds": earlier | measured,
            "runs": sorted(spec.run_id for spec in specs),
        }
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
        words = dataclasses.asdict(get_task(options.preset.task).words)
        text = json.dumps(words, indent=1, ensure_ascii=False) + "\n"
        write_atomically(path.with_name("task.json"), text.encode())

    def publish(self, specs: Sequence[RunSpec]) -> pd.DataFrame:
        """Write run table, records and ``study.json`` as the ledger has them now, and MLflow's lines; the table."""
        self._still_ours()
        records = self.ledger.sound()
        table = run_table(specs, self.ledger, records=records)
        write_table(table, self.options.results)
        write_records(self.ledger, self.options.results, records)
        self.describe(specs)
        self.tracker.draw(table)
        return table

    def track(self, specs: Iterable[RunSpec]) -> None:
        """Bring MLflow up to date with the ledger, mark what is outdated, and attach the results."""
        self._still_ours()
        data = {data_spec(self.options.preset).digest}
        records, planned = self.ledger.records(), {spec.run_id for spec in specs}
        self.tracker.mark_outdated(r.run_id for r in records if is_outdated(r, data))
        self.tracker.sync(r for r in records if r.run_id in planned)
        self.tracker.artifacts(self.options.results)


class _NowAndThen:
    """Publishes what is due now and then, so that it takes no more than a twentieth of the time."""

    def __init__(self, publish: Callable[[], None]) -> None:
        self._publish = publish
        self._next = time.monotonic() + PUBLISH_SECONDS
        self.due = False

    def look(self) -> None:
        begin = time.monotonic()
        if not self.due or begin < self._next:
            return
        with contextlib.suppress(OSError):  # a full disk: the ledger has it, and the end of the job tries again
            self._publish()
            self.due = False
        now = time.monotonic()
        self._next = now + max(PUBLISH_SECONDS, 20 * (now - begin))


@contextlib.contextmanager
def open_study(
    options: JobOptions[Preset], console: Console, planned: Collection[str] | None = None
) -> Iterator[OpenStudy]:
    """Open a study for this driver; close its MLflow runs, and Ray if it was started, however the job ends.

    ``planned`` holds the identities of its runs, if they are known beforehand: of another study no others are adopted.

    Raises InputError before any compute is spent, for folders or addresses that can't be used, a damaged record, or if
    another driver runs the study.
    """
    check_writable(options.results, "results folder")
    check_writable(options.storage.study, "study folder")
    check_writable(options.storage.data, "data folder")
    with only_driver(options.storage.study) as still_ours, contextlib.ExitStack() as resources:
        options.storage.ledger.sound()
        if (published := adoptable(options, planned)) is not None:
            adopted = published.adopt(options.storage.ledger, still_ours)
            console.print(
                f"adopted {adopted} records from {published.path}; to train these runs anew, start a study of another "
                "name without --adopt",
                markup=False,
            )
        options.storage.sweep()
        remember_results(options.storage.study, options.results)
        tags = {
            "study": options.study,
            "preset": options.preset_name,
            "git_commit": _git_commit(),
            "data": data_spec(options.preset).digest,
        }
        with doing(console, "opening MLflow"):
            from eqscale.study.tracking import Tracker

            tracker = Tracker(options.tracking_uri, f"eqscale-{options.study}", tags)
        study = OpenStudy(options, tracker, console, resources, still_ours)
        try:
            yield study
        except KeyboardInterrupt:
            console.print("stopping: the same command continues")
            raise
        finally:
            status: str | None = "FINISHED" if study.complete else "KILLED"
            try:
                still_ours()
            except (InputError, OSError):  # another driver's runs mustn't be ended
                status = None
            tracker.close(status)
        if tracker.outages:
            console.print(f"MLflow stopped answering {tracker.outages} times; trials were not held up")
        if tracker.errors:
            console.print(f"[yellow]{len(tracker.errors)} writes to MLflow failed[/yellow]; the next start mends them")
        console.print(f"results: {options.results}")
        elsewhere = "" if options.tracking_uri == tracking_uri() else ", with the same --tracking-uri"
        console.print(f"compare the runs: eqscale ui{elsewhere}")


def adoptable(options: JobOptions[Preset], planned: Collection[str] | None = None) -> PublishedRecords | None:
    """What ``--adopt`` names, None without it; of another results folder than the study's own, the runs planned.

    Raises:
        InputError: it holds no record, or the results folder has records of another study, which would be overwritten.
    """
    published = None
    if options.adopt is not None:
        published = read_records(options.adopt).require_sound()
        if not published.records:
            raise InputError(f"--adopt {options.adopt}: no record of the present results version in {published.path}")
    there = read_records(options.results).require_sound()
    if published is not None and planned is not None and published.path.resolve() != there.path.resolve():
        published = published.only(planned)
    ledger = options.storage.ledger
    replaced = [record.spec.version for run_id, record in there.outdated.items() if run_id not in ledger]
    if replaced and not options.dry_run:
        raise InputError(
            f"{there.path} holds {len(replaced)} runs of results version {max(replaced)}, which this code can't "
            "continue and would replace: name another folder with --results, or another study with --study"
        )
    known = published.records.keys() if published is not None else set()
    foreign = there.missing(ledger).keys() - known
    if foreign and not options.dry_run:
        raise InputError(
            f"{there.path} holds {len(foreign)} runs that study {options.study!r} doesn't have: --adopt "
            f"{options.results} takes them over, --study NAME trains anew under another name"
        )
    return published


def run_study(specs: list[RunSpec], options: JobOptions[Preset], publish: Callable[[pd.DataFrame], object]) -> int:
    """Run the planned trials that have no record yet, then publish; returns the exit code.

    Args:
        specs: the runs of the study.
        options: where and how.
        publish: writes fits, figures and report from the run table into ``options.results``.

    Raises:
        InputError: before any compute is spent, for folders, addresses or budgets that can't work.
    """
    console = make_console()
    todo = _todo(specs, options, console)
    if options.export is not None:
        write_plan(options.export, [Planned(spec, data_spec(options.preset)) for spec in todo])
        console.print(f"{options.export}: {len(todo)} runs for eqscale train", markup=False)
    if options.dry_run:
        return 0
    with open_study(options, console, {spec.run_id for spec in specs}) as study:
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
            console.print(f"[yellow]stopped with {len(missing)} runs to go[/yellow]: the same command continues")
            return 130
    return 1 if options.storage.ledger.failures().keys() & {spec.run_id for spec in specs} else 0


def _todo(specs: Sequence[RunSpec], options: JobOptions[Preset], console: Console) -> list[RunSpec]:
    """The runs without a record, longest first; prints the plan."""
    ledger = options.storage.ledger
    published = adoptable(options, {spec.run_id for spec in specs})
    elsewhere = published.missing(ledger) if published is not None else {}  # adopted once the study is open
    done = {spec.run_id for spec in specs if spec.run_id in ledger or spec.run_id in elsewhere}
    estimate = Estimator(ended=(elsewhere.get(run_id) or ledger.read(run_id) for run_id in done))
    todo = longest_first([spec for spec in specs if spec.run_id not in done], estimate)
    console.print(plan_table(specs, options.preset, estimate, done))
    console.print(f"the whole plan: {_cost(specs, estimate)}")
    console.print(f"done: {_cost([spec for spec in specs if spec.run_id in done], estimate)}")
    if not todo:
        console.print(f"all {len(specs)} runs are done: nothing to train")
        return []
    workers = options.workers or allowed_cores()
    cluster = Cluster(workers, workers)
    planned = plan(todo, estimate, cluster, largest=options.devices_per_trial or 1)
    wall = max(placement.end for placement in run_list(planned, estimate, cluster))
    data, task = data_spec(options.preset), get_task(options.preset.task)
    making = task.system_seconds * shared_data.missing_systems(data, options.storage.data) / workers
    first = f", {human_time(making)} of it for {task.words.unit.many}" if making >= 1 else ""
    on = f"{workers} worker{'s' if workers > 1 else ''}"
    console.print(f"{len(done)} runs are done, {len(todo)} to go: about {human_time(wall + making)} on {on}{first}")
    return todo


def _cost(specs: Sequence[RunSpec], estimate: Estimator) -> str:
    """Runs, FLOPs and time on one worker."""
    flops, seconds = sum(spec.budget for spec in specs), sum(map(estimate, specs))
    return f"{len(specs)} runs, {number(flops, 3)} FLOPs, about {human_time(seconds)} of one worker"
