"""Speed and memory of GATr against the dense formulation, other packages and a plain transformer.

    python benchmarks/models.py [--only steps,arms] [--threads 1,2] [--json FILE]

All contestants run in one process, in rounds with rotating order; a figure is the median of the rounds, a
ratio is taken within this run. Forward + backward unless said otherwise; float32. "ours" is the untyped
formulation, which computes the dense formulation's function with its parameters (asserted before anything is
timed); "ours, typed" has half true and half pseudo channels: the E(3)-exact network that the study uses, of
as many channels. The two other packages compute networks of equal size, not the same function: `pip install
ezgatr lgatr` (extra `bench`).
"""

from __future__ import annotations

import argparse
import atexit
import copy
import dataclasses
import functools
import importlib
import io
import itertools
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from dense_gatr import DenseGATr, other_packages
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eqscale import native
from eqscale.arms import Size as ArmSize
from eqscale.arms import get_arm
from eqscale.arms.base import TokenCounts
from eqscale.models.gatr import GATr, GATrConfig, gatr_training_flops
from eqscale.models.transformer import Transformer, TransformerConfig, transformer_training_flops
from eqscale.study.grid import data_spec
from eqscale.study.presets import COMPUTE_GRIDS
from eqscale.tasks import Batch, get_task
from eqscale.tasks.dataset import open_split, prepare
from eqscale.training.loop import DataOrder, add_gradient, prepared
from eqscale.training.optim import clip_gradients, get_optimizer

HEADS = 8
NETWORKS = ((8, 16, 4), (16, 32, 6), (32, 64, 8))  # multivector channels, scalars, blocks
TOKENS = ((16, 32), (4, 256))  # batch, tokens
STUDY_TOKENS = 31
GATR_BEFORE = "cf9bf524f39ea836ae3f029c904c5adb8afd4a6d"
GATR_STEPS = ((3, 2, 2, 16), (4, 3, 2, 16), (6, 4, 2, 16), (8, 5, 4, 16))  # channels, blocks, heads, batch
PLAIN_STEPS = ((20, 1, 1, 32), (36, 1, 4, 32), (24, 2, 3, 64), (30, 3, 3, 64), (64, 3, 8, 128))  # width to batch

Step = Callable[[], object]
Size = tuple[int, int, int]


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
measured_by = "wall"


def interleaved(steps: dict[str, Step], rounds: int, least: float) -> dict[str, float]:
    """Median seconds a call; each round takes every contestant once, starting with another one."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    clock = CLOCKS[measured_by]
    names = list(steps)
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            start, calls = clock(), 0
            while not calls or clock() - start < least:
                steps[name]()
                calls += 1
            times[name].append((clock() - start) / calls)
    return {name: statistics.median(values) for name, values in times.items()}


def training_step(function: Callable[[], tuple[Tensor, ...]], parameters: list[Tensor]) -> Step:
    """Forward + backward from a given gradient of the outputs."""
    gradients = [torch.randn_like(out) for out in function() if out.numel()]

    def step() -> None:
        outputs = [out for out in function() if out.numel()]
        torch.autograd.grad(outputs, parameters, gradients, allow_unused=True)

    return step


def forward_step(function: Callable[[], tuple[Tensor, ...]]) -> Step:
    """Forward only."""

    def step() -> None:
        with torch.no_grad():
            function()

    return step


def eager(step: Step) -> Step:
    """The step on ATen operations only."""

    def run() -> None:
        with native.switched_off():
            step()

    return run


def saved_bytes(step: Step) -> int:
    """Bytes of distinct activations that autograd keeps for the backward pass."""
    seen: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        step()
    return sum(seen.values())


def peak_gflops() -> float:
    """Measured GFLOP/s of a large matrix product."""
    a = torch.randn(1024, 1024)
    seconds = interleaved({"mm": lambda: a @ a}, 5, 0.2)["mm"]
    return 2 * 1024**3 / seconds / 1e9


def untyped(c: int, s: int, blocks: int, heads: int) -> GATrConfig:
    return GATrConfig(1, 0, 1, 1, 0, 1, c, 0, s, blocks, heads=heads, symmetry="published")


def typed(c: int, s: int, blocks: int, heads: int) -> GATrConfig:
    return GATrConfig(1, 1, 1, 1, 1, 1, c // 2, c - c // 2, s, blocks, heads=heads)


def setting() -> dict[str, object]:
    """How the figures of a record were measured."""
    return {"clock": measured_by, "threads": torch.get_num_threads()}


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def plain(width: int, depth: int) -> Transformer:
    heads = next(h for h in (8, 4, 2, 1) if width % h == 0)
    return Transformer(TransformerConfig(in_features=17, out_features=17, width=width, depth=depth, heads=heads))


def plain_of_parameters(parameters: int, depth: int) -> Transformer:
    """Plain transformer of ``depth`` blocks with about as many parameters."""
    with torch.device("meta"):
        sizes = {width: parameter_count(plain(width, depth)) for width in range(8, 512, 8)}
    return plain(min(sizes, key=lambda width: abs(sizes[width] - parameters)), depth)


@dataclasses.dataclass
class Contestant:
    """A module, how to call it, and whether ATen only."""

    module: nn.Module
    call: Callable[[], tuple[Tensor, ...]]
    count: Callable[[], float]
    aten: bool = False

    def steps(self) -> tuple[Step, Step]:
        """Forward, forward + backward."""
        pair = forward_step(self.call), training_step(self.call, list(self.module.parameters()))
        return (eager(pair[0]), eager(pair[1])) if self.aten else pair


def contestants(c: int, s: int, blocks: int, heads: int, batch: int, tokens: int) -> dict[str, Contestant]:
    """All networks of one size on one batch; FLOPs are those of a training step as executed."""
    torch.manual_seed(0)
    x, scalars = torch.randn(batch, tokens, 1, 16), torch.randn(batch, tokens, 1)
    pair = torch.randn(batch, tokens, 2, 16)
    net, exact = GATr(untyped(c, s, blocks, heads)), GATr(typed(c, s, blocks, heads))
    dense = DenseGATr(net)
    for a, b in zip(net(x, scalars), dense(x, scalars), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

    def executed(config: GATrConfig) -> Callable[[], float]:
        return lambda: gatr_training_flops(config).executed.total(batch * tokens, batch * tokens**2)

    def counted(call: Callable[[], tuple[Tensor, ...]], module: nn.Module) -> Callable[[], float]:
        def count() -> float:
            step = training_step(call, list(module.parameters()))
            with native.switched_off(), FlopCounterMode(display=False) as counter:  # it sees PyTorch's operations
                step()
            return float(counter.get_total_flops())

        return count

    flat = torch.cat([x.flatten(2), scalars], -1)
    out = {
        "dense": Contestant(dense, lambda: dense(x, scalars), counted(lambda: dense(x, scalars), dense)),
        "ours": Contestant(net, lambda: net(x, scalars), executed(net.config)),
        "ours, typed": Contestant(exact, lambda: exact(pair, scalars), executed(exact.config)),
        "ours, ATen only": Contestant(net, lambda: net(x, scalars), executed(net.config), aten=True),
        "ours, typed, ATen only": Contestant(exact, lambda: exact(pair, scalars), executed(exact.config), aten=True),
    }
    for name, model in (
        ("plain, equal nominal FLOPs", plain(16 * c + s, blocks)),
        ("plain, equal parameters", plain_of_parameters(parameter_count(net), blocks)),
    ):
        call = call_of(model, flat)
        out[name] = Contestant(model, call, counted(call, model))
    for name, model in other_packages(c, s, blocks, heads, tokens).items():
        call = functools.partial(model, x, scalars=scalars) if name == "lgatr" else call_of(model, x)
        out[name] = Contestant(model, call, counted(call, model))
    return out


def call_of(module: nn.Module, x: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Call of a module with one output, as a tuple."""
    return lambda: (module(x),)


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    print(f"\n**{title}**\n\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def networks(sizes: list[Size], rounds: int, least: float) -> list[dict]:
    """Whole networks."""
    results = []
    for (c, s, blocks), (batch, tokens) in itertools.product(sizes, TOKENS):
        entries = contestants(c, s, blocks, HEADS, batch, tokens)
        peak = peak_gflops()
        steps = {name: entry.steps() for name, entry in entries.items()}
        forward = interleaved({name: pair[0] for name, pair in steps.items()}, rounds, least)
        both = interleaved({name: pair[1] for name, pair in steps.items()}, rounds, least)
        rows = []
        for name, entry in entries.items():
            flops = entry.count()
            speed = flops / both[name] / 1e9
            results.append(
                {
                    "part": "networks", "contestant": name, "channels": c, "scalars": s, "blocks": blocks,
                    "batch": batch, "tokens": tokens, **setting(), "forward_s": forward[name],
                    "training_s": both[name], "speedup_forward": forward["dense"] / forward[name],
                    "speedup": both["dense"] / both[name], "flops": flops, "gflops": speed,
                    "share_of_peak": speed / peak, "parameters": parameter_count(entry.module),
                }
            )  # fmt: skip
            rows.append(
                [
                    name, f"{1e3 * forward[name]:.1f}", f"{forward['dense'] / forward[name]:.2f}",
                    f"{1e3 * both[name]:.1f}", f"{both['dense'] / both[name]:.2f}",
                    f"{speed:.0f} ({100 * speed / peak:.0f} %)", f"{parameter_count(entry.module) / 1e3:.0f} k",
                ]
            )  # fmt: skip
        title = f"C = {c}, S = {s}, {blocks} blocks, {batch} x {tokens} tokens, {torch.get_num_threads()} thread(s)"
        head = ["", "forward ms", "x dense", "forward + backward ms", "x dense", "GFLOP/s (of peak)", "parameters"]
        table(title, head, rows)
    return results


def memory(sizes: list[Size], rounds: int, least: float) -> list[dict]:
    """Activations kept for the backward pass (no timing: rounds and least are not used)."""
    results, rows = [], []
    for (c, s, blocks), (batch, tokens) in itertools.product(sizes, TOKENS):
        entries = contestants(c, s, blocks, HEADS, batch, tokens)
        # The plain transformer's kernel keeps its activations out of autograd's sight.
        entries = {name: entry for name, entry in entries.items() if not name.startswith("plain")}
        sizes = {name: saved_bytes(entry.steps()[1]) for name, entry in entries.items()}
        for name, size in sizes.items():
            results.append(
                {
                    "part": "memory", "contestant": name, "channels": c, "scalars": s, "blocks": blocks,
                    "batch": batch, "tokens": tokens, "saved_bytes": size, "share_of_dense": size / sizes["dense"],
                }
            )  # fmt: skip
            label = f"C = {c}, {batch} x {tokens}"
            rows.append([label, name, f"{size / 2**20:.0f}", f"{size / sizes['dense']:.2f}"])
    table("Activations kept for the backward pass", ["", "", "MiB", "of dense"], rows)
    return results


@dataclasses.dataclass
class Trained:
    """A network in training, and the same one as it was before all of it was one kernel."""

    label: str
    batch: int
    model: nn.Module
    stock: nn.Module
    """The network as it was, with equal parameters."""
    forward: Callable[[nn.Module], Tensor]
    """Predictions, zero at padded tokens."""
    flops: float
    """Of a step's matrix products, executed."""
    before: Callable[[Step], Step] = lambda step: step
    """How a step of ``stock`` runs."""
    learn: Callable[[nn.Module, Tensor], object] | None = None
    """Adds the gradient of the mean squared error to a model, if that is one call."""


def sample_mask(batch: int, tokens: int) -> Tensor:
    """Every eighth sample lacks a few tokens."""
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    for sample in range(0, batch, 8):
        mask[sample, tokens - 4 - sample // 8 % 7 :] = False
    return mask


def plain_steps() -> Iterator[Trained]:
    """Plain transformers; before: stock PyTorch."""
    for width, depth, heads, batch in PLAIN_STEPS:
        torch.manual_seed(0)
        config = TransformerConfig(in_features=17, out_features=3, width=width, depth=depth, heads=heads)
        model, x, mask = Transformer(config), torch.randn(batch, STUDY_TOKENS, 17), sample_mask(batch, STUDY_TOKENS)
        lengths = mask.sum(1)
        flops = transformer_training_flops(config).executed.total(int(lengths.sum()), int(lengths.square().sum()))
        forward = lambda model, x=x, mask=mask: model(x, mask) * mask[..., None]  # noqa: E731
        learn = lambda model, target, x=x, mask=mask: model.add_loss_gradient(  # noqa: E731
            x, mask, target, mask / target.numel(), 1.0
        )
        stock = copy.deepcopy(model)
        yield Trained(f"plain {width} x {depth}", batch, model, stock, forward, flops, eager, learn)


@functools.cache
def gatr_before() -> Any:
    """GATr with a kernel for each operation of a block, from the history of this repository."""
    folder, root = tempfile.TemporaryDirectory(), pathlib.Path(__file__).parent.parent
    archive = subprocess.run(["git", "archive", GATR_BEFORE, "eqscale"], cwd=root, check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder.name, filter="data")
    atexit.register(folder.cleanup)
    current = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "eqscale"}
    sys.path.insert(0, folder.name)
    try:
        return importlib.import_module("eqscale.models.gatr")
    finally:
        sys.path.remove(folder.name)
        for name in [name for name in sys.modules if name.partition(".")[0] == "eqscale"]:
            del sys.modules[name]
        sys.modules.update(current)


def gatr_steps() -> Iterator[Trained]:
    """GATr with the inputs of the study's task; before: a kernel for each operation of a block."""
    for width, depth, heads, batch in GATR_STEPS:
        torch.manual_seed(0)
        half = width // 2
        config = GATrConfig(3, 5, 9, 1, 1, 0, half, width - half, 2 * width, depth, heads=heads)
        model = GATr(config)
        stock = gatr_before().GATr(gatr_before().GATrConfig(**dataclasses.asdict(config)))
        stock.load_state_dict(model.state_dict())
        mv, s = torch.randn(batch, STUDY_TOKENS, 8, 16), torch.randn(batch, STUDY_TOKENS, 9)
        mask = sample_mask(batch, STUDY_TOKENS)
        lengths = mask.sum(1)
        flops = gatr_training_flops(config).executed.total(int(lengths.sum()), int(lengths.square().sum()))
        forward = lambda model, mv=mv, s=s, mask=mask: model(mv, s, mask)[0]  # noqa: E731
        torch.testing.assert_close(forward(stock), forward(model), rtol=1e-3, atol=1e-4)
        yield Trained(f"GATr {width} x {depth}", batch, model, stock, forward, flops)


def step_before(trained: Trained) -> Step:
    """A whole step of ``stock``: forward, mean squared error, backward, clipping, AdamW, as PyTorch has them."""
    model, optimizer = trained.stock, stock_adamw(trained.stock)
    target, parameters = torch.randn_like(trained.forward(model)).detach(), list(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.mse_loss(trained.forward(model), target).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return trained.before(step)


def step_now(trained: Trained) -> Step:
    """The same as the trainer does it."""
    model, optimizer = trained.model, get_optimizer("adamw").build(trained.model, 1e-3, 0.1, 0.9)
    target = torch.randn_like(trained.forward(model)).detach()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def step() -> None:
        torch._foreach_zero_([p.grad for p in parameters])
        if trained.learn:
            trained.learn(model, target)
        else:
            nn.functional.mse_loss(trained.forward(model), target).backward()
        clip_gradients(parameters, 1.0)
        optimizer.step()

    return step


def stock_adamw(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW as PyTorch has it, fused."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)


STEPS = (plain_steps, gatr_steps)


def steps(sizes: list[Size], rounds: int, least: float) -> list[dict]:
    """Training steps at the study's best shapes, now and before networks were one kernel each (sizes is not used)."""
    results, rows, peak = [], [], peak_gflops()
    for trained in itertools.chain.from_iterable(part() for part in STEPS):
        own, stock = trained.model, trained.stock
        gradients, old_gradients = (
            training_step(lambda t=trained, m=model: (t.forward(m),), list(model.parameters()))
            for model in (copy.deepcopy(own), stock)
        )
        if trained.learn:
            target = torch.randn_like(trained.forward(own)).detach()
            gradients = functools.partial(trained.learn, copy.deepcopy(own), target)
        contestants = {
            "step": step_now(trained),
            "step before": step_before(trained),
            "forward + backward": gradients,
            "forward + backward before": trained.before(old_gradients),
        }
        seconds = interleaved(contestants, rounds, least)
        speed = {name: trained.flops / value / 1e9 for name, value in seconds.items()}
        ratios = {name: seconds[f"{name} before"] / seconds[name] for name in ("step", "forward + backward")}
        results.append(
            {
                "part": "steps", "network": trained.label, "batch": trained.batch, "tokens": STUDY_TOKENS, **setting(),
                **{f"{name.replace(' + ', '_').replace(' ', '_')}_s": value for name, value in seconds.items()},
                "speedup_step": ratios["step"], "speedup": ratios["forward + backward"],
                "gflops": speed["forward + backward"], "share_of_peak": speed["forward + backward"] / peak,
            }
        )  # fmt: skip
        row = [trained.label, str(trained.batch)]
        for name in ("step", "forward + backward"):
            row += [f"{1e3 * seconds[f'{name} before']:.2f}", f"{1e3 * seconds[name]:.2f}", f"{ratios[name]:.2f}"]
        for name in ("forward + backward before", "forward + backward"):
            row.append(f"{speed[name]:.0f} ({100 * speed[name] / peak:.0f} %)")
        rows.append(row)
    head = ["network", "batch", "step before, ms", "now", "x", "forward + backward before, ms", "now", "x"]
    title = f"Training steps, {STUDY_TOKENS} tokens and a few shorter samples, {torch.get_num_threads()} thread(s)"
    table(title, [*head, "GFLOP/s before (of peak)", "now"], rows)
    return results


ARMS = {"transformer": (36, 2, 4), "transformer_local": (36, 2, 4), "gatr_slim": (12, 4, 4), "gatr": (6, 4, 2)}
"""Width, depth and heads at about 3e4 parameters."""


def arms(sizes: list[Size], rounds: int, least: float) -> list[dict]:
    """Loss and gradient of whole arms, as in training, on samples of the rigid-body task (sizes is not used)."""
    preset = dataclasses.replace(COMPUTE_GRIDS["first"], train_systems=128, test_systems=1)
    task, results, rows = get_task(preset.task), [], []
    models = {name: get_arm(name).build(ArmSize(*shape), task) for name, shape in ARMS.items()}
    with tempfile.TemporaryDirectory() as folder:
        prepare(data_spec(preset), pathlib.Path(folder))
        train = open_split(data_spec(preset), pathlib.Path(folder), "train")
        for batch in (16, 64):
            order = DataOrder(train.tokens, task.samples_per_system, batch, seed=0)
            seen = [train.batch(order.batch(k)) for k in range(8)]

            def step(model: nn.Module, seen: list[Batch] = seen) -> None:
                for samples in seen:
                    model.zero_grad()
                    add_gradient(model, prepared(model, samples), len(samples))

            seconds = interleaved({n: functools.partial(step, m) for n, m in models.items()}, rounds, least)
            tokens = [samples.mask.sum(1).double() for samples in seen]
            counts = TokenCounts(sum(float(t.sum()) for t in tokens), sum(float((t**2).sum()) for t in tokens), 0, 0)
            for name, shape in ARMS.items():
                flops = get_arm(name).executed_flops(ArmSize(*shape), task, counts)
                gflops, label = flops / seconds[name] / 1e9, f"{name} {shape[0]}x{shape[1]}"
                results.append({"part": "arms", "arm": label, "batch": batch, **setting(), "gflops": gflops})
                rows.append([label, str(batch), f"{1e3 * seconds[name] / len(seen):.2f}", f"{gflops:.1f}"])
    title = f"Arms on rigid-body samples, {torch.get_num_threads()} thread(s)"
    table(title, ["arm", "batch", "forward + backward, ms", "executed GFLOP/s"], rows)
    return results


PARTS = {"steps": steps, "arms": arms, "networks": networks, "memory": memory}


def main() -> None:
    """Run the chosen parts for each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, comma-separated: {', '.join(PARTS)}")
    parser.add_argument("--threads", default="1,2", help="numbers of threads, comma-separated (default 1,2)")
    parser.add_argument("--channels", default="8,16,32", help="sizes of the networks (default 8,16,32)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--least", type=float, default=0.1, help="seconds of repeated calls a sample (default 0.1)")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: CPU seconds, for one thread on a shared machine"
    )
    parser.add_argument("--json", help="write all figures to this file")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))}; allowed are {', '.join(PARTS)}")
    global measured_by
    measured_by = arguments.clock
    if measured_by == "cpu" and arguments.threads != "1":
        parser.error("--clock cpu: add --threads 1, CPU seconds of several threads say nothing about speed")
    chosen = set(map(int, arguments.channels.split(",")))
    if unknown := chosen - {size[0] for size in NETWORKS}:
        parser.error(f"--channels: {', '.join(map(str, unknown))}; allowed are 8, 16, 32")
    sizes = [size for size in NETWORKS if size[0] in chosen]
    start = time.perf_counter()
    native.available(torch.zeros(1))
    print(f"{platform.machine()}, torch {torch.__version__}; kernels ready after {time.perf_counter() - start:.1f} s")
    torch.set_flush_denormal(True)  # as in training
    results = []
    for part, threads in itertools.product(parts, map(int, arguments.threads.split(","))):
        if part == "memory" and threads != int(arguments.threads.split(",")[0]):
            continue
        torch.set_num_threads(threads)
        results += PARTS[part](sizes, arguments.rounds, arguments.least)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
