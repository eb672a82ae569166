"""What a CUDA device does with eqscale: is it right, how fast is a step, and how are many small runs best trained?

    python benchmarks/gpu.py --part correctness     # every arm against float64 on the CPU, symmetry, padding, resume
    python benchmarks/gpu.py --part steps           # ms, TFLOP/s and memory of a step beside other packages
    python benchmarks/gpu.py --part repeat          # runs of results/quick once more: the same losses?
    python benchmarks/gpu.py --part small           # many small runs: in turn, in several processes, stacked
    python benchmarks/gpu.py --part startup         # import, first step, compilation, graphs

Each part prints a table and writes its rows to --json as they are measured. It starts no row after --minutes (8); the
same command goes on with the rows that are missing. It needs PyTorch, NumPy, this repository, and for all parts but
steps a data set (--data; made here if MuJoCo is installed). --device cpu --tiny runs every part in seconds, for tests.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from dense_gatr import DenseGATr, other_packages
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.flop_counter import FlopCounterMode

from eqscale import native
from eqscale.arms import Size, arm_names, get_arm
from eqscale.models.flops import TrainingFlops
from eqscale.models.gatr import GATr, GATrConfig, gatr_training_flops
from eqscale.models.transformer import Transformer, TransformerConfig, transformer_training_flops
from eqscale.roles import Role
from eqscale.study.grid import data_spec, design_run
from eqscale.study.presets import COMPUTE_GRIDS, ComputeGrid
from eqscale.tasks import Batch, Samples, get_task
from eqscale.tasks.dataset import open_split, prepare
from eqscale.training.device import hardware
from eqscale.training.loop import build_model, symmetry_indices, train, weighted_mse
from eqscale.training.spec import RunRecord, RunSpec

ROOT = pathlib.Path(__file__).resolve().parents[1]
PRESET = COMPUTE_GRIDS["quick"]
PRECISIONS = ("float32", "tf32", "bfloat16")
WRONG = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 1e-1}
"""Relative error of a gradient, or of a prediction under a motion, from which a row is red."""


class Results:
    """Rows by part and name, kept in a file; a row that is there isn't measured again."""

    def __init__(self, path: pathlib.Path, minutes: float) -> None:
        self.path, self.end = path, time.monotonic() + 60 * minutes
        self.rows: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
        self.left = 0

    def measure(self, part: str, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure a row unless it is there or the time is up, and print it."""
        key = f"{part}: {name}"
        if key not in self.rows or "error" in self.rows[key]:
            if time.monotonic() > self.end:
                self.left += 1
                return
            begin = time.perf_counter()
            try:
                row = measure()
            except Exception as error:  # one row that fails, e.g. for want of memory, says so; the others go on
                row = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
            self.rows[key] = row | {"took_s": round(time.perf_counter() - begin, 2)}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(".part")
            partial.write_text(json.dumps(self.rows, indent=1) + "\n")
            partial.replace(self.path)
        shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in self.rows[key].items()}
        print(f"| {name} | " + " | ".join(f"{k} {v}" for k, v in shown.items()) + " |", flush=True)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where and how large."""

    device: torch.device
    tiny: bool
    data: pathlib.Path
    parameters: tuple[float, ...]

    @functools.cached_property
    def preset(self) -> ComputeGrid:
        """The study whose data are used."""
        return dataclasses.replace(PRESET, train_systems=24, test_systems=8) if self.tiny else PRESET

    @functools.cached_property
    def samples(self) -> tuple[Samples, Samples]:
        """Training and test samples."""
        spec = data_spec(self.preset)
        prepare(spec, self.data)
        return open_split(spec, self.data, "train"), open_split(spec, self.data, "test")

    @property
    def on_gpu(self) -> bool:
        """Whether there is something to synchronise."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, step: Callable[[], object], least: float = 1.0) -> float:
        """Of one call: median of five rounds, after three calls that don't count."""
        for _ in range(3):
            step()
        self.wait()
        times = []
        for _ in range(1 if self.tiny else 5):
            begin, calls = time.perf_counter(), 0
            while not calls or time.perf_counter() - begin < (0.0 if self.tiny else least / 5):
                step()
                calls += 1
                if calls % 10 == 0:
                    self.wait()
            self.wait()
            times.append((time.perf_counter() - begin) / calls)
        return statistics.median(times)


@contextlib.contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Matrix products in float32, in TF32, or in bfloat16 by autocast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        with torch.autocast(device.type, torch.bfloat16) if name == "bfloat16" else contextlib.nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def relative(a: Tensor, b: Tensor) -> float:
    """Distance of a to b over the length of b."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm())


def judged(errors: dict[str, float], limit: float) -> dict[str, Any]:
    """Errors, and whether all are below the limit."""
    return errors | {"verdict": "green" if all(value < limit for value in errors.values()) else "RED"}


# ---------------------------------------------------------------- correctness
def rung(arm: str, parameters: float) -> Size:
    """The rung of an arm's ladder with about so many parameters."""
    task, own = get_task(PRESET.task), get_arm(arm)
    best = own.ladder[0]
    for size in own.ladder[1:]:  # in order of parameters: the largest take seconds to count
        off = [abs(math.log(own.parameters(one, task) / parameters)) for one in (best, size)]
        if off[1] > off[0]:
            break
        best = size
    return best


def loss_gradient(model: nn.Module, batch: Batch) -> Tensor:
    """Of all parameters, flat."""
    parameters = list(model.parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(weighted_mse(model(batch), batch), parameters)])


def gradients(setting: Setting, arm: str) -> dict[str, Any]:
    """Gradient of a batch's loss in each precision against float64 on the CPU's ATen operations."""
    spec = design_run(get_arm(arm), rung(arm, 1e4), 1e10, setting.preset, seed=0)
    train_samples, _ = setting.samples
    indices = np.arange(0, len(train_samples), max(1, len(train_samples) // 16))[:16]
    double = train_samples.batch(indices, dtype=torch.float64)
    with native.switched_off():
        exact = loss_gradient(build_model(spec).double(), double)
    batch, model = train_samples.batch(indices).to(setting.device), build_model(spec).to(setting.device)
    found: dict[str, Any] = {}
    for name in PRECISIONS if setting.on_gpu else ("float32",):
        with precision(name, setting.device):
            found |= judged({name: relative(loss_gradient(model, batch), exact)}, WRONG[name])
            if setting.on_gpu:
                compiled = torch.compile(model, dynamic=True)
                error = relative(loss_gradient(compiled, batch), exact)
                found |= judged({f"{name}, compiled": error}, WRONG[name])
        if found["verdict"] == "RED":
            break
    return found


def symmetry(setting: Setting, arm: str) -> dict[str, Any]:
    """Equivariance error of an untrained network in each precision; of arms that build the symmetry in it is judged."""
    spec, task = design_run(get_arm(arm), rung(arm, 1e4), 1e10, setting.preset, seed=0), get_task(PRESET.task)
    _, samples = setting.samples
    model = build_model(spec).to(setting.device)
    found: dict[str, Any] = {}
    for name in PRECISIONS if setting.on_gpu else ("float32",):

        def predict(batch: Batch, name: str = name) -> Tensor:
            with torch.inference_mode(), precision(name, setting.device):
                return model(batch.to(setting.device)).float().cpu()

        errors = task.equivariance(predict, samples, symmetry_indices(samples, samples.n_systems))
        worst = max(v for k, v in errors.items() if k != "equivariance_loss_share" and math.isfinite(v))
        exact = get_arm(arm).role is Role.BUILD_IN and arm != "gatr_published"
        row = judged({name: worst}, 10 * WRONG[name] if exact else math.inf)
        if found.get("verdict") != "RED":
            found |= row
    return found


def padding(setting: Setting, arm: str) -> dict[str, Any]:
    """A sample alone against the same one padded to the longest of a batch."""
    spec = design_run(get_arm(arm), rung(arm, 1e4), 1e10, setting.preset, seed=0)
    samples = setting.samples[1]
    shortest, longest = int(samples.tokens.argmin()), int(samples.tokens.argmax())
    indices = np.array([shortest, longest]) * samples.samples_per_system
    model = build_model(spec).to(setting.device)
    with torch.inference_mode():
        together = model(samples.batch(indices).to(setting.device))[0]
        alone = model(samples.batch(indices[:1]).to(setting.device))[0]
    return judged({"padded": relative(together[: len(alone)], alone)}, 1e-4)


class _Stop(Exception):
    pass


def short_run(setting: Setting, arm: str, folder: pathlib.Path, stop: bool = False) -> RunRecord:
    """A run of 60 steps; with ``stop`` it is interrupted half way, and goes on."""
    spec = dataclasses.replace(
        design_run(get_arm(arm), rung(arm, 3e3), 1e9, setting.preset, seed=0, batch_size=8), steps=60
    )
    points = []

    def report(point: Any) -> None:
        points.append(point)
        if stop and len(points) == 6:
            raise _Stop

    for _ in range(2):
        with contextlib.suppress(_Stop):
            return train(spec, *setting.samples, checkpoints=folder, report=report, checkpoint_seconds=1e-9)
    raise AssertionError


def loops(setting: Setting, arm: str) -> dict[str, Any]:
    """Loss of a short run: as users train it, resumed, without graphs, and without compilation."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        usual = short_run(setting, arm, folder / "a")
        found["resumed"] = short_run(setting, arm, folder / "b", stop=True).loss / usual.loss - 1
        if setting.on_gpu:
            os.environ["EQSCALE_CUDA_GRAPHS"] = "0"
            found["without graphs"] = short_run(setting, arm, folder / "c").loss / usual.loss - 1
            with torch._dynamo.config.patch(disable=True):
                found["eager"] = short_run(setting, arm, folder / "d").loss / usual.loss - 1
            del os.environ["EQSCALE_CUDA_GRAPHS"]
    return judged({k: abs(v) for k, v in found.items()}, 0.02) | {"loss": usual.loss, "hardware": usual.hardware}


def one_rank(setting: Setting, arm: str) -> dict[str, Any]:
    """Gradient of a data-parallel model on one rank against the model's own."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    spec = design_run(get_arm(arm), rung(arm, 1e4), 1e10, setting.preset, seed=0)
    batch, model = setting.samples[0].batch(np.arange(8)).to(setting.device), build_model(spec).to(setting.device)
    own = loss_gradient(model, batch)
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(f"{folder}/store", 1)
        dist.init_process_group("nccl" if setting.on_gpu else "gloo", store=store, rank=0, world_size=1)
        try:
            wrapped = DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)
            weighted_mse(wrapped(batch), batch).backward()
        finally:
            dist.destroy_process_group()
    parallel = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])
    return judged({"gradient": relative(parallel, own)}, 1e-5)


def correctness(setting: Setting, results: Results) -> None:
    """All of the above for every arm."""
    for arm in arm_names():
        for check in (gradients, symmetry, padding, loops, one_rank):
            results.measure("correctness", f"{arm}, {check.__name__}", functools.partial(check, setting, arm))


# ---------------------------------------------------------------- steps
def contestants(parameters: float, tokens: int) -> dict[str, tuple[nn.Module, tuple[int, ...], float | None]]:
    """Name -> module, shape of its inputs but for the batch, and FLOPs of a step a sample as executed (None: count)."""
    size = rung("gatr", parameters)
    c, blocks, heads = size.width, size.depth, size.heads
    typed = GATrConfig(1, 1, 1, 1, 1, 1, c // 2, c - c // 2, 2 * c, blocks, heads=heads)
    untyped = GATrConfig(1, 0, 1, 1, 0, 1, c, 0, 2 * c, blocks, heads=heads, symmetry="published")
    net = GATr(untyped)
    count = sum(p.numel() for p in net.parameters())

    def plain(width: int) -> TransformerConfig:
        return TransformerConfig(17, 17, width, blocks, next(h for h in (16, 8, 4, 2, 1) if width % h == 0))

    # nominal FLOPs are six a weight and token
    weights = {w: transformer_training_flops(plain(w)).nominal.per_token / 6 for w in range(8, 8193, 8)}
    equal = plain(min(weights, key=lambda w: abs(weights[w] - count)))
    nominal = gatr_training_flops(typed).nominal.per_token / 6
    as_dear = plain(min(weights, key=lambda w: abs(weights[w] - nominal)))

    def executed(flops: TrainingFlops) -> float:
        return flops.executed.total(tokens, tokens**2)

    found: dict[str, tuple[nn.Module, tuple[int, ...], float | None]] = {
        "gatr, typed": (GATr(typed), (2, 16), executed(gatr_training_flops(typed))),
        "gatr, untyped": (net, (1, 16), executed(gatr_training_flops(untyped))),
        "gatr, dense": (DenseGATr(net), (1, 16), None),
        "plain, equal nominal FLOPs": (Transformer(as_dear), (17,), executed(transformer_training_flops(as_dear))),
        "plain, equal parameters": (Transformer(equal), (17,), executed(transformer_training_flops(equal))),
    }
    for name, module in other_packages(c, 2 * c, blocks, heads, tokens).items():
        found[name] = (module, (1, 16), None)
    return found


def time_network(setting: Setting, name: str, parameters: float, tokens: int, how: str, mode: str) -> dict[str, Any]:
    """Forward and backward of one contestant."""
    module, shape, flops = contestants(parameters, tokens)[name]
    module = module.to(setting.device)
    batch = 2 if setting.tiny else max(1, min(1024, int(2**31 / parameters / tokens)))
    x = torch.randn(batch, tokens, *shape, device=setting.device)
    inputs: dict[str, Tensor] = {}
    if name.startswith("gatr") or name == "lgatr":
        inputs["scalars"] = torch.randn(batch, tokens, 1, device=setting.device)
    if name == "gatr, dense":  # whose argument has another name
        inputs["s"] = inputs.pop("scalars")
    weights = list(module.parameters())

    def step(call: Callable[..., Any]) -> None:
        with precision(how, setting.device):
            out = call(x, **inputs)
            outputs = [o.float().square().sum() for o in (out if isinstance(out, tuple) else (out,)) if o.numel()]
        torch.autograd.grad(outputs, weights, allow_unused=True)

    if flops is None:
        with native.switched_off(), FlopCounterMode(display=False) as counter:
            step(module)
        flops = counter.get_total_flops() / batch
    fast: Callable[..., Any] = module
    if mode != "eager":
        fast = torch.compile(module, mode="reduce-overhead" if mode == "graphs" else "default")
    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = setting.seconds(lambda: step(fast))
    rate = flops * batch / seconds / 1e12
    return {
        "ms": 1e3 * seconds, "batch": batch, "parameters": sum(p.numel() for p in weights), "TFLOP/s": rate,
        "share_of_matmul": rate / matmul_rate(setting, how),
        "MB": torch.cuda.max_memory_allocated() / 2**20 if setting.on_gpu else math.nan,
    }  # fmt: skip


@functools.cache
def matmul_rate(setting: Setting, how: str) -> float:
    """TFLOP/s of a large matrix product."""
    n = 128 if setting.tiny else 8192 if setting.on_gpu else 1024
    a = torch.randn(n, n, device=setting.device)
    with precision(how, setting.device):
        if how == "bfloat16":
            a = a.bfloat16()
        return 2 * n**3 / setting.seconds(lambda: a @ a) / 1e12


def steps(setting: Setting, results: Results) -> None:
    """Networks of each size, number of tokens, precision and mode, all contestants in one run."""
    modes = ("eager", "compiled", "graphs") if setting.on_gpu else ("eager",)
    for parameters in setting.parameters:
        for tokens in (31,) if setting.tiny else (31, 256):
            for how in ("float32", "bfloat16") if setting.on_gpu else ("float32",):
                for mode in modes:
                    for name in contestants(1e4, tokens):
                        row = f"{parameters:.0e} parameters, {tokens} tokens, {how}, {mode}, {name}"
                        measure = functools.partial(time_network, setting, name, parameters, tokens, how, mode)
                        results.measure("steps", row, measure)


# ---------------------------------------------------------------- a study repeated
def repeat(setting: Setting, results: Results) -> None:
    """The published runs of results/quick once more."""
    lines = (ROOT / "results/quick/records.jsonl").read_text().splitlines()
    records = [RunRecord.from_json(line) for line in lines if "spec" in json.loads(line)]
    for record in [r for r in records if not r.outdated and r.status == "finished"][: 1 if setting.tiny else None]:
        results.measure("repeat", record.spec.name, functools.partial(_again, setting, record))


def _again(setting: Setting, record: RunRecord) -> dict[str, Any]:
    spec = record.spec
    if setting.tiny:
        spec = dataclasses.replace(spec, train_systems=24, test_systems=8, steps=5)
    with tempfile.TemporaryDirectory() as folder:
        again = train(spec, *setting.samples, checkpoints=pathlib.Path(folder))
    return {
        "published": record.loss, "here": again.loss, "log_ratio": math.log(again.loss / record.loss),
        "seconds": again.seconds, "published_seconds": record.seconds,
    }  # fmt: skip


# ---------------------------------------------------------------- many small runs
def small_spec(setting: Setting, seed: int) -> RunSpec:
    """A run of 1e4 parameters."""
    arm = get_arm("transformer")
    spec = design_run(arm, rung("transformer", 1e3 if setting.tiny else 1e4), 1e10, setting.preset, seed, batch_size=16)
    return dataclasses.replace(spec, steps=4 if setting.tiny else 2000)


def in_turn(setting: Setting, seeds: list[int]) -> None:
    """One run after another."""
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            train(small_spec(setting, seed), *setting.samples, checkpoints=pathlib.Path(folder))


def stacked(setting: Setting, seeds: list[int]) -> float:
    """Runs of one shape as one batched model, on the same batches; returns their mean training loss at the end.

    Forward, backward, clipping and AdamW as of a run alone; data order and schedule are those of the first.
    """
    specs = [small_spec(setting, seed) for seed in seeds]
    models = [build_model(spec).to(setting.device) for spec in specs]
    samples, spec = setting.samples[0], specs[0]
    parameters, buffers = stack_module_state(models)
    base = build_model(spec).to("meta")
    optimizer = torch.optim.AdamW(parameters.values(), lr=spec.learning_rate, betas=(0.9, 0.95), foreach=True)
    order = np.random.default_rng(0).integers(len(samples), size=(spec.steps, spec.batch_size))

    def losses(batch: Batch) -> Tensor:
        def one(own: dict[str, Tensor], fixed: dict[str, Tensor]) -> Tensor:
            return weighted_mse(functional_call(base, (own, fixed), (batch,)), batch)

        return vmap(one)(parameters, buffers)

    with native.switched_off():
        for step in range(spec.steps):
            found = losses(samples.batch(order[step]).to(setting.device))
            optimizer.zero_grad()
            found.sum().backward()
            gradients = [p.grad for p in parameters.values() if p.grad is not None]
            square = sum(g.flatten(1).square().sum(1) for g in gradients)
            scale = (spec.clip / (torch.as_tensor(square).sqrt() + 1e-6)).clamp(max=1)
            for g in gradients:
                g.mul_(scale.view(-1, *[1] * (g.ndim - 1)))
            optimizer.step()
    return float(found.detach().mean())


def small(setting: Setting, results: Results) -> None:
    """Runs a minute in turn, in several processes, and stacked."""
    many = 2 if setting.tiny else 16

    def rate(train_them: Callable[[], object], runs: int) -> dict[str, Any]:
        setting.samples  # noqa: B018  # made before the clock starts
        begin = time.perf_counter()
        train_them()
        setting.wait()
        seconds = time.perf_counter() - begin
        return {"runs": runs, "seconds": seconds, "runs_per_minute": 60 * runs / seconds}

    results.measure("small", "in turn", lambda: rate(lambda: in_turn(setting, list(range(2))), 2))
    for processes in (2,) if setting.tiny else (4, 8):
        seeds = np.array_split(np.arange(many), processes)
        # Spawned: CUDA doesn't survive a fork.
        context = multiprocessing.get_context("spawn")

        def together(context: Any = context, seeds: list[np.ndarray] = seeds) -> None:
            workers = [context.Process(target=in_turn, args=(setting, part.tolist())) for part in seeds]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            if any(worker.exitcode for worker in workers):
                raise RuntimeError("a process failed")

        results.measure("small", f"{processes} processes", lambda together=together: rate(together, many))
    for runs in (2,) if setting.tiny else (8, 32):
        results.measure(
            "small", f"{runs} stacked", lambda runs=runs: rate(lambda: stacked(setting, list(range(runs))), runs)
        )


# ---------------------------------------------------------------- start-up
def startup(setting: Setting, results: Results) -> None:
    """What a run waits for before its first step."""

    def imports() -> dict[str, Any]:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import eqscale.training.loop"], check=True)
        return {"seconds": time.perf_counter() - begin}

    results.measure("startup", "import of the training loop", imports)
    for arm in ("transformer", "gatr"):
        for mode in ("eager", "compiled", "graphs") if setting.on_gpu else ("eager",):
            results.measure("startup", f"{arm}, {mode}", functools.partial(_first_steps, setting, arm, mode))


def _first_steps(setting: Setting, arm: str, mode: str) -> dict[str, Any]:
    spec = design_run(get_arm(arm), rung(arm, 1e3 if setting.tiny else 1e5), 1e10, setting.preset, seed=0)
    model, samples = build_model(spec).to(setting.device), setting.samples[0]
    if mode != "eager":
        torch._dynamo.reset()
        model.compile(dynamic=True, mode="reduce-overhead" if mode == "graphs" else "default")
    batch, times = samples.batch(np.arange(16)).to(setting.device), []
    for _ in range(5):
        begin = time.perf_counter()
        weighted_mse(model(batch), batch).backward()
        setting.wait()
        times.append(time.perf_counter() - begin)
    return {"first_s": times[0], "second_s": times[1], "later_s": times[-1]}


PARTS: dict[str, Callable[[Setting, Results], None]] = {
    "correctness": correctness, "steps": steps, "repeat": repeat, "small": small, "startup": startup,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Returns 1 if a row is red or failed, 3 if the time was up before the last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to see that it works")
    parser.add_argument("--parameters", type=float, nargs="+", default=[1e5, 1e6, 1e7, 1e8], help="sizes of steps")
    parser.add_argument("--minutes", type=float, default=8.0, help="start no row after so long (default: 8)")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("data"), help="folder of data sets")
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("gpu.json"), help="the rows so far")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            "error: PyTorch finds no CUDA device here (--device cpu --tiny shows that the script works)",
            file=sys.stderr,
        )
        return 2
    device = torch.device(args.device)
    setting = Setting(device, args.tiny, args.data, tuple([1e3] if args.tiny else args.parameters))
    print(f"on {hardware(device, False, False)}, PyTorch {torch.__version__}")
    results = Results(args.json, args.minutes)
    for part in args.part:
        print(f"\n**{part}**\n")
        PARTS[part](setting, results)
    if results.left:
        print(f"\nthe time was up: {results.left} rows to go, the same command continues")
    bad = [name for name, row in results.rows.items() if "error" in row or row.get("verdict") == "RED"]
    for name in bad:
        print(f"not right: {name}")
    return 1 if bad else 3 if results.left else 0


if __name__ == "__main__":
    sys.exit(main())
