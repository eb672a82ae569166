import numpy as np
import pytest

from eqscale.tasks.dataset import DataSpec, open_split, prepare
from eqscale.tasks.rigid.engine import Trajectory, simulate
from eqscale.tasks.rigid.families import FAMILIES
from eqscale.tasks.rigid.scene import Scene, sample_scene
from eqscale.tasks.rigid.task import data_spec


@pytest.fixture(scope="session")
def spec() -> DataSpec:
    return data_spec("S", train_systems=128, test_systems=12)


@pytest.fixture(scope="session")
def root(tmp_path_factory, spec):
    root = tmp_path_factory.mktemp("data")
    prepare(spec, root, workers=1)
    return root


@pytest.fixture(scope="session")
def train(spec, root):
    return open_split(spec, root, "train")


@pytest.fixture(scope="session")
def test_split(spec, root):
    return open_split(spec, root, "test")


@pytest.fixture(scope="session")
def runs() -> list[tuple[Scene, Trajectory]]:
    """A few simulated scenes, 1.33 s each."""
    scenes = [sample_scene(FAMILIES["S"], 0, "train", i) for i in range(12)]
    return [(scene, simulate(scene, 32)) for scene in scenes]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
