"""``eqscale check-arm`` and ``check-task``: a file of one's own, before any compute is spent."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from eqscale.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eqscale.measure.own import Check

_ARM = """Build the arms that a file registers and check, with untrained models: that parameters rise along the ladder,
executed FLOPs against PyTorch's counter, that padding changes nothing, and the symmetry error of each kind of
transformation; and time a step. Exit code 1 if something is wrong.

    eqscale check-arm docs/examples/deep_sets.py
"""
_TASK = """Make a few systems of the tasks that a file registers and check that they are reproducible, that the splits
differ, that fields have the stated scales, and that labels obey the declared symmetry. Exit code 1 if something is
wrong.

    eqscale check-task docs/examples/charged_particles.py
"""


def register(verbs: argparse._SubParsersAction) -> None:
    """Add the verbs ``check-arm`` and ``check-task``."""
    kind = argparse.RawDescriptionHelpFormatter
    arm = verbs.add_parser("check-arm", help="check an arm of your own", description=_ARM, formatter_class=kind)
    arm.add_argument("file", metavar="FILE.py", help="file that registers an arm")
    arm.add_argument("--task", help="task to try it on (default: the built-in one)")
    arm.add_argument("--task-file", metavar="FILE.py", help="file that registers that task")
    arm.set_defaults(run=_check_arm)
    task = verbs.add_parser("check-task", help="check a task of your own", description=_TASK, formatter_class=kind)
    task.add_argument("file", metavar="FILE.py", help="file that registers a task")
    task.set_defaults(run=_check_task)


def _check_arm(args: argparse.Namespace) -> int:
    from eqscale.arms import arm_names, get_arm, load_arm_files
    from eqscale.measure.own import check_arm
    from eqscale.tasks import DEFAULT, get_task, load_task_files

    before = arm_names()
    load_task_files([args.task_file] if args.task_file else [])  # which may be the arm's file, too
    task = get_task(args.task or DEFAULT)
    load_arm_files([args.file])
    if not (names := [name for name in arm_names() if name not in before]):
        raise InputError(f"arm file {args.file!r} registers no arm: end it with register(…)")
    return max(_show(f"{name} on {task.name}", check_arm(get_arm(name), task)) for name in names)


def _check_task(args: argparse.Namespace) -> int:
    from eqscale.measure.own import check_task
    from eqscale.tasks import get_task, load_task_files, task_names

    before = task_names()
    load_task_files([args.file])
    return max(_show(name, check_task(get_task(name))) for name in task_names() if name not in before)


def _show(title: str, checks: Sequence[Check]) -> int:
    """Print the checks; returns the exit code."""
    from rich.table import Table

    from eqscale.console import make_console

    marks = {True: "[green]right[/green]", False: "[red]wrong[/red]", None: ""}
    table = Table("", "checked", "found", "wanted", title=title, title_justify="left")
    for check in checks:
        table.add_row(marks[check.right], check.what, check.found, "" if check.right else check.wanted)
    make_console().print(table)
    return int(any(check.right is False for check in checks))
