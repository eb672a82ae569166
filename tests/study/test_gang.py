"""A real study in which one trial has two devices, and one of its processes is killed."""

import contextlib
import dataclasses
import sys
from pathlib import Path

import psutil
import pytest
import ray

from eqscale.arms import Size, get_arm, load_arm_files
from eqscale.study.backend import ray_session, run_trials
from eqscale.study.schedule import Allotment
from eqscale.study.trials import Storage, StudyEvents
from eqscale.tasks import get_task
from eqscale.tasks.dataset import open_split, prepare
from eqscale.tasks.rigid.task import data_spec
from eqscale.training.loop import train
from eqscale.training.spec import RunSpec

ARM_FILE = str(Path(__file__).parents[2] / "benchmarks/faults/counted_arm.py")
DATA = data_spec("S", 20, 6)


def make_spec(width, seed=0):
    return RunSpec(
        arm="counted", size=Size(width, 1, 2), budget=1e9, steps=60, batch_size=7, learning_rate=3e-3, seed=seed,
        data=DATA.digest, train_systems=20, test_systems=6, test_samples_per_system=2,
    )  # fmt: skip


def still_running(pids, timeout=60):
    """Processes that don't end in time: one that was told to takes a moment, and may stay on as a zombie."""
    processes = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    _, left = psutil.wait_procs([p for p in processes if not is_zombie(p)], timeout=timeout)
    return [process for process in left if not is_zombie(process)]


def is_zombie(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.usefixtures("forgetful")
@pytest.mark.skipif(sys.platform != "linux", reason="the fault of this test is Linux's")
def test_a_trial_on_two_devices_survives_the_death_of_a_process_beside_trials_on_one(tmp_path, monkeypatch, shared_ray):
    shared_ray.stop()  # this test's workers need variables and cores of their own
    load_arm_files([ARM_FILE])
    marks = tmp_path / "marks"
    marks.mkdir()
    wide, narrow = make_spec(16), [make_spec(8, seed) for seed in range(2)]
    parameters = get_arm("counted").parameters(wide.size, get_task("rigid"))
    for name, value in {
        "FAULTS_FOLDER": str(marks), "FAULTS_KIND": "kill", "FAULTS_TIMES": "1",
        "FAULTS_PARAMETERS": str(parameters), "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    storage = Storage(tmp_path / "study", tmp_path / "data")
    prepare(DATA, storage.data, workers=1)
    said = []
    events = StudyEvents(
        **{
            field.name: lambda *arguments, name=field.name: said.append((name, *arguments))
            for field in dataclasses.fields(StudyEvents)
        }
        | {"still_ours": lambda: None}
    )
    with ray_session(None, cpus=3):
        # a node listens where it has its address: nobody else reaches it
        assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
        run_trials(
            [Allotment(wide, 2), *(Allotment(spec, 1) for spec in narrow)],
            DATA, storage, events,
            smallest=lambda spec: 1.0, silence=lambda spec: 600.0, checkpoint_seconds=0.0,
        )  # fmt: skip
    assert (marks / "kill-0").exists()
    retried = [event for event in said if event[0] == "retried"]
    assert [spec for _, spec, _ in retried] == [wide]
    assert retried[0][2].endswith("of 2 has died")
    assert {event[1].run_id for event in said if event[0] == "ended"} == {s.run_id for s in (wide, *narrow)}
    trained = {int(path.name.split("-")[2]) for path in marks.glob(f"steps-{parameters}-*")}
    assert len(trained) == 4  # two ranks, twice
    assert not still_running(trained)

    record = storage.ledger.read(wide.run_id)
    assert (record.status, record.devices, record.notes) == ("finished", 2, [])
    assert [storage.ledger.read(spec.run_id).devices for spec in narrow] == [1, 1]
    assert list((tmp_path / "study/checkpoints").iterdir()) == []
    monkeypatch.setenv("FAULTS_KIND", "")
    windows = (open_split(DATA, storage.data, split, systems=n) for split, n in (("train", 20), ("test", 6)))
    alone = train(wide, *windows, checkpoints=tmp_path / "alone")
    assert record.tokens == alone.tokens
    assert record.test["nmse"] == pytest.approx(alone.test["nmse"], rel=1e-3)
    steps = [point["step"] for point in map(dataclasses.asdict, record.curve)]
    assert steps == [point.step for point in alone.curve]
