"""How far the loss of one run depends on the kind of CPU, beside how far it depends on the seed.

    python benchmarks/cpu_kinds.py                      # about twenty minutes on one core

The same runs are trained with instruction sets of older CPUs: PyTorch's by ATEN_CPU_CAPABILITY, those of the C++
kernels by a compiler that is told to use no newer ones, and without the kernels. Data and its order are the same bit
for bit, so all that differs is the order of floating-point sums. Seeds 0 to 4 with this machine's own instructions give
the scatter between seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from eqscale.laws.render import markdown_table
from eqscale.study.alone import Planned, write_plan
from eqscale.study.grid import compute_grid, data_spec
from eqscale.study.presets import COMPUTE_GRIDS
from eqscale.study.records import read_records
from eqscale.training.spec import RunSpec

RUNS = (
    "transformer-1e10-10x1-s0-muon", "transformer-1e10-12x2-s0-muon", "transformer-3e10-16x2-s0-muon",
    "transformer-1e11-16x2-s0-muon", "gatr-1e10-2x1-s0-muon", "gatr-1e10-2x2-s0-muon", "gatr-3e10-4x3-s0-muon",
    "gatr-1e11-3x2-s0-muon",
)  # fmt: skip
SEEDS = 5
# name -> PyTorch's instruction set, and that of the kernels (empty: this machine's, None: no kernels)
KINDS: dict[str, tuple[str, str | None]] = {
    "own": ("", ""),
    "PyTorch AVX2, kernels AVX2": ("avx2", "x86-64-v3"),
    "PyTorch SSE, kernels SSE": ("default", "x86-64-v2"),
    "own, no kernels": ("", None),
}


def main() -> None:
    """Train every run on every kind of CPU, and print losses and spreads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=RUNS, metavar="NAME", help="runs of the preset quick")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data sets (default: data)")
    args = parser.parse_args()
    preset = COMPUTE_GRIDS["quick"]
    by_name = {spec.name: spec for spec in compute_grid(preset)}
    if unknown := set(args.runs) - by_name.keys():
        parser.error(f"no run {min(unknown)} in the preset quick; choose from {', '.join(by_name)}")
    specs = [by_name[name] for name in args.runs]
    seeds = [dataclasses.replace(spec, seed=seed) for seed in range(1, SEEDS) for spec in specs]
    with tempfile.TemporaryDirectory() as folder:
        found = {kind: _losses([*specs, *(seeds if kind == "own" else [])], kind, args.data, Path(folder))
                 for kind in KINDS}  # fmt: skip
    rows = []
    for spec in specs:
        by_kind = np.array([found[kind][spec.name] for kind in KINDS])
        by_seed = np.array([found["own"][spec.name.removesuffix("0") + str(seed)] for seed in range(SEEDS)])
        rows.append([spec.name, *(f"{loss:.4f}" for loss in by_kind), *map(_spread, (by_kind, by_seed))])
    print(f"{platform.processor() or platform.machine()}, one thread")
    print(markdown_table(["run", *KINDS, "sd of kinds (range)", "sd of seeds (range)"], rows))


def _spread(losses: np.ndarray) -> str:
    return f"{np.log(losses).std(ddof=1):.1%} ({losses.max() / losses.min() - 1:.1%})"


def _losses(specs: list[RunSpec], kind: str, data: Path, folder: Path) -> dict[str, float]:
    """Final losses by name of run."""
    torch_set, kernel_set = KINDS[kind]
    plan, records = folder / "plan.jsonl", folder / f"{kind}.jsonl"
    write_plan(plan, [Planned(spec, data_spec(COMPUTE_GRIDS["quick"])) for spec in specs])
    variables = os.environ | {"EQSCALE_NATIVE": "0" if kernel_set is None else "1", "OMP_NUM_THREADS": "1"}
    if torch_set:
        variables["ATEN_CPU_CAPABILITY"] = torch_set
    if kernel_set:
        compiler = folder / f"{kernel_set}.sh"
        compiler.write_text(f'#!/bin/sh\nexec {shutil.which("c++")} "$@" -march={kernel_set}\n')  # the last one counts
        compiler.chmod(0o700)
        variables |= {"CXX": str(compiler), "EQSCALE_CACHE": str(folder)}
    command = [sys.executable, "-m", "eqscale", "train", str(plan), "--records", str(records), "--data", str(data)]
    subprocess.run(command, env=variables, check=True)
    return {record.spec.name: record.test["nmse"] for record in read_records(records).records.values()}


if __name__ == "__main__":
    main()
