"""``eqscale measure`` on a task that draws no predictions."""

import dataclasses
import json

import pytest

from eqscale.cli import main
from eqscale.measure import best_models
from eqscale.study.table import run_table, write_table
from eqscale.study.trials import Storage
from eqscale.tasks.dataset import DataSpec, open_split, prepare
from eqscale.training.loop import train
from tests.tasks.conftest import toy  # noqa: F401
from tests.training.test_loop import make_spec


@pytest.fixture
def folder(toy, tmp_path, monkeypatch):  # noqa: F811
    """Where a study of one run on the toy task has ended."""
    data, storage = DataSpec("toy", train_systems=24, test_systems=8), Storage(tmp_path / "studies/toys", tmp_path)
    prepare(data, tmp_path / "data", workers=1)
    spec = make_spec(
        task="toy", view=(("look", "plain"),), data=data.digest, steps=4, train_systems=24, test_systems=8,
        test_samples_per_system=1,
    )  # fmt: skip
    samples = (open_split(data, tmp_path / "data", split) for split in ("train", "test"))
    storage.ledger.write(train(spec, *samples, checkpoints=tmp_path / "c", weights=storage.weights(spec.run_id)))
    write_table(run_table([spec], storage.ledger), tmp_path / "results/toys")
    (tmp_path / "results/toys/task.json").write_text(json.dumps(dataclasses.asdict(toy.words)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_task_without_pictures_is_measured_without_an_animation_and_its_weights_are_read_once(folder, monkeypatch):
    read, load = [], best_models.load_trained
    monkeypatch.setattr(best_models, "load_trained", lambda path: read.append(path) or load(path))
    assert main(["measure", "results/toys", "--average", "2"]) == 0
    assert [path.name for path in (folder / "results/toys/evaluation").iterdir()] == ["transformer.json"]
    assert len(read) == 1
    assert main(["measure", "results/toys", "--average", "2"]) == 0
    assert len(read) == 1
