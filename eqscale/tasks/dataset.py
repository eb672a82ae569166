"""Data sets of systems: defined by content, stored in verified shards, made once.

A data set is a folder ``<name>-<digest>`` with a manifest and, per split, shards of 1,000 consecutive systems
as structured ``.npy`` files. System k of a split is the same whatever the sizes asked for, so subsets nest and
a folder grows in place.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import hashlib
import io
import itertools
import json
import multiprocessing
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from eqscale.cores import allowed_cores
from eqscale.errors import InputError
from eqscale.plugins import loaded_files
from eqscale.storage import write_atomically
from eqscale.tasks import get_task, load_task_files
from eqscale.tasks.base import Options, OptionValue
from eqscale.tasks.samples import Samples

SPLITS = ("train", "test")

SHARD = 1000
"""Systems per shard."""

MEASURED_SYSTEMS = 128
"""Length of the prefix of the training split on which a task's statistics are measured."""

_CHUNK = 25
_MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What to generate; the sizes say how much of it."""

    task: str = "rigid"
    given: tuple[tuple[str, Any], ...] = ()
    """Options of the task, where they aren't the defaults."""
    seed: int = 0
    """Root seed of the systems."""
    train_systems: int = 4000
    test_systems: int = 500

    def __post_init__(self) -> None:
        for name in ("train_systems", "test_systems"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: must be at least 1")
        if self.seed < 0:
            raise InputError(f"data seed {self.seed}: must be at least 0")
        get_task(self.task).check_options(dict(self.given))

    @property
    def options(self) -> Options:
        """Every option of the task."""
        return get_task(self.task).check_options(dict(self.given))

    @property
    def systems(self) -> dict[str, int]:
        """Systems per split."""
        return {"train": self.train_systems, "test": self.test_systems}

    @property
    def definition(self) -> dict[str, Any]:
        """Everything that decides the numbers of a system, as plain JSON; the sizes do not."""
        return get_task(self.task).definition(self.options, self.seed)

    @property
    def digest(self) -> str:
        """SHA-256 of the definition, hexadecimal."""
        return hashlib.sha256(json.dumps(self.definition, sort_keys=True).encode()).hexdigest()

    def folder(self, root: Path) -> Path:
        """Where the data set lives under ``root``."""
        return Path(root) / f"{get_task(self.task).folder_name(self.options)}-{self.digest[:12]}"


def generate(spec: DataSpec, task_files: Sequence[str], split: str, start: int, stop: int) -> np.ndarray:
    """Make systems ``start`` to ``stop - 1`` of a split, in any process; the same bits wherever it runs."""
    load_task_files(task_files)
    return get_task(spec.task).records(spec.options, spec.seed, split, start, stop)


def prepare(
    spec: DataSpec,
    root: Path,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    backend: str = "processes",
) -> Path:
    """Make the dataset complete under ``root`` and return its folder.

    Verifies every shard against its SHA-256, rebuilds those that are missing, truncated or damaged, and generates the
    rest with ``workers`` processes (default: all allowed cores), or as Ray tasks with ``backend="ray"`` once Ray is
    initialised; both are bitwise equal to a serial run. A kill loses at most the shard being filled. Calls
    ``progress(done, total)`` in systems. Raises InputError if the folder cannot be written, the disk is full, the
    folder holds other data, or, before anything is written, if the task's systems don't fit its declaration.
    """
    if backend not in ("processes", "ray"):
        raise InputError(f"unknown backend {backend!r}: choose from processes, ray")
    folder = spec.folder(root)
    if not (folder / _MANIFEST).exists():
        get_task(spec.task).check_labels(spec.options, spec.seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire()
    except OSError as error:
        raise InputError(f"cannot write data under {root}: {error.strerror or error}") from error
    try:
        _complete(spec, folder, workers, progress, backend)
    finally:
        lock.release()
    return folder


def _complete(
    spec: DataSpec, folder: Path, workers: int | None, progress: Callable[[int, int], None] | None, backend: str
) -> None:
    """Generate and write what the folder lacks; the caller holds its lock."""
    empty = {"digest": spec.digest, "definition": spec.definition, "statistics": {}, "train": [], "test": []}
    manifest: dict[str, Any] = _read_manifest(folder, spec) or empty
    targets = {"train": max(spec.train_systems, MEASURED_SYSTEMS), "test": spec.test_systems}
    shards = [
        (split, k, min(SHARD, total - k * SHARD)) for split, total in targets.items() for k in range(-(-total // SHARD))
    ]
    good = {(split, k): _verified(folder, split, k, manifest) for split, k, _ in shards}
    wanted = [(split, k, good[split, k], size) for split, k, size in shards if good[split, k] < size]
    chunks_wanted = [
        (split, a, min(a + _CHUNK, k * SHARD + size))
        for split, k, have, size in wanted
        for a in range(k * SHARD + have, k * SHARD + size, _CHUNK)
    ]
    total = sum(targets.values())
    done = total - sum(stop - start for _, start, stop in chunks_wanted)
    if progress:
        progress(done, total)
    with contextlib.closing(_run(spec, chunks_wanted, workers, backend)) as chunks:
        for split, k, have, size in wanted:
            parts = [np.load(_shard(folder, split, k))[:have]] if have else []
            while have < size:
                chunk = next(chunks)
                parts.append(chunk)
                have += len(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)
            records = np.concatenate(parts)
            entry = _write_shard(_shard(folder, split, k), records)
            if left_out := get_task(spec.task).left_out(records):
                entry["left_out"] = left_out
            manifest[split] = [*manifest[split][:k], entry, *manifest[split][k + 1 :]]
            _write(folder / _MANIFEST, json.dumps(manifest, indent=1).encode())
    if not manifest.get("statistics"):
        prefix = np.load(_shard(folder, "train", 0))[:MEASURED_SYSTEMS]
        manifest["statistics"] = get_task(spec.task).statistics(spec.options, prefix)
        _write(folder / _MANIFEST, json.dumps(manifest, indent=1).encode())


def left_out(folder: Path) -> dict[str, int]:
    """Reason -> attempts at systems of a prepared data set that were left out by it; see ``Task.left_out``."""
    manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    total: collections.Counter[str] = collections.Counter()
    for entry in manifest["train"] + manifest["test"]:
        total.update(entry.get("left_out", {}))
    return dict(total)


def _shard(folder: Path, split: str, k: int) -> Path:
    return folder / f"{split}-{k:05d}.npy"


def _read_manifest(folder: Path, spec: DataSpec) -> dict[str, Any] | None:
    path = folder / _MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_bytes())
        there = manifest["definition"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a dataset manifest: delete the folder {folder} to make it again") from error
    here = spec.definition
    if there != here:
        changed = [
            f"{key} {json.dumps(there.get(key))[:80]} (wanted {json.dumps(here.get(key))[:80]})"
            for key in sorted({*there, *here})
            if there.get(key) != here.get(key)
        ]
        raise InputError(f"{folder} holds other data: {'; '.join(changed)}: delete it, or choose another data folder")
    return manifest


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verified(folder: Path, split: str, k: int, manifest: dict[str, Any]) -> int:
    """Systems in a shard if its bytes are those written, else 0; the manifest drops what fails."""
    entries, path = manifest[split], _shard(folder, split, k)
    if k < len(entries) and path.exists() and _checksum(path) == entries[k]["sha256"]:
        return entries[k].get("systems", 0)
    return 0


def _write_shard(path: Path, records: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    np.save(buffer, records, allow_pickle=False)
    _write(path, buffer.getvalue())
    return {"file": path.name, "systems": len(records), "sha256": _checksum(path)}


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error
        raise InputError(
            f"disk full while writing {path}: the partial file is removed, finished shards are kept; "
            "free some space or choose another data folder, and run again"
        ) from error


Chunk = tuple[str, int, int]
"""Split, first system and the one after the last."""


def _run(spec: DataSpec, tasks: list[Chunk], workers: int | None, backend: str) -> Generator[np.ndarray, None, None]:
    """Results of the tasks, in their order, with a bounded number in flight."""
    if backend == "ray":
        yield from _run_ray(spec, tasks)
        return
    make = functools.partial(generate, spec, loaded_files("task"))
    workers = min(workers or allowed_cores(), len(tasks))
    if workers <= 1:
        yield from itertools.starmap(make, tasks)
        return
    # Spawned, not forked: the caller may run threads (Ray, torch), which a fork would leave locked.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
    try:
        yield from _in_order(tasks, lambda t: pool.submit(make, *t), lambda f: f.result(), 4 * workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _run_ray(spec: DataSpec, tasks: list[Chunk]) -> Iterator[np.ndarray]:
    import ray

    if not ray.is_initialized():
        raise InputError("backend 'ray' needs a running Ray: call ray.init() first")
    files = loaded_files("task")
    remote = ray.remote(num_cpus=1, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})(generate)
    slots = 4 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    yield from _in_order(tasks, lambda t: remote.remote(spec, files, *t), ray.get, slots)


def _in_order(
    tasks: Iterable[Chunk], submit: Callable[[Chunk], Any], result: Callable[[Any], np.ndarray], slots: int
) -> Iterator[np.ndarray]:
    queue = iter(tasks)
    pending = collections.deque(submit(task) for task in itertools.islice(queue, slots))
    while pending:
        value = result(pending.popleft())
        pending.extend(submit(task) for task in itertools.islice(queue, 1))
        yield value


_seen: dict[tuple[str, int, int], str] = {}


def _open_shard(path: Path, entry: dict[str, Any]) -> np.ndarray:
    """Memory map of a shard whose bytes have been checked, once per process, against the manifest."""
    try:
        status = path.stat()
        key = (str(path), status.st_mtime_ns, status.st_size)
        if key not in _seen:
            _seen[key] = _checksum(path)
        if _seen[key] == entry["sha256"]:
            return np.load(path, mmap_mode="r")
    except OSError:
        pass
    raise InputError(f"{path} is missing or damaged: prepare the dataset again, which rebuilds it")


def open_split(spec: DataSpec, root: Path, split: str, *, systems: int | None = None, **view: OptionValue) -> Samples:
    """Samples of a prepared split ('train' or 'test'), of its first ``systems`` systems (default: all).

    ``view``: options of the task that don't change the stored data.
    Raises InputError for an unknown split or option, too many systems, or data missing or damaged.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    available = spec.systems[split]
    systems = available if systems is None else systems
    if not 1 <= systems <= available:
        raise InputError(f"{systems} {split} systems: must lie in 1..{available}")
    folder = spec.folder(root)
    options = get_task(spec.task).check_options({**spec.options, **view})
    return _open(spec.task, options, folder, _read_manifest(folder, spec), split, systems)


def open_stored(task: str, digest: str, root: Path, split: str, *, systems: int, **view: OptionValue) -> Samples:
    """Like ``open_split``, for the data whose definition has that digest, as a run's spec names it.

    Raises InputError if no folder under ``root`` holds it, and as ``open_split`` does.
    """
    found = {}
    for path in sorted(Path(root).glob(f"*/{_MANIFEST}")):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            manifest = json.loads(path.read_bytes())
            found[manifest.get("digest")] = path.parent, manifest
    if digest not in found:
        held = ", ".join(folder.name for folder, _ in found.values()) or "no data set at all"
        raise InputError(f"data {digest[:12]} are not under {str(root)!r}, which holds {held}")
    folder, manifest = found[digest]
    options = get_task(task).check_options({**manifest["definition"].get("options", {}), **view})
    return _open(task, options, folder, manifest, split, systems)


def _open(
    task: str, options: Options, folder: Path, manifest: dict[str, Any] | None, split: str, systems: int
) -> Samples:
    entries = manifest[split][: -(-systems // SHARD)] if manifest else []
    if not manifest or not manifest.get("statistics") or sum(e["systems"] for e in entries) < systems:
        raise InputError(f"{folder} does not hold {systems} {split} systems yet: prepare the data set first")
    shards = [_open_shard(_shard(folder, split, k), entry) for k, entry in enumerate(entries)]
    shards[-1] = shards[-1][: systems - SHARD * (len(shards) - 1)]
    return get_task(task).open(options, shards, manifest["statistics"])
