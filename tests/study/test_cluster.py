"""``cluster.slurm`` on simulated Slurm: two Ray nodes that share no data, and an array without Ray."""

import shutil
import signal

import pytest

from benchmarks.slurm import SimulatedSlurm
from eqscale.cli import main
from eqscale.storage import open_place
from eqscale.study.ledger import Ledger
from eqscale.study.records import read_records
from tests.jobs import TINY_ARGUMENTS


@pytest.fixture
def slurm(tmp_path):
    submitted = tmp_path / "submitted"
    submitted.mkdir()
    return SimulatedSlurm(tmp_path / "slurm", submitted)


def test_nodes_that_share_no_folder_train_a_study_together(slurm, tmp_path, empty_database):
    shutil.copy(empty_database, slurm.submitted / "mlruns.db")
    storage, log = f"local://{tmp_path}/store", tmp_path / "log"
    words = ["grid", *TINY_ARGUMENTS, "--arms", "transformer", "--storage", storage]
    job = slurm.start(*words, log=log, JOB_NUM_NODES="2")
    assert job.wait() == 0, log.read_text()
    mode, token = slurm.token()
    assert (mode, token.parent) == ("600", slurm.submitted)
    ledger = Ledger(open_place(storage) / "quick" / "ledger")
    assert len(ledger.records()) == 9
    weights = list((tmp_path / "store/quick/weights").iterdir())
    assert {path.stem for path in weights} == {record.run_id for record in ledger.records()}
    for node in slurm.caches(2):  # each has fetched the data, so each has trained
        assert len(list((node / "eqscale").rglob("*.npy"))) == 2, node
    assert not list(slurm.submitted.glob("studies"))
    assert not list(slurm.submitted.glob("data"))
    assert not (tmp_path / "store/quick/driver.json").exists()
    assert not token.exists()
    assert slurm.requeued() == []


def test_a_task_of_an_array_stops_before_its_time_is_up_is_queued_again_and_goes_on(slurm, tmp_path, monkeypatch):
    monkeypatch.chdir(slurm.submitted)
    longer = ["--budgets", "2.4e9", "4.8e9", "9.6e9"]  # than a signal takes on a busy machine
    arguments = [*TINY_ARGUMENTS, *longer, "--arms", "transformer", "--study", "mine"]
    assert main(["run", "grid", *arguments, "--export", "plan.jsonl"]) == 0
    task = {"ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": "2", "ARRAY_TASK_MAX": "2"}
    job = slurm.start("plan.jsonl", **task)
    said = [next((line for line in job.stdout if b"finished" in line), b"")]
    job.send_signal(signal.SIGUSR1)
    said += job.stdout
    assert job.wait() == 130, b"".join(said).decode()
    part = slurm.submitted / "part2.jsonl"
    assert slurm.requeued() == ["requeue 7_2"]
    before = read_records(part).records
    assert 1 <= len(before) < 4
    assert slurm.start("plan.jsonl", log=tmp_path / "log", **task, RESTART_COUNT="1").wait() == 0
    after = read_records(part).records
    assert len(after) == 4
    assert before.items() <= after.items()
    assert slurm.requeued() == ["requeue 7_2"]
    assert main(["adopt", "part2.jsonl", "--study", "mine"]) == 0
    assert len(Ledger(open_place("studies") / "mine" / "ledger").records()) == 4
