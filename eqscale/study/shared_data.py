"""Data sets on the study's storage: made once by the cluster, fetched by every node into its own cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from eqscale.errors import InputError
from eqscale.storage import AnyPath, RemotePath, write_atomically
from eqscale.tasks.dataset import SHARD, DataSpec

_MANIFEST = "manifest.json"


def cache_root() -> Path:
    """Folder of data sets that were fetched: ``$XDG_CACHE_HOME/eqscale``, or ``~/.cache/eqscale``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eqscale"


def fetch(spec: DataSpec, root: AnyPath, systems: Mapping[str, int] | None = None) -> Path:
    """Copy what this machine lacks of a data set to its cache; does nothing for a local ``root``.

    Args:
        spec: the data set.
        root: folder of data sets.
        systems: how many systems of each split are wanted (default: all that are there).

    Returns:
        The local folder of data sets, as ``open_split`` takes it.

    Raises:
        InputError: if a shard is damaged on the way or on the storage.
    """
    if not isinstance(root, RemotePath):
        return root
    local = cache_root()
    there, here = root / spec.folder(Path()).name, spec.folder(local)
    here.mkdir(parents=True, exist_ok=True)
    with FileLock(here / ".lock"):
        wanted = _read_manifest(there)
        if not wanted:
            return local
        known = _entries(_read_manifest(here))
        for split in spec.systems:
            count = len(wanted[split]) if systems is None else -(-systems[split] // SHARD)
            for k, entry in enumerate(wanted[split]):
                file = here / entry["file"]
                if known.get(entry["file"]) != entry["sha256"]:
                    file.unlink(missing_ok=True)  # the last shard of a data set that has grown
                if k >= count or file.exists():
                    continue
                content = (there / entry["file"]).read_bytes()
                if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                    raise InputError(f"{there / entry['file']} is damaged: delete it and start the study again")
                write_atomically(file, content)
        write_atomically(here / _MANIFEST, json.dumps(wanted, indent=1).encode())
    return local


def publish(spec: DataSpec, root: AnyPath) -> None:
    """Copy to the storage what it lacks of a data set that is complete here; the manifest comes last."""
    if not isinstance(root, RemotePath):
        return
    there, here = root / spec.folder(Path()).name, spec.folder(cache_root())
    wanted, known = _read_manifest(here), _entries(_read_manifest(there))
    for split in spec.systems:
        for entry in wanted[split]:
            if known.get(entry["file"]) != entry["sha256"]:
                write_atomically(there / entry["file"], (here / entry["file"]).read_bytes())
    write_atomically(there / _MANIFEST, json.dumps(wanted, indent=1).encode())


def missing_systems(spec: DataSpec, root: AnyPath) -> int:
    """How many systems of a data set have yet to be made, by its manifest."""
    manifest = _read_manifest(root / spec.folder(Path()).name)
    return sum(max(0, count - SHARD * len(manifest.get(split, ()))) for split, count in spec.systems.items())


def _read_manifest(folder: AnyPath) -> dict[str, Any]:
    try:
        return json.loads((folder / _MANIFEST).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(
            f"{folder / _MANIFEST} is damaged ({error}): delete the folder, and its data are made anew"
        ) from error


def _entries(manifest: Mapping[str, Any]) -> dict[str, str]:
    """File name -> SHA-256 of every shard in a manifest."""
    return {entry["file"]: entry["sha256"] for split in ("train", "test") for entry in manifest.get(split, ())}
