"""Start a study as a process of its own, disturb it, and compare what it leaves with the undisturbed one."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from mlflow.tracking import MlflowClient

from eqscale.arms import get_arm
from eqscale.study.grid import compute_grid
from eqscale.study.options import JobOptions, parse_options
from eqscale.study.presets import COMPUTE_GRIDS
from eqscale.tasks import get_task
from eqscale.training import checkpoint
from eqscale.training.spec import RunRecord, RunSpec

HERE = Path(__file__).resolve().parent
PATIENCE = 600.0


@dataclasses.dataclass
class Row:
    """One line of the table of faults."""

    fault: str
    times: int
    runs: int
    lost: int
    doubled: int
    mislabelled: int
    different: int
    lost_seconds: float | None
    continue_seconds: float | None
    wall_seconds: float
    note: str = ""


def wait_for(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """The first true value of ``condition``."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise TimeoutError(f"{what} didn't happen within {patience:g} s")


def empty_database(root: Path) -> Path:
    """An MLflow database without runs: to make one takes seconds, to copy it none."""
    path = root / "empty.db"
    if not path.exists():
        MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


def _marks(folder: Path) -> Path:
    """Where the trials of a study leave their marks."""
    return folder / "faults"


def environment(folder: Path) -> dict[str, str]:
    """Variables that the trials of the study in ``folder`` need."""
    return {
        "FAULTS_FOLDER": str(_marks(folder).resolve()),
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
        "PYTHONPATH": str(HERE.parents[1]),
    }


class Study:
    """One study of the scenario: its command, its processes and its files."""

    def __init__(
        self,
        root: Path,
        name: str,
        grid: dict[str, str],
        *,
        options: tuple[str, ...] = (),
        tracking_uri: str | None = None,
        storage: Path | None = None,
        fault: dict[str, str] | None = None,
        keep: bool = False,
    ) -> None:
        self.folder = root / name
        if self.folder.exists() and not keep:
            shutil.rmtree(self.folder)
        self.marks = _marks(self.folder)
        self.marks.mkdir(parents=True, exist_ok=keep)
        self.uri = tracking_uri or f"sqlite:///{self.folder.resolve() / 'mlruns.db'}"
        if tracking_uri is None and not (self.folder / "mlruns.db").exists():
            shutil.copy(empty_database(root), self.folder / "mlruns.db")
        places = {
            "--study": name,
            "--storage": storage or self.folder,
            "--data": root / "data",
            "--results": self.folder / "results",
            "--tracking-uri": self.uri,
            "--arm-file": HERE / "counted_arm.py",
            "--arms": "counted",
            "--checkpoint-seconds": 1,
        }
        if "--address" not in options:
            places["--workers"] = 2
        values = [word for key, value in grid.items() for word in (f"--{key}", *value.split())]
        self.arguments = [*(str(word) for pair in places.items() for word in pair), *values, *options]
        self.options: JobOptions = parse_options("", COMPUTE_GRIDS, command="grid", job="", argv=self.arguments)
        self.specs: list[RunSpec] = compute_grid(self.options.preset)
        self.ledger = self.options.storage.ledger
        self.fault = fault or {}
        self.driver: psutil.Popen | None = None
        self.starts = 0
        self.begin = time.monotonic()
        self._started: list[psutil.Process] = []

    def start(self, *arguments: str, fault: dict[str, str] | None = None) -> psutil.Popen:
        """Start a driver."""
        variables = os.environ | environment(self.folder) | (self.fault if fault is None else fault)
        self.starts += 1
        with (self.folder / "driver.log").open("a") as log:
            command = [sys.executable, str(HERE / "driver.py"), *self.arguments, *arguments]
            self.driver = psutil.Popen(command, env=variables, stdout=log, stderr=log)
        return self.driver

    def finish(self, *, restarts: int = 10) -> int:
        """Wait for the driver; start it again as long as it stops with runs to go. Returns its exit code."""
        assert self.driver is not None
        for _ in range(restarts + 1):
            code = self.driver.wait(PATIENCE * 2)
            if code in (0, 2):
                return code
            self.start()
        return code

    def kill_driver(self) -> None:
        """SIGKILL to the driver; what it leaves behind is remembered for ``clean``."""
        assert self.driver is not None
        self._started += self.driver.children(recursive=True)
        self.driver.kill()
        self.driver.wait()

    def clean(self) -> None:
        """End what this study has left running."""
        if self.driver is not None and self.driver.is_running():
            self.kill_driver()
        for process in self._started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()  # psutil compares the time of creation: never somebody else's process

    def steps(self) -> collections.Counter[tuple[int, int]]:
        """(parameters, pid) -> steps taken so far."""
        found: collections.Counter[tuple[int, int]] = collections.Counter()
        for path in self.marks.glob("steps-*"):
            content = path.read_bytes()
            if len(content) == 8:
                _, parameters, pid = path.name.split("-")
                found[int(parameters), int(pid)] = int(np.frombuffer(content, np.int64)[0])
        return found

    def training(self, seconds: float = 0.5) -> set[int]:
        """Processes that take steps right now."""
        before = self.steps()
        time.sleep(seconds)
        return {pid for (size, pid), count in self.steps().items() if count > before[size, pid]}

    def ended(self) -> bool:
        """Whether the driver has ended."""
        return self.driver is None or self.driver.poll() is not None

    def wait_training(self, exclude: set[int] = frozenset()) -> set[int]:  # type: ignore[assignment]
        """Wait until processes other than the given ones take steps; none if the study ends first."""

        def found() -> set[int]:
            return self.training(0.1) - exclude or ({-1} if self.ended() else set())

        return wait_for(found, "a training step") - {-1}

    def known(self) -> set[int]:
        """All processes that have ever taken a step."""
        return {pid for _, pid in self.steps()}

    def continued(self, known: set[int], begin: float) -> float | None:
        """Seconds from ``begin`` until a new process takes a step; None if the study ended instead."""
        while not self.known() - known:
            if self.ended():
                return None
            time.sleep(0.01)
        return time.monotonic() - begin

    def running(self) -> list[Path]:
        """Checkpoint folders of the runs that have no record yet."""
        folders = (self.options.storage.checkpoints(spec.run_id) for spec in self.specs)
        return [folder for folder in folders if folder.is_dir() and folder.name not in self.ledger]

    def records(self) -> dict[str, RunRecord]:
        return {s.run_id: self.ledger.read(s.run_id) for s in self.specs if s.run_id in self.ledger}

    def row(
        self,
        fault: str,
        times: int,
        reference: Study | None,
        continued: list[float | None],
        *,
        tolerance: float = 0.0,
        counted: bool = True,
        note: str = "",
    ) -> Row:
        """Compare with the undisturbed study."""
        records = self.records()
        wall = time.monotonic() - self.begin
        measured = [seconds for seconds in continued if seconds is not None]
        doubled, wrong = self._tracked(records)
        for run_id, record in records.items():
            wrong |= {run_id} if not run_id == record.run_id == record.spec.run_id else set()
        different = 0
        if reference is not None:
            theirs = reference.records()
            different = sum(not self._same(r, theirs[r.run_id], reference, tolerance) for r in records.values())
        return Row(
            fault=fault,
            times=times,
            runs=len(self.specs),
            lost=len(self.specs) - len(records),
            doubled=doubled,
            mislabelled=len(wrong),
            different=different,
            lost_seconds=self._repeated(records) if counted else None,
            continue_seconds=float(np.median(measured)) if measured else None,
            wall_seconds=wall,
            note=note,
        )

    def _same(self, ours: RunRecord, theirs: RunRecord, reference: Study, tolerance: float) -> bool:
        if tolerance:
            return (
                ours.tokens == theirs.tokens
                and ours.steps_done == theirs.steps_done
                and abs(ours.test["nmse"] / theirs.test["nmse"] - 1) <= tolerance
            )
        return result_of(ours) == result_of(theirs) and same_weights(
            self.options.storage.weights(ours.run_id), reference.options.storage.weights(theirs.run_id)
        )

    def _repeated(self, records: dict[str, RunRecord]) -> float:
        """Seconds of training that had to be done twice: steps taken beyond those of the records."""
        taken: collections.Counter[int] = collections.Counter()
        for (parameters, _), count in self.steps().items():
            taken[parameters] += count
        needed: collections.Counter[int] = collections.Counter()
        spent: collections.Counter[int] = collections.Counter()
        for record in records.values():
            needed[record.parameters] += record.steps_done
            spent[record.parameters] += record.seconds
        return sum(max(0, taken[n] - needed[n]) * spent[n] / needed[n] for n in needed)

    def _tracked(self, records: dict[str, RunRecord]) -> tuple[int, set[str]]:
        """Runs that MLflow has more than once, and those whose entry doesn't agree with the record."""
        client = MlflowClient(tracking_uri=self.uri)
        experiment = client.get_experiment_by_name(f"eqscale-{self.options.study}")
        found = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'", max_results=5000)
        entries = collections.defaultdict(list)
        for run in found:
            if "eqscale.run_id" in run.data.tags:
                entries[run.data.tags["eqscale.run_id"]].append(run)
        wrong = set(entries) - set(records)
        for run_id, record in records.items():
            for run in entries.get(run_id, [None]):
                agrees = (
                    run is not None
                    and run.info.run_name == record.spec.name
                    and run.data.params["seed"] == str(record.spec.seed)
                    and run.data.metrics["test/loss"] == record.test["nmse"]
                )
                wrong |= set() if agrees else {run_id}
        return sum(len(runs) > 1 for runs in entries.values()), wrong


def result_of(record: RunRecord) -> str:
    """All of a record that must not depend on what happened on the way."""
    curve = [(p.step, p.train_loss, p.test_nmse, p.learning_rate) for p in record.curve]
    counts = [record.parameters, record.tokens, record.padded_tokens, record.steps_done, record.flops_executed]
    return json.dumps([record.status, counts, record.test, curve], sort_keys=True)


def same_weights(a: Path, b: Path) -> bool:
    """Whether two files of final weights hold the same bits."""
    ours, theirs = checkpoint.load_file(a), checkpoint.load_file(b)
    if ours is None or theirs is None:
        return False
    return all(torch.equal(ours["model"][name], theirs["model"][name]) for name in theirs["model"])


def parameters_of(specs: list[RunSpec]) -> list[int]:
    """Sizes in the grid, smallest first."""
    return sorted({get_arm(spec.arm).parameters(spec.size, get_task(spec.task)) for spec in specs})


@contextlib.contextmanager
def mlflow_server(database: Path, port: int) -> Iterator[Callable[[str], None]]:
    """A real server on an SQLite file; yields a function that can "kill" and "start" it."""
    import urllib.request

    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{database}", "--host", "127.0.0.1"]
    command += ["--artifacts-destination", str(database.parent / "artifacts")]
    variables = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server: subprocess.Popen | None = None

    def healthy() -> bool:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200
        return False

    def act(what: str) -> None:
        nonlocal server
        if what == "start":
            with (database.parent / "server.log").open("a") as log:
                server = subprocess.Popen(command, env=variables, stdout=log, stderr=log, start_new_session=True)
            wait_for(healthy, "the MLflow server's answer")
        elif server is not None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            server = None

    act("start")
    try:
        yield act
    finally:
        act("kill")


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of that size, mounted on ``folder``; raises PermissionError without the right to mount."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    result = subprocess.run(mount, capture_output=True, text=True)
    if result.returncode:
        raise PermissionError(result.stderr.strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill a file system to its last byte; deleting the file frees it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (2**20, 2**12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    return ballast


@functools.cache
def _columns() -> list[tuple[str, Callable[[Row], str]]]:
    def seconds(value: float | None) -> str:
        return "" if value is None else f"{value:.1f}"

    return [
        ("fault", lambda r: r.fault),
        ("times", lambda r: str(r.times)),
        ("runs", lambda r: str(r.runs)),
        ("lost", lambda r: str(r.lost)),
        ("doubled", lambda r: str(r.doubled)),
        ("mislabelled", lambda r: str(r.mislabelled)),
        ("different", lambda r: str(r.different)),
        ("work done twice, s", lambda r: seconds(r.lost_seconds)),
        ("to continue, s (median)", lambda r: seconds(r.continue_seconds)),
        ("wall, s", lambda r: f"{r.wall_seconds:.0f}"),
        ("remarks", lambda r: r.note),
    ]


def table(rows: list[Row]) -> str:
    """Markdown table of faults."""
    columns = _columns()
    lines = [" | ".join(name for name, _ in columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(cell(row) for _, cell in columns) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
