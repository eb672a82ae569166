"""One driver per study: a lock on a local disk, a lease with a heartbeat on any other storage."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pyarrow import ArrowException

from eqscale.errors import InputError
from eqscale.storage import AnyPath, RemotePath, write_atomically

HEARTBEAT_SECONDS = 10.0
_PATIENCE_SECONDS = 3 * HEARTBEAT_SECONDS


def only_driver(study: AnyPath, wait: Callable[[float], Any] = time.sleep) -> contextlib.AbstractContextManager[None]:
    """Context in which this process is the only driver of a study.

    On a local disk the system releases the lock however the process ends. On an object store, a record is renewed
    every ten seconds; a driver that finds one watches it for half a minute and takes over if it doesn't change, so
    that no clocks are compared.

    Raises:
        InputError: names the driver that holds the study.
    """
    return _lease(study, wait) if isinstance(study, RemotePath) else _lock(study)


def driver_at_work(study: AnyPath, wait: Callable[[float], Any] = time.sleep) -> str:
    """What refuses a second driver now; empty if nothing does. Nothing is written: the study may be read-only."""
    if isinstance(study, RemotePath):
        found = _read_lease(study)
        if found is None:
            return ""
        wait(_PATIENCE_SECONDS)
        now = _read_lease(study)
        return str(_refusal(study, now["driver"])) if now is not None and now != found else ""
    try:
        with (study / "driver.lock").open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return str(_refusal(study, file.read().decode(errors="replace").strip()))
    except OSError:  # no lock was ever taken here, or none can be
        return ""
    return ""


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _refusal(study: AnyPath, holder: str) -> InputError:
    return InputError(f"study {study.name!r} is already being run by {holder}")


@contextlib.contextmanager
def _lock(study: Path) -> Iterator[None]:
    try:
        opened = (study / "driver.lock").open("a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{study / 'driver.lock'}: can't be opened for writing: {error.strerror}") from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise _refusal(study, file.read().strip()) from error
        except OSError as error:
            raise InputError(
                f"study {study.name!r}: its filesystem can't lock files ({error.strerror}): "
                f"choose another with --storage, or mount it with locks"
            ) from error
        file.truncate(0)
        file.write(_me())
        file.flush()
        yield


def _read_lease(study: RemotePath) -> dict[str, Any] | None:
    try:
        return json.loads((study / "driver.json").read_bytes())
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _lease(study: RemotePath, wait: Callable[[float], Any]) -> Iterator[None]:
    path, key = study / "driver.json", secrets.token_hex(8)

    def write(beat: int) -> None:
        write_atomically(path, json.dumps({"driver": _me(), "key": key, "beat": beat}).encode())

    if (found := _read_lease(study)) is not None:
        wait(_PATIENCE_SECONDS)
        now = _read_lease(study)
        if now is not None and now != found:
            raise _refusal(study, now["driver"])
    write(0)
    wait(1.0)  # two drivers that start together: the later write stands, and both look
    now = _read_lease(study)
    if now is None or now["key"] != key:
        raise _refusal(study, now["driver"] if now else "another driver")

    stop = threading.Event()

    def renew() -> None:
        beat = 0
        while not stop.wait(HEARTBEAT_SECONDS):
            beat += 1
            with contextlib.suppress(OSError, ArrowException):  # a storage that is away for a moment
                write(beat)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(OSError, ArrowException):
            path.unlink(missing_ok=True)
