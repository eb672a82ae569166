"""How many CPU cores this process may use, which can be fewer than the machine has."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path


def allowed_cores(root: Path = Path("/")) -> int:
    """Cores by affinity (taskset, Slurm, cpusets) and by the quota of the control group (containers), at least 1.

    Args:
        root: of the file system with ``proc`` and ``sys``.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(
        1, min([cores, *(math.ceil(quota) for quota in _quotas(root / "proc/self/cgroup", root / "sys/fs/cgroup"))])
    )


def _quotas(own: Path, tree: Path) -> list[float]:
    """Cores that control groups grant, of version 2 (every group above counts as well) and of version 1."""
    quotas = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        path = next(line.split(":", 2)[2] for line in own.read_text().splitlines() if line.startswith("0::"))
        group = tree / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(tree):
                break
            with contextlib.suppress(OSError):
                quota, period = (folder / "cpu.max").read_text().split()
                if quota != "max":
                    quotas.append(int(quota) / int(period))
    with contextlib.suppress(OSError, ValueError):
        limit, length = (int((tree / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        if limit > 0:
            quotas.append(limit / length)
    return quotas
