"""How fast scenes are made and batches are loaded, their padding, and whether the bits depend on who makes them.

    python benchmarks/rigid_rates.py [--scenes 200]

Rates are per CPU-second of one core. Prints Markdown tables; about two minutes on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from eqscale.models.transformer import Transformer, TransformerConfig
from eqscale.tasks.dataset import generate, open_split, prepare
from eqscale.tasks.fields import Batch, at_tokens
from eqscale.tasks.metrics import squared_error
from eqscale.tasks.rigid.engine import ENGINES, simulate
from eqscale.tasks.rigid.families import FAMILIES
from eqscale.tasks.rigid.scene import sample_scene
from eqscale.tasks.rigid.task import data_spec
from eqscale.tasks.rigid.windows import STARTS, Windows, record_type
from eqscale.training.order import DataOrder

BATCH = 64


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median CPU time of one call."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times)


def generation(scenes: int) -> dict[str, np.ndarray]:
    print(
        f"Generation, {scenes} scenes; the column for 1e5 scenes is extrapolated from them, two cores, no overhead.\n"
    )
    print("| family | ms per scene | windows per CPU-second | bytes per window | 1e5 scenes: GB, hours on two cores |")
    print("|---" * 5 + "|")
    made = {}
    for name, family in FAMILIES.items():
        spec = data_spec(name)
        generate(spec, [], "test", 0, 2)  # imports and tables
        start = time.process_time()
        made[name] = generate(spec, [], "train", 0, scenes)
        each = (time.process_time() - start) / scenes
        size = record_type(family).itemsize
        print(
            f"| {name} | {1e3 * each:.1f} | {STARTS / each:.0f} | {size / STARTS:.0f} | "
            f"{1e5 * size / 1e9:.2f}, {1e5 * each / 2 / 3600:.2f} |",
            flush=True,
        )
    return made


def features(batch: Batch) -> torch.Tensor:
    """Every number a token has, for a plain transformer."""
    T = batch.mask.shape[1]
    values = batch.values.values()
    return torch.cat([value if value.ndim == 3 else at_tokens(value, T) for value in values], -1)


def training_step(windows: Windows, width: int, depth: int) -> tuple[Callable[[Batch], None], int]:
    size = features(windows.batch(np.arange(2))).shape[-1]
    model = Transformer(TransformerConfig(size, 3, width, depth, heads=4))
    optimiser = torch.optim.AdamW(model.parameters())

    def step(batch: Batch) -> None:
        loss = squared_error(model(features(batch), batch.mask), batch).sum() / len(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step, sum(p.numel() for p in model.parameters())


def loading(made: dict[str, np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    print(f"\nLoading random batches of {BATCH} windows, one thread, page cache warm, against a training step of a")
    print("plain transformer on the same batches; '100 shards' spreads the same records over 100 memory maps.\n")
    print("| family | batch ms | of 100 shards, ms | of 1,024 windows, ms per 64 | parameters: step ms, load / step |")
    print("|---" * 5 + "|")
    for name, records in made.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shard.npy"
            np.save(path, records)
            shard = np.load(path, mmap_mode="r")
            one = Windows([shard], 4, 0.37, 1 / 480, "random")
            many = Windows([shard] * 100, 4, 0.37, 1 / 480, "random")
            alone = milliseconds(lambda w=one: w.batch(rng.integers(len(w), size=BATCH)), 300)
            spread = milliseconds(lambda w=many: w.batch(rng.integers(len(w), size=BATCH)), 300)
            wide = milliseconds(lambda w=one: w.batch(rng.integers(len(w), size=1024)), 30) * BATCH / 1024
            cells = []
            # A step at L takes seconds on a core: one size and three of them are enough.
            sizes, steps = (((16, 3),), 3) if name == "L" else (((16, 3), (32, 4), (64, 4)), 12)
            for width, depth in sizes:
                step, parameters = training_step(one, width, depth)
                ready = [one.batch(rng.integers(len(one), size=BATCH)) for _ in range(steps)]
                queue = iter(ready)
                cost = milliseconds(lambda q=queue, s=step: s(next(q)), len(ready))
                cells.append(f"{parameters / 1e3:.0f}k: {cost:.0f}, {alone / cost:.1%}")
            print(f"| {name} | {alone:.2f} | {spread:.2f} | {wide:.2f} | {'; '.join(cells)} |", flush=True)


def padding(scenes: int) -> None:
    print(f"\nPadding of a pass over {scenes:,} scenes of S, padded over real tokens, minus one.\n")
    print("| batch | tokens | pairs |\n| --- | --- | --- |")
    drawn = (sample_scene(FAMILIES["S"], 0, "train", index) for index in range(scenes))
    tokens = np.array([sum(map(len, scene.vertices)) for scene in drawn])
    for size in (16, 32, 64):
        order = DataOrder(tokens, STARTS, size, seed=0)
        real, pairs, longest = np.array([order.counts(step) for step in range(order.batches_per_epoch)]).T
        more, more_pairs = size * longest.sum() / real.sum() - 1, size * (longest**2).sum() / pairs.sum() - 1
        print(f"| {size} | {more:.1%} | {more_pairs:.1%} |", flush=True)


def state_digest(index: int) -> str:
    scene = sample_scene(FAMILIES["S"], 0, "train", index)
    return hashlib.sha256(simulate(scene, 32, ENGINES["standard"]).state.tobytes()).hexdigest()


def determinism(count: int) -> None:
    import ray

    indices = list(range(count))
    serial = [state_digest(i) for i in indices]
    again = [state_digest(i) for i in reversed(indices)][::-1]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        spawned = pool.map(state_digest, indices, chunksize=3)
    print(f"\nDeterminism: trajectories of {count} scenes with the float64 bits of the first serial run:")
    for label, found in (("again, in reverse order", again), ("two spawned processes", spawned)):
        print(f"- {label}: {sum(a == b for a, b in zip(serial, found, strict=True))}/{count}")
    with tempfile.TemporaryDirectory() as folder:
        digests = []
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        for backend, workers in (("processes", 1), ("processes", 2), ("ray", None)):
            spec = data_spec("S", 128, 64)
            root = Path(folder) / f"{backend}{workers}"
            place = prepare(spec, root, workers=workers, backend=backend)
            digests.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in place.glob("*.npy")})
            open_split(spec, root, "test")
        ray.shutdown()
    print(f"- dataset files of 128 + 64 scenes, serial = two processes: {digests[0] == digests[1]}")
    print(f"- dataset files of 128 + 64 scenes, serial = Ray tasks: {digests[0] == digests[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    loading(generation(args.scenes))
    padding(4000)
    determinism(20)


if __name__ == "__main__":
    main()
