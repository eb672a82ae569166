"""The compute axes of a study's run table: three ways to count what training cost."""

from __future__ import annotations

import dataclasses

import pandas as pd


@dataclasses.dataclass(frozen=True)
class Axis:
    """One way to count training compute."""

    name: str
    column: str
    label: str
    short: str
    """Label where there is little room."""
    unit: str
    meaning: str

    @property
    def suffix(self) -> str:
        """Ending of the names of figures on this axis."""
        return "" if self.name == "executed" else f"_{self.name}"


AXES: dict[str, Axis] = {
    axis.name: axis
    for axis in (
        Axis("executed", "flops_executed", "training FLOPs, executed", "executed FLOPs", "FLOPs",
             "multiply-adds × 2 that the implementation executes, forward and backward"),
        Axis("nominal", "flops_nominal", "training FLOPs, dense nominal", "nominal FLOPs", "FLOPs",
             "as the paper's authors count: 6 per weight per token, every multivector map a dense 16×16 block"),
        Axis("seconds", "seconds", "training seconds", "seconds", "s",
             "steps × the time of a step, if `eqscale time` has timed all shapes in one sitting; else time of the "
             "training loop, on a CPU as CPU time of the training process, on a GPU and where it wasn't recorded as "
             "wall time; on several devices each of them counts"),
    )
}  # fmt: skip


def count_seconds(runs: pd.DataFrame) -> pd.Series:
    """Seconds that each run recorded, as the axis of that name counts them.

    CPU time of the training process where the table has it (``cpu_seconds``; a trial trains on one thread, so that
    on an idle core it is the wall time), else the wall time that ``seconds`` holds: GPUs, older runs.
    """
    return runs["cpu_seconds"].fillna(runs["seconds"]) if "cpu_seconds" in runs else runs["seconds"]
