"""A Ray cluster of two nodes on this machine that share no folder, and a study whose storage is a filesystem of
fsspec's: what a cluster with an object store does."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading

import pytest

from eqscale.storage import open_place
from eqscale.study.ledger import Ledger
from tests.jobs import ROOT, TINY_ARGUMENTS


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def node(folder, environment, *arguments):
    """A Ray node with a cache of its own that is up, until the end of the context."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1", *arguments]
    process = subprocess.Popen(
        command,
        env=environment | {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said, up = [], threading.Event()

    def listen():  # to its end, so that the node never waits for a full pipe
        for line in process.stdout:
            said.append(line)
            if "Ray runtime started" in line:
                up.set()
        up.set()

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        assert up.wait(300), f"not up after five minutes: {''.join(said)}"
        assert process.poll() is None, "".join(said)
        yield
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        listener.join(60)


@pytest.fixture
def cluster(tmp_path):
    """Environment of a driver, and the address of a cluster whose head and worker have one core each."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_worker_niceness": "0",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    port = free_port()
    for name in ("head", "worker", "driver"):
        (tmp_path / name).mkdir()
    with contextlib.ExitStack() as stack:
        # Ray's sockets need a short path.
        short = tempfile.TemporaryDirectory(prefix="eq-", dir="/tmp", ignore_cleanup_errors=True)
        temporary = stack.enter_context(short)
        head = ("--head", "--port", str(port), "--temp-dir", temporary, "--include-dashboard", "false")
        stack.enter_context(node(tmp_path / "head", environment, *head))
        worker = ("--address", f"127.0.0.1:{port}")
        stack.enter_context(node(tmp_path / "worker", environment, *worker))
        yield f"127.0.0.1:{port}", environment


def test_nodes_that_share_no_folder_train_a_study_together(cluster, tmp_path, empty_database):
    shutil.copy(empty_database, tmp_path / "driver/mlruns.db")
    address, environment = cluster
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "driver" / "cache")}
    storage = f"local://{tmp_path}/store"
    command = [sys.executable, str(ROOT / "tune_jobs/compute_grid.py"), *TINY_ARGUMENTS]
    command += ["--arms", "transformer", "--address", address, "--storage", storage]
    result = subprocess.run(command, cwd=tmp_path / "driver", env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    ledger = Ledger(open_place(storage) / "quick" / "ledger")
    assert len(ledger.records()) == 9
    weights = list((tmp_path / "store/quick/weights").iterdir())
    assert {path.stem for path in weights} == {record.run_id for record in ledger.records()}
    for who in ("head", "worker", "driver"):  # each has fetched the data, so each node has trained
        assert len(list((tmp_path / who / "cache/eqscale").rglob("*.npy"))) == 2, who
    assert not list((tmp_path / "driver").glob("studies"))
    assert not list((tmp_path / "driver").glob("data"))
    assert not (tmp_path / "store/quick/driver.json").exists()
