"""What tests of several folders share: their order, one Ray, an empty MLflow database."""

from __future__ import annotations

import os

import pytest
from filelock import FileLock


def pytest_collection_modifyitems(items):
    """Tests that need Ray run in one process, which starts it once, and those of a file in one, to share its fixtures.

    Studies come first: they take longest, and no process shall wait for another's last test.
    """

    def group(item):
        return "ray" if "shared_ray" in item.fixturenames else item.nodeid.partition("::")[0]

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=lambda item: (group(item) != "ray", "tests/study/" not in item.nodeid))


@pytest.fixture(scope="session")
def shared_ray():
    """A ``SharedRay``; see there."""
    from tests.jobs import SharedRay

    shared = SharedRay()
    yield shared
    shared.stop()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """An MLflow database without runs, made once for all processes of the session: that takes seconds."""
    from benchmarks.faults.harness import empty_database

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with FileLock(folder / "empty.lock"):
        return empty_database(folder)
