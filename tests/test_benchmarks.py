"""The scripts of benchmarks/ know today's package; what they measure takes too long for tests."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.arms import GROUPS
from eqscale.study.records import read_records
from eqscale.tasks import get_task
from eqscale.training.loop import add_gradient, prepared
from tests.arms.test_inputs import draw

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_every_benchmark_can_be_imported():
    names = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
    assert len(names) > 15
    code = f"import importlib\nfor name in {names}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def rates(*args, folder=None):
    command = [sys.executable, str(BENCHMARKS / "rates.py"), *map(str, args)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_rates_are_compared_by_their_factor_of_the_recipes_on_the_task(tmp_path):
    published = read_records(BENCHMARKS.parent / "results" / "forces").records.values()
    gatr = [record for record in published if record.spec.arm == "gatr" and record.spec.budget == 1e11][:2]
    twice = dataclasses.replace(gatr[0].spec, learning_rate=2 * gatr[0].spec.learning_rate)
    diverged = dataclasses.replace(gatr[0], spec=twice, run_id=twice.run_id, status="diverged", test={})
    lines = [record.to_json(indent=None) for record in [*gatr, diverged]]
    (tmp_path / "records.jsonl").write_text("\n".join(lines) + "\n")
    done = rates("--table", tmp_path / "records.jsonl", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "| 1 x rate | 2 x rate |" in done.stdout
    assert f"{gatr[0].loss:.4f} | inf | 0.0 % |" in done.stdout
    assert f"{gatr[1].loss:.4f} | – | 0.0 % |" in done.stdout
    assert len((tmp_path / "out" / "runs.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["plan.jsonl", "--budgets", "nan"], "nan FLOPs: must be positive and finite"),
        (["plan.jsonl", "--arms", "gatrr"], "unknown arm 'gatrr'"),
        (["plan.jsonl", "--budgets", "1e10", "--factors", "nan"], "learning_rate must be positive and finite, not nan"),
        (["--table", "missing.jsonl"], "no file missing.jsonl"),
        (["--table", "empty.jsonl"], "no record of this results version in empty.jsonl"),
    ],
)
def test_rates_refuse_what_they_cannot_use_before_anything_is_written(args, message, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    done = rates(*args, folder=tmp_path)
    assert done.returncode != 0
    assert message in done.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["empty.jsonl"]


def test_kinds_of_cpu_are_compared_on_runs_that_the_preset_has():
    code = "import cpu_kinds as c; assert set(c.RUNS) <= {s.name for s in c.compute_grid(c.COMPUTE_GRIDS['quick'])}"
    subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, check=True)


@pytest.mark.parametrize("name", GROUPS)
def test_every_variant_of_an_arm_trains(name):
    group = GROUPS[name]
    task = get_task(group.preset.task)
    batch = draw(task)
    for arm in group.variants():
        model = arm.build(group.sizes[0], task).double()
        assert torch.isfinite(add_gradient(model, prepared(model, batch), len(batch))), arm.name
        assert arm.flops(group.sizes[0], task).executed.per_token > 0
