"""The run table: one row per run of a study, in documented columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import pandas as pd

from eqscale.storage import write_atomically
from eqscale.study.ledger import Ledger
from eqscale.training.arms import get_arm
from eqscale.training.spec import RunRecord, RunSpec

COLUMNS: dict[str, str] = {
    "run_id": "identity: hash of everything that defines the run",
    "name": "readable name, as in the MLflow UI",
    "arm": "architecture and how it meets the symmetry",
    "role": "how the arm meets the symmetry: learn, augment, align, build_in or control",
    "control_of": "the arm that a control is compared with",
    "budget": "executed training FLOPs that the run was designed to spend",
    "seed": "seed of initialisation, data order and augmentation",
    "status": "finished, diverged or failed; pruned by a search; outdated: of earlier code or other data; unplanned: "
    "in the ledger, and no longer in the study's plan",
    "reason": "why a run has no loss",
    "N": "trainable parameters",
    "D": "training tokens processed (real vertex tokens, repeats included)",
    "loss": "final test NMSE at the last step (ballistic motion = 1)",
    "loss_se": "standard error of the loss over test scenes",
    "flops_nominal": "training FLOPs as the paper's authors count (6 per weight per token, dense 16x16 maps)",
    "flops_executed": "training FLOPs executed, padding included where the arm computes it",
    "seconds": "wall time in the training loop on the named hardware, with whatever else ran there, times devices",
    "cpu_seconds": "CPU time of the (first) training process in the same loop, times devices, empty on a GPU and for "
    "older runs; reports count it as the run's seconds, where it is there and no step_times.csv",
    "width": "residual width (features, or multivector channels of GATr)",
    "depth": "blocks",
    "heads": "attention heads",
    "steps": "optimiser steps of the schedule",
    "batch_size": "windows in a batch",
    "learning_rate": "peak learning rate",
    "epochs": "passes over the unique training windows",
    "unique_scenes": "training scenes available to the run",
    "unique_windows": "training windows seen at least once",
    "unique_tokens": "tokens in the unique training windows seen, at most D",
    "padding": "padded over real tokens, minus one",
    "train_loss": "mean training loss over the last part of the curve",
    "vertex_rmse_m": "root mean squared error of vertex positions, m",
    "center_rmse_m": "root mean squared error of centres of mass, m",
    "rotation_error_deg": "root mean squared rotation error after Kabsch, degrees",
    "rigidity_error_m": "root mean squared distance of the predicted vertices from a rigid body, m",
    "nmse_free": "squared error of objects in free flight, over the mean squared target of all objects",
    "nmse_floor": "the same for objects that touch only the floor",
    "nmse_object": "the same for objects that touch another object",
    "equivariance_yaw": "equivariance error |f(gx) - g f(x)| / |f(x)| (rms) for turns g about gravity's axis",
    "equivariance_rotation": "the same for uniform rotations",
    "equivariance_reflection": "the same for reflections in uniform planes",
    "equivariance_translation": "the same for shifts of 1 m, the input not centred again",
    "equivariance_permutation": "the same for another order of the objects",
    "equivariance_loss_share": "share of the loss that averaging over the frame's symmetry group would remove",
    "evaluation_seconds": "seconds spent in evaluations",
    "peak_memory_mb": "peak resident memory of the worker process, MB",
    "devices": "processors or GPUs that trained the run together when it ended",
    "micro_batch": "windows a device computed at once: its share of the batch, or less after running out of memory",
    "hardware": "processor and threads of the run",
    "frame": "frame of the samples",
    "horizon": "frames of 1/24 s between input and target",
    "data": "digest of the data definition",
    "code": "package and results version",
    "started": "UTC start of the attempt that ended the run",
}


_DIVERGED = "its loss left the sensible range by step {} of {}"
_ASIDE = ("outdated", "unplanned")


def _spec_columns(spec: RunSpec) -> dict[str, object]:
    arm = get_arm(spec.arm)
    return {
        "run_id": spec.run_id,
        "name": spec.name,
        "arm": spec.arm,
        "role": str(arm.role),
        "control_of": arm.control_of,
        "budget": spec.budget,
        "seed": spec.seed,
        "width": spec.size.width,
        "depth": spec.size.depth,
        "heads": spec.size.heads,
        "steps": spec.steps,
        "batch_size": spec.batch_size,
        "learning_rate": spec.learning_rate,
        "unique_scenes": spec.train_scenes,
        "frame": spec.frame,
        "horizon": spec.horizon,
        "data": spec.data,
    }


def record_row(record: RunRecord) -> dict[str, object]:
    """Row of a run with a record."""
    test = record.test
    return _spec_columns(record.spec) | {
        "run_id": record.run_id,  # of the code that wrote the record
        "status": record.status,
        "reason": None
        if record.status == "finished"
        else _DIVERGED.format(record.steps_done, record.spec.steps),
        "N": record.parameters,
        "D": record.tokens,
        "loss": test.get("nmse"),
        "loss_se": test.get("nmse_se"),
        "flops_nominal": record.flops_nominal,
        "flops_executed": record.flops_executed,
        "seconds": record.seconds,
        "cpu_seconds": record.cpu_seconds,
        "epochs": record.epochs,
        "unique_windows": record.unique_windows,
        "unique_tokens": record.unique_tokens,
        "padding": record.padded_tokens / record.tokens - 1 if record.tokens else None,
        "train_loss": record.curve[-1].train_loss if record.curve else None,
        **{name: test.get(name) for name in COLUMNS if name in test},
        "evaluation_seconds": record.evaluation_seconds,
        "peak_memory_mb": record.peak_memory_mb,
        "devices": record.devices,
        "micro_batch": record.micro_batch,
        "hardware": record.hardware,
        "code": record.code,
        "started": record.started,
    }


def is_outdated(record: RunRecord, data: Collection[str]) -> bool:
    """True for a record that mustn't be mixed with runs of the present code on data with these digests."""
    return record.outdated or (bool(data) and record.spec.data not in data)


def row_aside(record: RunRecord, outdated: bool) -> dict[str, object]:
    """Row of a record that isn't of the study's plan: outdated (see ``is_outdated``), or no longer planned."""
    if outdated:
        return record_row(record) | {"status": "outdated"}
    return record_row(record) | {"status": "unplanned", "reason": f"{record.status}, not in the study's plan"}


def run_table(
    specs: Iterable[RunSpec], ledger: Ledger, pruned: Collection[str] = (), *, aside: bool = False
) -> pd.DataFrame:
    """Table of the given runs as far as the ledger knows them, failed ones included, and of ``pruned`` ones.

    Columns as in ``COLUMNS``; rows sorted by arm, budget, N and seed. With ``aside``, what else the ledger holds
    follows, see ``row_aside``.

    Raises:
        InputError: if the record of one of the runs is damaged.
    """
    specs = list(specs)
    failures = ledger.failures()
    rows = []
    for spec in specs:
        if spec.run_id in ledger:
            rows.append(record_row(ledger.read(spec.run_id)))
        elif spec.run_id in failures:
            reason = " ".join(failures[spec.run_id].split())
            rows.append(_spec_columns(spec) | {"status": "failed", "reason": reason})
        elif spec.run_id in pruned:
            rows.append(_spec_columns(spec) | {"status": "pruned"})
    if aside:
        planned, data = {spec.run_id for spec in specs}, {spec.data for spec in specs}
        rows += [row_aside(r, is_outdated(r, data)) for r in ledger.records() if r.run_id not in planned]
    return sorted_table(pd.DataFrame(rows, columns=list(COLUMNS)))


def sorted_table(table: pd.DataFrame) -> pd.DataFrame:
    """The rows by arm, budget, N and seed, those that the plan doesn't have last."""
    order = table.assign(last=table["status"].isin(_ASIDE))
    keys = ["last", "arm", "budget", "N", "seed"]
    return order.sort_values(keys, kind="stable", ignore_index=True).drop(columns="last")


def write_table(table: pd.DataFrame, folder: Path) -> None:
    """Write ``runs.csv`` and ``columns.md``, which explains its columns, into ``folder``."""
    meanings = "\n".join(f"| `{name}` | {meaning} |" for name, meaning in COLUMNS.items())
    columns = f"| column of `runs.csv` | meaning |\n| --- | --- |\n{meanings}\n"
    write_atomically(folder / "columns.md", columns.encode())
    write_atomically(folder / "runs.csv", table.to_csv(index=False).encode())
