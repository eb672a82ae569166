import pytest

from eqscale.rigid.dataset import DatasetSpec, open_split, prepare

DATA = DatasetSpec(family="S", train_scenes=20, test_scenes=6)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    prepare(DATA, root, workers=1)
    return root


@pytest.fixture
def windows(data_root):
    return (
        open_split(DATA, data_root, "train", scenes=DATA.train_scenes),
        open_split(DATA, data_root, "test", scenes=DATA.test_scenes),
    )
