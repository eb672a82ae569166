import dataclasses
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from eqscale.cli import main
from eqscale.description import read_description
from eqscale.errors import InputError
from eqscale.study import tracking
from eqscale.study.check import Study, check, mend
from eqscale.study.overview import drawn
from eqscale.study.records import PublishedRecords, records_path, write_records
from eqscale.study.table import run_table, write_table
from eqscale.study.tracking import RUN_TAG, Tracker
from eqscale.study.trials import Storage
from eqscale.training.checkpoint import save_file
from tests.study.test_ledger import make_record, make_spec


@pytest.fixture(scope="module")
def uri(tmp_path_factory, empty_database):
    return f"sqlite:///{shutil.copy(empty_database, tmp_path_factory.mktemp('mlflow'))}"


@pytest.fixture
def study(tmp_path, uri):
    """A study of three runs, one of them diverged, whose views agree with its ledger."""
    name = tmp_path.name
    study = Study(name, Storage(tmp_path / "studies" / name, tmp_path), tmp_path / "results", uri, f"eqscale-{name}")
    specs = [make_spec(seed) for seed in range(3)]
    for spec in specs:
        study.storage.ledger.write(make_record(spec, "diverged" if spec.seed == 2 else "finished"))
        study.storage.weights(spec.run_id).parent.mkdir(exist_ok=True)
        save_file(study.storage.weights(spec.run_id), {})
    publish(study, specs)
    return study


def publish(study, specs):
    """What the end of a study writes."""
    ledger = study.storage.ledger
    table = run_table(specs, ledger, records=ledger.records())
    write_table(table, study.results)
    write_records(ledger, study.results)
    plan = {"preset": "quick", "runs": [spec.run_id for spec in specs]}
    (study.results / "study.json").write_text(json.dumps(plan))
    tracker = Tracker(study.tracking_uri, study.experiment, {"study": study.name})
    tracker.sync(ledger.records())
    tracker.draw(table)
    tracker.close()
    assert tracker.errors == []


def found(study, notes=False):
    return {(f.where, f.kind) for f in check(study) if f.note == notes}


def completed(study):
    client = MlflowClient(tracking_uri=study.tracking_uri)
    experiment = client.get_experiment_by_name(study.experiment)
    runs = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'")
    return client, {run.info.run_name: run for run in runs if "eqscale.run_id" in run.data.tags}


def test_views_of_an_undisturbed_study_agree(study):
    assert found(study) == set()
    assert found(study, notes=True) == set()


def lose_a_table_row(study):
    table = pd.read_csv(study.results / "runs.csv")
    table.iloc[1:].to_csv(study.results / "runs.csv", index=False)


def double_a_table_row(study):
    table = pd.read_csv(study.results / "runs.csv")
    pd.concat([table, table.iloc[:1]]).to_csv(study.results / "runs.csv", index=False)


def change_a_loss_in_the_table(study):
    table = pd.read_csv(study.results / "runs.csv")
    table.assign(loss=table["loss"] + 1e-3).to_csv(study.results / "runs.csv", index=False)


def invent_a_table_row(study):
    table = pd.read_csv(study.results / "runs.csv")
    invented = table.iloc[:1].assign(run_id="0123456789abcdef")
    pd.concat([table, invented]).to_csv(study.results / "runs.csv", index=False)


def lose_a_published_record(study):
    lines = records_path(study.results).read_text().splitlines(keepends=True)
    records_path(study.results).write_text("".join(lines[1:]))


def change_a_published_loss(study):
    text = records_path(study.results).read_text()
    records_path(study.results).write_text(text.replace('"nmse": 0.5', '"nmse": 0.25', 1))


def cut_a_published_record(study):
    records_path(study.results).write_text(records_path(study.results).read_text()[:-100])


def fail_a_run_unpublished(study):
    study.storage.ledger.write_failure(make_spec(5), "boom")


def lose_an_mlflow_run(study):
    client, runs = completed(study)
    client.delete_run(runs[make_spec(0).name].info.run_id)


def double_an_mlflow_run(study):
    tracker = Tracker(study.tracking_uri, study.experiment, {"study": study.name})
    tracker._known.clear()
    tracker.sync([make_record(make_spec(1))])
    tracker.close()


def change_a_metric_in_mlflow(study):
    client, runs = completed(study)
    client.log_metric(runs[make_spec(0).name].info.run_id, "test/loss", 0.25, step=10**6)


def invent_an_mlflow_run(study):
    tracker = Tracker(study.tracking_uri, study.experiment, {"study": study.name})
    tracker.sync([make_record(make_spec(99))])
    tracker.close()


def kill_the_driver(study):
    tracker = Tracker(study.tracking_uri, study.experiment, {"study": study.name})
    tracker.run_started(make_spec(7))
    tracker._queue.put(None)
    tracker._thread.join()


def lose_a_line(study):
    client = MlflowClient(tracking_uri=study.tracking_uri)
    ((mlflow_id, _, _),) = drawn(client, client.get_experiment_by_name(study.experiment).experiment_id)
    client.delete_run(mlflow_id)


def change_a_line(study):
    tracker = Tracker(study.tracking_uri, study.experiment, {"study": study.name})
    tracker.draw(pd.read_csv(study.results / "runs.csv").assign(loss=0.25))
    tracker.close()


@pytest.mark.parametrize(
    ("disturb", "expected"),
    [
        (lose_a_table_row, {("run table", "missing")}),
        (double_a_table_row, {("run table", "doubled")}),
        (change_a_loss_in_the_table, {("run table", "different")}),
        (invent_a_table_row, {("run table", "unknown")}),
        (lose_a_published_record, {("records", "missing")}),
        (change_a_published_loss, {("records", "damaged"), ("records", "missing")}),
        (cut_a_published_record, {("records", "damaged"), ("records", "missing")}),
        (fail_a_run_unpublished, {("records", "different")}),
        (lose_an_mlflow_run, {("MLflow", "missing")}),
        (double_an_mlflow_run, {("MLflow", "doubled")}),
        (change_a_metric_in_mlflow, {("MLflow", "different")}),
        (invent_an_mlflow_run, {("MLflow", "unknown")}),
        (kill_the_driver, {("MLflow", "running")}),
        (lose_a_line, {("MLflow", "different")}),
        (change_a_line, {("MLflow", "different")}),
    ],
)
def test_a_view_that_differs_is_found_and_mended(study, disturb, expected):
    records = study.storage.ledger.records()
    disturb(study)
    assert found(study) == expected
    mend(study, lambda: None)
    assert found(study) == set()
    assert study.storage.ledger.records() == records
    _, runs = completed(study)
    assert sorted(runs) == sorted(record.spec.name for record in records)


def test_what_mlflow_refuses_while_a_study_is_mended_is_said(study, monkeypatch):
    def refuse(tracker, record, now):
        raise OSError("quota\nexceeded")

    lose_an_mlflow_run(study)
    monkeypatch.setattr(tracking, "_TRIES", 1)
    monkeypatch.setattr(Tracker, "_complete", refuse)
    with pytest.raises(InputError, match=r"^3 writes to MLflow failed: quota exceeded$"):
        mend(study, lambda: None)


@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff", b'{"run_id": 3}', "of another run"], ids=["empty", "noise", "fields", "label"]
)
def test_a_damaged_record_is_set_aside_and_missed_by_the_next_start(study, content):
    ledger, spec = study.storage.ledger, make_spec(0)
    path = ledger.folder / f"{spec.run_id}.json"
    path.write_bytes(make_record(make_spec(1)).to_json().encode() if isinstance(content, str) else content)
    records_path(study.results).unlink()  # else it would be adopted
    assert ("ledger", "damaged") in found(study)
    with pytest.raises(InputError, match=r"is damaged .*eqscale check STUDY --mend"):
        ledger.read(spec.run_id)
    mend(study, lambda: None)
    assert found(study) == set()
    assert spec.run_id not in ledger
    assert (ledger.folder / "damaged" / path.name).exists()


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[1]", b'{"runs": 3}', b'{"stage_seconds": {"data": "x"}}'])
def test_a_damaged_study_json_is_named_and_hides_nothing(study, content):
    (study.results / "study.json").write_bytes(content)
    assert ("results", "damaged") in found(study, notes=True)
    assert found(study) == set()
    assert read_description(study.results) is None


@pytest.mark.parametrize("content", [b"", b"\x00\xff\x00", b"a,b\n1,2\n", b'"'])
def test_a_damaged_run_table_is_named_and_written_anew(study, content):
    (study.results / "runs.csv").write_bytes(content)
    assert found(study) == {("run table", "damaged")}
    mend(study, lambda: None)
    assert found(study) == set()


def test_damaged_weights_are_no_agreement(study):
    path = study.storage.weights(make_spec(0).run_id)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert found(study) == {("storage", "damaged")}


def test_a_damaged_mlflow_database_is_no_agreement_and_no_traceback(study, tmp_path):
    file = Path(shutil.copy(study.tracking_uri.removeprefix("sqlite:///"), tmp_path / "flipped.db"))
    content = bytearray(file.read_bytes())
    content[8192:12288] = b"\xff" * 4096
    file.write_bytes(content)
    study = dataclasses.replace(study, tracking_uri=f"sqlite:///{file}")
    assert found(study) == {("MLflow", "damaged")}
    with pytest.raises(InputError, match="is damaged"):
        mend(study, lambda: None)


def test_what_is_published_and_not_in_the_ledger_is_adopted(study):
    ledger, spec = study.storage.ledger, make_spec(0)
    record = ledger.read(spec.run_id)
    (ledger.folder / f"{spec.run_id}.json").write_bytes(b"cut")
    (ledger.folder / f"{make_spec(1).run_id}.json").unlink()
    assert {("ledger", "damaged"), ("records", "not adopted")} <= found(study)
    mend(study, lambda: None)
    assert found(study) == set()
    assert ledger.read(spec.run_id) == record
    assert make_spec(1).run_id in ledger


def test_records_of_earlier_code_or_other_data_are_kept_marked_and_not_mixed(study):
    earlier, elsewhere = make_spec(11), dataclasses.replace(make_spec(12), data="another digest")
    ledger = study.storage.ledger
    old = dataclasses.replace(make_record(earlier), run_id="00c0ffee00c0ffee")
    strange = json.loads(old.to_json()) | {
        "run_id": "00c0ffee00c0ffef",
        "code": "eqscale 0.0.1",
        "weight": 1,
        "digest": None,
    }
    ledger.write(make_record(elsewhere))
    ledger.write(make_record(unplanned := make_spec(13)))
    publish(study, [elsewhere, unplanned])
    tracker = Tracker(study.tracking_uri, study.experiment, {"study": study.name})
    tracker.sync([make_record(earlier)])
    tracker.close()
    client, runs = completed(study)
    client.set_tag(runs[earlier.name].info.run_id, RUN_TAG, old.run_id)
    ledger.write(old)
    (ledger.folder / "00c0ffee00c0ffef.json").write_text(json.dumps(strange))
    specs = [make_spec(seed) for seed in range(3)]
    write_table(run_table(specs, ledger, records=ledger.records()), study.results)
    write_records(ledger, study.results)
    (study.results / "study.json").write_text(json.dumps({"runs": [spec.run_id for spec in specs]}))
    assert found(study) == {("MLflow", "unmarked")}
    mend(study, lambda: None)
    assert found(study) == set()
    assert ("ledger", "outdated") in found(study, notes=True)
    table = pd.read_csv(study.results / "runs.csv").set_index("run_id")["status"]
    assert table[old.run_id] == table[elsewhere.run_id] == "outdated"
    assert table[unplanned.run_id] == "unplanned"
    assert sorted(table) == ["diverged", "finished", "finished", "outdated", "outdated", "unplanned"]
    _, runs = completed(study)
    assert {name for name, run in runs.items() if run.data.tags["outcome"] == "outdated"} == {
        earlier.name,
        elsewhere.name,
    }


def test_what_lies_about_in_the_storage_is_noted(study):
    (study.storage.checkpoints(make_spec(0).run_id)).mkdir(parents=True)
    (study.storage.checkpoints("feedfacefeedface")).mkdir(parents=True)
    study.storage.weights("feedfacefeedface").touch()
    study.storage.weights(make_spec(1).run_id).unlink()
    study.storage.weights(make_spec(2).run_id).unlink()  # diverged: has none
    notes = sorted((f.kind, f.what) for f in check(study) if f.where == "storage")
    name = make_spec(0).name, make_spec(1).name
    assert notes == [
        ("missing", name[1]), ("orphaned", "feedfacefeedface"), ("orphaned", name[0]),
        ("unfinished", "feedfacefeedface"),
    ]  # fmt: skip
    assert found(study) == set()


def test_the_command_says_it_with_its_exit_code(study, capsys):
    arguments = ["--storage", str(study.storage.study.parent), "--results", str(study.results)]
    arguments += ["--tracking-uri", study.tracking_uri]
    assert main(["check", study.name, *arguments]) == 0
    assert "all views agree with the ledger" in capsys.readouterr().out
    lose_a_table_row(study)
    assert main(["check", study.name, *arguments]) == 1
    assert "--mend" in capsys.readouterr().out
    assert main(["check", study.name, *arguments, "--mend"]) == 0
    assert "mended: 1 of 1" in capsys.readouterr().out
    assert main(["check", "absent", *arguments]) == 2
    assert f"there is no study 'absent' in {str(study.storage.study.parent)!r}; there are: {study.name}" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("verb", ["mend", "adopt"])
def test_what_writes_to_a_study_ends_where_its_lock_is_gone(study, verb, monkeypatch, capsys):
    lose_a_table_row(study)
    ledger, table = study.storage.ledger, (study.results / "runs.csv").read_bytes()
    lost = next(ledger.folder.glob("*.json"))
    lost.unlink()
    missing = PublishedRecords.missing

    def while_another_starts(published, ledger):
        (study.storage.study / "driver.lock").unlink()
        return missing(published, ledger)

    monkeypatch.setattr(PublishedRecords, "missing", while_another_starts)
    place = ["--storage", str(study.storage.study.parent)]
    mending = ["check", study.name, *place, "--mend", "--results", str(study.results), "--tracking-uri"]
    adopting = ["adopt", str(study.results), *place, "--study", study.name]
    assert main([*mending, study.tracking_uri] if verb == "mend" else adopting) == 2
    assert "its driver.lock was deleted or replaced; it ends" in capsys.readouterr().err
    assert not lost.exists()
    assert (study.results / "runs.csv").read_bytes() == table
