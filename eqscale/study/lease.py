"""One driver per study: a lock on a local disk, a lease with a heartbeat on any other storage."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
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
_AWAY = (OSError, ArrowException)
"""What a storage raises that is away for a moment."""
_CONFIRMED_SECONDS = 1.5 * HEARTBEAT_SECONDS  # well below what another driver waits


StillOurs = Callable[[], None]
"""Called before anything is done to the study; raises InputError if another driver may have it by now."""


def only_driver(
    study: AnyPath, wait: Callable[[float], Any] = time.sleep
) -> contextlib.AbstractContextManager[StillOurs]:
    """Context in which this process is the only driver of a study, as long as the function that it gives says so.

    On a local disk the system releases the lock however the process ends. On an object store, a record is renewed
    every ten seconds; a driver that finds one watches it for half a minute and takes over if it doesn't change, so
    that no clocks are compared. A driver that stood still for that long finds that its record is another's.

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


def _loss(study: AnyPath, reason: str) -> InputError:
    return InputError(f"study {study.name!r} isn't this driver's any more: {reason}; it ends, and writes nothing more")


@contextlib.contextmanager
def _lock(study: Path) -> Iterator[StillOurs]:
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

        def still_ours() -> None:
            try:
                there = os.path.samestat(os.stat(study / "driver.lock"), os.fstat(file.fileno()))
            except FileNotFoundError:
                there = False
            if not there:  # who locks the file of that name now isn't kept out by this one
                raise _loss(study, "its driver.lock was deleted or replaced")

        yield still_ours


def _read_lease(study: RemotePath) -> dict[str, Any] | None:
    try:
        lease = json.loads((study / "driver.json").read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        lease = None
    return {"driver": "another driver", "key": ""} | (lease if isinstance(lease, dict) else {})


@contextlib.contextmanager
def _lease(study: RemotePath, wait: Callable[[float], Any]) -> Iterator[StillOurs]:
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

    stop, confirmed = threading.Event(), time.monotonic()

    def still_ours() -> None:
        nonlocal confirmed
        begin = time.monotonic()
        if begin - confirmed < _CONFIRMED_SECONDS:
            return
        with contextlib.suppress(*_AWAY):
            now = _read_lease(study)
            if now is None or now["key"] != key:
                raise _loss(study, f"taken over by {now['driver']}" if now else "its driver.json was deleted")
            confirmed = begin

    def renew() -> None:
        nonlocal confirmed
        beat = 0
        while not stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(*_AWAY):
                begin, now = time.monotonic(), _read_lease(study)
                if now is None or now["key"] != key:
                    confirmed = -math.inf  # the driver reads it again before it acts, and ends
                    return
                beat += 1
                write(beat)
                confirmed = begin

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield still_ours
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(*_AWAY):
            if (now := _read_lease(study)) is not None and now["key"] == key:
                path.unlink(missing_ok=True)
