"""Training one run: a plain function of its spec that knows neither Ray nor MLflow."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from eqscale.arms import TokenCounts, get_arm
from eqscale.errors import InputError
from eqscale.storage import AnyPath
from eqscale.tasks import Batch, Prepared, Samples, get_task
from eqscale.tasks.loader import batches
from eqscale.tasks.metrics import evaluate, squared_error
from eqscale.tasks.symmetry import transform
from eqscale.training import checkpoint
from eqscale.training.device import hardware, peak_memory_mb, replays_graphs, trains_in_bfloat16
from eqscale.training.group import Group
from eqscale.training.memory import NEXT_ATTEMPT, fitting, parts, read_micro_batch, write_micro_batch
from eqscale.training.optim import RATE_SCALE, clip_gradients, get_optimizer, step_flops
from eqscale.training.order import DataOrder
from eqscale.training.spec import CODE, RESULTS_VERSION, CurvePoint, RunRecord, RunSpec

DIVERGED_LOSS = 10.0  # predicting zero has loss 1
CURVE_POINTS = 12
CURVE_SAMPLES = 192
_SYMMETRY_SAMPLES = 64
_CHECKPOINT_SECONDS = 30.0
_CHECK_STEPS = 20  # reading the loss synchronises a GPU: do it rarely
_UNTIMED_STEPS = 3  # the first steps allocate, and compile on a GPU
_RECORDING_STEPS = 300  # untimed where graphs are recorded: by then most lengths have come up


def learning_rate_at(step: int, spec: RunSpec) -> float:
    """Learning rate of ``step``: linear warm-up, then a cosine that reaches zero after the last step."""
    warmup = max(1, round(spec.warmup * spec.steps))
    if step < warmup:
        return spec.learning_rate * (step + 1) / warmup
    progress = (step - warmup + 1) / max(1, spec.steps - warmup)
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def weighted_mse(prediction: Tensor, batch: Batch) -> Tensor:
    """Weighted squared error, averaged over the batch; predicting zero has about 1."""
    return squared_error(prediction, batch).sum() / len(batch)


def accumulate_gradient(
    model: nn.Module, batch: Batch | Prepared, micro_batch: int, whole: float | None = None
) -> Tensor:
    """Add the gradient of the batch's loss to the model, computing ``micro_batch`` samples at once.

    Every part is weighted with its share of the samples: loss and gradient are those of the whole batch but
    for the order of floating-point sums. Ranks exchange gradients once, while the last part's are computed.

    Args:
        model: the model; ranks of a group have it wrapped in DistributedDataParallel, which averages over them.
        batch: the samples, or what the model has prepared of them.
        micro_batch: most samples in a part.
        whole: the samples by which the sum is divided, if not those of the batch: for a share of a batch of B
            samples over k ranks B / k, so that the mean over ranks is that of the whole batch.

    Returns:
        The loss, a scalar.
    """
    count = len(batch) if whole is None else whole
    losses, pieces = [], list(parts(batch, micro_batch))
    for piece in pieces:
        last = piece is pieces[-1]
        held = isinstance(model, DistributedDataParallel) and not last
        with cast(DistributedDataParallel, model).no_sync() if held else contextlib.nullcontext():
            losses.append(add_gradient(model, piece, count))
    return sum(losses[1:], losses[0])


def prepared(model: nn.Module, batch: Batch) -> Batch | Prepared:
    """What ``add_gradient`` takes of a batch on the CPU, with all that doesn't depend on the model's parameters done.

    A model may have two methods, together faster than a forward and a backward pass: ``prepared(batch)``, which returns
    that or None, and ``add_loss_gradient(prepared, factor)``.
    """
    prepare = getattr(model, "prepared", None)
    made = None if prepare is None else prepare(batch)
    return batch if made is None else made


def add_gradient(model: nn.Module, batch: Batch | Prepared, count: float) -> Tensor:
    """Add the gradient of the batch's squared error over ``count`` to the model; returns that error over ``count``."""
    if isinstance(batch, Prepared):
        return cast(Any, model).add_loss_gradient(batch, 1 / count)
    loss = weighted_mse(model(batch), batch) * (len(batch) / count)
    loss.backward()
    return loss.detach()


def spawn_seeds(luck: int) -> tuple[int, int, int]:
    """Separate seeds for initialisation, data order and augmentation."""
    init, order, augmentation = np.random.SeedSequence(luck).generate_state(3)
    return int(init), int(order), int(augmentation)


def build_model(spec: RunSpec) -> nn.Module:
    """The initialised model of a run, on the CPU.

    From then on the process counts subnormal numbers as zero: attention weights of trained models hold so many of
    them that on CPUs without fast subnormals a GATr of 2e4 parameters takes three times as long.
    """
    torch.set_flush_denormal(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spawn_seeds(spec.luck)[0])
        return get_arm(spec.arm).build(spec.size, get_task(spec.task))


def load_trained(path: Path) -> tuple[RunSpec, nn.Module]:
    """Spec and model of a weights file that ``train`` wrote.

    Raises InputError if the file is absent, damaged, or of another version of the code or an arm that it doesn't know.
    """
    if not path.is_file():
        raise InputError(f"there is no checkpoint {str(path)!r}")
    state = checkpoint.load_file(path)
    if state is None or "spec" not in state:
        raise InputError(f"checkpoint {str(path)!r} is damaged or not one of a finished run")
    if (version := state.get("results_version")) != RESULTS_VERSION:
        raise InputError(
            f"checkpoint {str(path)!r} was written by another version of the code (results version "
            f"{version or 'unknown'}; this is {RESULTS_VERSION}): train the run again, or use that version"
        )
    try:
        spec = RunSpec.from_dict(state["spec"])
    except InputError as error:
        raise InputError(f"checkpoint {str(path)!r}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"checkpoint {str(path)!r} is not one of a finished run") from error
    model = build_model(spec)
    try:
        model.load_state_dict(state["model"])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"checkpoint {str(path)!r} is of another version of the arm {spec.arm!r}") from error
    return spec, model.eval()


def evaluation_indices(samples: Samples, systems: int, per_system: int) -> np.ndarray:
    """Samples of the first ``systems`` systems, in the middle of ``per_system`` equal parts of each."""
    places = ((np.arange(per_system) + 0.5) * samples.samples_per_system / per_system).astype(np.int64)
    return (np.arange(systems)[:, None] * samples.samples_per_system + places).ravel()


def symmetry_indices(samples: Samples, systems: int) -> np.ndarray:
    """Samples on which the equivariance error is measured: few, evenly spread over systems and their samples."""
    total = systems * samples.samples_per_system
    return np.linspace(0, total - 1, min(_SYMMETRY_SAMPLES, total)).round().astype(np.int64)


class _Diverged(Exception):
    pass


@dataclasses.dataclass
class _Progress:
    """What a checkpoint holds beside model and optimiser; the rest follows from the step."""

    step: int = 0
    devices: int = 1
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    tokens: int = 0
    pairs: int = 0
    padded_tokens: int = 0
    padded_pairs: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    large_losses: int = 0
    """Steps in a row up to this one with a loss of ``DIVERGED_LOSS`` or more."""
    curve: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


_ALONE = Group()


def _ignore(_: Any) -> None:
    pass


class _Trainer:
    """State of a run between steps; arguments and errors as of ``train``."""

    def __init__(
        self,
        spec: RunSpec,
        train_samples: Samples,
        test_samples: Samples,
        checkpoints: AnyPath,
        report: Callable[[CurvePoint], None] = _ignore,
        alive: Callable[[int], None] = _ignore,
        checkpoint_seconds: float | None = None,
        group: Group = _ALONE,
    ) -> None:
        self.spec, self.arm, self.task, self.group = spec, get_arm(spec.arm), get_task(spec.task), group
        self.train_samples, self.test_samples = train_samples, test_samples
        self.checkpoints, self.report, self.alive = checkpoints, report, alive
        self.checkpoint_seconds = _CHECKPOINT_SECONDS if checkpoint_seconds is None else checkpoint_seconds
        self._check()
        self.last_sign = time.perf_counter()
        self.elements = self.task.elements(spec.options)
        _, order_seed, self.augmentation_seed = spawn_seeds(spec.luck)
        self.order = DataOrder(train_samples.tokens, train_samples.samples_per_system, spec.batch_size, order_seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.graphs = replays_graphs(self.device, group.world, len(np.unique(train_samples.tokens)))
        self.bfloat16 = trains_in_bfloat16(self.device)
        self.precision: contextlib.AbstractContextManager = contextlib.nullcontext()
        if self.bfloat16:
            self.precision = torch.autocast(self.device.type, torch.bfloat16)
        self.model = build_model(spec).to(self.device)
        if self.device.type == "cuda":
            self.model.compile(dynamic=True, mode="reduce-overhead" if self.graphs else "default")
        self.optimizer = get_optimizer(spec.optimizer).build(
            self.model, spec.learning_rate, spec.weight_decay, spec.momentum
        )
        self.optimized = [tensor for group in self.optimizer.param_groups for tensor in group["params"]]
        for tensor in self.optimized:
            if tensor.grad is None:  # as for a flat optimiser, they are zeroed in place from the start
                tensor.grad = torch.zeros_like(tensor)
        self.pending: list[Tensor] = []
        self.curve_steps = {round(spec.steps * k / CURVE_POINTS) for k in range(1, CURVE_POINTS + 1)}
        self.curve_indices = evaluation_indices(test_samples, min(CURVE_SAMPLES, spec.test_systems), 1)
        self.progress = _Progress(devices=group.world)
        self._resume()
        self.micro_batch = read_micro_batch(checkpoints, math.ceil(spec.batch_size / group.world))
        self.evaluation_batch: int | None = None  # all that an evaluation asks for at once
        self.trained = self.model
        if group.world > 1:
            # An arm may have weights that a loss doesn't depend on.
            self.trained = DistributedDataParallel(self.model, broadcast_buffers=False, find_unused_parameters=True)

    def _check(self) -> None:
        spec, words = self.spec, self.task.words
        if spec.version != RESULTS_VERSION:
            raise InputError(
                f"run {spec.name} is of results version {spec.version}; this code trains those of {RESULTS_VERSION}"
            )
        train, test = self.train_samples.n_systems, self.test_samples.n_systems
        if train != spec.train_systems or test < spec.test_systems:
            raise InputError(
                f"run {spec.name} asks for {spec.train_systems} training and {spec.test_systems} test "
                f"{words.unit.many}; the data have {train} and {test}"
            )
        if self.group.world > spec.batch_size:
            raise InputError(
                f"run {spec.name} can't use {self.group.world} devices: its batch has {spec.batch_size} "
                f"{words.sample.many}"
            )

    def _resume(self) -> None:
        """Go on from the newest checkpoint that the first rank can read, if there is one."""
        spec, group, checkpoints = self.spec, self.group, self.checkpoints
        state = checkpoint.load_newest(checkpoints) if group.rank == 0 else None
        newest = group.told(-1 if state is None else state["progress"]["step"])
        if group.rank > 0 and newest >= 0:
            state = checkpoint.load(checkpoints, newest)
        if state is not None:
            if state.get("run_id") != spec.run_id:
                raise InputError(
                    f"the checkpoints in {str(checkpoints)!r} are of another run (other arm, size, data, optimiser or "
                    f"version of the code) than {spec.name}: delete them, or choose another folder"
                )
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            # NaN: a checkpoint from before CPU time was counted
            self.progress = _Progress(**{"cpu_seconds": math.nan, **state["progress"]})
        progress = self.progress
        if progress.devices != group.world:
            self._note(f"devices: {progress.devices} up to step {progress.step}, then {group.world}")
            progress.devices = group.world
        for step in checkpoint.steps(checkpoints) if group.rank == 0 else ():
            if step > progress.step:
                self._note(f"the checkpoint of step {step} was damaged: went on from step {progress.step}")
                checkpoint.remove(checkpoints, step)

    def run(self) -> None:
        """Train to the last step; raises _Diverged when the loss leaves the sensible range."""
        progress = self.progress
        clock = last_checkpoint = time.perf_counter()
        cpu_clock = time.process_time()
        for batch in self._batches():
            self._step(batch)
            at_curve_point = progress.step in self.curve_steps
            due = time.perf_counter() - last_checkpoint > self.checkpoint_seconds
            if self.group.world > 1:  # clocks differ: ranks meet at steps that all of them know
                reads = at_curve_point or progress.step % _CHECK_STEPS == 0
                due = due and reads
            else:
                reads = at_curve_point or due or len(self.pending) >= _CHECK_STEPS
            if reads:
                self._read_losses()
            if (at_curve_point or due) and self.group.rank == 0:
                progress.seconds += self.group.world * (time.perf_counter() - clock)
                progress.cpu_seconds += self.group.world * (time.process_time() - cpu_clock)
                if at_curve_point:
                    self._add_curve_point()
                if due and progress.step < self.spec.steps:
                    self._save()
                    self._sign_of_life()
                    last_checkpoint = time.perf_counter()
                clock, cpu_clock = time.perf_counter(), time.process_time()

    def evaluate(self) -> dict[str, float]:
        """Metrics on the full test selection of the spec."""
        spec, samples = self.spec, self.test_samples
        indices = evaluation_indices(samples, spec.test_systems, spec.test_samples_per_system)
        errors = self.task.evaluate(self._predict, samples, indices)
        return errors | self.task.equivariance(self._predict, samples, symmetry_indices(samples, spec.test_systems))

    def save_weights(self, path: AnyPath) -> None:
        """Write what ``load_trained`` reads; raises OSError if the file can't be written."""
        state = {"results_version": RESULTS_VERSION, "spec": self.spec.to_dict(), "model": self.model.state_dict()}
        save = functools.partial(checkpoint.save_file, path, state)
        checkpoint.write_patiently(save, f"the weights of run {self.spec.name}")

    def record(self, status: str, test: dict[str, float], started: str, evaluation_seconds: float) -> RunRecord:
        """The run's record; ``evaluation_seconds`` are those of the final evaluation."""
        spec, progress = self.spec, self.progress
        counts = TokenCounts(progress.tokens, progress.pairs, progress.padded_tokens, progress.padded_pairs)
        samples_drawn, unique = progress.step * spec.batch_size, len(self.train_samples)
        cpu_known = self.device.type == "cpu" and math.isfinite(progress.cpu_seconds)
        nominal = self.arm.flops(spec.size, self.task).nominal
        return RunRecord(
            spec=spec,
            run_id=spec.run_id,
            status=status,
            parameters=sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            tokens=progress.tokens,
            padded_tokens=progress.padded_tokens,
            epochs=samples_drawn / unique,
            unique_samples=min(samples_drawn, unique),
            unique_tokens=min(progress.tokens, self.train_samples.unique_tokens),
            flops_nominal=nominal.total(progress.tokens, progress.pairs),
            flops_executed=self.arm.executed_flops(spec.size, self.task, counts, self.device)
            + progress.step * step_flops(spec.optimizer, self.arm, spec.size, self.task),
            seconds=progress.seconds,
            evaluation_seconds=progress.evaluation_seconds + evaluation_seconds,
            peak_memory_mb=peak_memory_mb(),
            steps_done=progress.step,
            test=test,
            curve=[CurvePoint(**point) for point in progress.curve],
            hardware=hardware(self.device, self.bfloat16, self.graphs),
            code=CODE,
            started=started,
            devices=progress.devices,
            micro_batch=self.micro_batch,
            notes=progress.notes,
            cpu_seconds=progress.cpu_seconds if cpu_known else None,
        )

    def _batches(self) -> Iterator[Batch | Prepared]:
        """This rank's share of the batches from the next step on."""
        steps, rows = range(self.progress.step, self.spec.steps), self.group.rows
        return batches(
            *(self.train_samples, lambda step: self.order.batch(step)[rows], steps, self.device), prepare=self._prepared
        )

    def _prepared(self, batch: Batch, steps: range) -> Batch | Prepared:
        if self.arm.augmented:
            generators = (torch.Generator().manual_seed((self.augmentation_seed << 32) + step) for step in steps)
            size, dtype, rows = self.spec.batch_size, batch.target.dtype, self.group.rows
            batch = transform(batch, torch.cat([self.elements(size, g, dtype)[rows] for g in generators]))
        with self.precision:
            return prepared(self.trained, batch) if self.device.type == "cpu" else batch

    def _step(self, batch: Batch | Prepared) -> None:
        spec, progress = self.spec, self.progress
        with self.precision:
            loss = fitting(functools.partial(self._gradient, batch), self.micro_batch, self._halved)
        clip_gradients(self.optimized, spec.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(progress.step, spec) * group.get(RATE_SCALE, 1.0)
        self.optimizer.step()
        self.pending.append(loss.detach())
        tokens, pairs, T = self.order.counts(progress.step)
        B = spec.batch_size  # padded as on one device
        progress.tokens += tokens
        progress.pairs += pairs
        progress.padded_tokens += B * T
        progress.padded_pairs += B * T * T
        progress.step += 1

    def _gradient(self, batch: Batch | Prepared, micro_batch: int) -> Tensor:
        # In place: flat optimisers keep all gradients in one tensor, graphs on a GPU their addresses.
        torch._foreach_zero_([tensor.grad for tensor in self.optimized])
        return accumulate_gradient(self.trained, batch, micro_batch, self.spec.batch_size / self.group.world)

    def _halved(self, micro_batch: int, reason: str) -> None:
        if self.group.world > 1:  # the others may be in the middle of exchanging gradients with this rank
            write_micro_batch(self.checkpoints, micro_batch)
            raise RuntimeError(f"out of memory at step {self.progress.step}: {micro_batch} {NEXT_ATTEMPT}")
        self.micro_batch = micro_batch
        self._note(f"out of memory at step {self.progress.step}: {micro_batch} samples at once ({reason[:120]})")
        with contextlib.suppress(OSError):  # the next attempt would find out again
            write_micro_batch(self.checkpoints, micro_batch)

    def _note(self, text: str) -> None:
        if text not in self.progress.notes:
            self.progress.notes.append(text)

    def _sign_of_life(self) -> None:
        self.last_sign = time.perf_counter()
        self.alive(self.progress.step)

    def _read_losses(self) -> None:
        values = (self.group.total(torch.stack(self.pending)) / self.group.world).tolist()
        self.pending.clear()
        self.progress.loss_sum += sum(values)
        self.progress.loss_count += len(values)
        # In a row: where targets have a heavy tail, those of a single batch can be as large.
        for value in values:
            self.progress.large_losses = 0 if value < DIVERGED_LOSS else self.progress.large_losses + 1
            if not math.isfinite(value) or self.progress.large_losses >= _CHECK_STEPS:
                raise _Diverged

    def _add_curve_point(self) -> None:
        progress = self.progress
        begin = time.perf_counter()
        point = CurvePoint(
            step=progress.step,
            train_loss=progress.loss_sum / progress.loss_count,
            test_nmse=evaluate(self._predict, self.test_samples, self.curve_indices).nmse,
            learning_rate=learning_rate_at(progress.step - 1, self.spec),
            seconds=progress.seconds,
        )
        progress.loss_sum, progress.loss_count = 0.0, 0
        progress.curve.append(dataclasses.asdict(point))
        progress.evaluation_seconds += time.perf_counter() - begin
        self.last_sign = time.perf_counter()
        self.report(point)

    def _save(self) -> None:
        state = {
            "run_id": self.spec.run_id,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": dataclasses.asdict(self.progress),
        }
        try:
            checkpoint.save(self.checkpoints, self.progress.step, state)
        except OSError as error:  # costs minutes if the run is killed before the next one; to stop costs all
            self._note(f"a checkpoint could not be written: {error.strerror or error}")

    def _predict(self, batch: Batch) -> Tensor:
        if time.perf_counter() - self.last_sign > _CHECKPOINT_SECONDS:
            self._sign_of_life()

        def compute(size: int) -> Tensor:
            with torch.inference_mode():
                return torch.cat([self.model(part.to(self.device)).cpu() for part in parts(batch, size)])

        def halved(size: int, reason: str) -> None:
            self.evaluation_batch = size
            self._note(f"out of memory in an evaluation: {size} samples at once ({reason[:120]})")

        return fitting(compute, self.evaluation_batch or len(batch), halved)


def follow(spec: RunSpec, train_samples: Samples, test_samples: Samples, *, checkpoints: AnyPath, group: Group) -> None:
    """Train as another rank of a group whose first rank calls ``train``: that one evaluates and keeps the record.

    Args and errors as of ``train``.
    """
    trainer = _Trainer(spec, train_samples, test_samples, checkpoints, group=group)
    with contextlib.suppress(_Diverged):
        trainer.run()


def train(
    spec: RunSpec,
    train_samples: Samples,
    test_samples: Samples,
    *,
    checkpoints: AnyPath,
    weights: AnyPath | None = None,
    report: Callable[[CurvePoint], None] = _ignore,
    alive: Callable[[int], None] = _ignore,
    checkpoint_seconds: float | None = None,
    group: Group = _ALONE,
) -> RunRecord:
    """Train one run to its last step, from its newest checkpoint if it has one, and evaluate it.

    Several processes train a run together if the first rank of their group calls this and the others ``follow``.
    Each computes its share of every batch; the result is that of one device but for the order of floating-point
    sums, and a checkpoint can be resumed on any number of devices. In a group, a rank that runs out of memory ends the
    attempt, as the others may be waiting for it: the next attempt computes half as many samples at once. Checkpoints
    wait for a step at which the losses are exchanged, at most 20 steps away.

    Args:
        spec: the run.
        train_samples: training samples, restricted to ``spec.train_systems`` systems.
        test_samples: test samples of at least ``spec.test_systems`` systems.
        checkpoints: folder of this run's checkpoints; the caller removes it once it has stored the record.
        weights: file that receives the final weights, if any.
        report: called with every point of the training curve.
        alive: called with the step after every checkpoint, and now and then in a long evaluation.
        checkpoint_seconds: time between two checkpoints (default: 30 s).
        group: the processes that train together; this one is the first.

    Returns:
        The record, with status ``finished`` or ``diverged``; metrics are those of the last step, never the
        best of the curve.

    Raises:
        InputError: if the data don't have the systems that the spec asks for, the checkpoints are of another run, or
            the batch has fewer samples than there are devices.
        OSError: if the final weights can't be written.
        RuntimeError: if another rank is lost, or this one runs out of memory in a group.
    """
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    trainer = _Trainer(spec, train_samples, test_samples, checkpoints, report, alive, checkpoint_seconds, group)
    status, test = "finished", {}
    spent = 0.0
    try:
        trainer.run()
        begin = time.perf_counter()
        test = trainer.evaluate()
        spent = time.perf_counter() - begin
        if not math.isfinite(test["nmse"]):
            raise _Diverged
        if weights is not None:
            trainer.save_weights(weights)
    except _Diverged:
        status, test = "diverged", {}
    return trainer.record(status, test, started, spent)


def time_steps(spec: RunSpec, train_samples: Samples, test_samples: Samples, seconds: float) -> tuple[float, str]:
    """Time a training step with its data and optimiser, without evaluations and checkpoints.

    Samples and errors as of ``train``; ``seconds``: how long to time, at least 20 steps.

    Returns:
        Seconds per step, as the axis of seconds counts them (CPU time of this process; on a GPU wall time), and the
        hardware as records name it.
    """
    spec = dataclasses.replace(spec, steps=10**9)  # as many as there is time for
    with tempfile.TemporaryDirectory() as folder:
        trainer = _Trainer(spec, train_samples, test_samples, Path(folder))
    clock = time.perf_counter if trainer.device.type == "cuda" else time.process_time
    begin = 0.0
    for batch in trainer._batches():
        trainer._step(batch)
        done = trainer.progress.step - (_RECORDING_STEPS if trainer.graphs else _UNTIMED_STEPS)
        if done >= 0 and done % _CHECK_STEPS == 0:
            trainer.pending[-1].item()  # waits for a GPU
            trainer.pending.clear()
            if done and clock() - begin >= seconds:
                break
            begin = begin or clock()
    return (clock() - begin) / done, hardware(trainer.device, trainer.bfloat16, trainer.graphs)
