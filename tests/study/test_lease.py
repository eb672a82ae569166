import errno
import fcntl
import os

import pytest

from eqscale.errors import InputError
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
