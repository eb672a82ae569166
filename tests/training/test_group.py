"""Several processes that train one run together, on the CPU over Gloo."""

import functools
import math
import multiprocessing
import weakref

import pytest
import torch
import torch.distributed as dist

from eqscale.arms import Size
from eqscale.errors import InputError
from eqscale.tasks.dataset import open_split
from eqscale.tasks.loader import batches
from eqscale.training import checkpoint, loop
from eqscale.training.group import Group, join
from eqscale.training.loop import follow, train
from eqscale.training.memory import NEXT_ATTEMPT, read_micro_batch, write_micro_batch
from eqscale.training.spec import RunRecord
from tests.training.conftest import DATA
from tests.training.test_loop import make_spec

WORLD = 2
# Seven windows are a share of four and one of three.
STEPS = {
    "transformer": make_spec(steps=20, batch_size=7, size=Size(16, 2, 2)),
    "transformer_aug": make_spec(arm="transformer_aug", steps=20, batch_size=7, size=Size(16, 2, 2)),
    "gatr": make_spec(arm="gatr", steps=20, batch_size=7, size=Size(4, 1, 2)),
}
RUN = make_spec(arm="transformer_aug", steps=30, batch_size=7)


def open_windows(root):
    return open_split(DATA, root, "train"), open_split(DATA, root, "test")


def take_steps(group, root, folder, name, dtype):
    """Some steps of a run without its evaluations: weights, and sum of the losses."""
    healthy = loop.build_model, loop.batches
    loop.build_model = lambda spec: healthy[0](spec).to(dtype)
    loop.batches = functools.partial(batches, dtype=dtype)
    try:
        trainer = loop._Trainer(STEPS[name], *open_windows(root), folder, checkpoint_seconds=math.inf, group=group)
        trainer.curve_steps = set()
        trainer.run()
    finally:
        loop.build_model, loop.batches = healthy
    return {**trainer.model.state_dict(), "loss": torch.tensor(trainer.progress.loss_sum)}


def steps_together(group, root, folder, names):
    for name, dtype in names:
        result = take_steps(group, root, folder / "none", name, dtype)
        torch.save(result, folder / f"{name}-{dtype}-{group.rank}.pt")


def steps_in_parts(group, root, folder):
    """One rank computes two windows at once, the other one."""
    here = folder / f"parts-{group.rank}"
    here.mkdir()
    write_micro_batch(here, 2 - group.rank)
    torch.save(take_steps(group, root, here, "gatr", torch.float64), folder / f"parts-{group.rank}.pt")


class Killed(Exception):
    pass


def kill(point):
    if point.step >= 15:
        raise Killed


def half_a_run(group, root, folder):
    """Up to a fault of the first rank; its checkpoints stay."""
    whole_run(group, root, folder, "resumed", report=kill, checkpoint_seconds=0.0)


def whole_run(group, root, folder, name, **options):
    windows = open_windows(root)
    places = {"checkpoints": folder / name, "group": group}
    if group.rank > 0:
        return follow(RUN, *windows, **places)
    record = train(RUN, *windows, weights=folder / f"{name}.pt", **places, **options)
    (folder / f"{name}.json").write_text(record.to_json())


def out_of_memory(group, root, folder):
    """The second rank can't hold its three windows."""
    healthy = loop.add_gradient

    def limited(model, batch, count):
        if group.rank == 1 and len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return healthy(model, batch, count)

    loop.add_gradient = limited
    try:
        whole_run(group, root, folder, "memory")
    finally:
        loop.add_gradient = healthy


def rank_process(rank, root, folder, tasks):
    torch.set_num_threads(1)
    for port, task in tasks:
        try:
            with join(rank, WORLD, port) as group:
                task(group, root, folder)
        except (Killed, RuntimeError) as error:
            (folder / f"{task.__name__}-{rank}").write_text(str(error))
            return


@pytest.fixture(scope="module")
def done(data_root, tmp_path_factory):
    """Folder in which two processes have left what they did together."""
    folder = tmp_path_factory.mktemp("together")
    kinds = [(name, dtype) for name in STEPS for dtype in (torch.float64, torch.float32)]
    steps = functools.partial(steps_together, names=kinds)
    whole = functools.partial(whole_run, name="whole")
    together(data_root, folder, steps, steps_in_parts, whole, half_a_run)
    together(data_root, folder, out_of_memory)
    return folder


def together(root, folder, *tasks):
    """Two processes do the tasks, one after the other; a task that fails ends its process."""
    stores = [dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in tasks]
    meetings = [(store.port, task) for store, task in zip(stores, tasks, strict=True)]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=rank_process, args=(rank, root, folder, meetings)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * WORLD


@pytest.fixture(autouse=True)
def one_thread():
    """As the ranks have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def alone(data_root, tmp_path):
    """Takes the same steps in this process."""
    return functools.partial(take_steps, Group(), data_root, tmp_path)


@pytest.fixture(scope="module")
def straight(data_root, tmp_path_factory):
    """The whole run on one device: its record, and its weights."""
    folder = tmp_path_factory.mktemp("straight")
    record = train(RUN, *open_windows(data_root), checkpoints=folder / "c", weights=folder / "w.pt")
    return record, checkpoint.load_file(folder / "w.pt")["model"]


def difference(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def both(folder, name):
    """What the two ranks have left, which must be the same."""
    first, second = (torch.load(folder / f"{name}-{rank}.pt") for rank in range(WORLD))
    assert difference(first, second) == 0.0
    return first


@pytest.mark.parametrize("name", STEPS)
def test_two_ranks_take_the_steps_of_one(done, alone, name):
    result = both(done, f"{name}-{torch.float64}")
    assert difference(result, alone(name, torch.float64)) < 1e-10


@pytest.mark.parametrize("name", STEPS)
def test_single_precision_rounds_the_loss_elsewhere(done, alone, name):
    """Single weights may differ by more, as AdamW takes steps of full length where a gradient is hardly more than
    rounding: their root mean square stays below a thousandth of the way."""
    result, expected = both(done, f"{name}-{torch.float32}"), alone(name, torch.float32)
    assert result["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    moved = torch.cat([(result[key] - expected[key]).flatten() for key in expected])
    assert moved.square().mean().sqrt() < 1e-3 * STEPS[name].steps * STEPS[name].learning_rate


def test_ranks_may_compute_in_parts_of_their_own(done, alone):
    result = both(done, "parts")
    assert difference(result, alone("gatr", torch.float64)) < 1e-10


def check_same(record, weights, straight):
    """The same run but for the order of floating-point sums."""
    expected, expected_weights = straight
    assert record.run_id == expected.run_id
    for name in ("status", "tokens", "padded_tokens", "flops_executed", "epochs", "steps_done"):
        assert getattr(record, name) == getattr(expected, name), name
    assert difference(checkpoint.load_file(weights)["model"], expected_weights) < 1e-3
    assert record.test == pytest.approx(expected.test, rel=1e-3, abs=1e-6)
    assert [point.step for point in record.curve] == [point.step for point in expected.curve]
    assert [p.train_loss for p in record.curve] == pytest.approx([p.train_loss for p in expected.curve], rel=1e-5)


def test_a_run_on_two_devices_leaves_the_record_of_one(done, straight):
    record = RunRecord.from_json((done / "whole.json").read_text())
    check_same(record, done / "whole.pt", straight)
    assert (record.devices, record.micro_batch, record.notes) == (2, 4, [])
    assert record.curve[-1].seconds == record.seconds


def test_a_run_on_two_devices_goes_on_on_one(done, straight, data_root):
    assert (done / "half_a_run-0").exists()
    assert (done / "half_a_run-1").exists()
    begun = max(checkpoint.steps(done / "resumed"))
    assert 10 <= begun < 30
    places = {"checkpoints": done / "resumed", "weights": done / "resumed.pt"}
    record = train(RUN, *open_windows(data_root), **places)
    check_same(record, done / "resumed.pt", straight)
    assert record.devices == 1
    assert record.notes == [f"devices: 2 up to step {begun}, then 1"]


def test_memory_that_runs_out_on_one_rank_ends_the_attempt_and_halves_the_next(done, straight, data_root):
    expected = f"out of memory at step 0: 2 {NEXT_ATTEMPT}"
    assert (done / "out_of_memory-1").read_text() == expected
    assert "out of memory" not in (done / "out_of_memory-0").read_text()
    assert read_micro_batch(done / "memory", RUN.batch_size) == 2
    places = {"checkpoints": done / "memory", "weights": done / "memory.pt"}
    record = train(RUN, *open_windows(data_root), **places)
    check_same(record, done / "memory.pt", straight)
    assert record.micro_batch == 2


def test_more_devices_than_windows_are_refused(windows, tmp_path):
    with pytest.raises(InputError, match="can't use 8 devices: its batch has 7 windows"):
        train(RUN, *windows, checkpoints=tmp_path, group=Group(0, 8))


def test_a_fault_frees_its_models_before_the_group_ends(monkeypatch):
    kept, left = [], []
    leave = dist.destroy_process_group

    def fault():
        model = torch.nn.Linear(1, 1)
        kept.append(weakref.ref(model))
        raise RuntimeError("a rank is lost")

    def noted():
        left.append(kept[0]())
        leave()

    monkeypatch.setattr(dist, "destroy_process_group", noted)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(RuntimeError, match="a rank is lost"), join(0, 1, store.port):
        fault()
    assert left == [None]
