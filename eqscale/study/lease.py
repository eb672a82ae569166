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


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _refusal(study: AnyPath, holder: str) -> InputError:
    return InputError(f"study {study.name!r} is already being run by {holder}")


@contextlib.contextmanager
def _lock(study: Path) -> Iterator[None]:
    with (study / "driver.lock").open("a+") as file:
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


@contextlib.contextmanager
def _lease(study: RemotePath, wait: Callable[[float], Any]) -> Iterator[None]:
    path, key = study / "driver.json", secrets.token_hex(8)

    def read() -> dict[str, Any] | None:
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            return None

    def write(beat: int) -> None:
        write_atomically(path, json.dumps({"driver": _me(), "key": key, "beat": beat}).encode())

    if (found := read()) is not None:
        wait(_PATIENCE_SECONDS)
        now = read()
        if now is not None and now != found:
            raise _refusal(study, now["driver"])
    write(0)
    wait(1.0)  # two drivers that start together: the later write stands, and both look
    now = read()
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
