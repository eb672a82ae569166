"""Atomic checkpoints that notice when they are damaged."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from typing import Any

import torch

from eqscale.storage import AnyPath, matching, write_atomically

_KEEP = 2  # the newest may be cut short by a full disk: the one before must survive
_RETRY_SECONDS = (1.0, 4.0, 15.0, 40.0)


def _path(directory: AnyPath, step: int) -> AnyPath:
    return directory / f"step-{step:09d}.pt"


def write_patiently(write: Callable[[], None], what: str) -> None:
    """Call ``write``; while it fails, e.g. for a full disk, retry up to four times within a minute.

    Raises OSError if it fails to the end; the message is one line that says what can't be written.
    """
    for wait in (*_RETRY_SECONDS, None):
        try:
            return write()
        except OSError as error:
            if wait is None:
                raise OSError(
                    f"{what} can't be written ({error.strerror or error}): free some space and start the study "
                    "again; the run goes on from its last checkpoint"
                ) from error
        time.sleep(wait)


def save_file(path: AnyPath, state: dict[str, Any]) -> None:
    """Write one checkpoint file atomically: SHA-256 digest, then the pickled tensors."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write_atomically(path, hashlib.sha256(payload).digest() + payload)


def save(directory: AnyPath, step: int, state: dict[str, Any]) -> None:
    """Store ``state`` as the checkpoint of ``step`` and drop all but the newest two."""
    save_file(_path(directory, step), state)
    for old in matching(directory, "step-*.pt")[:-_KEEP]:
        old.unlink()


def _payload(path: AnyPath) -> bytes | None:
    """The pickled tensors of a checkpoint file, None if they don't fit their digest."""
    content = path.read_bytes()
    digest, payload = content[:32], content[32:]
    return payload if hashlib.sha256(payload).digest() == digest else None


def is_whole(path: AnyPath) -> bool:
    """Whether the content of a checkpoint file fits its digest."""
    return _payload(path) is not None


def load_file(path: AnyPath) -> dict[str, Any] | None:
    """State stored in one checkpoint file, or None if the file is damaged or holds anything but tensors and plain data.

    No code of the file is run.
    """
    if (payload := _payload(path)) is None:
        return None
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception:  # a crafted file raises whatever it was made to raise
        return None
    return state if isinstance(state, dict) else None


def load(directory: AnyPath, step: int) -> dict[str, Any]:
    """State of the checkpoint of ``step``.

    Raises OSError if it can't be read or is damaged.
    """
    if (state := load_file(_path(directory, step))) is None:
        raise OSError(f"the checkpoint of step {step} in {str(directory)!r} is damaged")
    return state


def steps(directory: AnyPath) -> list[int]:
    """Steps of the checkpoints in ``directory``, damaged or not, oldest first."""
    return [int(path.stem.removeprefix("step-")) for path in matching(directory, "step-*.pt")]


def remove(directory: AnyPath, step: int) -> None:
    """Delete one checkpoint."""
    _path(directory, step).unlink(missing_ok=True)


def load_newest(directory: AnyPath) -> dict[str, Any] | None:
    """State of the newest undamaged checkpoint in ``directory``, or None if there is none."""
    states = map(load_file, reversed(matching(directory, "step-*.pt")))
    return next((state for state in states if state is not None), None)
