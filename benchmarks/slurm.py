"""Run ``cluster.slurm`` on two simulated nodes: a study is stopped by Slurm's signal, queued again, and continued.

    python benchmarks/slurm.py         # about two minutes on two cores

Slurm isn't needed: ``srun`` and ``scontrol`` are stand-ins that start the job's steps on two loopback addresses, each
with its own cache, and note what is queued again. Ray and the study are real. So that two nodes fit on one machine,
``ray`` takes its own node's address, doesn't mind the other's Ray, and ``ray stop`` ends its own node's only.

Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
STUDY = (
    "grid --arms transformer gatr --budgets 3e8 6e8 1.2e9 --sizes-per-budget 3 --min-steps 5 --batch-size 8 "
    "--train-systems 128 --test-systems 8 --cost-range 8"
)

_SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
[ -z "${{RAY_AUTH_TOKEN_PATH:-}}" ] || stat -c "%a %n" "$RAY_AUTH_TOKEN_PATH" > {folder}/token
code=0
for ((i = 0; i < SLURM_JOB_NUM_NODES; i++)); do
    (
        if [ $i != 0 ]; then
            # The nodes share one disk: each gets a folder of its own on it. The job's is the first's.
            export WORK=$WORK.$i TMPDIR=$WORK.$i RAY_TMPDIR=$WORK.$i
            export RAY_gcs_rpc_server_reconnect_timeout_s=5 # a worker waits a minute for a head that has gone
        fi
        export NODE_ADDRESS=127.0.0.$((11 + i)) XDG_CACHE_HOME={folder}/cache$i
        exec "$@"
    ) &
    steps+=($!)
done
for step in "${{steps[@]}}"; do wait "$step" || code=$?; done
exit $code
"""
_RAY = """#!{python}
import os, sys
import psutil
from ray.scripts import symmetric_run
from ray.scripts.scripts import main

address, work = os.environ["NODE_ADDRESS"], os.environ["WORK"]
if sys.argv[1] == "stop":
    mine = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("WORK") == work and "/ray/" in " ".join(process.cmdline()):
                process.terminate()
                mine.append(process)
        except psutil.Error:
            pass
    for process in psutil.wait_procs(mine, timeout=10)[1]:
        process.kill()
    sys.exit()
if sys.argv[1] == "start":
    sys.argv += ["--node-ip-address", address] * ("--head" not in sys.argv)
interfaces = psutil.net_if_addrs()
interfaces["lo"] = [part._replace(address=address) for part in interfaces["lo"]]
psutil.net_if_addrs = lambda: {{"lo": interfaces["lo"]}}
symmetric_run.is_localhost = lambda address: False
symmetric_run.check_ray_already_started = lambda: False
main()
"""


@dataclasses.dataclass(frozen=True)
class SimulatedSlurm:
    """What ``cluster.slurm`` finds under Slurm, simulated on this machine.

    Attributes:
        folder: of the stand-ins, the nodes' caches, and the calls of scontrol.
        submitted: shared folder that the job is submitted from.
    """

    folder: Path
    submitted: Path

    def __post_init__(self) -> None:
        self._stand_in("srun", _SRUN.format(folder=self.folder))
        self._stand_in("scontrol", f'#!/bin/sh\necho "$@" >> {self.folder}/requeued\n')
        self._stand_in("hostname", "#!/bin/sh\necho 127.0.0.11 172.17.0.1\n")
        self._stand_in("eqscale", f'#!/bin/sh\nexec {sys.executable} -m eqscale "$@"\n')
        self._stand_in("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        self._stand_in("ray", _RAY.format(python=sys.executable))

    job_id = str(os.getpid())

    def _stand_in(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def start(self, *words: str, log: Path | None = None, **variables: str) -> subprocess.Popen[bytes]:
        """The job, as Slurm starts it on the first node.

        Args:
            words: those after ``cluster.slurm``.
            log: file that its output is added to; None: ``stdout`` of the process, a pipe.
            variables: Slurm's, without ``SLURM_``.
        """
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_"))}
        environment |= {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        environment |= {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "XDG_CACHE_HOME": f"{self.folder}/cache0"}
        environment |= {"SLURM_JOB_ID": self.job_id, "SLURM_CPUS_PER_TASK": "1", "SLURM_JOB_NUM_NODES": "1"}
        environment |= {f"SLURM_{name}": value for name, value in variables.items()}
        with log.open("ab") if log else contextlib.nullcontext(subprocess.PIPE) as output:
            return subprocess.Popen(
                ["bash", str(ROOT / "cluster.slurm"), *words],
                cwd=self.submitted,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A script may have put this process in its background, which ignores it; Slurm starts jobs afresh.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def caches(self, nodes: int) -> list[Path]:
        """Where each node keeps the data that it has fetched."""
        return [self.folder / f"cache{node}" for node in range(nodes)]

    def token(self) -> tuple[str, Path]:
        """Mode and path of the token that the job's nodes have got."""
        mode, path = (self.folder / "token").read_text().split()
        return mode, Path(path)

    def requeued(self) -> list[str]:
        """The calls of ``scontrol``."""
        path = self.folder / "requeued"
        return path.read_text().splitlines() if path.exists() else []


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    folder = Path(tempfile.mkdtemp(prefix="eqscale-slurm-"))
    slurm = SimulatedSlurm(folder / "slurm", folder)
    ledger = folder / "studies/first/ledger"
    rows = []
    job = {"JOB_NUM_NODES": "2"}

    def records() -> set[str]:
        return {path.name for path in ledger.glob("*.json")}

    begin = time.monotonic()
    process = slurm.start(*STUDY.split(), log=folder / "job.out", **job)
    while len(records()) < 3 and process.poll() is None:
        time.sleep(0.2)
    rows.append(("three runs have a record", f"after {time.monotonic() - begin:.0f} s"))
    begin = time.monotonic()
    process.send_signal(signal.SIGUSR1)
    code = process.wait()
    first = records()
    requeued = f"queued again: {', '.join(slurm.requeued()) or 'no'}"
    rows.append(("Slurm's signal", f"ended after {time.monotonic() - begin:.0f} s, exit code {code}, {requeued}"))
    rows.append(("records then", f"{len(first)}"))
    begin = time.monotonic()
    again = slurm.start(*STUDY.split(), log=folder / "job.out", RESTART_COUNT="1", **job).wait()
    rows.append(("second start", f"exit code {again}, {time.monotonic() - begin:.0f} s, {len(records())} records"))
    nodes: dict[str, int] = {}
    for state in (folder / "studies/first/ray").rglob("experiment_state-*.json"):
        for node in re.findall(r"node_ip\W+([\d.]+)", state.read_text()):
            nodes[node] = nodes.get(node, 0) + 1
    rows.append(("trials by node", ", ".join(f"{node}: {n}" for node, n in sorted(nodes.items()))))
    left = [path.name for path in (*folder.glob(".ray-token*"), *Path("/tmp").glob(f"eqscale-{slurm.job_id}-*"))]
    rows.append(("left behind", ", ".join(left) or "nothing"))
    print("| step | outcome |\n| --- | --- |")
    for row in rows:
        print("| {} | {} |".format(*row))
    print(f"log: {folder / 'job.out'}")
    stopped_in_order = code != 0 and first < records() and len(slurm.requeued()) == 1
    return 0 if stopped_in_order and again == 0 and len(nodes) == 2 and not left else 1


if __name__ == "__main__":
    sys.exit(main())
