import dataclasses
import json

import pytest

from eqscale.arms import Size
from eqscale.study.ledger import Ledger, UnreadableRecord
from eqscale.study.table import run_table, table_columns, write_table
from eqscale.study.trials import Storage
from eqscale.training.spec import CODE, CurvePoint, RunRecord, RunSpec


def make_spec(seed=0):
    return RunSpec("transformer", Size(8, 1, 2), 1e9, 100, 16, 1e-2, seed, "digest", 50, 10, 2)


def make_record(spec, status="finished"):
    test = {"nmse": 0.5, "nmse_se": 0.01, "vertex_rmse_m": 0.2} if status == "finished" else {}
    return RunRecord(
        spec, spec.run_id, status, 1000, 50_000, 51_000, 1.3, 1200, 37_000, 3e8, 1e9, 12.5, 0.5, 300.0, 100,
        test, [CurvePoint(100, 0.6, 0.5, 0.0, 12.5)], "cpu", "code", "2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def test_records_survive_the_round_trip(tmp_path):
    ledger, record = Ledger(tmp_path), make_record(make_spec())
    ledger.write(record)
    assert record.run_id in ledger
    assert ledger.read(record.run_id) == record
    assert ledger.records() == [record]


def test_a_success_forgets_the_failure(tmp_path):
    ledger, spec = Ledger(tmp_path), make_spec()
    ledger.write_failure(spec, "out of memory")
    assert spec.run_id not in ledger
    assert ledger.failures() == {spec.run_id: "out of memory"}
    ledger.write(make_record(spec))
    assert ledger.failures() == {}


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[1]", b'{"name": "a", "run_id": 3, "error": "b"}'])
def test_a_damaged_failure_note_still_counts_as_a_failure(tmp_path, content):
    ledger, spec = Ledger(tmp_path), make_spec()
    ledger.write_failure(spec, "out of memory")
    (tmp_path / "failed" / f"{spec.run_id}.json").write_bytes(content)
    assert ledger.failures() == {spec.run_id: "the note of its failure is damaged"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": "great"}, "status is 'great'"),
        ({"status": 3}, "status is 3"),
        ({"parameters": "1000"}, "parameters is '1000'"),
        ({"test": {"nmse": "0.5"}}, "nmse is '0.5'"),
    ],
)
def test_a_record_with_a_value_that_no_run_can_have_is_damaged(tmp_path, change, reason):
    ledger = Ledger(tmp_path)
    record = dataclasses.replace(make_record(make_spec()), code=CODE, **change)
    ledger.write(record)
    with pytest.raises(UnreadableRecord, match=reason):
        ledger.read(record.run_id)


def test_a_loss_that_was_changed_by_hand_is_damage_and_a_record_of_an_earlier_version_without_a_digest_is_not(tmp_path):
    ledger = Ledger(tmp_path)
    record = dataclasses.replace(make_record(make_spec()), code=CODE)
    ledger.write(record)
    path = tmp_path / f"{record.run_id}.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content))  # other layout, same content
    assert ledger.read(record.run_id) == record
    path.write_text(json.dumps(content | {"test": content["test"] | {"nmse": 0.001}}))
    with pytest.raises(UnreadableRecord, match=r"its content was changed since it was written.*--mend sets it aside"):
        ledger.read(record.run_id)
    del content["digest"]
    path.write_text(json.dumps(content))
    assert ledger.read(record.run_id) == record


def test_the_table_has_one_documented_row_per_run(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    specs = [make_spec(seed) for seed in range(4)]
    ledger.write(make_record(specs[0]))
    ledger.write(make_record(specs[1], status="diverged"))
    ledger.write_failure(specs[2], "boom")
    ledger.write(make_record(dataclasses.replace(specs[0], steps=7)))  # of another study
    table = run_table(specs, ledger)
    assert list(table.columns) == list(table_columns("rigid"))
    assert sorted(table.status) == ["diverged", "failed", "finished"]
    assert table.run_id.is_unique
    spec = specs[0]
    assert (table[["warmup", "weight_decay", "clip"]] == (spec.warmup, spec.weight_decay, spec.clip)).all(None)
    everything = run_table(specs, ledger, records=ledger.records())
    assert list(everything.status) == [*table.status, "unplanned"]
    assert everything.reason.iloc[-1] == "finished, not in the study's plan"
    write_table(table, tmp_path)
    assert (tmp_path / "runs.csv").exists()


def test_what_killed_processes_left_behind_is_swept(tmp_path):
    storage, done, running = Storage(tmp_path, tmp_path / "data"), make_spec(1), make_spec(2)
    storage.ledger.write(make_record(done))
    for folder in (storage.ledger.folder, storage.weights("x").parent):
        folder.mkdir(exist_ok=True)
        (folder / ".some.file.123.tmp").write_bytes(b"half")
    for spec in (done, running):
        storage.checkpoints(spec.run_id).mkdir(parents=True)
    storage.sweep()
    assert not list(tmp_path.rglob("*.tmp"))
    assert not storage.checkpoints(done.run_id).exists()
    assert storage.checkpoints(running.run_id).exists()
    assert done.run_id in storage.ledger
