"""Checks that a study can run at all, before any compute is spent."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence

from eqscale.arms import get_arm
from eqscale.errors import InputError
from eqscale.numbers import number
from eqscale.study.progress import human_time
from eqscale.study.schedule import wall_seconds
from eqscale.tasks import get_task
from eqscale.training.spec import RunSpec

CPU_LIMIT_SECONDS = 60 * 86400.0
"""A study that would keep the CPUs of a machine without a GPU busy for longer is refused."""

_GPU_FLOPS_PER_SECOND = 1e13  # an assumption for the message, of the order of one data-centre GPU
_CONNECT_SECONDS = 5.0
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_HTTP2_SETTINGS = 4  # type of the frame with which an HTTP/2 server begins (RFC 9113, 3.4 and 6.5)


def check_ray_address(address: str) -> None:
    """Knock at a ``host:port`` address: Ray itself takes a minute to notice that it isn't there.

    ``auto`` and ``local`` are left to Ray, which answers at once. What listens has to speak HTTP/2, as Ray's gRPC
    does (unless it is encrypted).

    Raises InputError if the address is not of that form, or no Ray listens there.
    """
    if address in ("auto", "local"):
        return
    match = re.fullmatch(r"(?:ray://)?([^:/\s]+):(\d{1,5})", address)
    if match is None:
        raise InputError(f"Ray address {address!r} is neither auto nor HOST:PORT (usually HOST:6379)")
    try:
        with socket.create_connection((match[1], int(match[2])), timeout=_CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
                return
            connection.sendall(_HTTP2_PREFACE)
            header = connection.makefile("rb").read(9)  # of the first frame; its fourth byte is the type
            if len(header) < 9 or header[3] != _HTTP2_SETTINGS:
                raise ConnectionError("what listens there isn't Ray")
    except (OSError, OverflowError) as error:
        raise InputError(
            f"Ray address {address!r} doesn't answer: {error}; is the cluster up (ray status), "
            "and does this machine reach its head?"
        ) from error


def check_devices(
    specs: Sequence[RunSpec], seconds: Callable[[RunSpec], float], cpus: int, gpus: int, presets: Mapping[str, float]
) -> None:
    """Refuse a study that needs GPUs on a machine or cluster that has none and can't start any.

    Args:
        specs: the runs to train.
        seconds: estimate of a run's time on one CPU core.
        cpus: available CPU cores.
        gpus: available GPUs, with those that the cluster's autoscaler may start.
        presets: largest budget of each preset, to name those that fit.

    Raises:
        InputError: says what the study would need, and which presets fit.
    """
    wall = wall_seconds([seconds(spec) for spec in specs], cpus)
    if gpus or wall <= CPU_LIMIT_SECONDS:
        return
    flops = sum(spec.budget for spec in specs)
    largest = max(get_arm(spec.arm).parameters(spec.size, get_task(spec.task)) for spec in specs)
    affordable = max(spec.budget for spec in specs) * CPU_LIMIT_SECONDS / wall
    names = ", ".join(name for name, budget in presets.items() if budget <= affordable)
    fits = f"--preset {names} fits this machine" if names else "lower the budgets to what the machine can do"
    raise InputError(
        f"these {len(specs)} runs need GPUs and there is none: {number(flops, 2)} FLOPs and models of up to "
        f"{number(largest, 2)} parameters would take {human_time(wall)} on {cpus} CPU cores, about "
        f"{flops / _GPU_FLOPS_PER_SECOND / 3600:,.0f} GPU-hours at {_GPU_FLOPS_PER_SECOND:.0e} FLOP/s; "
        f"bring up cluster.yaml and name it with --address, or {fits}"
    )
