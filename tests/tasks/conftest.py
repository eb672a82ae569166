from pathlib import Path

import pytest

from eqscale import tasks
from eqscale.tasks import Task, get_task, load_task_files
from eqscale.tasks.dataset import DataSpec, open_split, prepare

TOY = str(Path(__file__).with_name("toy.py"))


@pytest.fixture(scope="session")
def toy() -> Task:
    load_task_files([TOY])
    return get_task("toy")


@pytest.fixture(scope="session")
def toys(toy, tmp_path_factory):
    """Prepared samples: 128 systems of 2 to 5 tokens."""
    root, spec = tmp_path_factory.mktemp("toys"), DataSpec("toy", train_systems=128, test_systems=1)
    prepare(spec, root, workers=1)
    return open_split(spec, root, "train")


@pytest.fixture
def known(monkeypatch):
    """Register a variant of a task for one test."""

    def register(task: type[Task]) -> Task:
        made = task()
        monkeypatch.setitem(tasks._TASKS, made.name, made)
        return made

    return register
