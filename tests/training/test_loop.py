import itertools

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eqscale import native
from eqscale.arms import Size, get_arm
from eqscale.errors import InputError
from eqscale.models.gatr import GATr
from eqscale.models.gatr.flops import PRODUCT_TERMS
from eqscale.tasks import Task, get_task
from eqscale.training import checkpoint, loop
from eqscale.training.loop import evaluation_indices, learning_rate_at, spawn_seeds, train
from eqscale.training.order import DataOrder
from eqscale.training.spec import RunSpec


def make_spec(**changes):
    values = dict(
        arm="transformer", size=Size(8, 1, 2), budget=1e9, steps=30, batch_size=8, learning_rate=3e-3, seed=3,
        data="digest", train_systems=20, test_systems=6, test_samples_per_system=2,
    )  # fmt: skip
    return RunSpec(**(values | changes))


def final_weights(path):
    return checkpoint.load_file(path)["model"]


def test_runs_count_subnormal_numbers_as_zero():
    torch.set_flush_denormal(False)
    tiny = torch.full((4,), 1e-40)
    assert (tiny * 2 > 0).all()
    loop.build_model(make_spec())
    assert (tiny * 2 == 0).all()


def test_a_run_learns_and_fills_its_record(windows, tmp_path):
    spec = make_spec(steps=150)
    points = []
    record = train(spec, *windows, checkpoints=tmp_path / "c", weights=tmp_path / "w.pt", report=points.append)
    assert record.status == "finished"
    assert record.steps_done == 150
    assert 0 < record.test["nmse"] < 1.2
    assert record.curve == points
    assert points[-1].step == 150
    assert points[-1].train_loss < points[0].train_loss
    assert record.epochs == pytest.approx(150 * 8 / (20 * 24))
    flops = get_arm("transformer").flops(spec.size, get_task(spec.task))
    assert record.flops_nominal == pytest.approx(flops.nominal.per_token * record.tokens)
    assert record.tokens <= record.padded_tokens
    assert (record.micro_batch, record.notes) == (8, [])
    assert final_weights(tmp_path / "w.pt")


def test_two_runs_of_one_seed_are_identical_and_seeds_differ(windows, tmp_path):
    losses = [train(make_spec(seed=s), *windows, checkpoints=tmp_path / "c").test["nmse"] for s in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("arm", "killed_at"), [("transformer", 1), ("transformer_aug", 2), ("transformer_aligned", 13), ("gatr", 29)]
)
def test_a_killed_run_resumes_to_the_same_bits(windows, tmp_path, monkeypatch, arm, killed_at):
    spec = make_spec(arm=arm, size=Size(4, 1, 2))
    straight = train(spec, *windows, checkpoints=tmp_path / "a", weights=tmp_path / "a.pt")
    step = loop._Trainer._step

    def kill(trainer, batch):
        if trainer.progress.step == killed_at:
            raise Killed
        step(trainer, batch)

    with monkeypatch.context() as patched:
        patched.setattr(loop._Trainer, "_step", kill)
        with pytest.raises(Killed):
            train(spec, *windows, checkpoints=tmp_path / "b", checkpoint_seconds=0.0)
    newest = max((tmp_path / "b").glob("step-*.pt"))
    assert newest.name == f"step-{killed_at:09d}.pt"
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])  # and its last checkpoint is cut short
    resumed = train(spec, *windows, checkpoints=tmp_path / "b", weights=tmp_path / "b.pt")
    assert resumed.notes == [f"the checkpoint of step {killed_at} was damaged: went on from step {killed_at - 1}"]
    a, b = final_weights(tmp_path / "a.pt"), final_weights(tmp_path / "b.pt")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert resumed.test == straight.test
    assert resumed.tokens == straight.tokens
    assert resumed.flops_executed == straight.flops_executed
    assert [p.train_loss for p in resumed.curve] == [p.train_loss for p in straight.curve]


def test_cpu_time_is_counted_with_the_seconds_and_kept_in_checkpoints(windows, tmp_path, monkeypatch):
    """Clocks that tick once a reading: the wall clock by 1 s, the CPU clock by 10 s."""
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)
    wall, cpu = itertools.count(0.0, 1.0), itertools.count(0.0, 10.0)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(loop.time, "process_time", lambda: next(cpu))

    def kill(point):
        if point.step >= 15:
            raise Killed

    spec = make_spec()
    straight = train(spec, *windows, checkpoints=tmp_path / "a")
    with pytest.raises(Killed):
        train(spec, *windows, checkpoints=tmp_path / "b", report=kill)
    resumed = train(spec, *windows, checkpoints=tmp_path / "b")
    # a stretch ends at every checkpoint and point of the curve, here after every step
    assert straight.cpu_seconds == resumed.cpu_seconds == 10.0 * spec.steps

    with pytest.raises(Killed):
        train(spec, *windows, checkpoints=tmp_path / "c", report=kill)
    monkeypatch.setattr(loop.checkpoint, "load_newest", without_cpu_seconds(checkpoint.load_newest))
    assert train(spec, *windows, checkpoints=tmp_path / "c").cpu_seconds is None


def without_cpu_seconds(load):
    def loaded(folder):
        state = load(folder)
        del state["progress"]["cpu_seconds"]
        return state

    return loaded


def test_checkpoints_of_another_run_are_refused(windows, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)

    def kill(point):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make_spec(), *windows, checkpoints=tmp_path, report=kill)
    assert list(tmp_path.glob("step-*.pt"))
    with pytest.raises(InputError, match=r"of another run .* than transformer_aug"):
        train(make_spec(arm="transformer_aug"), *windows, checkpoints=tmp_path)


def test_measuring_the_equivariance_error_changes_no_bit_of_a_run(windows, tmp_path, monkeypatch):
    spec = make_spec(arm="transformer_aug")
    record = train(spec, *windows, checkpoints=tmp_path / "c", weights=tmp_path / "a.pt")
    classes = [name for name in record.test if name.startswith("equivariance_")]
    assert classes == [f"equivariance_{name}" for name in (*get_task("rigid").classes(), "loss_share")]
    assert record.test["equivariance_rotation"] > 0.05
    assert record.test["equivariance_permutation"] < 1e-4
    monkeypatch.setattr(Task, "equivariance", lambda *a: {})
    without = train(spec, *windows, checkpoints=tmp_path / "c", weights=tmp_path / "b.pt")
    assert {k: v for k, v in record.test.items() if k not in classes} == without.test
    a, b = final_weights(tmp_path / "a.pt"), final_weights(tmp_path / "b.pt")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_gatr_has_no_equivariance_error_but_rounding(windows, tmp_path):
    spec = make_spec(arm="gatr", size=Size(4, 1, 2))
    test = train(spec, *windows, checkpoints=tmp_path).test
    for name in ("yaw", "rotation", "reflection", "translation", "permutation"):
        assert test[f"equivariance_{name}"] < 1e-4
    assert test["equivariance_loss_share"] < 1e-6


@pytest.mark.parametrize(("large", "status"), [({5}, "finished"), (range(1, 99), "diverged")])
def test_a_single_large_loss_is_a_hard_batch_many_are_divergence(windows, tmp_path, monkeypatch, large, status):
    healthy = loop.accumulate_gradient
    calls = []

    def large_at_some_steps(*args):
        calls.append(1)
        return healthy(*args) + (100.0 if len(calls) in large else 0.0)

    monkeypatch.setattr(loop, "accumulate_gradient", large_at_some_steps)
    for seconds in (1e9, 0.0):  # however often losses are read
        calls.clear()
        record = train(make_spec(), *windows, checkpoints=tmp_path / str(seconds), checkpoint_seconds=seconds)
        assert record.status == status


def test_a_nan_ends_the_run_as_diverged(windows, tmp_path, monkeypatch):
    healthy = loop.accumulate_gradient
    calls = []

    def nan_at_step_five(*args):
        calls.append(1)
        return healthy(*args) * (float("nan") if len(calls) == 5 else 1.0)

    monkeypatch.setattr(loop, "accumulate_gradient", nan_at_step_five)
    record = train(make_spec(), *windows, checkpoints=tmp_path / "c", weights=tmp_path / "w.pt")
    assert record.status == "diverged"
    assert record.test == {}
    assert record.steps_done < 30
    assert not (tmp_path / "w.pt").exists()


@pytest.mark.parametrize("arm", ["transformer", "transformer_aug", "transformer_aligned", "gatr"])
def test_executed_flops_are_those_of_the_steps_taken(windows, tmp_path, monkeypatch, arm):
    """torch's counter over the steps of a run. It sees matrix products only, so kernels are switched off and GATr's
    geometric products and joins, elementwise then, are added. Without kernels padding costs something: batches have
    none."""
    monkeypatch.setattr(native, "available", lambda x: False)
    spec = make_spec(arm=arm, size=Size(16, 2, 2), steps=5, batch_size=1, learning_rate=1e-5)
    step, counted = loop._Trainer._step, []

    def counting(trainer, batch):
        with FlopCounterMode(display=False) as counter:
            step(trainer, batch)
        counted.append(counter.get_total_flops())

    monkeypatch.setattr(loop._Trainer, "_step", counting)
    record = train(spec, *windows, checkpoints=tmp_path)
    products = 6 * record.tokens * 2 * 16 * PRODUCT_TERMS if arm.startswith("gatr") else 0
    assert len(counted) == 5
    assert sum(counted) + products == pytest.approx(record.flops_executed, rel=0.01)


def test_the_learning_rate_warms_up_and_ends_at_zero():
    spec = make_spec(steps=200, warmup=0.3)
    rates = [learning_rate_at(step, spec) for step in range(200)]
    assert rates[:60] == pytest.approx([spec.learning_rate * (step + 1) / 60 for step in range(60)])
    assert max(rates) == pytest.approx(spec.learning_rate)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert rates[60:] == sorted(rates[60:], reverse=True)
    assert rates[60] > 0.999 * spec.learning_rate


@pytest.mark.parametrize("arm", ["transformer", "transformer_aligned", "gatr"])
def test_bfloat16_is_for_the_products_of_training_alone(windows, tmp_path, monkeypatch, arm):
    spec = make_spec(arm=arm, size=Size(8, 1, 2), steps=4)
    found = {}

    def noting(name, function):
        def wrapper(*args):
            found[name] = torch.is_autocast_enabled("cpu")
            return function(*args)

        return wrapper

    monkeypatch.setattr(loop, "accumulate_gradient", noting("training", loop.accumulate_gradient))
    monkeypatch.setattr(loop, "evaluate", noting("evaluation", loop.evaluate))
    records = {}
    for asked in ("", "0", "1"):
        monkeypatch.setenv("EQSCALE_BF16", asked)
        records[asked] = train(spec, *windows, checkpoints=tmp_path / "c", weights=tmp_path / f"{asked or 'unset'}.pt")
        assert found == {"training": asked == "1", "evaluation": False}
    assert records[""].test == records["0"].test
    assert records["1"].hardware == records["0"].hardware + ", bfloat16 products"
    plain, half = (final_weights(tmp_path / f"{asked}.pt") for asked in ("0", "1"))
    assert {value.dtype for value in half.values()} == {torch.float32}
    assert any(not torch.equal(plain[name], half[name]) for name in plain)
    assert records["1"].test["nmse"] == pytest.approx(records["0"].test["nmse"], rel=0.02)


def test_gradients_kept_in_place_for_graphs_are_the_same(windows, tmp_path, monkeypatch):
    spec = make_spec(steps=4)
    train(spec, *windows, checkpoints=tmp_path / "a", weights=tmp_path / "fresh.pt")
    kept = []

    def gradient(model, batch, micro_batch, whole=None):
        loss = accumulate_gradient(model, batch, spec.batch_size, whole)
        kept.append([p.grad.data_ptr() for p in model.parameters()])
        return loss

    accumulate_gradient = loop.accumulate_gradient
    monkeypatch.setattr(loop, "accumulate_gradient", gradient)
    monkeypatch.setattr(loop, "replays_graphs", lambda *args: True)
    record = train(spec, *windows, checkpoints=tmp_path / "b", weights=tmp_path / "kept.pt")
    assert record.hardware.endswith("CUDA graphs")
    assert all(pointers == kept[0] for pointers in kept)
    fresh, same = (final_weights(tmp_path / f"{name}.pt") for name in ("fresh", "kept"))
    assert all(torch.equal(fresh[name], same[name]) for name in fresh)


def test_a_seed_sets_initialisation_order_and_augmentation_separately(monkeypatch):
    seeds = [spawn_seeds(seed) for seed in range(50)]
    assert len({value for three in seeds for value in three}) == 150

    def weights():
        return torch.cat([p.flatten() for p in loop.build_model(make_spec()).parameters()])

    first = weights()
    init, order, augmentation = spawn_seeds(make_spec().luck)
    monkeypatch.setattr(loop, "spawn_seeds", lambda seed: (init, order + 1, augmentation + 1))
    assert torch.equal(weights(), first)
    monkeypatch.setattr(loop, "spawn_seeds", lambda seed: (init + 1, order, augmentation))
    assert not torch.equal(weights(), first)


def test_wrong_data_is_named_before_training(windows, tmp_path):
    with pytest.raises(InputError, match="asks for 21 training and 6 test scenes; the data have 20 and 6"):
        train(make_spec(train_systems=21), *windows, checkpoints=tmp_path)


@pytest.mark.parametrize(("per_scene", "starts"), [(1, [12]), (2, [6, 18]), (4, [3, 9, 15, 21]), (24, list(range(24)))])
def test_evaluation_takes_the_starts_of_a_scene_evenly(windows, per_scene, starts):
    found = evaluation_indices(windows[1], 2, per_scene)
    assert found.tolist() == [*starts, *(24 + start for start in starts)]


@pytest.mark.parametrize("packs", [True, False])
def test_padding_counts_where_it_is_computed(windows, tmp_path, monkeypatch, packs):
    if packs and not GATr.packs(torch.device("cpu")):
        pytest.skip("no C++ compiler here: the kernels are off")
    if not packs:
        monkeypatch.setattr(native, "available", lambda x: False)
    spec = make_spec(arm="gatr", size=Size(4, 1, 2), steps=12)
    record = train(spec, *windows, checkpoints=tmp_path / "c")
    order = DataOrder(windows[0].tokens, windows[0].samples_per_system, spec.batch_size, spawn_seeds(spec.luck)[1])
    lengths = windows[0].tokens[np.stack([order.batch(step) for step in range(12)]) // windows[0].samples_per_system]
    if not packs:
        lengths = np.broadcast_to(lengths.max(1, keepdims=True), lengths.shape)
    executed = get_arm("gatr").flops(spec.size, get_task(spec.task)).executed
    assert record.flops_executed == pytest.approx(executed.total(lengths.sum(), (lengths**2).sum()))
    assert record.padded_tokens > record.tokens
