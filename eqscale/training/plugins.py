"""Importing users' files by what they register."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eqscale.arms import load_arm_files
from eqscale.plugins import KINDS, loaded_files
from eqscale.tasks import load_task_files
from eqscale.training.optim import load_optimizer_files

_LOAD = {"task": load_task_files, "arm": load_arm_files, "optimizer": load_optimizer_files}


def load_plugins(files: Mapping[str, Sequence[str]]) -> None:
    """Import files by kind; raises InputError for one that can't be imported or registers nothing of its kind."""
    for kind in KINDS:
        _LOAD[kind](files.get(kind, ()))


def loaded_plugins() -> dict[str, list[str]]:
    """The files that this process has imported: other processes must import them, too."""
    return {kind: loaded_files(kind) for kind in KINDS}
