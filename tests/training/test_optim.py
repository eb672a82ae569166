import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eqscale import native
from eqscale.arms import Size
from eqscale.errors import InputError
from eqscale.tasks.symmetry import ELEMENTS
from eqscale.training import checkpoint, loop, optim
from eqscale.training.loop import build_model, learning_rate_at, load_trained, train
from eqscale.training.optim import (
    RATE_SCALE,
    Optimizer,
    get_optimizer,
    load_optimizer_files,
    optimizer_names,
    orthogonalise,
    orthogonalise_flops,
)
from tests.training.test_loop import Killed, final_weights, make_spec

GUIDE = Path(__file__).parents[2] / "docs/your_own_arm.md"


def build_sgd(model, rate, weight_decay, momentum):
    """Matrices at a third of the rate."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, RATE_SCALE: 1 / 3, "weight_decay": weight_decay}, {"params": others}]
    return torch.optim.SGD(groups, lr=rate, momentum=momentum)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(optim, "_OPTIMIZERS", dict(optim._OPTIMIZERS))
    optim.register(Optimizer("sgd", "momentum, in two groups", build_sgd, states=1))


def test_an_optimiser_of_the_user_trains_a_run(windows, tmp_path):
    spec = make_spec(optimizer="sgd", steps=60, learning_rate=0.3)
    record = train(spec, *windows, checkpoints=tmp_path / "c", weights=tmp_path / "w.pt")
    assert record.status == "finished"
    assert 0 < record.test["nmse"] < 1.2
    assert record.curve[-1].test_nmse < record.curve[0].test_nmse
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


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
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


def group_of(parameter, optimizer):
    """The group whose flat tensor holds the parameter."""
    place = parameter.untyped_storage().data_ptr()
    (group,) = [g for g in optimizer.param_groups if g["params"][0].untyped_storage().data_ptr() == place]
    return group


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("arm", ["transformer", "gatr", "gatr_published", "gatr_slim"])
def test_only_matrices_decay(arm, name):
    model = build_model(make_spec(arm=arm, size=Size(8, 2, 2)))
    optimizer = get_optimizer(name).build(model, 3e-3, 0.01, 0.9)
    gains = ("bias", "log_weights", "norm.weight")
    for name, parameter in model.named_parameters():
        assert group_of(parameter, optimizer)["weight_decay"] == (0.0 if name.endswith(gains) else 0.01), name
    assert sum(g["params"][0].numel() for g in optimizer.param_groups) == sum(p.numel() for p in model.parameters())


def test_clipping_is_that_of_pytorch():
    for limit in (0.1, 100.0):
        ours, theirs = ([torch.nn.Parameter(torch.zeros(n)) for n in (3, 70)] for _ in range(2))
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(i))
            b.grad = a.grad.clone()
        optim.clip_gradients(ours, limit)
        torch.nn.utils.clip_grad_norm_(theirs, limit)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=0)


def test_clipping_keeps_what_is_not_a_number():
    """Else a run that diverged would go on."""
    tensor = torch.nn.Parameter(torch.zeros(20))
    tensor.grad = torch.ones(20)
    tensor.grad[3] = torch.nan
    optim.clip_gradients([tensor], 0.1)
    assert tensor.grad.isnan().all()


def set_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient if parameter.grad is None else parameter.grad.copy_(gradient)


def take_steps(model, optimizer, steps=4):
    for step in range(steps):
        set_gradients(model, step)
        optimizer.step()
    return dict(model.named_parameters())


@pytest.mark.parametrize("arm", ["transformer", "gatr"])
def test_the_flat_adamw_takes_the_steps_of_one_that_knows_every_parameter(arm):
    spec = make_spec(arm=arm, size=Size(8, 2, 2))
    model, plain = build_model(spec), build_model(spec)
    groups = [
        {"params": [p for p in plain.parameters() if p.ndim >= 2], "weight_decay": 0.01},
        {"params": [p for p in plain.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    expected = take_steps(plain, torch.optim.AdamW(groups, lr=3e-3, betas=(0.8, 0.95), fused=True))
    found = take_steps(model, get_optimizer("adamw").build(model, 3e-3, 0.01, 0.8))
    for name, parameter in found.items():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("arm", ["transformer", "gatr"])
def test_muon_steps_like_a_loop_over_single_matrices(arm, kernels, monkeypatch):
    """The reference treats every matrix alone, in float64, by the singular values that Newton-Schulz gives it."""
    if not kernels:
        monkeypatch.setattr(native, "available", lambda x: False)
    spec = make_spec(arm=arm, size=Size(8, 2, 2))
    model, initial = build_model(spec), dict(build_model(spec).named_parameters())
    found = take_steps(model, get_optimizer("muon").build(model, 3e-3, 0.01, 0.9), steps=2)
    adamw = build_model(spec)
    rest = take_steps(adamw, get_optimizer("adamw").build(adamw, 3e-3, 0.01, 0.9), steps=2)
    matrices = 0
    for name, parameter in found.items():
        if "blocks" not in name or parameter.ndim < 2:
            torch.testing.assert_close(parameter, rest[name], rtol=1e-6, atol=1e-8)
            continue
        weight = initial[name].detach().double().reshape(*parameter.shape[:2], -1)
        average = torch.zeros_like(weight)
        for step in range(2):
            generator = torch.Generator().manual_seed(step)
            for other in model.parameters():
                gradient = torch.randn(other.shape, generator=generator).double()
                if other is parameter:
                    break
            gradient = gradient.reshape(weight.shape)
            average = 0.9 * average + 0.1 * gradient
            update = 0.1 * gradient + 0.9 * average
            for k in range(weight.shape[2]):
                matrices += 1
                u, s, v = torch.linalg.svd(update[:, :, k], full_matrices=False)
                s = s / s.norm()
                for a, b, c in optim._NEWTON_SCHULZ:
                    s = a * s + b * s**3 + c * s**5
                moved = 0.2 * max(weight.shape[:2]) ** 0.5 * (u * s) @ v
                weight[:, :, k] = (1 - 3e-3 * 0.01) * weight[:, :, k] - 3e-3 * moved
        torch.testing.assert_close(parameter.double(), weight.reshape(parameter.shape), rtol=1e-5, atol=2e-6)
    assert matrices >= 8


def random_rotation(n, seed):
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]


def test_orthogonalising_commutes_with_orthogonal_changes_of_the_channel_basis():
    x = torch.randn(5, 6, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left, right = random_rotation(6, 1), random_rotation(11, 2)
    expected = left @ orthogonalise(x) @ right
    torch.testing.assert_close(orthogonalise(left @ x @ right), expected, rtol=0, atol=1e-12)
    values = torch.linalg.svdvals(orthogonalise(x))
    assert values.min() > 0.6
    assert values.max() < 1.25


def test_flops_of_orthogonalising_are_those_of_its_products():
    for rows, columns in ((6, 11), (20, 8)):
        with FlopCounterMode(display=False) as counter:
            orthogonalise(torch.randn(1, rows, columns))
        assert counter.get_total_flops() == orthogonalise_flops(rows, columns)


@pytest.mark.parametrize("arm", ["transformer", "gatr"])
def test_the_executed_flops_of_a_run_count_the_products_of_its_optimiser(windows, tmp_path, arm, monkeypatch):
    size = Size(8, 2, 2) if arm == "transformer" else Size(2, 1, 2)
    with_adamw, with_muon = (
        train(make_spec(arm=arm, size=size, steps=3, optimizer=name), *windows, checkpoints=tmp_path / name)
        for name in ("adamw", "muon")
    )
    model = build_model(with_muon.spec)
    optimizer = get_optimizer("muon").build(model, 1e-3, 0.0, 0.9)
    monkeypatch.setattr(native, "available", lambda x: False)  # the counter sees PyTorch's operations
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert counter.get_total_flops() > 0
    assert with_muon.flops_executed == with_adamw.flops_executed + 3 * counter.get_total_flops()


def test_a_network_trained_with_muon_is_as_equivariant_as_any(windows, tmp_path):
    spec = make_spec(arm="gatr", size=Size(3, 2, 2), optimizer="muon", steps=40, learning_rate=0.02)
    record = train(spec, *windows, checkpoints=tmp_path / "c", weights=tmp_path / "w.pt")
    assert record.curve[-1].train_loss < record.curve[0].train_loss
    model = load_trained(tmp_path / "w.pt")[1].double()
    batch = windows[1].batch(np.arange(8), dtype=torch.float64)
    for name, act in ELEMENTS.items():
        generator = torch.Generator().manual_seed(3)
        moved = act(batch, generator)
        expected = act(batch.replace(target=model(batch)), torch.Generator().manual_seed(3)).target
        mask = moved.mask[..., None]
        assert ((model(moved) - expected) * mask).abs().max() < 1e-10, name


def test_a_model_without_hidden_maps_is_refused_by_muon():
    with pytest.raises(InputError, match="no hidden maps for muon"):
        get_optimizer("muon").build(torch.nn.Linear(3, 3), 1e-3, 0.0, 0.9)


def test_the_file_in_the_guide_registers_an_optimiser_that_trains(windows, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    file = tmp_path / "sgd.py"
    file.write_text(code.replace('"sgd"', '"sgd_of_the_guide"'))
    load_optimizer_files([str(file)])
    assert optimizer_names() == ("adamw", "muon", "sgd", "sgd_of_the_guide")
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


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_parameters_of_another_type_keep_it(name):
    model = build_model(make_spec())
    model.offset = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    get_optimizer(name).build(model, 1e-3, 0.01, 0.9)
    assert model.offset.dtype is torch.float64
    assert {p.dtype for p in model.net.parameters()} == {torch.float32}
