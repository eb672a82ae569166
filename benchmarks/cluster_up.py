"""Bring ``cluster-local.yaml`` up for real over SSH, run a study on it, take it down.

    apt-get install openssh-server rsync        # Debian; nothing of their services needs to run
    python benchmarks/cluster_up.py             # about three minutes on two cores

One machine plays head and two workers: an SSH server of its own listens on three loopback addresses, and every
address has a home directory of its own, so that nodes share nothing but the study's folder. ``ray up``, ``ray
exec`` and ``ray down`` are Ray's own, on the committed file with addresses, key and ports filled in. Two things
are stand-ins: ``~/venv`` leads to the environment that runs this script instead of a fresh one, and ``ray
stop`` there ends the processes of its own node only (Ray's would end the other nodes on the same machine too).

Prints a Markdown table. Keys, homes and processes are gone afterwards, which the last rows check.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parents[1]
ADDRESSES = ("127.0.0.11", "127.0.0.12", "127.0.0.13")  # head first; 127.0.0.1 Ray would replace
STUDY = (
    "--preset quick --arms transformer gatr --budgets 3e8 6e8 1.2e9 --sizes-per-budget 3 --min-steps 5 --batch-size 8 "
    "--train-systems 128 --test-systems 8 --cost-range 8"
)

_RAY_STAND_IN = """#!{python}
import os, sys
import psutil

home = os.environ["HOME"]
if sys.argv[1:2] == ["stop"]:
    mine = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME") == home and "/ray/" in " ".join(process.cmdline()):
                if process.pid != os.getpid():
                    process.terminate()
                    mine.append(process)
        except psutil.Error:
            pass
    for process in psutil.wait_procs(mine, timeout=10)[1]:
        process.kill()
    sys.exit()
if sys.argv[1:2] == ["start"]:
    sys.argv += ["--node-ip-address", os.environ["NODE_ADDRESS"], "--num-cpus", "1", "--temp-dir", home + "/ray"]
from ray.scripts.scripts import main

main()
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def make_node(folder: Path, address: str) -> None:
    """A home directory as a node has it before the first `ray up`, with Python already installed."""
    home = folder / address
    for name in ("python", "mlflow"):
        target = Path(sys.executable).with_name(name)
        executable(home / "venv/bin" / name, f'#!/bin/sh\nexec "{target}" "$@"\n')
    executable(home / "venv/bin/eqscale", f'#!/bin/sh\nexec "{sys.executable}" -m eqscale "$@"\n')
    executable(home / "venv/bin/ray", _RAY_STAND_IN.format(python=sys.executable))
    (home / ".bashrc").write_text(f"export PATH={folder}/bin:$PATH\n")


@contextlib.contextmanager
def ssh_server(folder: Path, port: int) -> Iterator[None]:
    """An SSH server for one user and one key, on the loopback addresses only."""
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", folder / name], check=True)
    lines = [
        f"HostKey {folder}/host_key",
        f"AuthorizedKeysFile {folder}/key.pub",
        f"AllowUsers {getpass.getuser()}",
        "StrictModes no",
        "PermitRootLogin prohibit-password",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PidFile none",
        "MaxStartups 100",
        *(f"ListenAddress {address}:{port}" for address in ADDRESSES),
    ]
    for address in ADDRESSES:
        home = folder / address
        # RAY_TMPDIR keeps Ray's sessions in the node's home, where they end with it.
        environment = f"HOME={home} RAY_TMPDIR={home} NODE_ADDRESS={address} PYTHONPATH={home}/eqscale"
        lines += [f"Match LocalAddress {address}", f"  SetEnv {environment} OMP_NUM_THREADS=1 RAY_worker_niceness=0"]
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    # The head's key: ssh takes ~ from the password file, not from HOME.
    key = 'key="$HOME/ray_bootstrap_key.pem"\n[ -f "$key" ] && set -- -i "$key" "$@"'
    executable(folder / "bin/ssh", f'#!/bin/sh\n{key}\nexec "{shutil.which("ssh")}" -p {port} "$@"\n')
    separation = Path("/run/sshd")  # needed by an sshd that runs as root
    made = os.geteuid() == 0 and not separation.exists()
    if made:
        separation.mkdir(mode=0o755)
    server = subprocess.Popen(
        [shutil.which("sshd", path="/usr/sbin:/usr/bin"), "-D", "-e", "-f", folder / "sshd_config"],
        stderr=(folder / "sshd.log").open("w"),
    )
    try:
        yield
    finally:
        server.terminate()
        server.wait()
        if made:
            separation.rmdir()


def node_processes(folder: Path) -> list[psutil.Process]:
    """Processes whose home is one of ours, whoever started them."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOME", "").startswith(f"{folder}/") and process.status() != "zombie":
                found.append(process)
    return found


def describe(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        words = [Path(word).name for word in process.cmdline()[:6]]
        return f"{Path(process.environ()['HOME']).name}: {' '.join(words)}"
    return str(process.pid)


def wait_until_gone(folder: Path, seconds: float) -> tuple[float, list[psutil.Process]]:
    """Wait for all node processes to end by themselves; returns the time it took and who is left."""
    begin = time.monotonic()
    while (left := node_processes(folder)) and time.monotonic() - begin < seconds:
        time.sleep(1)
    return time.monotonic() - begin, left


def fill_in(folder: Path, port: int, mlflow_port: int, autoscaler_v2: bool) -> Path:
    """The committed file with what one has to adapt: addresses, user and key, and ports that are free here."""
    text = (ROOT / "cluster-local.yaml").read_text()
    text = text.replace("6379", str(port)).replace("--port 5000", f"--port {mlflow_port}")
    if autoscaler_v2:
        text = text.replace("RAY_enable_autoscaler_v2=0", "")
    config = yaml.safe_load(text)
    config["provider"] |= {"head_ip": ADDRESSES[0], "worker_ips": list(ADDRESSES[1:])}
    config["auth"] = {"ssh_user": getpass.getuser(), "ssh_private_key": str(folder / "key")}
    path = folder / "cluster-local.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


class Failed(Exception):
    pass


def run(folder: Path, label: str, command: list[str], timeout: float, show: bool = False) -> tuple[float, str]:
    """Run a command of the person who owns the cluster; returns its wall time and output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHONPATH"))} | {
        "HOME": str(folder / "owner"),
        "RAY_TMPDIR": str(folder / "owner"),
        "TMPDIR": str(folder / "owner"),
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
    }
    begin = time.monotonic()
    try:
        result = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode(errors="replace")
        raise Failed(f"{label} took more than {timeout:g} s\n{output[-3000:]}") from error
    if show:
        print(result.stdout, file=sys.stderr)
    if result.returncode:
        raise Failed(f"{label} ended with code {result.returncode}\n{result.stdout[-3000:]}")
    return time.monotonic() - begin, result.stdout


_WAIT = (
    "import ray, time; ray.init(logging_level=40); begin = time.time()\n"
    "while len(up := [n for n in ray.nodes() if n['Alive']]) < {nodes} and time.time() - begin < {patience}: "
    "time.sleep(0.5)\n"
    "print('alive:', *sorted(n['NodeManagerAddress'] for n in up))"
)


def exercise(folder: Path, rows: list[tuple[str, str]], autoscaler_v2: bool, verbose: bool) -> None:
    """Up, wait, study, study again, down; fills the rows as it goes."""
    port, mlflow_port = free_port(), free_port()
    config = str(fill_in(folder, port, mlflow_port, autoscaler_v2))
    shared = folder / "shared"
    ran_down = False
    try:
        seconds, _ = run(folder, "ray up", ["up", "-y", "--no-config-cache", config], 300, verbose)
        rows.append(("`ray up`", f"{seconds:.0f} s"))
        wait = _WAIT.format(nodes=len(ADDRESSES), patience=120)
        seconds, output = run(folder, "wait", ["exec", config, f'~/venv/bin/python -c "{wait}"'], 300, verbose)
        alive = re.search(r"alive: (.*)", output)
        rows.append(("nodes that joined", f"{alive[1] if alive else 'none'}, {seconds:.0f} s after"))
        job = (
            f"cd ~/eqscale && eqscale run grid {STUDY} --address auto --storage {shared}/studies "
            f"--data {shared}/data --results {shared}/results --tracking-uri http://127.0.0.1:{mlflow_port}"
        )
        seconds, output = run(folder, "study", ["exec", config, job], 900, verbose)
        records = list((shared / "studies/quick/ledger").glob("*.json"))
        rows.append(("study", f"{len(records)} records, {seconds:.0f} s"))
        nodes: dict[str, int] = {}
        for state in (shared / "studies/quick/ray").rglob("experiment_state-*.json"):
            for node in re.findall(r"node_ip\W+([\d.]+)", state.read_text()):
                nodes[node] = nodes.get(node, 0) + 1
        rows.append(("trials by node", ", ".join(f"{node}: {n}" for node, n in sorted(nodes.items()))))
        seconds, output = run(folder, "second start", ["exec", config, job], 300, verbose)
        rows.append(("second start of the study", f"{seconds:.0f} s, trains nothing: {'nothing to train' in output}"))
        rows.append(("report", f"{(shared / 'results/report.md').is_file()}"))
        run(folder, "stop MLflow", ["exec", config, "kill $(cat ~/mlflow.pid)"], 60, verbose)
        seconds, _ = run(folder, "ray down", ["down", "-y", config], 120, verbose)
        ran_down = True
        rows.append(("`ray down`", f"{seconds:.0f} s"))
        seconds, left = wait_until_gone(folder, 120)
        names = ", ".join(f"`{describe(process)}`" for process in left) or "none"
        rows.append(("processes that outlive it", f"{names} (after {seconds:.0f} s)"))
    finally:
        if not ran_down:
            print("taking the nodes down after a failure", file=sys.stderr)
        left = node_processes(folder)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=30)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoscaler-v2", action="store_true", help="leave Ray's default autoscaler on")
    parser.add_argument("--verbose", action="store_true", help="show what Ray prints")
    args = parser.parse_args()
    for tool, package in (("sshd", "openssh-server"), ("rsync", "rsync"), ("ssh", "openssh-client")):
        if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            print(f"error: {tool} is not installed: apt-get install {package}", file=sys.stderr)
            return 2
    folder = Path(tempfile.mkdtemp(prefix="eqc-", dir="/tmp"))  # short: Ray's sockets live below it
    rows: list[tuple[str, str]] = []
    code = 0
    try:
        for address in ADDRESSES:
            make_node(folder, address)
        token = folder / "owner/.ray/auth_token"
        token.parent.mkdir(parents=True)
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        with ssh_server(folder, port=free_port()):
            exercise(folder, rows, args.autoscaler_v2, args.verbose)
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    finally:
        left = node_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)
    rows.append(("left when the script ends", f"{len(left)} processes, {int(folder.exists())} folders"))
    print("| step | outcome |\n| --- | --- |")
    for row in rows:
        print("| {} | {} |".format(*row))
    return code or bool(left)


if __name__ == "__main__":
    sys.exit(main())
