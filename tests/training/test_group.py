"""Several processes that train one run together, on the CPU over Gloo."""

import functools
import math
import multiprocessing

import pytest
import torch
import torch.distributed as dist

from eqscale.errors import InputError
from eqscale.rigid.dataset import open_split
from eqscale.rigid.loader import batches
from eqscale.training import checkpoint, loop
from eqscale.training.arms import Size
from eqscale.training.group import Group, join
from eqscale.training.loop import follow, train
from eqscale.training.memory import read_micro_batch, write_micro_batch
from tests.training.conftest import DATA
from tests.training.test_loop import make_spec

WORLD = 2
# Seven windows are a share of four and one of three; three more ranks would have 2, 2, 2, 1.
STEPS = {
    "transformer": make_spec(steps=20, batch_size=7, size=Size(16, 2, 2)),
    "transformer_aug": make_spec(arm="transformer_aug", steps=20, batch_size=7, size=Size(16, 2, 2)),
    "gatr": make_spec(arm="gatr", steps=20, batch_size=7, size=Size(4, 1, 2)),
}
RUN = make_spec(arm="transformer_aug", steps=30, batch_size=7)


def open_windows(root):
    return (
        open_split(DATA, root, "train", scenes=DATA.train_scenes),
        open_split(DATA, root, "test", scenes=DATA.test_scenes),
    )


def take_steps(group, root, folder, name, dtype):
    """Some steps of a run without its evaluations: weights, and sum of the losses."""
    healthy = loop.build_model, loop.batches
    loop.build_model = lambda spec: healthy[0](spec).to(dtype)
    loop.batches = functools.partial(batches, dtype=dtype)
    try:
        trainer = loop._Trainer(
            STEPS[name], *open_windows(root), folder, print, print, math.inf, group
        )
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
    """In parts of two windows, or of one after the other's: ranks may differ."""
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
    """The second rank can't hold more than one window."""
    healthy = loop.weighted_mse

    def limited(prediction, batch):
        if group.rank == 1 and len(batch.weight) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return healthy(prediction, batch)

    loop.weighted_mse = limited
    try:
        whole_run(group, root, folder, "memory")
    finally:
        loop.weighted_mse = healthy


def rank_process(rank, root, folder, tasks):
    torch.set_num_threads(1)
    errors = []
    for port, task in tasks:
        try:
            with join(rank, WORLD, port) as group:
                task(group, root, folder)
        except (Killed, RuntimeError) as error:
            errors.append(error)  # as a debugger would, with the traceback and all that it holds
    (folder / f"errors-{rank}").write_text("\n".join(f"{type(e).__name__}: {e}" for e in errors))


@pytest.fixture(scope="module")
def done(data_root, tmp_path_factory):
    """Folder in which two processes have left what they did together."""
    folder = tmp_path_factory.mktemp("together")
    kinds = [(name, dtype) for name in STEPS for dtype in (torch.float64, torch.float32)]
    tasks = [
        functools.partial(steps_together, names=kinds),
        steps_in_parts,
        functools.partial(whole_run, name="whole"),
        half_a_run,
        out_of_memory,
        functools.partial(whole_run, name="memory"),
    ]
    stores = [dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in tasks]
    meetings = [(store.port, task) for store, task in zip(stores, tasks, strict=True)]
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=rank_process, args=(rank, data_root, folder, meetings))
        for rank in range(WORLD)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return folder


@pytest.fixture
def alone(data_root, tmp_path):
    """Does the same in this process, on one thread as the ranks do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield functools.partial(take_steps, Group(), data_root, tmp_path)
    torch.set_num_threads(threads)


def difference(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_two_ranks_take_the_steps_of_one(done, alone, name, dtype, tolerance):
    first, second = (torch.load(done / f"{name}-{dtype}-{rank}.pt") for rank in range(WORLD))
    print(name, dtype, difference(first, alone(name, dtype)))
    assert difference(first, second) == 0.0
    assert difference(first, alone(name, dtype)) < tolerance


def test_ranks_may_compute_in_parts_of_their_own(done, alone):
    result = torch.load(done / "parts-0.pt")
    assert difference(result, torch.load(done / "parts-1.pt")) == 0.0
    assert difference(result, alone("gatr", torch.float64)) < 1e-10
