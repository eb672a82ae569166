import errno
import fcntl
import os
import types

import pytest

from eqscale.errors import InputError
from eqscale.storage import open_place, write_atomically
from eqscale.study import lease
from eqscale.study.lease import driver_at_work, only_driver


def test_a_second_driver_is_told_who_holds_the_study(tmp_path):
    refused = pytest.raises(InputError, match=f"already being run by process {os.getpid()}")
    with only_driver(tmp_path), refused, only_driver(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_filesystem_without_locks_is_not_called_another_driver(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    (tmp_path / "driver.lock").write_text("process 1 on elsewhere")
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(InputError, match=f"can't lock files .{os.strerror(number)}") as refusal, only_driver(tmp_path):
        pass
    assert "elsewhere" not in str(refusal.value)


def test_a_reader_sees_a_driver_without_opening_anything_for_writing(tmp_path):
    assert driver_at_work(tmp_path) == ""
    assert not list(tmp_path.iterdir())
    with only_driver(tmp_path):
        (tmp_path / "driver.lock").chmod(0o400)
        assert f"process {os.getpid()}" in driver_at_work(tmp_path)
    assert driver_at_work(tmp_path) == ""


def test_a_lock_that_is_a_folder_is_named(tmp_path):
    (tmp_path / "driver.lock").mkdir()
    assert driver_at_work(tmp_path) == ""
    with pytest.raises(InputError, match=r"driver\.lock: can't be opened for writing"), only_driver(tmp_path):
        pass


def test_a_lock_that_is_not_text_is_no_traceback(tmp_path):
    with only_driver(tmp_path):
        (tmp_path / "driver.lock").write_bytes(b"\xff\xfe")
        assert "already being run by" in driver_at_work(tmp_path)
        with pytest.raises(InputError, match="already being run by"), only_driver(tmp_path):
            pass


def test_a_driver_whose_lock_was_deleted_ends_before_it_acts(tmp_path):
    with only_driver(tmp_path) as still_ours:
        still_ours()
        (tmp_path / "driver.lock").unlink()
        with pytest.raises(InputError, match=r"driver\.lock was deleted"):
            still_ours()
        (tmp_path / "driver.lock").write_text("another's")
        with pytest.raises(InputError, match=r"driver\.lock was deleted or replaced"):
            still_ours()


def test_a_driver_that_stood_still_finds_that_another_has_taken_over_and_leaves_its_lease_alone(monkeypatch):
    study = open_place("memory://stood-still/study")
    others = b'{"driver": "process 9 on elsewhere", "key": "other", "beat": 0}'
    now = 0.0
    monkeypatch.setattr(lease.time, "monotonic", lambda: now)
    with only_driver(study, lambda seconds: None) as still_ours:
        still_ours()
        write_atomically(study / "driver.json", others)
        now = 52.0
        with pytest.raises(InputError, match="taken over by process 9 on elsewhere"):
            still_ours()
    assert (study / "driver.json").read_bytes() == others


def test_a_heartbeat_never_overwrites_the_lease_of_another(monkeypatch):
    study = open_place("memory://heartbeat/study")
    others = b'{"driver": "process 9 on elsewhere", "key": "other", "beat": 0}'

    class Thread:
        def __init__(self, target, **_):
            self.start, self.join = target, lambda: None

    class Event:
        def wait(self, seconds):
            write_atomically(study / "driver.json", others)
            return False

        def set(self):
            pass

    monkeypatch.setattr(lease, "threading", types.SimpleNamespace(Thread=Thread, Event=Event))
    refused = pytest.raises(InputError, match="taken over by process 9")
    with only_driver(study, lambda seconds: None) as still_ours, refused:
        still_ours()
    assert (study / "driver.json").read_bytes() == others


def test_a_damaged_lease_is_taken_over():
    study = open_place("memory://damaged-lease/study")
    write_atomically(study / "driver.json", b"\xff{")
    with only_driver(study, lambda seconds: None) as still_ours:
        still_ours()
