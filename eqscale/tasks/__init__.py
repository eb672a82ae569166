"""The registry of tasks. A task's module is imported when it is asked for; the built-in ones are listed here."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from eqscale.errors import InputError
from eqscale.plugins import load_files
from eqscale.tasks.base import Metric, Option, Options, Task
from eqscale.tasks.fields import Batch, Field, Kind, Prepared, Schema
from eqscale.tasks.samples import Samples
from eqscale.wording import Noun, Wording

__all__ = [
    "Batch", "Field", "Kind", "Metric", "Noun", "Option", "Options", "Prepared", "Samples", "Schema", "Task",
    "UnknownTask", "Wording", "get_task", "load_task_files", "register", "task_names",
]  # fmt: skip

DEFAULT = "rigid"
"""The task of commands that name none, and of runs from before there were several."""

_BUILT_IN = {"rigid": "eqscale.tasks.rigid.task", "forces": "eqscale.tasks.forces.task"}
_TASKS: dict[str, Task] = {}


class UnknownTask(InputError):
    """A task that is neither built in nor registered by a task file."""


def register(task: Task) -> Task:
    """Make a task known to every command under its name.

    Raises:
        InputError: if the name is taken, or the declaration isn't whole.
    """
    for attribute in ("words", "schema"):
        if not hasattr(task, attribute):
            raise InputError(f"task {type(task).__name__} declares no {attribute}")
    if task.name in _TASKS or (task.name in _BUILT_IN and not type(task).__module__.startswith("eqscale.")):
        raise InputError(f"a task named {task.name!r} is already registered")
    _TASKS[task.name] = task
    return task


def get_task(name: str) -> Task:
    """Look a task up by name; raises UnknownTask, which lists the known ones."""
    if name not in _TASKS and name in _BUILT_IN:
        importlib.import_module(_BUILT_IN[name])
    if name not in _TASKS:
        raise UnknownTask(
            f"unknown task {name!r}; choose from {', '.join(task_names())}, or name the file that registers it with "
            "--task-file"
        )
    return _TASKS[name]


def task_names() -> tuple[str, ...]:
    """Names of all known tasks."""
    return tuple(dict.fromkeys((*_BUILT_IN, *_TASKS)))


def load_task_files(files: Sequence[str]) -> None:
    """Import Python files that register tasks; raises InputError for one that can't be imported or registers none."""
    load_files(files, "task", lambda: _TASKS)
