"""The skeleton in docs/your_own_task.md is code that works."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from eqscale.errors import InputError
from eqscale.tasks import get_task, load_task_files
from eqscale.tasks.dataset import DataSpec, open_split, prepare

GUIDE = Path(__file__).parents[2] / "docs/your_own_task.md"


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 7, 700)
    return {
        "position": rng.normal(size=(700, 6, 3)),
        "element": np.eye(4)[rng.integers(4, size=(700, 6))],
        "tokens": tokens,
        "target": rng.normal(size=(700, 6, 3)),
    }


@pytest.fixture(scope="module")
def task(arrays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    skeleton = re.search(r"<!-- skeleton -->\n```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (folder / "my_task.py").write_text(skeleton[1])
    np.savez(folder / "my_data.npz", **arrays)
    load_task_files([str(folder / "my_task.py")])
    return get_task("my_task")


def test_the_skeleton_reads_a_file_and_keeps_its_splits_apart(task, arrays, tmp_path):
    spec = DataSpec(task.name, train_systems=200, test_systems=500)
    prepare(spec, tmp_path, workers=2)  # in processes of their own
    train, test = (open_split(spec, tmp_path, split) for split in ("train", "test"))
    assert np.array_equal(test.tokens, arrays["tokens"][:500])
    assert np.array_equal(train.tokens, arrays["tokens"][500:])
    batch = train.batch(np.array([3]))
    n = arrays["tokens"][503]
    assert np.allclose(batch["position"][0], arrays["position"][503, :n], atol=1e-6)
    assert np.allclose(batch.target[0] * train.target_rms, arrays["target"][503, :n], atol=1e-5)


def test_more_systems_than_the_file_holds_are_refused(task, tmp_path):
    with pytest.raises(InputError, match=r"my_data.npz has 200 train systems, not 201"):
        prepare(DataSpec(task.name, train_systems=201, test_systems=1), tmp_path, workers=1)
    with pytest.raises(InputError, match=r"my_data.npz has 500 test systems, not 501"):
        prepare(DataSpec(task.name, train_systems=1, test_systems=501), tmp_path, workers=1)


def test_another_file_is_other_data(task):
    before = DataSpec(task.name).digest
    path = sys.modules[type(task).__module__].FILE
    content = path.read_bytes()
    path.write_bytes(content + b"\0")
    assert DataSpec(task.name).digest != before
    path.write_bytes(content)
    assert DataSpec(task.name).digest == before
