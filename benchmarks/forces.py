"""The molecular forces as data: symmetry and cost of the labels, statistics, baselines, loading (docs/forces.md).

    python benchmarks/forces.py [--data data] [PART ...]

Parts: symmetry, unsound, cost, correlation, statistics, baselines, loading; default: all. Prints Markdown tables; about
5 minutes on one core, most of it for the water clusters and for 2,400 systems of g2, which stay in the data folder.
Times are CPU seconds of this process.
"""

from __future__ import annotations

import argparse
import collections
import functools
import itertools
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from scipy import sparse
from scipy.interpolate import BSpline
from torch import nn

from eqscale.arms import get_arm
from eqscale.laws.render import markdown_table
from eqscale.study.grid import choose_sizes, design_run
from eqscale.study.presets import COMPUTE_GRIDS
from eqscale.tasks import Batch, Prepared, get_task
from eqscale.tasks.dataset import DataSpec, open_split, prepare
from eqscale.tasks.forces import geometries
from eqscale.tasks.forces.families import ELEMENTS, UNSOUND, Family, find_family
from eqscale.tasks.forces.geometries import FRAMES, SOURCES, make_system
from eqscale.tasks.forces.samples import Geometries
from eqscale.tasks.forces.xtb import Surface, one_thread
from eqscale.tasks.loader import TOGETHER, batches
from eqscale.training.loop import add_gradient, build_model, prepared
from eqscale.training.optim import clip_gradients, get_optimizer

TASK = get_task("forces")
G2 = DataSpec("forces", train_systems=2000, test_systems=400)


def orthogonal(rng: np.random.Generator, sign: int) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * sign * np.linalg.det(q)


def actions(rng: np.random.Generator, n: int) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Matrix, shift and order of a random element of each class."""
    same, order = np.eye(3), np.arange(n)
    return {
        "repeated": (same, np.zeros(3), order),
        "rotation": (orthogonal(rng, 1), np.zeros(3), order),
        "reflection": (orthogonal(rng, -1), np.zeros(3), order),
        "translation": (same, rng.uniform(-5, 5, 3), order),
        "permutation": (same, np.zeros(3), rng.permutation(n)),
    }


def symmetry_errors(family: Family, systems: int) -> dict[str, np.ndarray]:
    """Distance of the force at g x from g of the force at x, and size of that force, (2, systems), by class of g."""
    rng, found = np.random.default_rng(0), collections.defaultdict(list)
    for index in range(systems):
        system = make_system(family, 1, "train", index)
        molecule, x, force = family.molecules[system.molecule], system.positions[-1].astype(float), system.forces[-1]
        for name, (matrix, shift, order) in actions(rng, len(molecule)).items():
            surface = Surface(np.array(molecule.numbers)[order], molecule.charge, molecule.unpaired)
            again = surface.forces(x[order] @ matrix.T + shift)
            found[name].append((np.linalg.norm(again - force[order] @ matrix.T), np.linalg.norm(force)))
    return {name: np.array(pairs).T for name, pairs in found.items()}


def symmetry(data: Path) -> None:
    print("## Labels under the group\n")
    rows = []
    for name, systems in (("g2", 200), ("water", 12)):
        for action, (error, size) in symmetry_errors(find_family(name), systems).items():
            total = np.sqrt(np.square(error).sum() / np.square(size).sum())
            relative = error / size
            above = int((relative > 1e-12).sum())
            rows.append([name, str(systems), action, f"{total:.0e}", f"{np.median(relative):.0e}",
                         f"{relative.max():.0e}", str(above)])  # fmt: skip
    print(markdown_table(["family", "geometries", "action", "all", "median", "largest", "above 1e-12"], rows))


def unsound(data: Path) -> None:
    print("\n## Molecules that are left out\n")
    from ase.collections import g2

    rng, rows = np.random.default_rng(0), []
    for name in (*UNSOUND, "NO", "BCl3", "CH"):
        atoms, errors = g2[name], []
        unpaired = round(atoms.get_initial_magnetic_moments().sum())
        for _ in range(30):
            x = atoms.positions + 0.045 * rng.normal(size=atoms.positions.shape)
            matrix, surface = orthogonal(rng, 1), Surface(atoms.numbers, 0, unpaired)
            force, again = surface.forces(x), surface.forces(x @ matrix.T)
            errors.append(np.linalg.norm(again - force @ matrix.T) / np.linalg.norm(force))
        rows.append([name, "left out" if name in UNSOUND else "kept", f"{np.median(errors):.0e}", f"{max(errors):.0e}"])
    print(markdown_table(["molecule", "", "median error of a turned label", "largest of 30"], rows))


def cost(data: Path) -> None:
    print("\n## Cost\n")
    rows = []
    for name, systems in (("g2", 150), ("water", 12)):
        family = find_family(name)
        make_system(family, 2, "train", systems)
        begin = time.process_time()
        made = [make_system(family, 2, "train", k) for k in range(systems)]
        labels = systems * FRAMES
        seconds = time.process_time() - begin
        begin = time.process_time()
        for system in made:
            molecule = family.molecules[system.molecule]
            Surface(np.array(molecule.numbers), molecule.charge, molecule.unpaired).forces(system.positions[0])
        single = (time.process_time() - begin) / systems
        atoms = np.mean([system.forces.shape[1] for system in made])
        rows.append([name, f"{atoms:.1f}", f"{1e3 * single:.2f}", f"{1e3 * seconds / labels:.2f}",
                     f"{labels / seconds:.0f}"])  # fmt: skip
    header = ["family", "atoms, mean", "ms of one SCF with its forces", "ms a sample, all included", "samples a second"]
    print(markdown_table(header, rows))


def correlation(data: Path) -> None:
    print("\n## Correlation of the forces of a trajectory\n")
    family, lags = find_family("g2"), (1, 2, 3, 4, 8, 16, 32)
    with mock.patch.object(geometries, "SPACING", 1):
        rows = []
        for temperature in geometries.TEMPERATURES:
            total = np.zeros(len(lags))
            for k in range(0, len(family.molecules), 5):
                molecule, rng = family.molecules[k], np.random.default_rng(k)
                surface = Surface(np.array(molecule.numbers), molecule.charge, molecule.unpaired)
                steps = itertools.islice(geometries._dynamics(molecule, temperature, rng), 96)
                force = np.stack([surface.next_forces(x) for x in steps])
                square = np.square(force).mean()
                total += [(force[:-lag] * force[lag:]).mean() / square for lag in lags]
            mean = total / len(range(0, len(family.molecules), 5))
            rows.append([f"{temperature:g} K", *(f"{value:.2f}" for value in mean)])
    print(markdown_table(["", *(f"{lag * geometries.TIME_STEP:g} fs" for lag in lags)], rows))


def open_g2(data: Path, split: str) -> Geometries:
    prepare(G2, data, workers=1)
    samples = open_split(G2, data, split)
    assert isinstance(samples, Geometries)
    return samples


def statistics(data: Path) -> None:
    print("\n## Forces by source\n")
    rows = []
    water = DataSpec("forces", (("family", "water"),), train_systems=24, test_systems=1)
    with one_thread():
        small = TASK.records(water.options, 0, "train", 0, water.train_systems)
    for name, samples in (
        ("g2", open_g2(data, "train")),
        ("water", TASK.open(water.options, [small], {"force_rms": 1.0})),
    ):
        batch = samples.batch(np.arange(len(samples)))
        assert isinstance(samples, Geometries)
        size = samples.force_rms * batch.target.norm(dim=-1).numpy()
        source, mask = samples.source[np.arange(len(samples)) // FRAMES], batch.mask.numpy()
        for k in np.unique(source):
            force = size[source == k][mask[source == k]]
            values = [np.sqrt(np.square(force).mean()), *np.quantile(force, (0.5, 0.95, 1))]
            share = f"{np.mean(source == k):.1%}"
            rows.append([name, SOURCES[k], share, *(f"{value:.2f}" for value in values)])
        force = size[mask]
        values = [np.sqrt(np.square(force).mean()), *np.quantile(force, (0.5, 0.95, 1))]
        rows.append([name, "all", f"{len(samples)} samples", *(f"{value:.2f}" for value in values)])
    print(markdown_table(["family", "source", "share", "rms, eV/Å", "median", "95 %", "largest"], rows))


KNOTS = np.log(np.geomspace(0.5, 12.0, 30))
"""Of the pair potential's cubic splines in the logarithm of the distance."""
_PAIRS = {pair: k for k, pair in enumerate(itertools.combinations_with_replacement(range(len(ELEMENTS)), 2))}
_FUNCTIONS = len(KNOTS) - 4


def pair_design(
    samples: Geometries, indices: np.ndarray
) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray, np.ndarray]:
    """Linear model of the forces by central pair forces.

    Returns:
        Design matrix (3 atoms, pairs of elements x splines), forces (3 atoms,), loss weight and sample of each row.
    """
    batch = samples.batch(indices)
    x, mask, kind = batch["position"].double().numpy(), batch.mask.numpy(), batch["element"].argmax(-1).numpy()
    atom = np.full(mask.shape, -1)
    atom[mask] = np.arange(mask.sum())
    b, i, j = np.nonzero(mask[:, :, None] & mask[:, None, :] & ~np.eye(mask.shape[1], dtype=bool))
    apart = x[b, i] - x[b, j]
    distance = np.linalg.norm(apart, axis=1)
    inside = np.clip(np.log(distance), KNOTS[3], KNOTS[-4] - 1e-9)
    splines = BSpline.design_matrix(inside, KNOTS, 3).tocoo()
    low, high = np.minimum(kind[b, i], kind[b, j]), np.maximum(kind[b, i], kind[b, j])
    pair = np.array([_PAIRS[p] for p in zip(low.tolist(), high.tolist(), strict=True)])
    unit = apart / distance[:, None]
    rows = (3 * atom[b, i][splines.row][:, None] + np.arange(3)).reshape(-1)
    columns = np.repeat(pair[splines.row] * _FUNCTIONS + splines.col, 3)
    values = (splines.data[:, None] * unit[splines.row]).reshape(-1)
    shape = (3 * int(mask.sum()), len(_PAIRS) * _FUNCTIONS)
    sample = np.repeat(np.nonzero(mask)[0], 3)
    weight = np.repeat(batch.weight.numpy()[mask], 3).astype(float)
    force = batch.target.double().numpy()[mask].reshape(-1)
    return sparse.csr_matrix((values, (rows, columns)), shape), force, weight, sample


def fit_pairs(samples: Geometries, ridge: float) -> np.ndarray:
    """Least squares with the weights of the loss: the coefficients of all pairs of elements."""
    size = len(_PAIRS) * _FUNCTIONS
    square, product = np.zeros((size, size)), np.zeros(size)
    for indices in np.array_split(np.arange(len(samples)), -(-len(samples) // 1000)):
        design, force, weight, _ = pair_design(samples, indices)
        weighted = design.multiply(weight[:, None]).tocsr()
        square += (weighted.T @ design).toarray()
        product += weighted.T @ force
    return np.linalg.solve(square + ridge * np.eye(size), product)


def baselines(data: Path) -> None:
    print("\n## Baselines\n")
    train, test = open_g2(data, "train"), open_g2(data, "test")
    batch = train.batch(np.arange(len(train)))
    kind, weight = batch["element"], batch.weight
    mean = torch.einsum("bte,bt,btx->ex", kind, weight, batch.target) / torch.einsum("bte,bt->e", kind, weight)[:, None]
    fits = {ridge: fit_pairs(train, ridge) for ridge in (1e-1, 1e-3, 1e-5)}
    rows = []
    for name, predict in (
        ("no force", lambda b: torch.zeros_like(b.target)),
        ("mean of the element", lambda b: b["element"] @ mean),
    ):
        found = TASK.evaluate(predict, test, np.arange(len(test)))
        rows.append([name, f"{found['nmse']:.4f}", f"{found['nmse_unseen']:.4f}", f"{found['force_mae_mev']:.0f}"])
    unseen = test.unseen[np.arange(len(test)) // FRAMES]
    for ridge, coefficients in fits.items():
        design, force, weight, sample = pair_design(test, np.arange(len(test)))
        error = design @ coefficients - force
        parts = [~unseen[sample], unseen[sample]]
        nmse = [(weight * error**2)[part].sum() / (weight * force**2)[part].sum() for part in parts]
        mae = 1e3 * test.force_rms * (weight * abs(error))[parts[0]].sum() / weight[parts[0]].sum()
        rows.append([f"pair potential, ridge {ridge:g}", *(f"{value:.4f}" for value in nmse), f"{mae:.0f}"])
    print(markdown_table(["predictor", "NMSE", "NMSE, unseen molecules", "MAE, meV/Å"], rows))


def loading(data: Path) -> None:
    print("\n## Loading\n")
    samples, rows = open_g2(data, "train"), []
    rng, preset = np.random.default_rng(0), COMPUTE_GRIDS["forces-cpu"]
    for name in preset.arms:
        arm = get_arm(name)
        for size in (arm.ladder[0], *choose_sizes(arm, 1e12, 1, preset)):
            spec = design_run(arm, size, 1e11, preset, 0)
            model = build_model(spec)
            optimizer = get_optimizer(spec.optimizer).build(model, 1e-3, spec.weight_decay, spec.momentum)
            optimized = [tensor for group in optimizer.param_groups for tensor in group["params"]]
            for tensor in optimized:
                tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            order = [rng.integers(len(samples), size=spec.batch_size) for _ in range(1600)]
            once = prepared(model, samples.batch(np.concatenate(order[: TOGETHER // spec.batch_size])))
            prepare_batch, seconds = functools.partial(_inputs, model), []
            for make in (lambda batch, steps, once=once: once, prepare_batch):
                source = batches(samples, order.__getitem__, range(len(order)), prepare=make)
                begin = time.process_time()
                collections.deque(source, maxlen=1)
                seconds.append((time.process_time() - begin) / len(order))
            load, inputs = seconds[0], seconds[1] - seconds[0]
            given = list(batches(samples, order.__getitem__, range(320), prepare=prepare_batch))
            begin = time.process_time()
            for batch in given:
                torch._foreach_zero_([tensor.grad for tensor in optimized])
                add_gradient(model, batch, len(batch))
                clip_gradients(optimized, 1.0)
                optimizer.step()
            step = inputs + (time.process_time() - begin) / len(given)
            rows.append([name, str(size), str(spec.batch_size), f"{1e6 * load:.0f}", f"{1e6 * step:.0f}",
                         f"{load / (load + step):.1%}"])  # fmt: skip
    print(markdown_table(["arm", "size", "batch", "loading, µs a batch", "step, µs", "share"], rows))


def _inputs(model: nn.Module, batch: Batch, steps: range) -> Batch | Prepared:
    return prepared(model, batch)


PARTS = {f.__name__: f for f in (symmetry, unsound, cost, correlation, statistics, baselines, loading)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data sets (default: data)")
    args = parser.parse_args()
    if unknown := set(args.parts) - PARTS.keys():
        parser.error(f"unknown part {min(unknown)}; choose from {', '.join(PARTS)}")
    torch.set_num_threads(1)
    for name in args.parts or PARTS:
        with one_thread():
            PARTS[name](args.data)


if __name__ == "__main__":
    main()
