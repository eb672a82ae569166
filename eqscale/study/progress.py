"""One live display for a study: how many runs are done, running and failed, and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column, Table

from eqscale.arms import get_arm
from eqscale.numbers import number
from eqscale.study.estimate import Estimator
from eqscale.study.grid import expected_batch
from eqscale.study.presets import Preset
from eqscale.study.schedule import Allotment, wall_seconds
from eqscale.tasks import get_task
from eqscale.training.spec import CurvePoint, RunRecord, RunSpec


def human_time(seconds: float) -> str:
    """Seconds as 42 s, 7 min 30 s, or 3 h 5 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def plan_table(specs: Sequence[RunSpec], preset: Preset, seconds: Callable[[RunSpec], float], done: set[str]) -> Table:
    """The plan of a study: one row per run, before anything is spent."""
    numbers = ("budget", "seed", "params", "width", "depth", "steps", "batch", "l. rate", "tokens", "epochs")
    columns = [Column(heading, justify="right", no_wrap=True) for heading in (*numbers, "est. time")]
    table = Table(Column("arm", no_wrap=True), *columns, title=f"{len(specs)} runs", title_justify="left")
    previous = None
    for spec in specs:
        if previous is not None and (spec.arm, spec.budget) != previous:
            table.add_section()
        previous = (spec.arm, spec.budget)
        task, size = get_task(spec.task), spec.size
        tokens = spec.steps * expected_batch(preset, spec.batch_size).tokens
        epochs = spec.steps * spec.batch_size / (spec.train_systems * task.samples_per_system)
        parameters = get_arm(spec.arm).parameters(size, task)
        shape = (str(spec.seed), f"{parameters:,}", str(size.width), str(size.depth), f"{spec.steps:,}")
        schedule = (str(spec.batch_size), f"{spec.learning_rate:.2g}", number(tokens, 3), f"{epochs:.2g}")
        time_left = "done" if spec.run_id in done else human_time(seconds(spec))
        table.add_row(spec.arm, number(spec.budget, 3), *shape, *schedule, time_left)
    return table


QUIET_SECONDS = 600.0
"""Elsewhere than on a terminal, work that goes on is named when nothing has been said for so long."""


class StudyProgress:
    """Live on a terminal; elsewhere a line per ended run, and one about the running trials now and then."""

    def __init__(
        self, planned: Sequence[Allotment], estimate: Estimator, workers: int, console: Console, unknown: int = 0
    ) -> None:
        """Show the given runs, and ``unknown`` more that are still to be chosen.

        ``estimate`` may improve while the study runs.
        """
        self._estimate, self._unknown = estimate, unknown
        self._waiting = {allotment.spec.run_id: allotment.spec for allotment in planned}
        self._seen = set(self._waiting)
        self._devices = {a.spec.run_id: int(a.devices) for a in planned if a.devices > 1}
        self._used: dict[str, float] = {}  # device-seconds behind the running trials
        self._left: dict[str, float] = {}
        self._spent = self._wall = self._share = 0.0
        self._workers, self._console = max(1, workers), console
        self._done = self._failed = 0
        self._total = len(planned) + unknown
        self._running: dict[str, TaskID] = {}
        self._begin = self._said = time.monotonic()
        bar = BarColumn(bar_width=30)
        self._overall = Progress(TextColumn("{task.description}"), bar, TextColumn("{task.percentage:3.0f} %"))
        self._trials = Progress(TextColumn("  {task.description:<36}"), bar, TextColumn("{task.fields[note]}"))
        self._all = self._overall.add_task("", total=1)
        self._live = Live(Group(self._overall, self._trials), console=console, refresh_per_second=4)

    def __enter__(self) -> StudyProgress:
        if self._console.is_terminal:
            self._live.start()
        self._refresh()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def _refresh(self) -> None:
        left = self._left | {run_id: self._seconds(spec) for run_id, spec in self._waiting.items()}
        # A trial on several devices keeps each of them for its whole time.
        known = [seconds for run_id, seconds in left.items() for _ in range(self._devices.get(run_id, 1))]
        spent = self._spent + sum(self._used.values())
        ended = max(1, self._done + self._failed)
        mean = sum(known) / len(known) if known else spent / ended
        known += [mean] * self._unknown
        self._wall = wall_seconds(known, self._workers)
        failed = f", [red]{self._failed} failed[/red]" if self._failed else ""
        text = f"{self._done} of {self._total} runs done, {len(self._running)} running{failed}, "
        self._share = max(self._share, spent / max(spent + sum(known), 1e-9))  # a better estimate takes nothing back
        self._overall.update(
            self._all, description=text + f"about {human_time(self._wall)} left", completed=self._share
        )

    def _seconds(self, spec: RunSpec) -> float:
        return self._estimate(spec, self._devices.get(spec.run_id, 1))

    def started(self, spec: RunSpec) -> None:
        """A trial begins."""
        if spec.run_id not in self._seen:
            self._seen.add(spec.run_id)
            self._unknown -= 1
        if spec.run_id not in self._running:
            self._running[spec.run_id] = self._trials.add_task(spec.name, total=spec.steps, note="")
        self._waiting.pop(spec.run_id, None)
        self._left[spec.run_id] = self._seconds(spec)
        self._refresh()

    def point(self, spec: RunSpec, point: CurvePoint) -> None:
        """A trial reports."""
        if spec.run_id in self._running:
            note = f"train {point.train_loss:.3f}  test {point.test_nmse:.3f}"
            self._trials.update(self._running[spec.run_id], completed=point.step, note=note)
        self._used[spec.run_id] = point.seconds
        devices = self._devices.get(spec.run_id, 1)
        self._left[spec.run_id] = self._estimate.left(spec, point.step, point.seconds, devices)
        self._refresh()
        if not self._console.is_terminal and time.monotonic() - self._said >= QUIET_SECONDS:
            trials = (f"{t.description} {t.percentage:.0f} %  {t.fields['note']}" for t in self._trials.tasks)
            self._line("; ".join(trials))

    def ended(self, spec: RunSpec, record: RunRecord) -> None:
        """A trial has ended with a record."""
        self._drop(spec)
        self._done += 1
        self._spent += record.seconds + record.evaluation_seconds
        result = f"loss {record.loss:.4f}" if record.status == "finished" else f"[red]{record.status}[/red]"
        notes = "".join(f"; [yellow]{escape(note)}[/yellow]" for note in record.notes)
        self._line(f"{spec.name:<36} {result}  {human_time(record.seconds)}{notes}")

    def retried(self, spec: RunSpec, error: str) -> None:
        """A trial has failed and will go on from its last checkpoint."""
        self._stop(spec)
        self._line(f"{spec.name:<36} [yellow]will be retried[/yellow]: {escape(error)}")

    def pruned(self, spec: RunSpec) -> None:
        """A trial has been given up."""
        self._drop(spec)
        self._done += 1
        self._line(f"{spec.name:<36} [dim]pruned[/dim]")

    def failed(self, spec: RunSpec, error: str) -> None:
        """A trial has failed for good."""
        self._drop(spec)
        self._failed += 1
        self._line(f"{spec.name:<36} [red]failed[/red]: {escape(error)}")

    def stopping(self) -> None:
        """The study is to stop, which takes seconds."""
        self._console.print(
            "stopping: what has been trained stays, and the same command continues; Ctrl-C again: at once"
        )

    def _drop(self, spec: RunSpec) -> None:
        for seconds in (self._waiting, self._left, self._used):
            seconds.pop(spec.run_id, None)
        self._stop(spec)

    def _stop(self, spec: RunSpec) -> None:
        if spec.run_id in self._running:
            self._trials.remove_task(self._running.pop(spec.run_id))

    def _line(self, text: str) -> None:
        self._refresh()
        self._said = time.monotonic()
        counter = f"[{self._done + self._failed:>{len(str(self._total))}}/{self._total}]"
        passed = f"[dim]{human_time(time.monotonic() - self._begin):>12}[/dim]"
        log = not self._console.is_terminal  # there one event is one line, however long
        left = f"[dim], about {human_time(self._wall)} left[/dim]" if log else ""
        self._console.print(f"{passed} {counter} {text}{left}", highlight=False, soft_wrap=log)
