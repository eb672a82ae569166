"""The run table: one row per run of a study, in documented columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from eqscale.arms import arm_names, get_arm
from eqscale.storage import write_atomically
from eqscale.study.ledger import Ledger
from eqscale.tasks import DEFAULT, get_task
from eqscale.training.spec import LOSS_NAMES, RunRecord, RunSpec

_DESIGN: dict[str, str] = {
    "run_id": "identity: hash of everything that defines the run",
    "name": "readable name, as in the MLflow UI",
    "arm": "architecture and how it meets the symmetry",
    "role": "how the arm meets the symmetry: learn, augment, align, build_in or control",
    "control_of": "the arm that a control is compared with",
    "budget": "executed training FLOPs that the run was designed to spend",
    "seed": "number of the replicate: initialisation, data order and augmentation follow from it and the run",
    "status": "finished, diverged or failed; pruned by a search; outdated: of earlier code or other data; unplanned: "
    "in the ledger, and no longer in the study's plan",
    "reason": "why a run has no loss",
    "N": "trainable parameters",
    "D": "training tokens processed (real tokens, repeats included)",
    "loss": "final test NMSE at the last step ({baseline} = 1)",
    "loss_se": "standard error of the loss over test {systems}",
    "flops_nominal": "training FLOPs as the paper's authors count (6 per weight per token, dense 16x16 maps)",
    "flops_executed": "training FLOPs executed, padding included where the arm computes it",
    "seconds": "wall time in the training loop on the named hardware, with whatever else ran there, times devices",
    "cpu_seconds": "CPU time of the (first) training process in the same loop, times devices, empty on a GPU and for "
    "older runs; reports count it as the run's seconds, where it is there and no step_times.csv",
    "width": "residual width (features, or multivector channels of GATr)",
    "depth": "blocks",
    "heads": "attention heads",
    "steps": "optimiser steps of the schedule",
    "batch_size": "{samples} in a batch",
    "optimizer": "optimiser",
    "learning_rate": "peak learning rate",
    "warmup": "share of the steps over which the learning rate rises",
    "momentum": "share of the past in the optimiser's average of gradients",
    "weight_decay": "decoupled weight decay of matrix weights",
    "clip": "largest norm of the gradient",
    "epochs": "passes over the unique training {samples}",
    "unique_{systems}": "training {systems} available to the run",
    "unique_{samples}": "training {samples} seen at least once",
    "unique_tokens": "tokens in the unique training {samples} seen, at most D",
    "padding": "padded over real tokens, minus one",
    "train_loss": "mean training loss over the last part of the curve",
}
_SYMMETRY: dict[str, str] = {
    "equivariance_rotation": "equivariance error |f(gx) - g f(x)| / |f(x)| (rms) for uniform rotations g",
    "equivariance_reflection": "the same for reflections in uniform planes",
    "equivariance_translation": "the same for shifts of the task's length, the input not centred again",
    "equivariance_permutation": "the same for another order of what is permuted",
    "equivariance_loss_share": "share of the loss that averaging over the symmetry group would remove",
}
_RUNNING: dict[str, str] = {
    "evaluation_seconds": "seconds spent in evaluations",
    "peak_memory_mb": "peak resident memory of the worker process, MB",
    "devices": "processors or GPUs that trained the run together when it ended",
    "micro_batch": "{samples} a device computed at once: its share of the batch, or less after running out of memory",
    "hardware": "processor and threads of the run",
    "task": "what was learnt",
}
_CODE: dict[str, str] = {
    "data": "digest of the data definition",
    "code": "package and results version",
    "started": "UTC start of the attempt that ended the run",
}


def table_columns(task_name: str) -> dict[str, str]:
    """Columns of the run table of a study of that task, with their meanings."""
    task = get_task(task_name)
    words = {"systems": task.words.unit.many, "samples": task.words.sample.many, "baseline": task.words.trivial}
    own = {metric.name: metric.meaning for metric in task.metrics}
    view = {option.name: option.help for option in task.options if not option.of_data}
    found = _DESIGN | own | _SYMMETRY | _RUNNING
    return {name.format(**words): text.format(**words) for name, text in found.items()} | view | _CODE


_ASIDE = ("outdated", "unplanned")


def spec_columns(spec: RunSpec) -> dict[str, object]:
    """Everything that defines a run by the names of the run table, which are also those of MLflow's parameters."""
    fields = dataclasses.asdict(spec)
    del fields["view"]
    unique = {f"unique_{get_task(spec.task).words.unit.many}": fields.pop("train_systems")}
    return fields.pop("size") | unique | fields | spec.options


def test_columns(record: RunRecord) -> dict[str, float]:
    """Final test metrics by the names of the run table, which are also those of MLflow's section ``test``."""
    return {LOSS_NAMES.get(name, name): value for name, value in record.test.items()}


def _planned_row(spec: RunSpec) -> dict[str, object]:
    # an outdated record may be of an arm that is gone
    arm = get_arm(spec.arm) if spec.arm in arm_names() else None
    roles = {"role": str(arm.role), "control_of": arm.control_of} if arm else {"role": None, "control_of": None}
    return {"run_id": spec.run_id, "name": spec.name, **roles, **spec_columns(spec)}


def record_row(record: RunRecord) -> dict[str, Any]:
    """Row of a run with a record."""
    spec = record.spec
    lost = f"its loss left the sensible range by step {record.steps_done} of {spec.steps}"
    row = vars(record) | _planned_row(spec) | test_columns(record)
    row |= {
        "run_id": record.run_id,  # of the code that wrote the record
        "reason": None if record.status == "finished" else lost,
        "N": record.parameters,
        "D": record.tokens,
        f"unique_{get_task(spec.task).words.sample.many}": record.unique_samples,
        "padding": record.padded_tokens / record.tokens - 1 if record.tokens else None,
        "train_loss": record.curve[-1].train_loss if record.curve else None,
    }
    return {name: row.get(name) for name in table_columns(spec.task)}


def is_outdated(record: RunRecord, data: Collection[str]) -> bool:
    """True for a record that mustn't be mixed with runs of the present code on data with these digests."""
    return record.outdated or (bool(data) and record.spec.data not in data)


def row_aside(record: RunRecord, outdated: bool) -> dict[str, object]:
    """Row of a record that isn't of the study's plan: outdated (see ``is_outdated``), or no longer planned."""
    if outdated:
        return record_row(record) | {"status": "outdated"}
    return record_row(record) | {"status": "unplanned", "reason": f"{record.status}, not in the study's plan"}


def run_table(
    specs: Iterable[RunSpec], ledger: Ledger, pruned: Collection[str] = (), records: Iterable[RunRecord] | None = None
) -> pd.DataFrame:
    """Table of the given runs as far as the ledger knows them, failed ones included, and of ``pruned`` ones.

    Columns as in ``table_columns``; rows sorted by arm, budget, N and seed. With all of the ledger's ``records``, those
    of other runs follow, see ``row_aside``.

    Raises InputError if the record of one of the runs is damaged.
    """
    specs = list(specs)
    failures = ledger.failures()
    if records is None:
        records = [ledger.read(spec.run_id) for spec in specs if spec.run_id in ledger]
    known = {record.run_id: record for record in records}
    rows = []
    for spec in specs:
        if spec.run_id in known:
            rows.append(record_row(known[spec.run_id]))
        elif spec.run_id in failures:
            reason = " ".join(failures[spec.run_id].split())
            rows.append(_planned_row(spec) | {"status": "failed", "reason": reason})
        elif spec.run_id in pruned:
            rows.append(_planned_row(spec) | {"status": "pruned"})
    planned, data = {spec.run_id for spec in specs}, {spec.data for spec in specs}
    rows += [row_aside(r, is_outdated(r, data)) for r in known.values() if r.run_id not in planned]
    return sorted_table(pd.DataFrame(rows, columns=list(table_columns(specs[0].task if specs else DEFAULT))))


def sorted_table(table: pd.DataFrame) -> pd.DataFrame:
    """The rows by arm, budget, N and seed, those that the plan doesn't have last."""
    order = table.assign(last=table["status"].isin(_ASIDE))
    keys = ["last", "arm", "budget", "N", "seed"]
    return order.sort_values(keys, kind="stable", ignore_index=True).drop(columns="last")


def write_table(table: pd.DataFrame, folder: Path) -> None:
    """Write ``runs.csv`` and ``columns.md``, which explains its columns, into ``folder``."""
    task = next(iter(table["task"]), DEFAULT)
    meanings = "\n".join(f"| `{name}` | {meaning} |" for name, meaning in table_columns(task).items())
    columns = f"| column of `runs.csv` | meaning |\n| --- | --- |\n{meanings}\n"
    write_atomically(folder / "columns.md", columns.encode())
    write_atomically(folder / "runs.csv", table.to_csv(index=False).encode())
