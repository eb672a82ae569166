import dataclasses
import shutil

import pytest
from mlflow.tracking import MlflowClient

from eqscale.errors import InputError
from eqscale.laws.tracking import read_experiment
from eqscale.study.table import record_row
from eqscale.study.tracking import Tracker, unreachable
from eqscale.tracking import tracking_uri
from eqscale.training.spec import CurvePoint
from tests.study.test_ledger import make_record, make_spec

TAGS = {"study": "tiny", "preset": "quick"}


@pytest.fixture(scope="module")
def uri(tmp_path_factory, empty_database):
    return f"sqlite:///{shutil.copy(empty_database, tmp_path_factory.mktemp('mlflow'))}"


def runs(uri, name):
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(name)
    found = client.search_runs([experiment.experiment_id])
    return [run for run in found if "eqscale.run_id" in run.data.tags], client


def test_a_run_is_written_once_with_curves_metrics_and_tags(uri):
    spec = make_spec()
    record = make_record(spec)
    tracker = Tracker(uri, "once", TAGS)
    tracker.run_started(spec)
    tracker.point(spec.run_id, CurvePoint(50, 0.7, 0.6, 0.01, 6.0))
    tracker.run_ended(record)
    tracker.sync([record])
    tracker.close()
    assert tracker.errors == []
    again = Tracker(uri, "once", TAGS)
    again.sync([record])
    again.close()
    (run,), client = runs(uri, "once")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/loss"] == record.test["nmse"]
    assert run.data.metrics["run/flops_executed"] == record.flops_executed
    assert run.data.metrics["run/flops_nominal"] == record.flops_nominal
    assert (run.data.tags["arm"], run.data.tags["budget"]) == ("transformer", "1e+09")
    assert run.data.params["width"] == "8"
    settings = {name: float(run.data.params[name]) for name in ("warmup", "weight_decay", "clip")}
    assert settings == {"warmup": spec.warmup, "weight_decay": spec.weight_decay, "clip": spec.clip}
    assert {f"test/{name}" for name in ("loss", "loss_se", "vertex_rmse_m")} <= run.data.metrics.keys()
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss/train_loss")] == [50, 100]


def test_a_run_is_described_in_mlflow_by_the_names_of_the_run_table(uri, monkeypatch):
    record = make_record(make_spec(seed=3))
    tracker = Tracker(uri, "names", TAGS)
    tracker.run_ended(record)
    tracker.close()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    written = read_experiment("names").set_index("eqscale.run_id").loc[record.run_id]
    row = record_row(record)
    for name in ("loss", "loss_se", "N", "D", "train_loss", "flops_executed", "unique_scenes", "warmup", "clip"):
        assert float(written[name]) == row[name]


def test_what_a_killed_driver_left_open_is_ended_and_written_again(uri):
    spec = make_spec(seed=5)
    killed = Tracker(uri, "killed", TAGS)
    killed.run_started(spec)
    killed._queue.put(None)  # the process dies: nobody closes anything
    killed._thread.join()
    (run,), _ = runs(uri, "killed")
    assert run.info.status == "RUNNING"
    tracker = Tracker(uri, "killed", TAGS)
    tracker.sync([make_record(spec)])
    tracker.close()
    found, _ = runs(uri, "killed")
    assert sorted(run.info.status for run in found) == ["FINISHED", "KILLED"]


def test_failed_and_diverged_runs_are_told_apart(uri):
    bad, diverged = make_spec(seed=1), make_spec(seed=2)
    tracker = Tracker(uri, "bad", TAGS)
    tracker.run_started(bad)
    tracker.run_failed(bad, "out of memory")
    tracker.run_ended(make_record(diverged, status="diverged"))
    tracker.close()
    found, _ = runs(uri, "bad")
    states = {run.info.status: run.data.tags.get("outcome", run.data.tags.get("error")) for run in found}
    assert states == {"FAILED": "out of memory", "FINISHED": "diverged"}


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/nowhere/mlruns.db", "nonsense://x"])
def test_an_address_that_does_not_answer_is_one_line(uri):
    with pytest.raises(InputError, match="MLflow tracking URI") as caught:
        Tracker(uri, "x", TAGS)
    assert "\n" not in str(caught.value)


def test_records_differ_by_identity():
    assert make_spec(seed=1).run_id != dataclasses.replace(make_spec(seed=1), steps=99).run_id


def test_a_write_that_a_live_server_refuses_is_given_up_and_the_next_one_made(uri):
    spec = make_spec(seed=7)
    tracker = Tracker(uri, "refused", TAGS)
    tracker._queue.put(lambda: tracker._client.set_tag("no-such-run", "x", "y"))
    tracker.run_ended(make_record(spec))
    tracker.close()
    assert len(tracker.errors) == 1
    assert "no-such-run" in tracker.errors[0]
    assert tracker.outages == 0
    (run,), _ = runs(uri, "refused")
    assert run.info.status == "FINISHED"


def test_a_run_whose_creation_was_not_confirmed_is_not_created_twice(uri, monkeypatch):
    tracker = Tracker(uri, "half", TAGS)
    create = tracker._client.create_run

    def unconfirmed(*args, **kwargs):
        create(*args, **kwargs)
        monkeypatch.setattr(tracker._client, "create_run", create)
        raise OSError("connection reset")

    monkeypatch.setattr(tracker._client, "create_run", unconfirmed)
    tracker.run_ended(make_record(make_spec(seed=8)))
    tracker.close()
    assert tracker.errors == []
    found, _ = runs(uri, "half")
    assert [run.info.status for run in found] == ["FINISHED"]


def test_a_server_that_stays_away_does_not_hold_up_the_end(uri, monkeypatch):
    tracker = Tracker(uri, "away", TAGS)

    def dead(*args, **kwargs):
        raise OSError("connection refused")

    for name in ("get_experiment", "create_run", "log_batch", "set_terminated"):
        monkeypatch.setattr(tracker._client, name, dead)
    tracker.run_ended(make_record(make_spec(seed=9)))
    tracker.close(patience_seconds=0.2)
    assert not tracker._thread.is_alive()
    assert tracker.errors == ["the server doesn't answer"] * 2
    assert tracker.outages == 1


def test_a_server_that_is_slow_but_answers_gets_all_that_is_queued(uri):
    tracker = Tracker(uri, "slow", TAGS)
    tracker._queue.put(None)
    tracker._thread.join()

    class Slow:
        """A thread that makes one write within the patience."""

        def join(self, seconds):
            if not tracker._give_up.is_set():
                tracker._queue.get()

        def is_alive(self):
            return not tracker._queue.empty()

    tracker._thread = Slow()
    tracker.sync(make_record(make_spec(seed)) for seed in range(5))
    tracker.close()
    assert tracker._queue.empty()


def test_what_another_driver_has_taken_over_is_left_as_it_is(uri):
    tracker = Tracker(uri, "lost", TAGS)
    tracker._queue.put(None)
    tracker._thread.join()
    tracker.close(None)
    assert tracker._client.get_run(tracker.parent_id).info.status == "RUNNING"
    assert tracker._queue.qsize() == 1


def test_an_experiment_that_was_deleted_is_restored_with_its_runs(uri):
    first = Tracker(uri, "deleted", TAGS)
    first.sync([make_record(make_spec())])
    first.close()
    client = MlflowClient(tracking_uri=uri)
    client.delete_experiment(first.experiment_id)
    again = Tracker(uri, "deleted", TAGS)
    again.sync([make_record(make_spec())])
    again.close()
    assert (again.experiment_id, again.errors) == (first.experiment_id, [])
    assert len(runs(uri, "deleted")[0]) == 1


def test_a_copied_project_writes_its_artifacts_beside_its_own_database(tmp_path, empty_database, monkeypatch):
    for name in ("original", "a%20copy #2"):
        (tmp_path / name).mkdir()
    shutil.copy(empty_database, tmp_path / "original/mlruns.db")
    monkeypatch.chdir(tmp_path / "original")
    Tracker(tracking_uri(), "copied", TAGS).close()
    shutil.copy("mlruns.db", tmp_path / "a%20copy #2/mlruns.db")
    monkeypatch.chdir(tmp_path / "a%20copy #2")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/report.md").write_text("of the copy")
    copy = Tracker(tracking_uri(), "copied", TAGS)
    copy.artifacts(tmp_path / "results")
    copy.close()
    assert copy.errors == []
    assert not (tmp_path / "original/mlartifacts").exists()
    assert [p.read_text() for p in (tmp_path / "a%20copy #2/mlartifacts").rglob("report.md")] == ["of the copy"]


def test_a_server_that_does_not_answer_is_named_with_its_proxy_and_without_its_password(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:hidden@127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    text = str(unreachable("http://me:hidden@mlflow.example:5000", ConnectionError("refused")))
    assert "'http://…@mlflow.example:5000' doesn't answer" in text
    assert "through the proxy http://…@127.0.0.1:9" in text
    assert "hidden" not in text
