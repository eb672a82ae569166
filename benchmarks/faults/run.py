"""Faults done to real studies, and what they cost.

    python benchmarks/faults/run.py                 # all of them, about a quarter of an hour on two cores
    python benchmarks/faults/run.py worker driver   # some
    python benchmarks/faults/run.py --again disk    # measure again what an earlier call has measured

Every fault is done to a tiny study (Ray Tune, two workers, a checkpoint every second), which is then compared
with the same study left alone: every run must be there once, in the ledger and in MLflow, with the same test
metrics, curve and final weights, bit for bit. Results are kept under --folder; at the end the Markdown table of
all of them is printed. "disk" mounts a small tmpfs and needs root.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from harness import (
    PATIENCE,
    Row,
    Study,
    empty_database,
    environment,
    fill,
    mlflow_server,
    parameters_of,
    small_disk,
    table,
    wait_for,
)

# Eight runs of 3 to 15 seconds each: long enough to be disturbed several times.
GRID = {
    "budgets": "8e9 1.6e10",
    "sizes-per-budget": "4",
    "seeds": "0",
    "min-steps": "5",
    "cost-range": "4",
    "batch-size": "16",
    "train-systems": "200",
    "test-systems": "40",
}
# 200 runs of a second or less.
TINY = GRID | {
    "budgets": "1e8 1.5e8 2e8 2.5e8 3e8",
    "seeds": "0 1 2 3 4 5 6 7 8 9",
    "replicate-up-to": "1e9",
    "batch-size": "8",
}
Scenario = Callable[[Path, "Study"], list[Row]]


def undisturbed(root: Path, name: str, grid: dict[str, str]) -> Study:
    """The study left alone; trained once."""
    study = Study(root, name, grid, keep=True)
    if len(study.records()) < len(study.specs):
        study.start()
        if code := study.finish(restarts=0):
            raise RuntimeError(f"the undisturbed study ended with {code}: see {study.folder / 'driver.log'}")
    return study


def worker(root: Path, reference: Study) -> list[Row]:
    """kill -9 of the process that trains."""
    rng, study = random.Random(0), Study(root, "worker", GRID)
    study.start()
    continued, times = [], 5
    while len(continued) < times:
        if not study.wait_training():
            break
        time.sleep(rng.uniform(1.0, 3.0))
        known, victims = study.known(), sorted(study.training())
        if not victims:
            continue
        os.kill(rng.choice(victims), signal.SIGKILL)
        continued.append(study.continued(known, time.monotonic()))
    code = study.finish()
    return [study.row("`kill -9` of a worker", len(continued), reference, continued, note=f"exit code {code}")]


def driver(root: Path, reference: Study) -> list[Row]:
    """kill -9 of the driver, and the same command again."""
    rng, study = random.Random(1), Study(root, "driver", GRID)
    study.start()
    continued, times = [], 3
    try:
        for _ in range(times):
            if not study.wait_training(study.known()):
                break
            time.sleep(rng.uniform(2.0, 4.0))
            known = study.known()
            study.kill_driver()
            begin = time.monotonic()
            study.start()
            continued.append(study.continued(known, begin))
        code = study.finish()
        return [study.row("`kill -9` of the driver", len(continued), reference, continued, note=f"exit code {code}")]
    finally:
        study.clean()


def node(root: Path, reference: Study) -> list[Row]:
    """All processes of a Ray node killed, in a cluster of three nodes on this machine; a new node joins."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    # The nodes' workers inherit from here, not from the driver that the study starts.
    os.environ |= environment(root / "node")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        study = Study(root, "node", GRID, options=("--address", cluster.address))
        study.start()
        continued, times = [], 3
        for _ in range(times):
            if not study.wait_training(study.known()):
                break
            time.sleep(2.5)
            known = study.known()
            begin = time.monotonic()
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
            nodes.append(cluster.add_node(num_cpus=1))
            continued.append(study.continued(known, begin))
        code = study.finish()
        return [study.row("a Ray node lost", len(continued), reference, continued, note=f"exit code {code}")]
    finally:
        cluster.shutdown()


def mlflow(root: Path, reference: Study) -> list[Row]:
    """kill -9 of the MLflow server; it comes back during the study."""
    folder = root / "mlflow-server"
    folder.mkdir(parents=True, exist_ok=True)
    database = folder / f"mlruns-{time.time_ns()}.db"
    shutil.copy(empty_database(root), database)
    with mlflow_server(database.resolve(), port=5873) as act:
        study = Study(root, "mlflow", GRID, tracking_uri="http://127.0.0.1:5873")
        study.start()
        study.wait_training()
        act("kill")
        begin = time.monotonic()
        at_kill = sum(study.steps().values())
        time.sleep(10)
        meanwhile = sum(study.steps().values()) - at_kill
        act("start")
        away = time.monotonic() - begin
        code = study.finish(restarts=0)
        text = f"away for {away:.0f} s; {meanwhile} steps in the first 10 s of it; exit code {code}, no restart"
        return [study.row("`kill -9` of the MLflow server", 1, reference, [], note=text)]


def disk(root: Path, reference: Study) -> list[Row]:
    """The study's file system full for a while; then full until the driver gives up."""
    rows = []
    for name, seconds in (("disk", 15.0), ("disk-long", None)):
        with small_disk(root / "small-disk", megabytes=48) as storage:
            study = Study(root, name, GRID, storage=storage)
            study.start()
            study.wait_training()
            time.sleep(2.0)
            ballast = fill(storage)
            begin = time.monotonic()
            if seconds is None:
                assert study.driver is not None
                code = study.driver.wait(2 * PATIENCE)
                note = f"exit code {code}; after the disk has room, "
            else:
                time.sleep(seconds)
                note = ""
            partial = [p for p in storage.rglob("*") if p.suffix == ".tmp"]
            away = time.monotonic() - begin
            ballast.unlink()
            if seconds is None:
                study.start()
            code = study.finish(restarts=0)
            records = study.records().values()
            notes = sum(any("could not be written" in note for note in record.notes) for record in records)
            note += f"exit code {code}; {len(partial)} half-written files; {notes} runs note unwritten checkpoints"
            rows.append(study.row(f"disk full for {away:.0f} s", 1, reference, [], note=note))
    return rows


def corrupt(root: Path, reference: Study) -> list[Row]:
    """The newest checkpoint of every running trial damaged while the driver is dead."""
    study = Study(root, "corrupt", GRID)
    study.start()
    damaged, continued = 0, []
    try:
        for how in ("cut", "bit", "empty"):

            def two_checkpoints() -> bool:
                folders = study.running()
                return bool(folders) and all(len(list(f.glob("step-*.pt"))) > 1 for f in folders)

            study.wait_training(study.known())
            wait_for(two_checkpoints, "two checkpoints of every running trial")
            known = study.known()
            study.kill_driver()
            wait_for(lambda: not study.training(), "the end of the orphaned workers")
            for folder in study.running():
                newest = max(folder.glob("step-*.pt"))
                content = bytearray(newest.read_bytes())
                content[len(content) // 2] ^= 1
                halved = content[: len(content) // 2]
                newest.write_bytes({"cut": halved, "bit": content, "empty": b""}[how])
                damaged += 1
            begin = time.monotonic()
            study.start()
            continued.append(study.continued(known, begin))
        code = study.finish()
        noted = sum("was damaged" in note for r in study.records().values() for note in r.notes)
        text = f"cut in half, one bit flipped, emptied; {noted} noted in the records; exit code {code}"
        return [study.row("corrupted checkpoint", damaged, reference, continued, note=text)]
    finally:
        study.clean()


def hang(root: Path, reference: Study) -> list[Row]:
    """Trials that stop: in native code that holds the interpreter, by SIGSTOP, and at every attempt."""
    rows = []
    limit = ("--hang-minutes", "0.5")
    study = Study(root, "hang", GRID, options=limit, fault={"FAULTS_KIND": "hang", "FAULTS_TIMES": "2"})
    study.start()
    wait_for(lambda: len(list(study.marks.glob("hang-*"))) == 2, "both hangs")
    known, begin = study.known(), time.monotonic()
    continued = [study.continued(known, begin)]
    code = study.finish(restarts=0)
    note = f"limit 30 s; exit code {code}"
    rows.append(study.row("trial stuck in native code", 2, reference, continued, note=note))

    study = Study(root, "frozen", GRID, options=limit)
    study.start()
    study.wait_training()
    time.sleep(2.0)
    victim = psutil.Process(sorted(study.training())[0])
    known, begin = study.known(), time.monotonic()
    victim.suspend()
    continued = [study.continued(known, begin)]
    code = study.finish(restarts=0)
    gone = not victim.is_running()
    note = f"limit 30 s; process {'gone' if gone else 'STILL THERE'}; exit code {code}"
    rows.append(study.row("worker frozen (`SIGSTOP`)", 1, reference, continued, note=note))
    if not gone:
        victim.kill()

    smallest = parameters_of(reference.specs)[0]
    always = {"FAULTS_KIND": "hang", "FAULTS_TIMES": "1000", "FAULTS_PARAMETERS": str(smallest)}
    study = Study(root, "stuck", GRID, options=limit, fault=always)
    study.start()
    assert study.driver is not None
    code = study.driver.wait(2 * PATIENCE)
    failures = study.ledger.failures()
    study.start(fault={})
    second = study.finish(restarts=0)
    note = (
        f"exit code {code}, {len(failures)} runs failed with “{next(iter(failures.values()), '')}”, the others "
        f"done; started again without the fault: exit code {second}"
    )
    rows.append(study.row("the same trials stuck at every attempt", len(failures), reference, [], note=note))
    return rows


def memory(root: Path, reference: Study) -> list[Row]:
    """A batch that the allocator refuses; a batch for which Ray's memory monitor kills the worker."""
    rows = []
    study = Study(root, "memory", GRID, fault={"FAULTS_KIND": "exhaust"})
    study.start()
    code = study.finish(restarts=0)
    sizes = sorted({record.micro_batch for record in study.records().values()})
    note = f"batch 16, micro-batch {sizes}; loss equal to 1e-3; exit code {code}"
    rows.append(study.row("allocator out of memory", 8, reference, [], tolerance=1e-3, counted=False, note=note))

    used, total = psutil.virtual_memory().used, psutil.virtual_memory().total
    if total - used < 6 * 2**30:
        print("less than 6 GB free: the kill by Ray's memory monitor is left out", file=sys.stderr)
        return rows
    threshold = {
        "RAY_memory_usage_threshold": f"{(used + 2.5 * 2**30) / total:.4f}",
        "FAULTS_KIND": "overfill",
        "FAULTS_PARAMETERS": str(parameters_of(reference.specs)[-1]),
    }
    study = Study(root, "overfill", GRID, fault=threshold)
    study.start()
    code = study.finish(restarts=0)
    parts = sorted({r.micro_batch for r in study.records().values() if r.micro_batch != 16})
    times = sum("retried" in line for line in (study.folder / "driver.log").read_text().splitlines())
    note = f"micro-batch {parts} where killed; loss equal to 1e-3; exit code {code}"
    rows.append(
        study.row(
            "worker killed by Ray's memory monitor", times, reference, [], tolerance=1e-3, counted=False, note=note
        )
    )
    return rows


def storm(root: Path, reference: Study) -> list[Row]:
    """200 tiny trials; workers and driver are killed at random moments."""
    calm = undisturbed(root, "calm", TINY)
    rng, study = random.Random(2), Study(root, "storm", TINY)
    study.start()
    workers = drivers = 0
    continued: list[float | None] = []
    try:
        while True:
            assert study.driver is not None
            time.sleep(rng.uniform(0.5, 3.0))
            if study.driver.poll() is not None:
                if len(study.records()) == len(study.specs) or study.driver.returncode == 2:
                    break
                study.start()
                study.wait_training(study.known())
                continue
            known = study.known()
            victims = sorted(study.training(0.2))
            begin = time.monotonic()
            if victims and rng.random() < 0.85:
                os.kill(rng.choice(victims), signal.SIGKILL)
                workers += 1
            elif drivers < 5 and known:
                study.kill_driver()
                drivers += 1
                study.start()
            else:
                continue
            continued.append(study.continued(known, begin))
        code = study.driver.returncode
        note = f"{workers} workers and {drivers} drivers killed; {study.starts} starts; exit code {code}"
        return [study.row("200 tiny trials, random kills", workers + drivers, calm, continued, note=note)]
    finally:
        study.clean()


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario  # type: ignore[attr-defined]
    for scenario in (worker, driver, node, mlflow, disk, corrupt, hang, memory, storm)
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "fault", nargs="*", help=f"which faults: {', '.join(SCENARIOS)} (default: all)", metavar="FAULT"
    )
    parser.add_argument("--folder", type=Path, default=Path("studies/faults"), help="where the studies live")
    parser.add_argument("--again", action="store_true", help="don't take results from an earlier call")
    args = parser.parse_args()
    if unknown := set(args.fault) - SCENARIOS.keys():
        parser.error(f"unknown fault {', '.join(sorted(unknown))}; choose from {', '.join(SCENARIOS)}")
    args.folder.mkdir(parents=True, exist_ok=True)
    root = args.folder.resolve()
    reference = None
    rows: list[Row] = []
    for name in args.fault or SCENARIOS:
        result = root / f"{name}.json"
        if args.again or not result.exists():
            reference = reference or undisturbed(root, "undisturbed", GRID)
            begin = time.monotonic()
            try:
                found = SCENARIOS[name](root, reference)
            except PermissionError as error:
                print(f"{name}: left out: {error}", file=sys.stderr)
                continue
            result.write_text(json.dumps([dataclasses.asdict(row) for row in found], indent=1))
            print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr)
        rows += [Row(**fields) for fields in json.loads(result.read_text())]
    print(table(rows))
    return int(any(row.lost or row.doubled or row.mislabelled or row.different for row in rows))


if __name__ == "__main__":
    sys.exit(main())
