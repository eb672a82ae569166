import dataclasses

import pytest
import torch

from eqscale.errors import InputError
from eqscale.training import checkpoint, loop
from eqscale.training.arms import Size, get_arm
from eqscale.training.loop import learning_rate_at, train
from eqscale.training.spec import RunSpec


def make_spec(**changes):
    values = dict(
        arm="transformer", size=Size(8, 1, 2), budget=1e9, steps=30, batch_size=8, learning_rate=3e-3, seed=3,
        data="digest", train_scenes=20, test_scenes=6, test_windows_per_scene=2,
    )  # fmt: skip
    return RunSpec(**(values | changes))


def final_weights(path):
    return checkpoint.load_file(path)["model"]


def test_a_run_learns_and_fills_its_record(windows, tmp_path):
    spec = make_spec(steps=150)
    points = []
    record = train(
        spec, *windows, checkpoints=tmp_path / "c", weights=tmp_path / "w.pt", report=points.append
    )
    assert record.status == "finished"
    assert record.steps_done == 150
    assert 0 < record.test["nmse"] < 1.2
    assert record.curve == points
    assert points[-1].step == 150
    assert points[-1].train_loss < points[0].train_loss
    assert record.epochs == pytest.approx(150 * 8 / (20 * 24))
    flops = get_arm("transformer").flops(spec.size)
    assert record.flops_nominal == pytest.approx(flops.nominal.per_token * record.tokens)
    assert record.tokens <= record.padded_tokens
    assert (record.micro_batch, record.notes) == (8, [])
    assert final_weights(tmp_path / "w.pt")


def test_two_runs_of_one_seed_are_identical_and_seeds_differ(windows, tmp_path):
    losses = [train(make_spec(seed=s), *windows, checkpoints=tmp_path / "c").test["nmse"] for s in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("arm", ["transformer", "transformer_aug", "transformer_aligned"])
def test_a_killed_run_resumes_to_the_same_bits(windows, tmp_path, monkeypatch, arm):
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)
    spec = make_spec(arm=arm)
    straight = train(spec, *windows, checkpoints=tmp_path / "a", weights=tmp_path / "a.pt")

    class Killed(Exception):
        pass

    def kill(point):
        if point.step >= 15:
            raise Killed

    with pytest.raises(Killed):
        train(spec, *windows, checkpoints=tmp_path / "b", weights=tmp_path / "b.pt", report=kill)
    newest = max((tmp_path / "b").glob("step-*.pt"))
    newest.write_bytes(
        newest.read_bytes()[: newest.stat().st_size // 2]
    )  # and its last checkpoint is cut short
    resumed = train(spec, *windows, checkpoints=tmp_path / "b", weights=tmp_path / "b.pt")
    a, b = final_weights(tmp_path / "a.pt"), final_weights(tmp_path / "b.pt")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert resumed.test == straight.test
    assert resumed.tokens == straight.tokens
    assert [p.train_loss for p in resumed.curve] == [p.train_loss for p in straight.curve]


def test_a_nan_ends_the_run_as_diverged(windows, tmp_path, monkeypatch):
    healthy = loop.weighted_mse
    calls = []

    def nan_at_step_five(prediction, batch):
        calls.append(1)
        return healthy(prediction, batch) * (float("nan") if len(calls) == 5 else 1.0)

    monkeypatch.setattr(loop, "weighted_mse", nan_at_step_five)
    record = train(make_spec(), *windows, checkpoints=tmp_path / "c", weights=tmp_path / "w.pt")
    assert record.status == "diverged"
    assert record.test == {}
    assert record.steps_done < 30
    assert not (tmp_path / "w.pt").exists()


def test_the_learning_rate_warms_up_and_ends_at_zero():
    spec = make_spec(steps=200)
    rates = [learning_rate_at(step, spec) for step in range(200)]
    assert rates[0] == pytest.approx(spec.learning_rate / 10)
    assert max(rates) == pytest.approx(spec.learning_rate)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("arm", ["transformer", "gatr", "gatr_published", "gatr_off"])
def test_only_matrices_decay(arm):
    model = loop.build_model(make_spec(arm=arm, size=Size(8, 2, 2)))
    decay = {
        id(p): group["weight_decay"]
        for group in loop.build_optimizer(model, make_spec()).param_groups
        for p in group["params"]
    }
    gains = ("bias", "log_weights", "norm.weight")
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if name.endswith(gains) else 0.01), name


def test_wrong_data_is_named_before_training(windows, tmp_path):
    with pytest.raises(InputError, match="asks for 21 training and 6 test scenes; the data have 20 and 6"):
        train(make_spec(train_scenes=21), *windows, checkpoints=tmp_path)


@pytest.mark.parametrize("change", [{"steps": 0}, {"learning_rate": -1.0}, {"arm": "no_such_arm"}])
def test_a_spec_that_cannot_work_is_refused(change):
    with pytest.raises(InputError):
        dataclasses.replace(make_spec(), **change)
