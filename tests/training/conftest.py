import pytest

from eqscale.tasks.dataset import open_split, prepare
from eqscale.tasks.rigid.task import data_spec

DATA = data_spec("S", train_systems=20, test_systems=6)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    prepare(DATA, root, workers=1)
    return root


@pytest.fixture
def windows(data_root):
    return open_split(DATA, data_root, "train"), open_split(DATA, data_root, "test")
