"""One live display for a study: how many runs are done, running and failed, and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from eqscale.rigid.windows import STARTS
from eqscale.study.grid import expected_batch
from eqscale.training.arms import get_arm
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


def plan_table(
    specs: Sequence[RunSpec], family: str, seconds: Callable[[RunSpec], float], done: set[str]
) -> Table:
    """The plan of a study: one row per run, before anything is spent."""
    table = Table(title=f"{len(specs)} runs", title_justify="left")
    for heading in (
        "arm",
        "budget",
        "seed",
        "params",
        "width",
        "depth",
        "steps",
        "batch",
        "l. rate",
        "tokens",
        "epochs",
        "est. time",
    ):
        table.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    previous = None
    for spec in specs:
        if previous is not None and (spec.arm, spec.budget) != previous:
            table.add_section()
        previous = (spec.arm, spec.budget)
        table.add_row(
            spec.arm,
            f"{spec.budget:.3g}",
            str(spec.seed),
            f"{get_arm(spec.arm).parameters(spec.size):,}",
            str(spec.size.width),
            str(spec.size.depth),
            f"{spec.steps:,}",
            str(spec.batch_size),
            f"{spec.learning_rate:.2g}",
            f"{spec.steps * expected_batch(family, spec.batch_size).tokens:.3g}",
            f"{spec.steps * spec.batch_size / (spec.train_scenes * STARTS):.2g}",
            "done" if spec.run_id in done else human_time(seconds(spec)),
        )
    return table


class StudyProgress:
    """Live on a terminal; one line per ended run elsewhere."""

    def __init__(
        self,
        specs: Sequence[RunSpec],
        seconds: Callable[[RunSpec], float],
        workers: int,
        console: Console,
        unknown: int = 0,
    ) -> None:
        """Show the given runs, and ``unknown`` more that are still to be chosen."""
        self._seconds, self._unknown = seconds, unknown
        self._estimate = {spec.run_id: seconds(spec) for spec in specs}
        self._left = dict(self._estimate)
        self._correction = 1.0
        self._spent = self._guessed = 0.0
        self._workers, self._console = max(1, workers), console
        self._done = self._failed = 0
        self._total = len(specs) + unknown
        self._running: dict[str, TaskID] = {}
        self._begin = time.monotonic()
        bar = BarColumn(bar_width=30)
        self._overall = Progress(
            TextColumn("{task.description}"), bar, TextColumn("{task.percentage:3.0f} %")
        )
        self._trials = Progress(
            TextColumn("  {task.description:<36}"), bar, TextColumn("{task.fields[note]}")
        )
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
        known = sum(self._estimate.values())
        guessed = self._unknown * known / max(1, len(self._estimate))
        to_go = sum(self._left.values()) + guessed
        left = to_go * self._correction / self._workers
        if self._left:
            left = max(left, max(self._left.values()) * self._correction)
        failed = f", [red]{self._failed} failed[/red]" if self._failed else ""
        text = f"{self._done} of {self._total} runs done, {len(self._running)} running{failed}, "
        self._overall.update(
            self._all,
            description=text + f"about {human_time(left)} left",
            completed=1 - to_go / max(known + guessed, 1e-9),
        )

    def started(self, spec: RunSpec) -> None:
        """A trial begins."""
        if spec.run_id not in self._estimate:
            self._unknown -= 1
            self._estimate[spec.run_id] = self._left[spec.run_id] = self._seconds(spec)
        if spec.run_id not in self._running:
            self._running[spec.run_id] = self._trials.add_task(spec.name, total=spec.steps, note="")
        self._refresh()

    def point(self, spec: RunSpec, point: CurvePoint) -> None:
        """A trial reports."""
        if spec.run_id in self._running:
            note = f"train {point.train_loss:.3f}  test {point.test_nmse:.3f}"
            self._trials.update(self._running[spec.run_id], completed=point.step, note=note)
        self._left[spec.run_id] = self._estimate[spec.run_id] * (1 - point.step / spec.steps)
        self._refresh()

    def ended(self, spec: RunSpec, record: RunRecord) -> None:
        """A trial has ended with a record."""
        self._drop(spec)
        self._done += 1
        self._spent += record.seconds + record.evaluation_seconds
        self._guessed += self._estimate[spec.run_id]
        self._correction = self._spent / max(self._guessed, 1e-9)
        result = (
            f"NMSE {record.test['nmse']:.4f}"
            if record.status == "finished"
            else f"[red]{record.status}[/red]"
        )
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

    def _drop(self, spec: RunSpec) -> None:
        self._left.pop(spec.run_id, None)
        self._stop(spec)

    def _stop(self, spec: RunSpec) -> None:
        if spec.run_id in self._running:
            self._trials.remove_task(self._running.pop(spec.run_id))

    def _line(self, text: str) -> None:
        self._refresh()
        counter = f"[{self._done + self._failed:>{len(str(self._total))}}/{self._total}]"
        self._console.print(
            f"[dim]{human_time(time.monotonic() - self._begin):>12}[/dim] {counter} {text}", highlight=False
        )
