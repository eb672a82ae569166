"""Users' files by what they register: arms, tasks, optimisers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eqscale.arms import load_arm_files
from eqscale.plugins import loaded_files
from eqscale.tasks import load_task_files
from eqscale.training.optim import load_optimizer_files

KINDS = {"task": load_task_files, "arm": load_arm_files, "optimizer": load_optimizer_files}
"""What a file may register -> the function that imports such files; each has an option ``--KIND-file``."""


def load_plugins(files: Mapping[str, Sequence[str]]) -> None:
    """Import files by kind; raises InputError for one that can't be imported or registers nothing of its kind."""
    for kind, load in KINDS.items():
        load(files.get(kind, ()))


def loaded_plugins() -> dict[str, list[str]]:
    """The files that this process has imported, for processes that must know what it does."""
    return {kind: loaded_files(kind) for kind in KINDS}
