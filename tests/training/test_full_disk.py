import errno
import os
import subprocess
import sys

import pytest
import torch

from eqscale.training import checkpoint, loop
from eqscale.training.loop import train
from tests.training.test_loop import final_weights, make_spec

# A process whose files may not grow beyond 64 kB writes 1 MB: a real failure half-way through a file.
HALF_WAY = """
import resource, signal, sys
from pathlib import Path
from eqscale.training.checkpoint import write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
try:
    write_atomically(Path(sys.argv[1]), b"new" * 350_000)
except OSError as error:
    sys.exit(error.errno)
"""


def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "record.json"
    path.write_bytes(b"old")
    result = subprocess.run([sys.executable, "-c", HALF_WAY, str(path)], capture_output=True, text=True)
    assert result.returncode == errno.EFBIG, result.stderr
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def full_disk(monkeypatch, failures, name="record"):
    """Let the next writes of files of that name fail as on a full disk."""
    real, left = checkpoint.write_atomically, [failures]

    def write(path, content):
        if name in path.name and left[0] > 0:
            left[0] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, content)

    monkeypatch.setattr(checkpoint, "write_atomically", write)
    return left


def test_a_run_outlives_checkpoints_that_cannot_be_written(windows, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)
    spec = make_spec(steps=12)
    straight = train(spec, *windows, checkpoints=tmp_path / "a", weights=tmp_path / "a.pt")
    left = full_disk(monkeypatch, 5, "step-")
    record = train(spec, *windows, checkpoints=tmp_path / "b", weights=tmp_path / "b.pt")
    assert left == [0]
    assert record.notes == ["a checkpoint could not be written: No space left on device"]
    assert record.test == straight.test
    assert len(list((tmp_path / "b").glob("step-*.pt"))) == 2
    a, b = final_weights(tmp_path / "a.pt"), final_weights(tmp_path / "b.pt")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_result_is_written_once_the_disk_has_room_again(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_RETRY_SECONDS", (0.0, 0.0, 0.0))
    full_disk(monkeypatch, 3)
    checkpoint.write_patiently(
        lambda: checkpoint.write_atomically(tmp_path / "record", b"content"), "the record of run a"
    )
    assert (tmp_path / "record").read_bytes() == b"content"


def test_a_result_that_cannot_be_written_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_RETRY_SECONDS", (0.0, 0.0))
    left = full_disk(monkeypatch, 10)
    with pytest.raises(OSError, match=r"the record of run a can't be written \(No space left on device\)") as caught:
        checkpoint.write_patiently(
            lambda: checkpoint.write_atomically(tmp_path / "record", b"content"), "the record of run a"
        )
    assert "\n" not in str(caught.value)
    assert left == [7]


def test_damaged_checkpoints_are_named_and_removed(windows, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)
    spec = make_spec(steps=12)
    straight = train(spec, *windows, checkpoints=tmp_path)
    older, newer = sorted(tmp_path.glob("step-*.pt"))
    content = bytearray(newer.read_bytes())
    content[len(content) // 2] ^= 1  # a single bit
    newer.write_bytes(content)
    resumed = train(spec, *windows, checkpoints=tmp_path)
    assert resumed.notes == ["the checkpoint of step 11 was damaged: went on from step 10"]
    assert resumed.test == straight.test
    assert older.name == "step-000000010.pt"
