import json
import shutil

import pandas as pd
import pytest

from eqscale.cli import main
from eqscale.errors import InputError
from eqscale.jobs import grid as grid_job
from eqscale.study.grid import compute_grid
from eqscale.study.job import run_study
from eqscale.study.options import parse_options
from eqscale.study.presets import COMPUTE_GRIDS
from eqscale.study.table import run_table
from tests.jobs import ROOT, TINY_ARGUMENTS, copy_study, run_apart, run_here
from tests.report.planted import undrawn_figures


def refuse(tmp_path, monkeypatch, *arguments):
    """The error of a job that must be refused before it spends anything."""
    monkeypatch.chdir(tmp_path)

    def run():
        options = parse_options("", COMPUTE_GRIDS, "grid", "", arguments)
        run_study(compute_grid(options.preset), options, publish=lambda table: None)

    with pytest.raises(InputError) as caught:
        run()
    assert not list(tmp_path.glob("data/*"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prese", "quick"], "--prese"),
        (["--preset", "huge"], "unknown preset 'huge'; choose from first, quick, cpu, forces-quick"),
        (["--arms", "cnn"], "unknown arm 'cnn'; choose from transformer, transformer_aug"),
        (["--budgets", "-1"], "--budgets must be positive, not -1"),
        (["--budgets", "1e3"], "too small for a single step of the smallest transformer"),
        (["--budgets", "nan"], "--budgets must be positive, not nan"),
        (["--family", "XL"], "'XL'"),
        (["--frame", "sideways"], "unknown frame 'sideways'; choose from random, upright"),
        (["--horizon", "3"], "unknown horizon 3; choose from 1, 2, 4, 8"),
        (["--workers", "0"], "--workers must be at least 1, not 0"),
        (["--devices-per-trial", "0"], "--devices-per-trial must be at least 1, not 0"),
        (["--workers", "2", "--address", "auto"], "--workers is for this machine; a cluster named by --address"),
        (["--address", "head"], "Ray address 'head' is neither auto nor HOST:PORT"),
        (["--address", "127.0.0.1:9"], "Ray address '127.0.0.1:9' doesn't answer"),
        (["--study", "../elsewhere"], "--study '../elsewhere': use letters, digits"),
        (["--max-hours", "0"], "--max-hours must be positive, not 0"),
        (["--hang-minutes", "0"], "--hang-minutes must be positive, not 0"),
        (["--checkpoint-seconds", "-1"], "--checkpoint-seconds must be positive, not -1"),
        (["--cost-range", "nan"], "--cost-range must be positive, not nan"),
        (["--warmup", "1.5"], "warmup must be a share of the steps, not 1.5"),
        (["--batch-size", "-1"], "--batch-size must not be negative, not -1"),
        (["--seeds", "1", "1"], "--seeds names a value twice"),
        (["--arm-file", "absent.py"], "arm file 'absent.py'"),
        (["--results", "/proc/nowhere"], "results folder '/proc/nowhere' can't be written"),
        (["--tracking-uri", "http://127.0.0.1:9"], "MLflow tracking URI 'http://127.0.0.1:9' doesn't answer"),
    ],
)
def test_bad_input_is_one_line_before_any_compute(tmp_path, monkeypatch, arguments, message):
    assert message in refuse(tmp_path, monkeypatch, *arguments)


def test_bad_input_exits_with_code_two(tmp_path):
    result = run_apart(tmp_path, "grid", "--preset", "huge")
    assert result.returncode == 2
    assert (
        result.stderr
        == "error: unknown preset 'huge'; choose from first, quick, cpu, forces-quick, forces-cpu, gpu, paper\n"
    )


def test_a_dry_run_prints_the_plan_and_leaves_nothing(tmp_path):
    result = run_here(tmp_path, "grid", "--dry-run")
    assert result.returncode == 0
    assert "18 runs" in result.stdout
    assert "params" in result.stdout
    assert list(tmp_path.iterdir()) == []


OWN_ARM = ("--arm-file", str(ROOT / "docs/examples/deep_sets.py"))
STUDY = (*TINY_ARGUMENTS, *OWN_ARM, "--arms", "transformer", "gatr", "deep_sets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a user has started the study, in an empty folder, and it has ended."""
    folder = tmp_path_factory.mktemp("job")
    ended = run_apart(folder, "grid", *STUDY)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


def records(folder):
    return {path.name: path.read_bytes() for path in (folder / "studies/quick/ledger").glob("*.json")}


def test_the_whole_way_from_nothing_to_the_report(folder):
    results = folder / "results/quick"
    report = (results / "report.md").read_text()
    for figure in ("loss_vs_compute", "surface", "isoflop", "optimal_size", "optimal_tokens"):
        drawn = list(results.glob(f"{figure}*.png"))
        assert drawn
        for png in drawn:
            assert png.with_suffix(".svg").exists()
            assert png.name in report
    assert len(records(folder)) == 27
    assert len((results / "runs.csv").read_text().splitlines()) == 28
    assert (results / "records.jsonl").read_bytes().count(b"\n") == 27
    assert json.loads((results / "fits.json").read_text()).keys() == {"transformer", "gatr", "deep_sets"}


def test_published_runs_of_an_earlier_results_version_are_not_replaced(tmp_path):
    published = tmp_path / "results/quick/records.jsonl"
    published.parent.mkdir(parents=True)
    published.write_text("".join((ROOT / "results/cpu/records.jsonl").read_text().splitlines(keepends=True)[:2]))
    before = published.read_bytes()
    refused = run_here(tmp_path, "grid", *STUDY)
    assert refused.returncode == 2
    assert "holds 2 runs of results version 4, which this code can't continue and would replace" in refused.stderr
    assert published.read_bytes() == before


def test_another_machine_adopts_what_is_published_and_finds_nothing_to_do(folder, tmp_path):
    copy_study(folder, tmp_path)
    results = tmp_path / "results/quick"
    published, table = (results / "records.jsonl").read_bytes(), (results / "runs.csv").read_text()
    shutil.rmtree(tmp_path / "studies/quick/ledger")
    with undrawn_figures():
        refused = run_here(tmp_path, "grid", *STUDY)
        second = run_here(tmp_path, "grid", *STUDY, "--adopt", "results/quick")
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: results/quick/records.jsonl holds 27 runs that study 'quick' doesn't have: --adopt results/quick takes "
        "them over, --study NAME trains anew under another name\n"
    )
    assert second.returncode == 0, second.stdout + second.stderr
    assert "adopted 27 records from results/quick/records.jsonl" in second.stdout
    assert "all 27 runs are done: nothing to train" in second.stdout
    assert records(tmp_path) == records(folder)
    assert (results / "records.jsonl").read_bytes() == published
    assert (results / "runs.csv").read_text() == table


@pytest.mark.usefixtures("forgetful")
def test_the_views_agree_and_the_best_models_are_measured_and_timed(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(copy_study(folder, tmp_path))
    results = tmp_path / "results/quick"
    uri = f"sqlite:///{folder / 'mlruns.db'}"  # its artifacts are named by their place
    assert main(["check", "quick", *OWN_ARM, "--tracking-uri", uri]) == 0
    measure = ["measure", "quick", "--arms", "transformer", "gatr", "--average", "2", "--rollout", "0.5"]
    assert main(measure) == 0
    measured = {
        arm: json.loads((results / f"evaluation/{arm}.json").read_text())["results"] for arm in ("transformer", "gatr")
    }
    assert [result["average"] for result in measured["transformer"]] == [1, 2]
    assert [result["average"] for result in measured["gatr"]] == [1]  # equivariant
    trained = pd.read_csv(results / "runs.csv")
    assert measured["gatr"][0]["errors"]["nmse"] in set(trained[trained["arm"] == "gatr"]["loss"])
    capsys.readouterr()
    assert main(measure) == 0
    assert capsys.readouterr().out.count("measured already") == 2
    assert main(["time", "quick", "--seconds", "0.01", *OWN_ARM]) == 0
    times = pd.read_csv(results / "step_times.csv")
    shape = ["arm", "width", "depth", "heads", "batch_size"]
    assert set(times[shape].itertuples(index=False)) == set(trained[shape].itertuples(index=False))
    assert (times["step_seconds"] > 0).all()
    with undrawn_figures():
        assert main(["report", "quick"]) == 0
    report = (results / "report.md").read_text()
    assert "(evaluation/transformer.gif)" in report
    assert "timed in one sitting" in report
    (tmp_path / "studies/quick/weights").rename(tmp_path / "elsewhere")
    assert main(measure) == 0
    (results / "evaluation/gatr.json").unlink()
    assert main(measure) == 2
    assert "the weights of " in capsys.readouterr().err


def test_a_study_that_was_stopped_before_a_run_had_ended_has_nothing_to_say_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def stopped(specs, options, publish):
        publish(run_table(specs, options.storage.ledger))
        return 130

    monkeypatch.setattr(grid_job, "run_study", stopped)
    assert main(["run", "grid"]) == 130
