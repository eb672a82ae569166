"""Ray Tune runs the trials. Only this module, ``gang`` and the making of data import Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Must be set before Ray is imported: our own progress display replaces Tune's, and trials keep their own logs.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "16")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # ours says that it stops
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # signs of life carry no metric

import ray
import torch
from ray import tune
from ray._private import services
from ray.air.execution._internal import actor_manager
from ray.exceptions import AuthenticationError, OutOfMemoryError, RayActorError
from ray.tune.execution import experiment_state, tune_controller
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from eqscale.cores import allowed_cores
from eqscale.errors import InputError
from eqscale.storage import RemotePath, absolute, open_place, remove_folder
from eqscale.study import gang, shared_data
from eqscale.study.resources import gpu_share
from eqscale.study.schedule import Allotment
from eqscale.study.trials import Devices, Storage, StudyEvents, TrialSource
from eqscale.study.watch import Watch
from eqscale.tasks import Samples, get_task
from eqscale.tasks.base import OptionValue
from eqscale.tasks.dataset import DataSpec, open_split
from eqscale.training.checkpoint import write_patiently
from eqscale.training.group import Group
from eqscale.training.loop import follow, train
from eqscale.training.memory import NEXT_ATTEMPT, read_micro_batch, write_micro_batch
from eqscale.training.plugins import load_plugins, loaded_plugins
from eqscale.training.spec import CurvePoint, RunRecord, RunSpec

# A worker that Ray kills on a node low on memory ends with an error that Tune doesn't know for an actor's death:
# it would end the whole study.
for _module in (actor_manager, tune_controller):
    _module.RayActorError = (RayActorError, OutOfMemoryError)  # type: ignore[attr-defined]

_save_state = experiment_state._ExperimentCheckpointManager.sync_up_experiment_state


def _save_state_if_possible(*args: Any, **options: Any) -> None:
    """Tune's own state is never read: a full disk under it mustn't end the study."""
    with contextlib.suppress(OSError):
        _save_state(*args, **options)


experiment_state._ExperimentCheckpointManager.sync_up_experiment_state = _save_state_if_possible  # type: ignore[method-assign]


def _devices() -> Devices:
    there = ray.cluster_resources()
    # A cluster that starts its GPU nodes on demand has none yet; only its configuration tells.
    promised = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    cpus, gpus = (int(max(there.get(name, 0), promised.get(name, 0))) for name in ("CPU", "GPU"))
    kind = "GPU" if gpus else "CPU"
    nodes = [node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]]
    if config := ray._private.state.state.get_cluster_config():
        nodes += [group.resources.get(kind, 0) for group in config.node_group_configs if group.max_count]
    return Devices(max(1, cpus), gpus, int(min((count for count in nodes if count >= 1), default=1)))


@contextlib.contextmanager
def ray_session(address: str | None, cpus: int | None = None) -> Iterator[Devices]:
    """Connect to a Ray cluster, or start a private one that only this machine reaches; yields the devices it has.

    A Ray that ``RAY_ADDRESS`` or a file of another Ray names isn't joined: only ``address`` says so.

    Raises InputError if the address doesn't answer or refuses this driver, or if Ray can't start here.
    """
    options: dict[str, Any]
    if address is None:
        options = {"address": "local", "num_cpus": cpus or allowed_cores(), "include_dashboard": False}
        options["_node_ip_address"] = "127.0.0.1"
    else:
        from eqscale.study.preflight import check_ray_address  # here: trials import this module, and pay for all of it

        check_ray_address(address)
        options = {"address": address}
    try:
        _start_ray(options)
    except AuthenticationError as error:
        raise InputError(
            f"the Ray cluster at {address!r} refuses this driver's token: set RAY_AUTH_MODE=token here and on "
            "every node, with the same ~/.ray/auth_token"
        ) from error
    except Exception as error:  # Ray raises bare ones, too
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if address is not None:
            raise InputError(f"Ray address {address!r} doesn't answer: {reason}") from error
        raise InputError(
            f"Ray can't start on this machine: {reason}; it needs a home folder and a short temporary one that can be "
            "written (HOME, TMPDIR), and some seconds of processor time"
        ) from error
    try:
        yield _devices()
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _loopback_kept() -> Iterator[None]:
    """Within it, a node at 127.0.0.1 stays there and listens there; Ray would give it the machine's address."""
    resolve = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        services.resolve_ip_for_localhost = resolve


def _start_ray(options: dict[str, Any]) -> None:
    """``ray.init``; a start that times out, as on a loaded machine, is tried once more."""
    for last in (False, True):
        try:
            with _loopback_kept() if options["address"] == "local" else contextlib.nullcontext():
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
            break
        except Exception as error:
            if last or "timed out" not in str(error):
                raise
            ray.shutdown()
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token")
    with contextlib.suppress(OSError, RuntimeError):  # none there, or another user's
        token.expanduser().chmod(0o600)  # Ray makes it readable for everybody


def gpu_names() -> list[str]:
    """Models of GPU in the cluster, e.g. "A100"; must be called inside ``ray_session``."""
    marker = "accelerator_type:"
    return [name.removeprefix(marker) for name in ray.cluster_resources() if name.startswith(marker)]


_ALIVE = "alive_at_step"
_LOOK_SECONDS = 1.0
_LOW_MEMORY = "running low on memory"
_DEATHS = {
    _LOW_MEMORY: "its worker was killed because the node ran low on memory",
    "its worker process has died": "its worker process died",
    "its node has died": "its node died",
}


@functools.lru_cache(maxsize=8)
def _samples(
    data: DataSpec, root: Path, split: str, systems: int, view: tuple[tuple[str, OptionValue], ...]
) -> Samples:
    return open_split(data, root, split, systems=systems, **dict(view))


def _prepare_process(config: dict[str, Any]) -> tuple[RunSpec, Storage]:
    """Make a worker process ready for a trial; returns the trial's run and where its study lives."""
    load_plugins(config["plugins"])
    gc.freeze()  # what is imported stays: to look through it at the end of each trial takes a quarter of a second
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    storage = Storage(open_place(config["study_folder"]), open_place(config["data_folder"]))
    return RunSpec.from_dict(config["spec"]), storage


def _trial(config: dict[str, Any]) -> None:
    """One Tune trial: train the run of ``config["spec"]`` and write its record to the ledger."""
    spec, storage = _prepare_process(config)
    checkpoints = storage.checkpoints(spec.run_id)
    if spec.run_id in storage.ledger:  # an attempt that died after writing its record
        remove_folder(checkpoints)
        return
    reserved = tune.get_context().get_trial_resources()
    if reserved.head_bundle_is_empty:  # the devices are for processes of their own
        record = gang.run_together(functools.partial(_train, config), reserved.bundles, tune.report)
    else:
        record = _train(config, Group(), tune.report)
    assert record is not None
    write_patiently(lambda: storage.ledger.write(record), f"the record of run {spec.name}")
    remove_folder(checkpoints)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _train(config: dict[str, Any], group: Group, say: gang.Say) -> RunRecord | None:
    """Train the run of a trial as one rank of a group; the first returns its record."""
    spec, storage = _prepare_process(config)
    checkpoints = storage.checkpoints(spec.run_id)
    systems = {"train": spec.train_systems, "test": spec.test_systems}
    root = shared_data.fetch(config["data"], storage.data, systems)
    samples = [_samples(config["data"], root, split, count, spec.view) for split, count in systems.items()]
    if group.rank > 0:
        follow(spec, *samples, checkpoints=checkpoints, group=group)
        return None
    return train(
        spec,
        *samples,
        checkpoints=checkpoints,
        weights=storage.weights(spec.run_id),
        report=lambda point: say(dataclasses.asdict(point)),
        alive=lambda step: say({_ALIVE: step}),
        checkpoint_seconds=config["checkpoint_seconds"],
        group=group,
    )


class _Events(tune.Callback):
    """Passes Tune's events on and kills trials that hang.

    It holds live objects, so it must not be pickled into Tune's own state.
    """

    def __init__(self, events: StudyEvents, pruner: _Pruner | None, watch: Watch, storage: Storage) -> None:
        self._events, self._pruner, self._watch, self._storage = events, pruner, watch, storage
        self._trials: dict[str, Any] = {}
        self._killed: dict[str, str] = {}
        self._looked = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        self._events.still_ours()

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        spec = _spec_of(trial)
        self._trials[spec.run_id] = trial
        self._watch.started(spec)
        self._events.started(spec)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        spec = _spec_of(trial)
        point = _point_of(result)
        if self._watch.sign(spec.run_id, point.step if point is not None else result.get(_ALIVE, 0)):
            trial.max_failures = trial.num_failures + 1  # it gains ground: the next failure is retried
        if point is not None:
            self._events.point(spec, point)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        spec = _spec_of(trial)
        self._forget(spec)
        if self._pruner is not None and trial.trial_id in self._pruner.pruned:
            self._events.pruned(spec)
        else:
            self._events.ended(spec)

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        spec, error = _spec_of(trial), _last_error(trial)
        fewer = NEXT_ATTEMPT in error  # one of its processes has halved its micro-batch itself
        if _LOW_MEMORY in error:  # Ray killed its worker before the node ran out of memory
            folder = self._storage.checkpoints(spec.run_id)
            share = -(-spec.batch_size // len(trial.placement_group_factory.bundles))  # of each of its processes
            size = read_micro_batch(folder, share)
            if size > 1:
                with contextlib.suppress(OSError):
                    write_micro_batch(folder, size // 2)
                fewer = True
        if fewer:
            trial.max_failures = trial.num_failures + 1
        self._events.retried(spec, self._reason(trial))
        self._forget(spec)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        spec = _spec_of(trial)
        self._events.failed(spec, self._reason(trial))
        self._forget(spec)

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        if time.monotonic() - self._looked < _LOOK_SECONDS:  # Tune calls this about ten times a second
            return
        self._looked = time.monotonic()
        for run_id, seconds in self._watch.hanging().items():
            self._killed[run_id] = f"killed: no sign of life for {seconds:.0f} s"
            actor = self._trials[run_id].temporary_state.ray_actor
            if actor is not None:
                ray.kill(actor)  # Tune then sees a dead worker, and retries

    def _reason(self, trial: Any) -> str:
        if reason := self._killed.get(_spec_of(trial).run_id):
            return reason
        error = _last_error(trial).strip()
        known = (reason for said, reason in _DEATHS.items() if said in error)
        return next(known, error.rpartition("\n")[2].strip() or "unknown error")

    def _forget(self, spec: RunSpec) -> None:
        self._watch.ended(spec.run_id)
        self._trials.pop(spec.run_id, None)
        self._killed.pop(spec.run_id, None)


def _last_error(trial: Any) -> str:
    """What Tune has noted about the latest failure of a trial."""
    error_file = getattr(trial, "error_file", None)
    if error_file and Path(error_file).exists():
        return Path(error_file).read_text(encoding="utf-8").rpartition("Failure #")[2]
    return str(getattr(trial, "error_msg", "") or "")


def _point_of(result: dict[str, Any]) -> CurvePoint | None:
    """The point of the training curve in a result, if it has one: Tune also adds results without."""
    names = [field.name for field in dataclasses.fields(CurvePoint)]
    return CurvePoint(**{name: result[name] for name in names}) if names[0] in result else None


def _spec_of(trial: Any) -> RunSpec:
    return RunSpec.from_dict(trial.config["spec"])


class _Searcher(Searcher):
    """Passes Tune's questions to a TrialSource, whose state is its own: nothing here is saved or restored."""

    def __init__(self, source: TrialSource) -> None:
        super().__init__(metric="test_nmse", mode="min")
        self._source = source

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_source": None}

    def suggest(self, trial_id: str) -> Any:
        spec = self._source.ask()
        return Searcher.FINISHED if spec is None else {"spec": spec.to_dict()}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        pass  # the driver's events tell the source

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Pruner(FIFOScheduler):
    """Stops the trials that a TrialSource gives up."""

    def __init__(self, source: TrialSource) -> None:
        super().__init__()
        self.source = source
        self.pruned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"source": None}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        point = _point_of(result)
        if point is not None and self.source.should_prune(_spec_of(trial), point):
            self.pruned.add(trial.trial_id)
            return FIFOScheduler.STOP
        return FIFOScheduler.CONTINUE


def _gpu_bytes() -> float:
    """Memory of a GPU of the cluster, asked of one; waits for the autoscaler if none is there yet."""

    def ask() -> float | None:
        return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None

    if (found := ray.get(ray.remote(num_cpus=1, num_gpus=1)(ask).remote())) is None:
        raise InputError(
            "the cluster has GPUs, but PyTorch on its nodes can't use them: install a CUDA build of torch there"
        )
    return found


def smallest_share(data: DataSpec, gpus: int) -> Callable[[RunSpec], float]:
    """Run -> share of a device that it needs at least: of a GPU by its memory, else a core.

    Must be called inside ``ray_session``.
    """
    if not gpus:
        return lambda spec: 1.0
    tokens, device_bytes = get_task(data.task).max_tokens(data.options), _gpu_bytes()
    return lambda spec: gpu_share(spec, tokens, device_bytes)


def reservation(devices: float, gpu: bool) -> tune.PlacementGroupFactory:
    """What Ray reserves for a trial: a core for each device or share of one, all on one node."""
    if devices <= 1:
        return tune.PlacementGroupFactory([{"CPU": 1.0, "GPU": devices if gpu else 0.0}])
    # The trial itself only watches over the processes that have the devices.
    each = {"CPU": 1.0, "GPU": float(gpu)}
    return tune.PlacementGroupFactory([{}] + [each] * int(devices), strategy="STRICT_PACK")


@contextlib.contextmanager
def _interruptible(say: Callable[[], None]) -> Iterator[None]:
    """While it is open, Ctrl-C is acknowledged at once and stops Tune in order; a second one interrupts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: Any) -> None:
        say()
        if not callable(signal.getsignal(signal.SIGUSR1)):  # Tune isn't ready for it yet
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGUSR1)  # which Tune takes as a request to stop
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def run_trials(
    trials: Sequence[Allotment] | TrialSource,
    data: DataSpec,
    storage: Storage,
    events: StudyEvents,
    *,
    smallest: Callable[[RunSpec], float],
    gpus: int = 0,
    silence: Callable[[RunSpec], float],
    checkpoint_seconds: float | None = None,
    max_seconds: float | None = None,
) -> None:
    """Train runs with Ray Tune, in the given order or as a source asks, as many side by side as devices allow.

    A planned trial gets the devices of its allotment, one that a source chooses gets ``smallest(spec)``. Several
    devices of a trial lie on one node, each with its own process; if one process dies the trial has failed.

    A trial that fails, loses its worker or node, or gives no sign of life for ``silence(spec)`` seconds is retried
    from its newest checkpoint. After two failures in a row without progress between them it is reported as failed,
    and the others continue. Must be called inside ``ray_session``. Every call is a new Tune experiment: what is left
    to do follows from the ledger alone.
    """
    planned = trials if isinstance(trials, Sequence) else ()
    devices = {allotment.spec.run_id: allotment.devices for allotment in planned}

    def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        spec = RunSpec.from_dict(config["spec"])
        return reservation(devices.get(spec.run_id) or smallest(spec), bool(gpus))

    pruner: _Pruner | None = None
    search: dict[str, Any] = {}
    if not isinstance(trials, Sequence):
        pruner = _Pruner(trials)
        search = {
            "search_alg": _Searcher(trials),
            "scheduler": pruner,
            "num_samples": len(trials),
            "max_concurrent_trials": int(gpus or ray.cluster_resources().get("CPU", 1)),
        }
    place = storage.study / "ray"
    path, filesystem = (place.path, place.filesystem) if isinstance(place, RemotePath) else (str(place.resolve()), None)
    params: dict[str, Any] = {
        "data": data,
        "study_folder": str(absolute(storage.study)),
        "data_folder": str(absolute(storage.data)),
        "checkpoint_seconds": checkpoint_seconds,
        "plugins": loaded_plugins(),
    }
    if planned:
        params["spec"] = tune.grid_search([allotment.spec.to_dict() for allotment in planned])
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    tuner = tune.Tuner(
        tune.with_resources(_trial, resources),
        param_space=params,
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            time_budget_s=max_seconds,
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: trial.trial_id,
            **search,
        ),
        run_config=tune.RunConfig(
            name=datetime.datetime.now(datetime.UTC).strftime("attempt-%Y%m%d-%H%M%S-%f"),
            storage_path=path,
            storage_filesystem=filesystem,
            callbacks=[_Events(events, pruner, Watch(silence), storage)],
            failure_config=tune.FailureConfig(max_failures=1),
            verbose=0,
        ),
    )
    with _interruptible(events.stopping):
        tuner.fit()
