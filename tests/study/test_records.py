import contextlib
import dataclasses
import itertools
import json
from unittest.mock import MagicMock

import pytest

from eqscale.arms import base as arms
from eqscale.console import make_console
from eqscale.errors import InputError
from eqscale.study import job, tracking
from eqscale.study import ledger as ledgers
from eqscale.study.job import run_study
from eqscale.study.ledger import Ledger, UnreadableRecord
from eqscale.study.options import parse_options
from eqscale.study.presets import COMPUTE_GRIDS
from eqscale.study.records import read_records, records_path, write_records
from eqscale.study.table import run_table
from eqscale.training import optim
from eqscale.training.spec import CODE, RESULTS_VERSION
from tests.study.test_ledger import make_record, make_spec


@pytest.fixture
def ledger(tmp_path):
    """Two runs that finished, one that diverged, one that failed."""
    ledger = Ledger(tmp_path / "ledger")
    for seed in range(3):
        record = make_record(make_spec(seed), "diverged" if seed == 2 else "finished")
        ledger.write(dataclasses.replace(record, seconds=0.1 + seed, notes=["an “odd” note\nof two lines"]))
    ledger.write_failure(make_spec(3), "out of memory")
    return ledger


def test_an_empty_ledger_adopts_all_that_was_published(ledger, tmp_path):
    write_records(ledger, tmp_path)
    elsewhere = Ledger(tmp_path / "elsewhere")
    assert read_records(tmp_path).adopt(elsewhere, lambda: None) == 3
    assert elsewhere.records() == ledger.records()
    assert elsewhere.failures() == ledger.failures()
    assert read_records(tmp_path).adopt(elsewhere, lambda: None) == 0
    text = records_path(tmp_path).read_bytes()
    assert text.count(b"\n") == 4
    write_records(elsewhere, tmp_path)
    assert records_path(tmp_path).read_bytes() == text


def test_a_job_takes_from_its_own_folder_everything_and_from_another_what_it_plans(ledger, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_records(ledger, tmp_path / "published")
    planned = {make_spec(seed).run_id for seed in (1, 3, 7)}

    def taken(results):
        arguments = ["--preset", "quick", "--adopt", "published", "--results", results]
        return job.adoptable(parse_options("", COMPUTE_GRIDS, "grid", "", arguments), planned)

    assert taken("mine").records.keys() == {make_spec(1).run_id}
    assert taken("mine").failures.keys() == {make_spec(3).run_id}
    assert len(taken("published").records) == 3


def test_nothing_is_adopted_by_a_process_that_has_lost_the_study(ledger, tmp_path):
    write_records(ledger, tmp_path)
    elsewhere, calls = Ledger(tmp_path / "elsewhere"), []

    def lost():
        calls.append(len(elsewhere.records()))
        if len(calls) == 2:
            raise InputError("taken over")

    with pytest.raises(InputError, match="taken over"):
        read_records(tmp_path).adopt(elsewhere, lost)
    assert calls == [0, 1]
    assert len(elsewhere.records()) == 1


def test_what_the_ledger_has_is_left_alone(ledger, tmp_path):
    write_records(ledger, tmp_path)
    ours = dataclasses.replace(make_record(make_spec(0)), seconds=99.0)
    elsewhere = Ledger(tmp_path / "elsewhere")
    elsewhere.write(ours)
    elsewhere.write(make_record(make_spec(3)))  # failed there, finished here
    assert read_records(tmp_path).adopt(elsewhere, lambda: None) == 2
    assert elsewhere.read(ours.run_id) == ours
    assert elsewhere.failures() == {}


@pytest.mark.parametrize("run_id", ["../../victim", "/tmp/victim", "0" * 15, "0" * 16 + "\n", 7])
def test_a_failure_note_whose_identity_is_none_is_damaged_and_never_becomes_a_path(tmp_path, run_id):
    records_path(tmp_path).write_text(json.dumps({"name": "a", "run_id": run_id, "error": "b"}) + "\n")
    published = read_records(tmp_path)
    assert list(published.damaged) == [1]
    assert not published.failures


def test_records_of_an_earlier_results_version_are_not_adopted(ledger, tmp_path):
    old = dataclasses.replace(make_record(make_spec(8)), run_id="00c0ffee00c0ffee", code="eqscale 0.0.1")
    ledger.write(old)
    write_records(ledger, tmp_path)
    assert "00c0ffee00c0ffee" not in records_path(tmp_path).read_text()
    strange = json.loads(old.to_json()) | {"weight": 1, "digest": None}
    with records_path(tmp_path).open("a") as file:
        file.write(old.to_json(indent=None) + "\n" + json.dumps(strange) + "\n")
    published = read_records(tmp_path)
    assert (len(published.records), published.damaged) == (3, {})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"spec": {"arm": "transf', "is damaged (JSONDecodeError"),
        (b"<<<<<<< HEAD", "is damaged (JSONDecodeError"),
        (b"\xff\x00", "is damaged (UnicodeDecodeError"),
        ("relabelled", "is damaged (its content has another identity)"),
        ("contradicts", "holds another record of run transformer-1e09-"),
    ],
)
def test_a_damaged_line_is_named_and_the_job_refused(ledger, tmp_path, monkeypatch, line, reason):
    monkeypatch.chdir(tmp_path)
    results = tmp_path / "results/quick"
    write_records(ledger, results)
    record = make_record(make_spec(0))
    if line == "relabelled":
        relabelled = dataclasses.replace(make_record(make_spec(0)), run_id="0" * 16, code=CODE)
        line = relabelled.to_json(indent=None).encode()
    elif line == "contradicts":
        line = dataclasses.replace(record, seconds=7.0).to_json(indent=None).encode()
    with records_path(results).open("ab") as file:
        file.write(line + b"\n")
    options = parse_options("", COMPUTE_GRIDS, "grid", "", ["--preset", "quick"])
    with pytest.raises(InputError) as caught:
        run_study([make_spec(0)], options, publish=lambda table: None)
    assert f"{records_path(options.results)}: line 5 {reason}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "studies").exists()


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Of a study in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return parse_options("", COMPUTE_GRIDS, "grid", "", ["--preset", "quick"])


def test_a_study_with_a_damaged_record_is_not_opened_so_that_its_published_copy_stays(options):
    ledger, record = options.storage.ledger, dataclasses.replace(make_record(make_spec(0)), code=CODE)
    ledger.write(record)
    write_records(ledger, options.results)
    (ledger.folder / f"{record.run_id}.json").write_bytes(b"cut")
    with pytest.raises(UnreadableRecord, match="--mend sets it aside"), job.open_study(options, make_console(), ()):
        pass
    assert read_records(options.results).records == {record.run_id: record}


def test_a_driver_that_has_lost_the_study_ends_none_of_its_runs_in_mlflow(options, monkeypatch):
    tracker = MagicMock(outages=0, errors=[])
    monkeypatch.setattr(tracking, "Tracker", lambda *_: tracker)
    lost = pytest.raises(InputError, match="isn't this driver's any more")
    with lost, job.open_study(options, make_console()) as study:
        (options.storage.study / "driver.lock").unlink()
        study.publish([])
    tracker.close.assert_called_once_with(None)


def test_a_publication_reads_every_record_once(options, ledger, monkeypatch):
    study = job.OpenStudy(options, MagicMock(), make_console(), contextlib.ExitStack(), lambda: None)
    study.ledger, read, parse = ledger, [], ledgers.parse_record
    monkeypatch.setattr(ledgers, "parse_record", lambda text, where: read.append(where) or parse(text, where))
    table = study.publish([make_spec(0), make_spec(1)])
    assert sorted(table["status"]) == ["finished", "finished", "unplanned"]
    assert len(read_records(options.results).records) == 3
    assert len(read) == len(set(read)) == 3


@pytest.mark.parametrize("what", ["arm", "optimizer"])
def test_a_record_of_something_unknown_is_not_called_damaged_but_asks_for_its_file(tmp_path, monkeypatch, what):
    known = arms._ARMS if what == "arm" else optim._OPTIMIZERS
    monkeypatch.setitem(known, "passing", dataclasses.replace(next(iter(known.values())), name="passing"))
    record = dataclasses.replace(make_record(dataclasses.replace(make_spec(0), **{what: "passing"})), code=CODE)
    ledger = Ledger(tmp_path / "ledger")
    ledger.write(record)
    write_records(ledger, tmp_path)
    monkeypatch.delitem(known, "passing")
    message = rf"can't be read without its file \(unknown .* 'passing'.*--{what}-file"
    for read in (ledger.records, lambda: read_records(tmp_path)):
        with pytest.raises(InputError, match=message) as caught:
            read()
        assert not isinstance(caught.value, UnreadableRecord)
    assert (tmp_path / f"ledger/{record.run_id}.json").exists()


def test_an_outdated_record_of_an_arm_that_is_gone_is_a_row_without_a_role(tmp_path, monkeypatch):
    monkeypatch.setitem(arms._ARMS, "gone", dataclasses.replace(arms.get_arm("transformer"), name="gone"))
    record = make_record(dataclasses.replace(make_spec(0), arm="gone"))
    old = dataclasses.replace(record, code=CODE.replace(f"version {RESULTS_VERSION}", f"version {RESULTS_VERSION - 1}"))
    ledger = Ledger(tmp_path / "ledger")
    ledger.write(old)
    monkeypatch.delitem(arms._ARMS, "gone")
    (row,) = run_table([], ledger, records=ledger.records()).to_dict("records")
    assert (row["arm"], row["status"], row["role"]) == ("gone", "outdated", None)


def test_a_failure_that_a_later_attempt_mended_is_none(tmp_path):
    record = make_record(make_spec(0))
    note = {"name": record.spec.name, "run_id": record.run_id, "error": "OSError: full"}
    records_path(tmp_path).write_text(f"{json.dumps(note)}\n{record.to_json(indent=None)}\n")
    published = read_records(tmp_path)
    assert (list(published.records), published.failures) == ([record.run_id], {})


def test_results_are_published_while_runs_end_but_not_all_the_time(monkeypatch):
    now, written = [1000.0], []
    monkeypatch.setattr(job.time, "monotonic", lambda: now[0])
    full = [True]

    def publish():
        if full[0]:
            raise OSError(28, "No space left on device")
        written.append(now[0])
        now[0] += 30.0  # a slow place

    publication = job._NowAndThen(publish)
    for seconds in range(0, 3000, 10):
        now[0] = max(now[0], 1000.0 + seconds)
        publication.due |= seconds < 2000
        full[0] = seconds < 300
        publication.look()
    assert written[0] >= 1300.0  # the disk was full before
    assert all(later - earlier >= 600.0 for earlier, later in itertools.pairwise(written))
    assert 2 <= len(written) <= 4


@pytest.mark.parametrize("run_id", ["../../../../victim", "", "0" * 15, "G" * 16, 3])
def test_a_note_whose_identity_is_no_identity_writes_no_file(tmp_path, run_id):
    note = {"name": "x", "run_id": run_id, "error": "y"}
    records_path(tmp_path).write_text(json.dumps(note) + "\n")
    published = read_records(tmp_path)
    assert published.failures == {}
    with pytest.raises(InputError, match=r"records.jsonl: line 1 is damaged"):
        published.require_sound()
