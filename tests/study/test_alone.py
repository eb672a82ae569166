"""Runs of a plan, trained without Ray and MLflow, and taken over by a study."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

from eqscale.cli import main
from eqscale.errors import InputError
from eqscale.study import alone
from eqscale.study.alone import Planned, read_plan, share, train_alone, write_plan
from eqscale.study.grid import compute_grid, data_spec
from eqscale.study.ledger import Ledger
from eqscale.study.presets import COMPUTE_GRIDS
from eqscale.study.records import read_records
from tests.jobs import ROOT, TINY_ARGUMENTS

TINY = dataclasses.replace(
    COMPUTE_GRIDS["quick"], budgets=(3e8, 6e8), sizes_per_budget=2, min_steps=5, batch_size=8, train_systems=24,
    test_systems=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def planned():
    return [Planned(spec, data_spec(TINY)) for spec in compute_grid(TINY)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def subnormals_count_again():
    yield
    torch.set_flush_denormal(False)


def losses(path):
    return {run_id: record.loss for run_id, record in read_records(path).records.items()}


def test_a_plan_is_read_as_it_was_written(planned, tmp_path):
    write_plan(tmp_path / "plan.jsonl", planned)
    assert read_plan(tmp_path / "plan.jsonl") == planned


@pytest.mark.parametrize("n", [1, 3, 20])
def test_shards_hold_every_run_once(planned, n):
    shards = [share(planned, f"{i}/{n}") for i in range(1, n + 1)]
    assert sorted(run.spec.run_id for shard in shards for run in shard) == sorted(r.spec.run_id for r in planned)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("which", ["0/3", "4/3", "1", "a/b", "-1/3"])
def test_a_shard_that_does_not_exist_is_refused(which):
    with pytest.raises(InputError, match="write I/N with 1 <= I <= N"):
        share([1, 2, 3], which)


def test_runs_that_have_a_record_are_not_trained_again(planned, data, tmp_path):
    out, lines = tmp_path / "out.jsonl", []
    assert train_alone(planned[:2], out, data, tmp_path / "weights", lines.append) == 0
    first = losses(out)
    assert list(first) == [run.spec.run_id for run in planned[:2]]
    assert {path.stem for path in (tmp_path / "weights").iterdir()} == set(first)
    assert train_alone(planned[:3], out, data, None, lines.append) == 0
    assert losses(out) | first == losses(out)
    assert len(out.read_text().splitlines()) == 3
    assert f"3 runs: 2 have a record in {out}, 1 to go" in lines
    assert not list(tmp_path.glob("out.jsonl.checkpoints/*"))


def test_half_a_line_is_dropped_and_its_run_trained_again(planned, data, tmp_path):
    out, lines = tmp_path / "out.jsonl", []
    train_alone(planned[:2], out, data, None, lines.append)
    whole = losses(out)
    out.write_bytes(out.read_bytes()[:-200])
    train_alone(planned[:2], out, data, None, lines.append)
    assert losses(out) == whole
    assert any("half a line" in line for line in lines)


def test_a_run_that_fails_is_noted_and_the_others_are_trained(planned, data, tmp_path, monkeypatch, capsys):
    def train(spec, *samples, **where):
        if spec.run_id == planned[0].spec.run_id:
            raise RuntimeError("broken")
        return healthy(spec, *samples, **where)

    healthy = alone.train
    monkeypatch.setattr(alone, "train", train)
    out = tmp_path / "out.jsonl"
    assert train_alone(planned[:2], out, data, None, print) == 1
    found = read_records(out)
    assert list(found.records) == [planned[1].spec.run_id]
    assert found.failures[planned[0].spec.run_id]["error"] == "RuntimeError: broken"
    monkeypatch.undo()
    assert train_alone(planned[:2], out, data, None, print) == 0
    assert len(losses(out)) == 2


def test_two_processes_do_not_write_one_file(planned, data, tmp_path):
    with alone._only_writer(tmp_path / "out.jsonl"), pytest.raises(InputError, match="another process writes"):
        train_alone(planned[:1], tmp_path / "out.jsonl", data, None, print)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "line 1: of results version 3"),
        ({"run": {}}, "line 1: not a run of a plan"),
        ({"data": {"given": [], "seed": 7}}, "line 1: run .* is of the data"),
    ],
)
def test_a_bad_line_of_a_plan_is_named(planned, tmp_path, change, message):
    path = tmp_path / "plan.jsonl"
    write_plan(path, planned[:1])
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        read_plan(path)


def test_a_study_takes_records_over_and_doubles_none(planned, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "grid", *TINY_ARGUMENTS, "--study", "tiny", "--export", "plan.jsonl"]) == 0
    runs = read_plan(tmp_path / "plan.jsonl")
    for i in (1, 2):
        train = ["train", "plan.jsonl", "--shard", f"{i}/9", "--records", f"{i}.jsonl", "--data", str(data)]
        assert main(train) == 0
    assert main(["adopt", "1.jsonl", "2.jsonl", "--study", "tiny"]) == 0
    assert main(["adopt", "1.jsonl", "--study", "tiny"]) == 0
    assert "0 records adopted by study tiny (2 it had already)" in capsys.readouterr().out
    ledger = Ledger(tmp_path / "studies/tiny/ledger")
    assert {r.run_id: r.loss for r in ledger.records()} == losses(tmp_path / "1.jsonl") | losses(tmp_path / "2.jsonl")
    assert main(["run", "grid", *TINY_ARGUMENTS, "--study", "tiny", "--export", "rest.jsonl"]) == 0
    rest = {run.spec.run_id for run in read_plan(tmp_path / "rest.jsonl")}
    assert rest == {run.spec.run_id for run in runs} - {r.run_id for r in ledger.records()}


def test_one_run_needs_no_plan(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(COMPUTE_GRIDS, "quick", TINY)
    one = ["train", "--arm", "gatr", "--size", "2x1", "--budget", "1e8", "--data", str(data)]
    assert main([*one, "--records", "one.jsonl"]) == 0
    assert "finished: loss" in capsys.readouterr().out
    (tmp_path / "empty.jsonl").touch()
    for words, message in {
        ("train",): "name a plan, or one run",
        ("train", "--arm", "gatr"): "name a plan, or one run",
        ("train", "plan.jsonl", "--arm", "gatr"): "give one or the other",
        ("train", "plan.jsonl"): "cannot read the plan",
        (*one[:3], "--size", "2", "--budget", "1e8"): "write WIDTHxDEPTHxHEADS",
        (*one[:5], "--budget", "nan"): "--budget must be positive",
        (*one, "--optimizer", "sgdd"): "sgdd",
        ("adopt", "none.jsonl", "--study", "x"): "no records at none.jsonl",
        ("adopt", "empty.jsonl", "--study", "x"): "empty.jsonl holds no record",
        ("adopt", "one.jsonl", "--study", "../x"): "use letters, digits",
    }.items():
        assert main(list(words)) == 2
        assert message in capsys.readouterr().err, words
    assert not (tmp_path / "studies").exists()


def test_training_alone_imports_neither_ray_nor_mlflow_nor_pandas():
    code = (
        "import sys, eqscale.cli.train, eqscale.study.alone, eqscale.study.grid\n"
        "heavy = {'ray', 'mlflow', 'pandas', 'scipy', 'matplotlib', 'rich', 'optuna', 'mujoco'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_a_start_that_fails_gives_the_file_back(planned, data, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("no record\n")
    for _ in range(2):
        with pytest.raises(InputError, match="line 1 is damaged"):
            train_alone(planned[:1], out, data, None, print)
