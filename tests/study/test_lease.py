import errno
import fcntl
import os

import pytest

from eqscale.errors import InputError
from eqscale.study.lease import only_driver


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
