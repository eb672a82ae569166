"""Datasets of simulated scenes: defined by content, stored in verified shards, generated once.

A dataset is a folder ``<family>-<digest>`` with a manifest and, per split, shards of 1,000 consecutive scenes
as structured ``.npy`` files. Scene k of a split is the same whatever the sizes asked for, so subsets nest and
a folder grows in place.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from eqscale.errors import InputError
from eqscale.rigid.engine import ENGINE_VERSION, ENGINES, FRAME_RATE, simulate
from eqscale.rigid.families import Family, family
from eqscale.rigid.scene import GRAVITY, SPLITS, random_frame, sample_scene
from eqscale.rigid.windows import (
    FRAME_PROTOCOLS,
    FRAMES,
    HORIZONS,
    Windows,
    record_type,
    residual_rms,
)

FORMAT = 1
"""Version of the shards' layout and of everything in this package that decides the stored numbers."""

SHARD = 1000
"""Scenes per shard."""

SIGMA_SCENES = 128
"""Length of the prefix of the training split on which the unit of the targets is measured."""

_CHUNK = 25
_MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """What to generate; the sizes say how much of it."""

    family: str | Family = "S"
    """Name of a family of the benchmark, or a family of one's own."""
    train_scenes: int = 4000
    test_scenes: int = 500
    seed: int = 0
    engine: str = "standard"
    """'standard', or 'stiff' or 'soft' for robustness studies."""

    def __post_init__(self) -> None:
        if isinstance(self.family, str):
            object.__setattr__(self, "family", family(self.family))
        if self.engine not in ENGINES:
            raise InputError(f"unknown engine {self.engine!r}: choose from {', '.join(ENGINES)}")
        for name in ("train_scenes", "test_scenes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: must be at least 1")
        if self.seed < 0:
            raise InputError(f"dataset seed {self.seed}: must be at least 0")

    @property
    def scenes(self) -> dict[str, int]:
        """Scenes per split."""
        return {"train": self.train_scenes, "test": self.test_scenes}

    @property
    def definition(self) -> dict[str, Any]:
        """Everything that decides the numbers of a scene, as plain JSON; the sizes do not."""
        plain = {
            "format": FORMAT,
            "engine": {
                "name": "mujoco",
                "version": ENGINE_VERSION,
                **dataclasses.asdict(ENGINES[self.engine]),
            },
            "family": dataclasses.asdict(self.family),  # type: ignore[arg-type]
            "seed": self.seed,
            "gravity": GRAVITY,
            "frames": FRAMES,
            "frame_rate": FRAME_RATE,
        }
        # Nine digits: a vertex that another CPU's sine rounds differently is the same vertex.
        return json.loads(json.dumps(plain), parse_float=lambda text: round(float(text), 9))

    @property
    def digest(self) -> str:
        """SHA-256 of the definition, hexadecimal."""
        return hashlib.sha256(json.dumps(self.definition, sort_keys=True).encode()).hexdigest()

    def folder(self, root: Path) -> Path:
        """Where the dataset lives under ``root``."""
        return Path(root) / f"{self.family.name}-{self.digest[:12]}"  # type: ignore[union-attr]


def generate(spec: DatasetSpec, split: str, start: int, stop: int) -> np.ndarray:
    """Simulate scenes ``start`` to ``stop - 1`` of a split; the same bits wherever it runs."""
    fam: Family = spec.family  # type: ignore[assignment]
    records = np.zeros(stop - start, record_type(fam))
    for record, index in zip(records, range(start, stop), strict=True):
        scene = sample_scene(fam, spec.seed, split, index)
        run = simulate(scene, FRAMES, ENGINES[spec.engine])
        n = scene.n
        record["trajectory"][:, :n] = run.state
        for i, vertices in enumerate(scene.vertices):
            record["vertices"][i, : len(vertices)] = vertices
            record["count"][i] = len(vertices)
        record["mass"][:n], record["friction"][:n] = scene.mass, scene.friction
        record["restitution"][:n] = scene.restitution
        record["floor"] = scene.floor_friction, scene.floor_restitution
        record["frame"] = random_frame(spec.seed, split, index)
        record["contact"][:, :n] = run.contact @ np.array([1, 2], np.uint8)
    return records


def prepare(
    spec: DatasetSpec,
    root: Path,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    backend: str = "processes",
) -> Path:
    """Make the dataset complete under ``root`` and return its folder.

    Verifies every shard against its SHA-256, rebuilds what is missing, cut short or damaged, and generates
    the rest with ``workers`` processes (default: all cores), or as Ray tasks with ``backend="ray"`` once Ray
    is initialised; both give the bits of a serial run. A kill loses at most the shard being filled. Calls
    ``progress(done, total)`` in scenes. Raises InputError if the folder cannot be written, the disk is full,
    or the folder holds other data.
    """
    if backend not in ("processes", "ray"):
        raise InputError(f"unknown backend {backend!r}: choose from processes, ray")
    folder = spec.folder(root)
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
    spec: DatasetSpec,
    folder: Path,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
    backend: str,
) -> None:
    """Generate and write what the folder lacks; the caller holds its lock."""
    manifest = _read_manifest(folder, spec) or {
        "digest": spec.digest,
        "definition": spec.definition,
        "sigma": {},
        "train": [],
        "test": [],
    }
    targets = {"train": max(spec.train_scenes, SIGMA_SCENES), "test": spec.test_scenes}
    shards = [
        (split, k, min(SHARD, total - k * SHARD))
        for split, total in targets.items()
        for k in range(-(-total // SHARD))
    ]
    good = {(split, k): _verified(folder, split, k, manifest) for split, k, _ in shards}
    wanted = [(split, k, good[split, k], size) for split, k, size in shards if good[split, k] < size]
    tasks = [
        (split, a, min(a + _CHUNK, k * SHARD + size))
        for split, k, have, size in wanted
        for a in range(k * SHARD + have, k * SHARD + size, _CHUNK)
    ]
    total = sum(targets.values())
    done = total - sum(stop - start for _, start, stop in tasks)
    if progress:
        progress(done, total)
    with contextlib.closing(_run(spec, tasks, workers, backend)) as chunks:
        for split, k, have, size in wanted:
            parts = [np.load(_shard(folder, split, k))[:have]] if have else []
            while have < size:
                chunk = next(chunks)
                parts.append(chunk)
                have += len(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)
            entry = _write_shard(_shard(folder, split, k), np.concatenate(parts))
            manifest[split] = [*manifest[split][:k], entry, *manifest[split][k + 1 :]]
            _write(folder / _MANIFEST, json.dumps(manifest, indent=1).encode())
    if not manifest["sigma"]:
        prefix = np.load(_shard(folder, "train", 0))[:SIGMA_SCENES]
        step = ENGINES[spec.engine].time_step
        manifest["sigma"] = {str(h): residual_rms(prefix, h, step) for h in HORIZONS}
        _write(folder / _MANIFEST, json.dumps(manifest, indent=1).encode())


def _shard(folder: Path, split: str, k: int) -> Path:
    return folder / f"{split}-{k:05d}.npy"


def _read_manifest(folder: Path, spec: DatasetSpec) -> dict[str, Any] | None:
    path = folder / _MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text())
        there = manifest["definition"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a dataset manifest: delete the folder {folder} to generate it anew"
        ) from error
    here = spec.definition
    if there != here:
        changed = [
            f"{key} {json.dumps(there.get(key))[:80]} (wanted {json.dumps(here.get(key))[:80]})"
            for key in sorted({*there, *here})
            if there.get(key) != here.get(key)
        ]
        raise InputError(
            f"{folder} holds other data: {'; '.join(changed)}: delete it, or choose another data folder"
        )
    return manifest


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verified(folder: Path, split: str, k: int, manifest: dict[str, Any]) -> int:
    """Scenes in a shard if its bytes are those written, else 0; the manifest drops what fails."""
    entries, path = manifest[split], _shard(folder, split, k)
    if k < len(entries) and path.exists() and _checksum(path) == entries[k]["sha256"]:
        return entries[k]["scenes"]
    return 0


def _write_shard(path: Path, records: np.ndarray) -> dict[str, Any]:
    _write(path, records)
    return {"file": path.name, "scenes": len(records), "sha256": _checksum(path)}


def _write(path: Path, content: bytes | np.ndarray) -> None:
    """Write beside, flush to disk, rename: a reader sees the old file or the whole new one."""
    partial = path.with_name(path.name + ".tmp")
    try:
        with partial.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                np.save(file, content, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error
        raise InputError(
            f"disk full while writing {path}: the partial file is removed, finished shards are kept; "
            "free some space or choose another data folder, and run again"
        ) from error


Task = tuple[str, int, int]


def _run(
    spec: DatasetSpec, tasks: list[Task], workers: int | None, backend: str
) -> Generator[np.ndarray, None, None]:
    """Results of the tasks, in their order, with a bounded number in flight."""
    if backend == "ray":
        yield from _run_ray(spec, tasks)
        return
    workers = min(workers or os.cpu_count() or 1, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield generate(spec, *task)
        return
    import concurrent.futures
    import multiprocessing

    # Spawned, not forked: the caller may run threads (Ray, torch), which a fork would leave locked.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
    try:
        yield from _in_order(
            tasks, lambda t: pool.submit(generate, spec, *t), lambda f: f.result(), 4 * workers
        )
    finally:
        pool.shutdown(cancel_futures=True)


def _run_ray(spec: DatasetSpec, tasks: list[Task]) -> Iterator[np.ndarray]:
    import ray

    if not ray.is_initialized():
        raise InputError("backend 'ray' needs a running Ray: call ray.init() first")
    remote = ray.remote(num_cpus=1, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})(generate)
    slots = 4 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    yield from _in_order(tasks, lambda t: remote.remote(spec, *t), ray.get, slots)


def _in_order(
    tasks: Iterable[Task], submit: Callable[[Task], Any], result: Callable[[Any], np.ndarray], slots: int
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


def open_split(
    spec: DatasetSpec,
    root: Path,
    split: str,
    *,
    horizon: int = 4,
    frame: str = "random",
    scenes: int | None = None,
) -> Windows:
    """Windows of a prepared split ('train' or 'test'), of its first ``scenes`` scenes (default: all).

    ``frame``: 'random' (each scene in its own element of O(3), gravity and floor with it) or 'upright'.
    Raises InputError for an unknown split, frame or horizon, too many scenes, or data missing or damaged.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    available = spec.scenes[split]
    scenes = available if scenes is None else scenes
    if not 1 <= scenes <= available:
        raise InputError(f"{scenes} {split} scenes: must lie in 1..{available}")
    folder = spec.folder(root)
    return _open(folder, _read_manifest(folder, spec), split, horizon, frame, scenes)


def open_stored(
    digest: str, root: Path, split: str, *, horizon: int = 4, frame: str = "random", scenes: int
) -> Windows:
    """Like ``open_split``, for the data whose definition has that digest, as a run's spec names it.

    Raises InputError if no folder under ``root`` holds it, and as ``open_split`` does.
    """
    found = {}
    for path in sorted(Path(root).glob(f"*/{_MANIFEST}")):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            manifest = json.loads(path.read_text())
            found[manifest.get("digest")] = path.parent, manifest
    if digest not in found:
        held = ", ".join(folder.name for folder, _ in found.values()) or "no data set at all"
        raise InputError(f"data {digest[:12]} are not under {str(root)!r}, which holds {held}")
    return _open(*found[digest], split, horizon, frame, scenes)


def _open(
    folder: Path, manifest: dict[str, Any] | None, split: str, horizon: int, frame: str, scenes: int
) -> Windows:
    if horizon not in HORIZONS:
        raise InputError(f"unknown horizon {horizon!r}: choose from {', '.join(map(str, HORIZONS))} frames")
    if frame not in FRAME_PROTOCOLS:
        raise InputError(f"unknown frame protocol {frame!r}: choose from {', '.join(FRAME_PROTOCOLS)}")
    entries = manifest[split][: -(-scenes // SHARD)] if manifest else []
    if manifest is None or not manifest["sigma"] or sum(e["scenes"] for e in entries) < scenes:
        raise InputError(f"{folder} does not hold {scenes} {split} scenes yet: prepare the dataset first")
    shards = [_open_shard(_shard(folder, split, k), entry) for k, entry in enumerate(entries)]
    shards[-1] = shards[-1][: scenes - SHARD * (len(shards) - 1)]
    time_step = 1.0 / manifest["definition"]["engine"]["rate"]
    return Windows(shards, horizon, manifest["sigma"][str(horizon)], time_step, frame)
