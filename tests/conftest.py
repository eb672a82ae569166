"""What tests of several folders share: their order, one Ray, an empty MLflow database."""

from __future__ import annotations

import os

import pytest
from filelock import FileLock

_RAY = ("study/test_failures.py", "study/test_gang.py", "study/test_search.py", "tasks/test_dataset.py",
        "test_bring_your_own.py")  # fmt: skip


def _process_of(nodeid):
    """Tests with equal names run in one process: those that share Ray, and those of a file, which share fixtures."""
    file = nodeid.partition("::")[0]
    return "ray" if file.removeprefix("tests/") in _RAY else file


def pytest_collection_modifyitems(items):
    """Put studies first: they take longest, and no process shall wait for another's last test."""
    items.sort(key=lambda item: (_process_of(item.nodeid) != "ray", "tests/study/" not in item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With ``-n``: see ``_process_of``."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return _process_of(nodeid)

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def shared_ray():
    """A ``SharedRay``; see there."""
    from tests.jobs import SharedRay

    shared = SharedRay()
    yield shared
    shared.stop()


@pytest.fixture
def forgetful():
    """Plugins are forgotten, see ``forgotten_plugins``, and subnormal numbers count again: training turns them off."""
    import torch

    from tests.jobs import forgotten_plugins

    with forgotten_plugins():
        yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """An MLflow database without runs, made once for all processes of the session: that takes seconds."""
    from benchmarks.faults.harness import empty_database

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with FileLock(folder / "empty.lock"):
        return empty_database(folder)
