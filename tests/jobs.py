"""Studies that tests run: in a process of their own, or in this one, with the Ray that tests share."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from eqscale import arms, plugins, tasks
from eqscale.cli import main
from eqscale.laws.forms import FORMS
from eqscale.study import backend
from eqscale.study.backend import ray_session
from eqscale.study.trials import Devices
from eqscale.training import optim

ROOT = Path(__file__).parents[1]
TINY = {
    "preset": "quick",
    "budgets": "3e8 6e8 1.2e9",
    "sizes-per-budget": "3",
    "min-steps": "5",
    "batch-size": "8",
    "train-systems": "24",
    "test-systems": "8",
    "cost-range": "8",
}
TINY_ARGUMENTS = [word for name, values in TINY.items() for word in (f"--{name}", *values.split())]


@dataclasses.dataclass(frozen=True)
class Ended:
    """What a job leaves beside its files; ``subprocess.CompletedProcess`` has the same."""

    returncode: int
    stdout: str
    stderr: str


def run_apart(folder: Path, job: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A job as a user starts it in a folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "eqscale", "run", job, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


class SharedRay:
    """Ray with one core on this machine, started when a test first needs it: to start and end it takes ten seconds."""

    def __init__(self) -> None:
        self._running = contextlib.ExitStack()
        self._devices: Devices | None = None

    @contextlib.contextmanager
    def session(self, address: str | None = None, cpus: int | None = None) -> Iterator[Devices]:
        """What stands for ``backend.ray_session``; Ray goes on running."""
        if self._devices is None:
            self._devices = self._running.enter_context(ray_session(None, cpus=1))
        yield self._devices

    def stop(self) -> None:
        """End it, for a test that starts its own."""
        self._running.close()
        self._devices = None


@contextlib.contextmanager
def _no_ray(address: str | None, cpus: int | None) -> Iterator[Devices]:
    raise AssertionError("a job that was to find nothing to train started Ray")
    yield


@contextlib.contextmanager
def forgotten_plugins() -> Iterator[None]:
    """What plugin files register within is forgotten at the end: other tests look at everything that is registered."""
    tasks.get_task(tasks.DEFAULT)  # its module registers it once a process
    with contextlib.ExitStack() as stack:
        for registry in (arms.base._ARMS, tasks._TASKS, optim._OPTIMIZERS, FORMS, plugins._loaded):
            stack.enter_context(mock.patch.dict(registry))
        yield


def run_here(folder: Path, job: str, *arguments: str, ray: SharedRay | None = None) -> Ended:
    """A job in this process, whose imports it saves; its plugin files are forgotten at its end.

    Without ``ray`` it must find nothing to train.
    """
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(backend, "ray_session", _no_ray if ray is None else ray.session)
        with forgotten_plugins():
            for path in list(plugins._loaded):
                if not path.startswith(str(ROOT)):  # workers would load it, too, and another test may have deleted it
                    del plugins._loaded[path]
            code = main(["run", job, *arguments])
    return Ended(code, out.getvalue(), err.getvalue())


def copy_study(source: Path, target: Path) -> Path:
    """A copy of the folder that a job ran in, for a test that changes it; returns ``target``."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    return target
