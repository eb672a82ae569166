"""What each arm's design is worth: loss at equal executed FLOPs for the choices made and the ones not made.

    python benchmarks/arms.py --only strong-plain strong-gatr  # what the papers' baselines lack: hours
    python benchmarks/arms.py --only gatr-embedding --seeds 0  # one group, one seed

Every variant is trained as in the studies, with batch size and learning rate by the recipe of its arm. Prints two
tables per group. Each result goes to --json FILE as soon as it is ready, and what is there is not trained again: after
an interruption, or with more seeds, start the same command once more.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import math
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from eqscale.algebra import embed_direction, embed_plane, embed_point, extract_direction, extract_normal, extract_weight
from eqscale.arms import Arm, Size, get_arm, register
from eqscale.arms.gatr import GATrModel, gatr_config
from eqscale.arms.inputs import invariants, invariants_width, plane_invariants_width
from eqscale.arms.plain import Frame, PlainModel, plain_config
from eqscale.arms.slim import SlimModel, slim_config
from eqscale.console import make_console
from eqscale.laws.render import markdown_table
from eqscale.models.gatr import GATr, GATrConfig, gatr_training_flops
from eqscale.models.slim import SlimConfig, slim_training_flops
from eqscale.models.transformer import Attention, Block, Transformer, TransformerConfig, transformer_training_flops
from eqscale.roles import Role
from eqscale.study.grid import data_spec, design_run
from eqscale.study.job import prepare_data
from eqscale.study.presets import COMPUTE_GRIDS, ComputeGrid
from eqscale.tasks import Batch, Task, get_task
from eqscale.tasks.dataset import open_split
from eqscale.tasks.fields import at_tokens
from eqscale.tasks.rigid.windows import SCHEMA
from eqscale.tasks.samples import Samples
from eqscale.training.loop import train
from eqscale.training.spec import RunSpec

FLOOR_INVARIANTS = plane_invariants_width(SCHEMA)


# ---------------------------------------------------------------- plain transformer
class Relative(PlainModel):
    """The plain transformer that sees objects' centres from the middle of their scene."""

    def _features(self, turned: Batch, batch: Batch) -> Tensor:
        mask = turned.mask[..., None]
        middle = torch.where(mask, turned["center"], 0.0).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        moved = {name: turned[name] - middle for name in ("position", "center")}
        return super()._features(dataclasses.replace(turned, values={**turned.values, **moved}), batch)


class QKNormAttention(Attention):
    """Queries and keys of root mean square 1, with learned gains (Henry et al. 2020, arXiv 2010.04245)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.gain = nn.Parameter(torch.ones(2, self.head_width))

    def forward(
        self, x: Tensor, bias: Tensor | None, pairs: Tensor | None = None, axes: Tensor | None = None
    ) -> Tensor:
        assert axes is None  # the plain transformer's tokens have no frames
        B, T, D = x.shape
        q, k, v = self.qkv(x).split((D, self.head_width, self.head_width), -1)
        q = (F.rms_norm(q.view(B, T, self.heads, -1), (self.head_width,)) * self.gain[0]).transpose(1, 2)
        k = F.rms_norm(k, (self.head_width,)) * self.gain[1]
        mask = sum(part for part in (pairs, None if bias is None else bias[:, None]) if part is not None)
        y = F.scaled_dot_product_attention(q, k[:, None].expand_as(q), v[:, None].expand_as(q), attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(x.shape))


class OnAten(Transformer):
    """A transformer whose blocks have parts that the CPU kernels don't know."""

    def runs_on_kernels(self, x: Tensor) -> bool:
        """Never."""
        return False


class QKNormed(PlainModel):
    """The plain transformer with normalised queries and keys."""

    def __init__(self, config: TransformerConfig, frame: Frame | None = None, planes: bool = True) -> None:
        super().__init__(config, frame, planes)
        self.net = OnAten(config)
        for block in self.net.blocks:
            assert isinstance(block, Block)
            attention = QKNormAttention(config)
            attention.load_state_dict(block.attention.state_dict(), strict=False)
            block.attention = attention


def plain(
    label: str, base: str = "transformer", planes: bool = True, model: type[PlainModel] = PlainModel, **changes: object
) -> Arm:
    """The plain transformer with another configuration, by the recipe of ``base``."""
    arm = get_arm(base)

    def config(size: Size, task: Task) -> TransformerConfig:
        return dataclasses.replace(plain_config(size, task, planes), **changes)  # type: ignore[arg-type]

    return dataclasses.replace(
        arm,
        name=label,
        build=lambda size, task: model(config(size, task), task.align if arm.role is Role.ALIGN else None, planes),
        flops=lambda size, task: transformer_training_flops(config(size, task)),
        packed=None if model is QKNormed else arm.packed,
    )


# ---------------------------------------------------------------- GATr
def geometry(batch: Batch, planes: bool, ideal: bool, unit: float, scalars: int) -> tuple[Tensor, Tensor]:
    """Inputs of GATr with directions as planes through the vertex, as ideal points, or both; lengths in ``unit`` m."""
    T = batch.mask.shape[1]
    position, center = batch["position"] / unit, batch["center"] / unit
    normal, offset = batch["floor"][:, :3], batch["floor"][:, 3:]
    directions = [batch["velocity"] / 2, batch["center_velocity"] / 2, at_tokens(batch["gravity"] / 9.81, T)]
    true = [at_tokens(embed_plane(normal, normal * offset / unit), T), embed_plane(position - center, position)]
    pseudo = [embed_point(position), embed_point(center)]
    if planes:
        true += [embed_plane(direction, position) for direction in directions]
    if ideal:
        pseudo += [embed_direction(direction) for direction in directions]
    return torch.stack(true + pseudo, 2), invariants(batch)[..., :scalars]


class GATrVariant(nn.Module):
    """GATr with other embeddings or read-outs."""

    def __init__(self, config: GATrConfig, planes: bool, ideal: bool, unit: float, read: str) -> None:
        super().__init__()
        self.net, self.read, self.unit = GATr(config), read, unit
        self.embed = functools.partial(geometry, planes=planes, ideal=ideal, unit=unit, scalars=config.scalars_in)

    def forward(self, batch: Batch) -> Tensor:
        multivectors, _ = self.net(*self.embed(batch), batch.mask)
        true, pseudo = multivectors.unbind(2)
        point = extract_direction(pseudo) - extract_weight(pseudo)[..., None] * batch["position"] / self.unit
        return {"both": extract_normal(true) + point, "normal": extract_normal(true), "ideal": point}[self.read]


def gatr(
    label: str,
    planes: bool = True,
    ideal: bool = True,
    unit: float = SCHEMA.vector_unit,
    read: str = "both",
    floor_invariants: bool = True,
) -> Arm:
    """GATr with other embeddings or read-outs."""

    def config(size: Size) -> GATrConfig:
        half = size.width // 2
        return GATrConfig(
            true_in=5 if planes else 2, pseudo_in=5 if ideal else 2,
            scalars_in=invariants_width(SCHEMA) - FLOOR_INVARIANTS * (not floor_invariants),
            true_out=1, pseudo_out=1, scalars_out=0,
            true=half, pseudo=size.width - half, scalars=2 * size.width, blocks=size.depth, heads=size.heads,
        )  # fmt: skip

    return dataclasses.replace(
        get_arm("gatr"),
        name=label,
        build=lambda size, task: GATrVariant(config(size), planes, ideal, unit, read),
        flops=lambda size, task: gatr_training_flops(config(size)),
    )


def gatr_shaped(label: str, scalars: int = 2, heads: int | None = 0) -> Arm:
    """The arm gatr with another number of scalars per channel, or of heads (None: one per channel)."""

    def config(size: Size, task: Task) -> GATrConfig:
        own = gatr_config(size, task, "parity")
        return dataclasses.replace(
            own, scalars=scalars * size.width, heads=size.width if heads is None else heads or size.heads
        )

    return dataclasses.replace(
        get_arm("gatr"),
        name=label,
        build=lambda size, task: GATrModel(config(size, task), task.schema),
        flops=lambda size, task: gatr_training_flops(config(size, task)),
    )


def in_units(label: str, unit: float, base: str = "gatr") -> Arm:
    """An arm of vectors or multivectors with another unit of length, in that of the task's points."""
    arm = get_arm(base)

    def build(size: Size, task: Task) -> nn.Module:
        model = arm.build(size, task)
        model.unit = unit  # type: ignore[assignment]
        return model

    return dataclasses.replace(arm, name=label, build=build)


def slim(label: str, **changes: object) -> Arm:
    """The arm gatr_slim with another configuration."""

    def config(size: Size, task: Task) -> SlimConfig:
        return dataclasses.replace(slim_config(size, task), **changes)  # type: ignore[arg-type]

    return dataclasses.replace(
        get_arm("gatr_slim"),
        name=label,
        build=lambda size, task: SlimModel(config(size, task), task.schema),
        flops=lambda size, task: slim_training_flops(config(size, task)),
    )


@dataclasses.dataclass(frozen=True)
class Group:
    """Variants that answer one question, at the same budgets and sizes."""

    question: str
    variants: Callable[[], list[Arm]]
    sizes: tuple[Size, ...]
    budgets: tuple[float, ...]
    preset: ComputeGrid = COMPUTE_GRIDS["quick"]
    """Data, and how runs are trained."""


FORCES = dataclasses.replace(COMPUTE_GRIDS["forces-cpu"], train_systems=16_000)

GROUPS = {
    "plain": Group(
        "plain transformer: floor invariants, attention heads, MLP",
        lambda: [
            get_arm("transformer"),
            plain("without floor invariants", planes=False),
            get_arm("transformer_aligned"),
            plain("aligned, with floor invariants", "transformer_aligned"),
            plain("multi-head", multi_query=False),
            plain("narrow MLP", mlp_ratio=2),
        ],
        (Size(16, 2, 2), Size(24, 2, 3)),  # at 12x2 there is one head: multi-head would be the same network
        (3e10,),
    ),
    "strong-plain": Group(
        "plain transformer: what later transformers do otherwise, each alone",
        lambda: [
            get_arm("transformer"),
            plain("RMSNorm", norm="rms"),
            plain("SwiGLU", activation="swiglu"),
            plain("multi-head", multi_query=False),
            plain("QK-norm", model=QKNormed),
            plain("without distances", distances=False),
            plain("relative features", model=Relative),
            plain("two heads", heads=2),
            plain("six heads", heads=6),
        ],
        (Size(24, 2, 3), Size(30, 3, 3)),
        (3e11, 1e12),
        COMPUTE_GRIDS["cpu"],
    ),
    "strong-gatr": Group(
        "GATr: as many choices, each alone",
        lambda: [
            get_arm("gatr"),
            gatr("directions both ways"),
            gatr_shaped("one scalar per channel", scalars=1),
            gatr_shaped("four scalars per channel", scalars=4),
            gatr_shaped("one head", heads=1),
            gatr_shaped("a head a channel", heads=None),
            in_units("lengths in 1 m", 1.0),
            in_units("lengths in 0.3 m", 0.3),
            in_units("lengths in 0.03 m", 0.03),
        ],
        (Size(4, 4, 2), Size(6, 4, 2)),
        (3e11, 1e12),
        COMPUTE_GRIDS["cpu"],
    ),
    "forces-plain": Group(
        "plain transformer on forces: heads that see distances",
        lambda: [get_arm("transformer"), plain("without distances", distances=False)],
        (Size(24, 2, 3), Size(30, 3, 3)),
        (1e11, 1e12),
        FORCES,
    ),
    "forces-slim": Group(
        "slim GATr on forces: heads that see distances",
        lambda: [get_arm("gatr_slim"), slim("slim without distances", distances=False)],
        (Size(6, 4, 2), Size(6, 6, 2)),
        (1e11, 3e11),
        FORCES,
    ),
    "forces-gatr-unit": Group(
        "GATr on forces: unit of length (the arm's: 1 Å)",
        lambda: [get_arm("gatr"), *(in_units(f"gatr, {unit} Å", unit) for unit in (0.1, 0.3, 2.0, 4.0))],
        (Size(4, 4, 2),),
        (1e11,),
        FORCES,
    ),
    "forces-slim-unit": Group(
        "slim GATr on forces: unit of length (the arm's: 1 Å)",
        lambda: [
            get_arm("gatr_slim"),
            *(in_units(f"slim, {unit} Å", unit, "gatr_slim") for unit in (0.1, 0.3, 2.0, 4.0)),
        ],
        (Size(6, 4, 2),),
        (1e11,),
        FORCES,
    ),
    "gatr-embedding": Group(
        "GATr: how directions are embedded, how the prediction is read, unit of length",
        lambda: [
            get_arm("gatr"),
            gatr("directions both ways"),
            gatr("both ways, without floor invariants", floor_invariants=False),
            gatr("directions as planes", ideal=False),
            gatr("directions as ideal points", planes=False),
            gatr("read e_i", read="normal"),
            gatr("read ideal part", read="ideal"),
            gatr("lengths in m", unit=1.0),
        ],
        (Size(4, 1, 2), Size(4, 2, 2)),
        (3e10,),
    ),
    "gatr-symmetry": Group(
        "GATr: parity-typed (exact E(3)) against published",
        lambda: [get_arm("gatr"), get_arm("gatr_published")],
        (Size(4, 1, 2), Size(4, 2, 2)),
        (1e11,),
    ),
    "gatr-unit": Group(
        "GATr: unit of length",
        lambda: [get_arm("gatr"), in_units("in metres", 1.0), in_units("in cm", 0.01)],
        (Size(4, 2, 2), Size(6, 4, 2)),
        (3e11,),
    ),
}


class Results:
    """Results so far, by identity of the run, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.done: dict[str, dict] = json.loads(path.read_text()) if path.exists() else {}
        except ValueError as error:
            raise SystemExit(f"--json {path}: not a file of results ({error})") from None

    def add(self, spec: RunSpec, nmse: float, seconds: float) -> None:
        """Take a result in and replace the file at once, so that no interruption leaves half a file."""
        self.done[spec.run_id] = {
            "variant": spec.arm, "size": str(spec.size), "seed": spec.seed, "budget": spec.budget, "steps": spec.steps,
            "nmse": nmse, "seconds": seconds,
        }  # fmt: skip
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".part")
        partial.write_text(json.dumps(self.done, indent=1) + "\n")
        partial.replace(self.path)


def run_group(group: Group, seeds: list[int], root: Path, results: Results, console: Console) -> list:
    """Train every variant without a result; returns rows of (variant, budget, size, N, steps, losses)."""
    task, rows = get_task(group.preset.task), []
    for arm, budget, size in itertools.product(group.variants(), group.budgets, group.sizes):
        specs = [design_run(arm, size, budget, group.preset, seed) for seed in seeds]
        for spec in specs:
            if spec.run_id not in results.done:
                samples = open_samples(group.preset, root, console)
                with tempfile.TemporaryDirectory() as folder:
                    record = train(spec, *samples, checkpoints=Path(folder) / "checkpoints")
                nmse = record.test.get("nmse", math.inf)
                results.add(spec, nmse, record.seconds)
                console.print(f"{arm.name} {size} {budget:.0e} seed {spec.seed}: {nmse:.4f}", markup=False)
        losses = [results.done[spec.run_id]["nmse"] for spec in specs]
        rows.append((arm.name, budget, str(size), arm.parameters(size, task), specs[0].steps, losses))
    return rows


@functools.cache
def open_samples(preset: ComputeGrid, root: Path, console: Console) -> tuple[Samples, Samples]:
    """Training and test split; only where something is trained."""
    data = data_spec(preset)
    prepare_data(data, root, console)
    return open_split(data, root, "train"), open_split(data, root, "test")


def print_table(group: Group, rows: list) -> None:
    """What each variant adds to the log loss of the first, and a row for each variant, budget and size."""
    logs: dict[str, list[list[float]]] = {}
    cells = []
    for name, budget, size, parameters, steps, losses in rows:
        spread = f" ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        loss = f"{statistics.mean(losses):.4f}{spread}"
        cells.append([name, f"{budget:.0e}", size, f"{parameters:,}", f"{steps:,}", loss])
        logs.setdefault(name, []).append([math.log(loss) for loss in losses])
    base, *others = logs
    gains = []
    for name in others:
        pairs = list(zip(logs[name], logs[base], strict=True))
        gain = statistics.mean(statistics.mean(own) - statistics.mean(first) for own, first in pairs)
        gains.append([name, f"{100 * math.expm1(gain):+.1f} %{_scatter(pairs)}"])
    print(f"\n## {group.question[0].upper()}{group.question[1:]}\n")
    print(markdown_table(["variant", f"loss against {base}"], gains))
    print(markdown_table(["variant", "budget", "size", "N", "steps", "test NMSE"], cells))


def _scatter(pairs: list[tuple[list[float], list[float]]]) -> str:
    """Standard error of a mean difference in log loss, from the scatter between seeds, pooled over the pairs."""
    if len(pairs[0][0]) < 2:
        return ""
    variances = [statistics.variance(values) / len(values) for pair in pairs for values in pair]
    return f" ± {100 * math.sqrt(2 * statistics.mean(variances) / len(pairs)):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=GROUPS, nargs="+", default=list(GROUPS), help="groups to run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data sets")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/arms.json"), help="results so far")
    args = parser.parse_args()
    console = make_console()
    torch.set_num_threads(1)
    results = Results(args.json)
    for name in args.only:
        group = GROUPS[name]
        for arm in group.variants():
            with_name_free(arm)
        print_table(group, run_group(group, args.seeds, args.data, results, console))


def with_name_free(arm: Arm) -> None:
    """Register a variant unless it is a built-in arm."""
    try:
        get_arm(arm.name)
    except ValueError:
        register(arm)


if __name__ == "__main__":
    main()
