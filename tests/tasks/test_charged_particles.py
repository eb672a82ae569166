"""The worked example of your own task, docs/examples/charged_particles.py."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from eqscale import tasks
from eqscale.arms import get_arm
from eqscale.errors import InputError
from eqscale.tasks import get_task, load_task_files
from eqscale.tasks.dataset import DataSpec, open_split, prepare
from eqscale.training.loop import train
from eqscale.training.spec import RunRecord, RunSpec

FILE = Path(__file__).parents[2] / "docs/examples/charged_particles.py"


@pytest.fixture(scope="module")
def task():
    load_task_files([str(FILE)])
    return get_task("charged_particles")


@pytest.fixture(scope="module")
def data(task, tmp_path_factory):
    root, spec = tmp_path_factory.mktemp("particles"), DataSpec(task.name, train_systems=128, test_systems=32)
    prepare(spec, root, workers=1)
    return spec, open_split(spec, root, "train"), open_split(spec, root, "test")


def variant(task, **changes):
    words = dataclasses.replace(task.words, name="variant")
    return type("Variant", (type(task),), {"words": words, **changes})()


def repelling(systems=20, n=5):
    """Particles of one charge, which never come close."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(systems, n, 3)), rng.normal(size=(systems, n, 3)), np.ones((systems, n))


def energy(position, velocity, charge):
    i, j = np.triu_indices(charge.shape[1], 1)
    distance = np.linalg.norm(position[:, i] - position[:, j], axis=-1)
    return 0.5 * (velocity**2).sum((1, 2)) + (charge[:, i] * charge[:, j] / distance).sum(1)


def test_it_is_short():
    assert len(FILE.read_text().splitlines()) <= 150


def test_energy_is_conserved_to_one_percent(task):
    x, v, q = repelling()
    before = energy(x, v, q)
    after = energy(*task.move(x, v, q, 1000), q)
    assert np.abs(after / before - 1).max() < 0.01


def test_momentum_is_conserved(task):
    x, v, _ = repelling()
    q = np.where(np.arange(5) % 2, 1.0, -1.0) * np.ones((20, 1))
    far = variant(task, cap=lambda self, force: force)
    _, later = far.move(x, v, q, 1000)
    assert np.abs(later.sum(1) - v.sum(1)).max() < 1e-9


@pytest.mark.parametrize("charge", [1.0, -1.0])
def test_two_particles_mirror_each_other(task, charge):
    x = np.array([[[1.0, 0.2, 0.0], [-1.0, -0.2, 0.0]]])
    v = np.array([[[0.0, 0.3, 0.1], [0.0, -0.3, -0.1]]])
    later, faster = task.move(x, v, np.array([[1.0, charge]]), 1000)
    assert np.abs(later.sum(1)).max() < 1e-12
    assert np.abs(faster.sum(1)).max() < 1e-12
    apart = np.linalg.norm(later[0, 0] - later[0, 1])
    free = np.linalg.norm((x + v)[0, 0] - (x + v)[0, 1])
    assert apart > free if charge > 0 else apart < free  # like charges repel


def test_the_first_step_follows_coulombs_law(task):
    x = np.array([[[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]]])
    _, v = task.move(x, np.zeros_like(x), np.array([[1.0, -1.0]]), 1)
    assert np.allclose(v, [[[0.00025, 0, 0], [-0.00025, 0, 0]]], rtol=1e-12)


def test_close_particles_feel_a_force_of_capped_length(task):
    x = np.array([[[0.0, 0.0, 0.0], [0.01, 0.01, 0.01]]])
    _, v = task.move(x, np.zeros_like(x), np.array([[1.0, 1.0]]), 1)
    assert np.allclose(np.linalg.norm(v, axis=-1), 0.1, rtol=1e-12)


def test_systems_are_the_same_wherever_they_are_made(task):
    for particles in (5, 20):
        options = task.check_options({"particles": particles})
        together = task.records(options, 0, "train", 0, 8)
        assert np.array_equal(task.records(options, 0, "train", 5, 6), together[5:6])
        assert not np.array_equal(task.records(options, 0, "test", 5, 6), together[5:6])
        assert not np.array_equal(task.records(options, 1, "train", 5, 6), together[5:6])


def test_starts_are_those_of_the_publication(task):
    start = variant(task, move=lambda self, position, velocity, charge, steps: (position, velocity))
    made = start.generate(task.check_options({}), 0, "train", 0, 400)
    assert made["position"].std() == pytest.approx(1.0, abs=0.03)
    assert np.allclose(np.linalg.norm(made["velocity"], axis=-1), 0.5, atol=1e-6)
    assert set(np.unique(made["charge"])) == {-1.0, 1.0}
    assert abs(made["charge"].mean()) < 0.1


def test_stored_labels_follow_from_the_stored_inputs(task, data):
    _, samples, _ = data
    batch = samples.batch(np.arange(32), dtype=torch.float64)
    assert (task.relabel(samples.options, batch) / samples.target_rms - batch.target).abs().max() < 1e-5


def test_labels_obey_the_declared_group(task):
    task.check_labels(task.check_options({}), 0)


@pytest.mark.parametrize(
    ("broken", "by"),
    [
        ({"cap": lambda self, force: force + np.array([0, 0, -1.0])[:, None, None]}, "rotation or reflection"),
        ({"deflection": lambda self, x, v, q: x - x.mean(1, keepdims=True) ** 2}, "rotation or reflection"),
        ({"deflection": lambda self, x, v, q: x}, "shift"),
        ({"deflection": lambda self, x, v, q: v * np.arange(5)[:, None]}, "permutation"),
    ],
)
def test_a_wrong_group_is_found_before_any_data_are_written(task, tmp_path, monkeypatch, broken, by):
    monkeypatch.setitem(tasks._TASKS, "variant", variant(task, **broken))
    with pytest.raises(InputError, match=rf"break the declared symmetry E\(3\) under a random {by}: relative") as e:
        prepare(DataSpec("variant", train_systems=4, test_systems=1), tmp_path, workers=1)
    assert "\n" not in str(e.value)
    assert not list(tmp_path.rglob("*.npy"))


def test_free_flight_has_loss_one_and_the_published_kind_of_error(task, data):
    _, _, samples = data
    found = task.evaluate(lambda batch: torch.zeros_like(batch.target), samples, np.arange(len(samples)))
    target = np.concatenate([samples.batch(np.array([k])).target.numpy() for k in range(len(samples))])
    assert found["nmse"] == 1.0
    assert found["mse"] == pytest.approx((target.astype(float) ** 2).mean() * samples.target_rms**2, rel=1e-6)
    assert 0.03 < found["mse"] < 0.3  # 0.12 over many trajectories


@pytest.mark.parametrize("arm", ["transformer", "gatr"])
def test_arms_train_on_it_and_leave_a_record(task, data, arm, tmp_path):
    spec, train_samples, test_samples = data
    run = RunSpec(
        arm=arm, size=get_arm(arm).ladder[4], budget=1e8, steps=60, batch_size=16, learning_rate=1e-2, seed=0,
        data=spec.digest, train_systems=128, test_systems=32, test_samples_per_system=1, task=task.name,
    )  # fmt: skip
    record = train(run, train_samples, test_samples, checkpoints=tmp_path)
    assert record.status == "finished"
    assert record.test["nmse"] < 1
    assert record.test["mse"] > 0
    assert record.tokens == 60 * 16 * 5
    assert (record.test["equivariance_rotation"] < 1e-4) == (arm == "gatr")
    assert RunRecord.from_json(record.to_json()) == record


def test_there_is_no_canonical_frame(task):
    aligned = get_arm("transformer_aligned")
    with pytest.raises(InputError, match="'charged_particles' has no canonical frame"):
        aligned.build(aligned.ladder[0], task)
