"""What a run trains on, and how: precision, CUDA graphs, the name of the hardware."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import sys
from pathlib import Path

import torch

from eqscale import native
from eqscale.errors import InputError

_MOST_GRAPHS = 64  # of a run: each takes a fraction of a second to record, and memory


def trains_in_bfloat16(device: torch.device) -> bool:
    """Whether training steps multiply matrices in bfloat16: EQSCALE_BF16 (0 or 1), by default on GPUs that have it.

    Weights, optimiser and evaluations stay in float32.

    Raises InputError if EQSCALE_BF16 is neither.
    """
    if (asked := _switch("EQSCALE_BF16", "float32", "bfloat16")) is not None:
        return asked
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def replays_graphs(device: torch.device, world: int, lengths: int) -> bool:
    """Whether a run records its kernels as CUDA graphs, one for each length of batches, and replays them.

    Steps of small networks are mostly launches of kernels, which a graph saves. EQSCALE_CUDA_GRAPHS=0 switches graphs
    off, and so do several devices (``world``), as a graph can't hold the exchange of gradients. ``lengths``: how many
    different numbers of tokens batches can be padded to.

    Raises InputError if EQSCALE_CUDA_GRAPHS is neither 0 nor 1.
    """
    wanted = _switch("EQSCALE_CUDA_GRAPHS", "launch kernels one by one", "CUDA graphs") is not False
    return wanted and device.type == "cuda" and world == 1 and lengths <= _MOST_GRAPHS


def _switch(variable: str, off: str, on: str) -> bool | None:
    """Value of an environment variable that is 0, 1 or not set (None)."""
    asked = os.environ.get(variable, "")
    if asked not in ("", "0", "1"):
        raise InputError(f"{variable}={asked}: must be 0 ({off}) or 1 ({on})")
    return asked == "1" if asked else None


def hardware(device: torch.device, bfloat16: bool, graphs: bool) -> str:
    """What a run trains on, as records name it: the processor or GPU, and how it is used."""
    suffix = (", bfloat16 products" if bfloat16 else "") + (", CUDA graphs" if graphs else "")
    if device.type == "cuda":
        return torch.cuda.get_device_name(device) + suffix
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"^model name.*?:\s*(.*?)\s*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        name = found[1] if found else name
    threads = torch.get_num_threads()
    suffix += "" if native.load() else ", without C++ kernels"
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}{suffix}"


def peak_memory_mb() -> float:
    """Peak resident memory of this process, MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
