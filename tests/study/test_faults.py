"""Faults done for real to a small study; benchmarks/faults does more of them, and more often."""

import shutil
import sys

import pytest
import torch

from benchmarks.faults.harness import Study, mlflow_server, result_of, wait_for
from eqscale.study.grid import data_spec
from eqscale.study.tracking import Tracker
from eqscale.tasks.dataset import open_split
from eqscale.training.loop import train
from eqscale.training.spec import CurvePoint
from tests.study.test_ledger import make_record, make_spec
from tests.study.test_tracking import TAGS, runs

GRID = {
    "budgets": "4e8 8e8",
    "sizes-per-budget": "4",
    "seeds": "0",
    "min-steps": "5",
    "cost-range": "4",
    "batch-size": "8",
    "train-systems": "40",
    "test-systems": "8",
}


@pytest.mark.usefixtures("forgetful")
@pytest.mark.skipif(sys.platform != "linux", reason="the faults of this test are Linux's")
def test_a_killed_and_a_stuck_worker_change_no_result(tmp_path, monkeypatch, request, empty_database):
    shutil.copy(empty_database, tmp_path)  # from where the study takes it
    study = Study(
        tmp_path,
        "faults",
        GRID,
        options=("--hang-minutes", "0.3"),
        fault={"FAULTS_KIND": "kill,hang", "FAULTS_TIMES": "1"},
    )
    study.start()
    try:
        code = study.finish()  # a machine too busy to start a worker within the limit may need a second start
    finally:
        study.clean()
    log = (study.folder / "driver.log").read_text()
    assert code == 0, log
    assert {mark.name for mark in study.marks.glob("[hk]*")} == {"hang-0", "kill-0"}
    assert "will be retried: its worker process died" in log
    assert "will be retried: killed: no sign of life for" in log
    row = study.row("", 2, None, [])
    assert (row.lost, row.doubled, row.mislabelled) == (0, 0, 0)

    data, root = data_spec(study.options.preset), study.options.storage.data
    monkeypatch.setenv("FAULTS_FOLDER", str(tmp_path))
    threads = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    torch.set_num_threads(1)  # as in a trial: another number of threads sums in another order
    for spec in study.specs:
        alone = train(
            spec,
            open_split(data, root, "train", systems=spec.train_systems),
            open_split(data, root, "test", systems=spec.test_systems),
            checkpoints=tmp_path / "alone" / spec.run_id,
        )
        assert result_of(study.ledger.read(spec.run_id)) == result_of(alone)
    assert list((study.options.storage.study / "checkpoints").glob("*")) == []


def test_a_server_that_dies_and_comes_back_gets_everything_in_the_same_study(tmp_path, empty_database):
    shutil.copy(empty_database, tmp_path / "mlruns.db")
    spec = make_spec()
    record = make_record(spec)
    with mlflow_server(tmp_path / "mlruns.db", port=5874) as act:
        tracker = Tracker("http://127.0.0.1:5874", "outage", TAGS)
        tracker.run_started(spec)
        act("kill")
        tracker.point(spec.run_id, CurvePoint(50, 0.7, 0.6, 0.01, 6.0))
        tracker.run_ended(record)
        wait_for(lambda: tracker.outages, "the first failed write")
        act("start")
        tracker.close()
        assert (tracker.errors, tracker.outages) == ([], 1)
    (run,), client = runs(f"sqlite:///{tmp_path / 'mlruns.db'}", "outage")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/loss"] == record.test["nmse"]
    assert run.data.params["width"] == "8"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss/train_loss")] == [50, 100]
