import re
from pathlib import Path

import pytest
import torch

from eqscale.arms import Size
from eqscale.errors import InputError
from eqscale.training import checkpoint, loop, optim
from eqscale.training.loop import build_model, learning_rate_at, load_trained, train
from eqscale.training.optim import RATE_SCALE, Optimizer, get_optimizer, load_optimizer_files, optimizer_names
from tests.training.test_loop import Killed, final_weights, make_spec

GUIDE = Path(__file__).parents[2] / "docs/your_own_arm.md"


def build_sgd(model, rate, weight_decay):
    """Momentum; matrices at a third of the rate."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, RATE_SCALE: 1 / 3, "weight_decay": weight_decay}, {"params": others}]
    return torch.optim.SGD(groups, lr=rate, momentum=0.9)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(optim, "_OPTIMIZERS", dict(optim._OPTIMIZERS))
    optim.register(Optimizer("sgd", "momentum, in two groups", build_sgd, states=1))


def test_an_optimiser_of_the_user_trains_a_run(windows, tmp_path):
    spec = make_spec(optimizer="sgd", steps=60, learning_rate=0.3)
    record = train(spec, *windows, checkpoints=tmp_path / "c", weights=tmp_path / "w.pt")
    assert record.status == "finished"
    assert 0 < record.test["nmse"] < 1.2
    assert record.curve[-1].train_loss < record.curve[0].train_loss
    assert record.spec.name.endswith("-sgd")
    assert load_trained(tmp_path / "w.pt")[0] == spec


def test_rates_of_its_groups_follow_the_schedule_times_their_scales(windows, tmp_path, monkeypatch):
    step, rates = loop._Trainer._step, []

    def noting(trainer, batch):
        step(trainer, batch)
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])

    monkeypatch.setattr(loop._Trainer, "_step", noting)
    spec = make_spec(optimizer="sgd")
    record = train(spec, *windows, checkpoints=tmp_path)
    schedule = [learning_rate_at(step, spec) for step in range(spec.steps)]
    assert max(schedule) > 0
    assert rates == [[rate * (1 / 3), rate] for rate in schedule]
    assert record.curve[0].learning_rate in schedule  # the run's own rate, not a group's


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_killed_run_resumes_to_the_same_bits_with_any_optimiser(windows, tmp_path, monkeypatch, name):
    spec = make_spec(optimizer=name, steps=24)
    straight = train(spec, *windows, checkpoints=tmp_path / "a", weights=tmp_path / "a.pt")

    def kill(point):
        if point.step >= 12:
            raise Killed

    with pytest.raises(Killed):
        train(spec, *windows, checkpoints=tmp_path / "b", report=kill, checkpoint_seconds=0.0)
    state = checkpoint.load_newest(tmp_path / "b")
    assert 0 < state["progress"]["step"] < spec.steps
    assert state["optimizer"]["state"]
    resumed = train(spec, *windows, checkpoints=tmp_path / "b", weights=tmp_path / "b.pt")
    assert resumed.test == straight.test
    a, b = final_weights(tmp_path / "a.pt"), final_weights(tmp_path / "b.pt")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_checkpoint_of_another_optimiser_is_refused(windows, tmp_path):
    def kill(point):
        raise Killed

    with pytest.raises(Killed):
        train(make_spec(), *windows, checkpoints=tmp_path, report=kill, checkpoint_seconds=0.0)
    assert checkpoint.steps(tmp_path)
    with pytest.raises(InputError, match=r"of another run \(.* optimiser .* than transformer-.*-sgd") as error:
        train(make_spec(optimizer="sgd"), *windows, checkpoints=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("arm", ["transformer", "gatr", "gatr_published", "gatr_off"])
def test_only_matrices_decay_with_adamw(arm):
    model = build_model(make_spec(arm=arm, size=Size(8, 2, 2)))
    groups = get_optimizer("adamw").build(model, 3e-3, 0.01).param_groups
    assert {(group["lr"], group["betas"], group["eps"]) for group in groups} == {(3e-3, (0.9, 0.95), 1e-8)}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    gains = ("bias", "log_weights", "norm.weight")
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if name.endswith(gains) else 0.01), name


def test_the_file_in_the_guide_registers_an_optimiser_that_trains(windows, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    file = tmp_path / "sgd.py"
    file.write_text(code.replace('"sgd"', '"sgd_of_the_guide"'))
    load_optimizer_files([str(file)])
    assert optimizer_names() == ("adamw", "sgd", "sgd_of_the_guide")
    spec = make_spec(optimizer="sgd_of_the_guide", steps=60, learning_rate=0.1)
    assert spec.run_id != make_spec(steps=60, learning_rate=0.1).run_id
    record = train(spec, *windows, checkpoints=tmp_path)
    assert record.curve[-1].train_loss < record.curve[0].train_loss


def test_names_are_unique_and_files_that_register_nothing_are_refused(tmp_path):
    with pytest.raises(InputError, match="an optimiser named 'adamw' is already registered"):
        optim.register(get_optimizer("adamw"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(InputError, match=r"empty.py' registers no optimizer: end it with register"):
        load_optimizer_files([str(tmp_path / "empty.py")])
    with pytest.raises(InputError, match=r"absent.py' is not a readable Python file"):
        load_optimizer_files([str(tmp_path / "absent.py")])
