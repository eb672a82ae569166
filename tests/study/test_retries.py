"""What the driver does with the events of Tune, without Ray's processes."""

import dataclasses
import errno
import os
from types import SimpleNamespace

import pytest
import ray
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError
from ray.tune.execution import experiment_state

from eqscale.errors import InputError
from eqscale.study import backend
from eqscale.study.backend import _Events, ray_session
from eqscale.study.trials import Storage, StudyEvents
from eqscale.study.watch import Watch
from eqscale.training.memory import NEXT_ATTEMPT, read_micro_batch, write_micro_batch
from eqscale.training.spec import CurvePoint, RunSpec
from tests.study.test_ledger import make_spec


class Trial(SimpleNamespace):
    """The part of a Tune trial that the driver looks at; fails as Tune lets it fail."""

    def fail(self, error):
        """Tune's own rule: True if the trial is tried again."""
        self.num_failures += 1
        self.error_file.write_text(
            (self.error_file.read_text() if self.error_file.exists() else "")
            + f"Failure # {self.num_failures} (occurred at noon)\n{error}\n"
        )
        return self.num_failures <= self.max_failures


@pytest.fixture
def study(tmp_path):
    spec, said, clock = make_spec(), [], SimpleNamespace(now=0.0)
    trial = Trial(
        trial_id="a",
        config={"spec": dataclasses.asdict(spec)},
        error_file=tmp_path / "error.txt",
        max_failures=1,
        num_failures=0,
        temporary_state=SimpleNamespace(ray_actor="the actor"),
        placement_group_factory=backend.reservation(1, gpu=False),
    )
    events = StudyEvents(
        **{
            field.name: lambda *arguments, name=field.name: said.append((name, *arguments[1:]))
            for field in dataclasses.fields(StudyEvents)
        }
        | {"still_ours": lambda: None}
    )
    storage = Storage(tmp_path / "study", tmp_path / "data")
    watch = Watch(lambda spec: 60.0, lambda: clock.now)
    return SimpleNamespace(
        spec=spec, trial=trial, said=said, clock=clock, storage=storage,
        callback=_Events(events, None, watch, storage),
    )  # fmt: skip


def run(study, *steps):
    study.callback.on_trial_start(0, [], study.trial)
    for step in steps:
        point = dataclasses.asdict(CurvePoint(step, 0.5, 0.5, 0.01, 1.0))
        study.callback.on_trial_result(0, [], study.trial, point)


def test_two_failures_in_a_row_without_new_ground_are_final(study):
    run(study, 10, 20)
    assert study.trial.fail("ValueError: bad")
    study.callback.on_trial_recover(0, [], study.trial)
    run(study, 10, 20)  # again, but no further
    assert not study.trial.fail("ValueError: bad")
    study.callback.on_trial_error(0, [], study.trial)
    assert [event[0] for event in study.said if event[0] in ("retried", "failed")] == ["retried", "failed"]
    assert study.said[-1] == ("failed", "ValueError: bad")


def test_a_trial_that_gets_further_each_time_is_always_retried(study):
    for attempt in range(20):
        run(study, 10 * (attempt + 1))
        assert study.trial.fail("The actor is dead because its worker process has died. Worker exit type: X")
        study.callback.on_trial_recover(0, [], study.trial)
    assert study.said[-1] == ("retried", "its worker process died")


def test_a_checkpoint_is_a_sign_of_life_but_no_point_of_the_curve(study):
    run(study)
    study.callback.on_trial_result(0, [], study.trial, {backend._ALIVE: 7})
    assert [event[0] for event in study.said] == ["started"]
    assert study.trial.fail("x")
    assert study.trial.max_failures == 1
    study.callback.on_trial_result(0, [], study.trial, {backend._ALIVE: 8})
    assert study.trial.max_failures == 2


def test_a_silent_trial_is_killed_and_the_reason_kept(study, monkeypatch):
    killed = []
    monkeypatch.setattr(ray, "kill", killed.append)
    monkeypatch.setattr(backend, "_LOOK_SECONDS", 0.0)
    run(study, 10)
    for study.clock.now in range(10, 60, 10):
        study.callback.on_step_end(0, [])
    assert killed == []
    study.clock.now = 61.0
    study.callback.on_step_end(0, [])
    assert killed == ["the actor"]
    assert study.trial.fail("The actor is dead because it was killed by `ray.kill`.")
    study.callback.on_trial_recover(0, [], study.trial)
    assert study.said[-1] == ("retried", "killed: no sign of life for 61 s")


def test_a_worker_killed_for_memory_is_retried_with_half_the_micro_batch_until_one_window(study):
    folder = study.storage.checkpoints(study.spec.run_id)
    run(study)
    for size in (8, 4, 2, 1):
        assert study.trial.fail("2 worker(s) were killed due to the node running low on memory.")
        study.callback.on_trial_recover(0, [], study.trial)
        assert read_micro_batch(folder, study.spec.batch_size) == size
    assert study.trial.fail("1 worker(s) were killed due to the node running low on memory.")
    study.callback.on_trial_recover(0, [], study.trial)
    assert not study.trial.fail("1 worker(s) were killed due to the node running low on memory.")


def test_a_group_killed_for_memory_halves_the_share_of_each_process(study):
    study.trial.placement_group_factory = backend.reservation(4, gpu=False)
    run(study)
    assert study.trial.fail("2 worker(s) were killed due to the node running low on memory.")
    study.callback.on_trial_recover(0, [], study.trial)
    folder = study.storage.checkpoints(study.spec.run_id)
    assert read_micro_batch(folder, study.spec.batch_size) == study.spec.batch_size // 4 // 2


def test_a_process_that_has_halved_the_micro_batch_itself_is_retried_with_it(study):
    folder = study.storage.checkpoints(study.spec.run_id)
    run(study)
    for size in (8, 4, 2):
        write_micro_batch(folder, size)
        reason = f"RuntimeError: process 2 of 2: out of memory at step 0: {size} {NEXT_ATTEMPT}"
        assert study.trial.fail(reason)
        study.callback.on_trial_recover(0, [], study.trial)
        assert study.said[-1] == ("retried", reason)
        assert read_micro_batch(folder, study.spec.batch_size) == size


def test_a_later_failure_is_not_taken_for_an_earlier_one(study):
    run(study)
    study.trial.fail("1 worker(s) were killed due to the node running low on memory.")
    study.trial.fail("KeyError: 3")
    study.callback.on_trial_recover(0, [], study.trial)
    assert study.said[-1] == ("retried", "KeyError: 3")
    assert not study.storage.checkpoints(study.spec.run_id).exists()


def test_tune_takes_a_kill_for_memory_for_the_death_of_an_actor():
    failures = []
    actor = SimpleNamespace(actor_id=1, _on_error=lambda actor, error: failures.append(error))
    task = SimpleNamespace(_tracked_actor=actor, _on_error=None)
    manager = SimpleNamespace(_failed_actor_ids=set(), _cleanup_actor=lambda tracked_actor: None)
    error = OutOfMemoryError("the node is running low on memory")
    RayActorManager._actor_task_failed(manager, task, error)
    assert failures == [error]


def test_a_trial_that_a_source_chooses_keeps_its_view_options():
    spec = dataclasses.replace(make_spec(), view=(("horizon", 8), ("frame", "upright")))
    searcher = backend._Searcher(SimpleNamespace(ask=lambda: spec))
    assert RunSpec.from_dict(searcher.suggest("trial")["spec"]) == spec


def test_tune_goes_on_where_its_own_state_cannot_be_saved():
    def full_disk():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    storage = SimpleNamespace(experiment_driver_staging_path="/nowhere")
    manager = experiment_state._ExperimentCheckpointManager(storage=storage, checkpoint_period=0.0)
    manager.sync_up_experiment_state(save_fn=full_disk, force=True)


def test_a_driver_that_lost_its_study_ends_before_it_handles_what_its_trials_say(study):
    def lost():
        raise InputError("taken over")

    study.callback._events = dataclasses.replace(study.callback._events, still_ours=lost)
    with pytest.raises(InputError, match="taken over"):
        study.callback.on_step_begin(0, [])


@pytest.fixture
def starts(monkeypatch, tmp_path):
    """Options of every start of Ray; what a test puts into ``fail`` is raised instead, in that order."""
    said = SimpleNamespace(options=[], fail=[])

    def init(**options):
        said.options.append(options)
        if said.fail and (error := said.fail.pop(0)) is not None:
            raise error

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(backend, "_devices", lambda: "devices")
    return said


def test_without_an_address_ray_is_private_whatever_the_environment_says(starts, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", "10.1.2.3:6379")
    token = tmp_path / ".ray/auth_token"
    token.parent.mkdir()
    token.touch(0o644)
    with ray_session(None, cpus=2) as devices:
        assert devices == "devices"
    (options,) = starts.options
    assert (options["address"], options["num_cpus"], options["_node_ip_address"]) == ("local", 2, "127.0.0.1")
    assert token.stat().st_mode & 0o777 == 0o600


def test_a_start_of_ray_that_times_out_is_tried_once_more(starts):
    late = Exception("The current node timed out during startup. This could happen because ...\nmore")
    starts.fail = [late]
    with ray_session(None, cpus=1):
        assert len(starts.options) == 2
    starts.fail = [late, late]
    with pytest.raises(InputError, match=r"^Ray can't start on this machine: The current node timed out") as caught:
        ray_session(None, cpus=1).__enter__()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [OSError("AF_UNIX path length cannot exceed 107 bytes: '/x'"), Exception("")])
def test_what_ray_lacks_on_a_machine_is_one_line(starts, error):
    starts.fail = [error]
    with pytest.raises(InputError, match=r"can't start on this machine: .*HOME, TMPDIR"):
        ray_session(None, cpus=1).__enter__()
    assert len(starts.options) == 1
