"""``eqscale ui``: the MLflow user interface, started light."""

from __future__ import annotations

import argparse
import os
import socket
import sys

from eqscale.errors import InputError
from eqscale.tracking import TRACKING_HELP, existing, tracking_uri


def register(verbs: argparse._SubParsersAction) -> None:
    """Add the verb ``ui``."""
    parser = verbs.add_parser("ui", help="open the runs of all studies in the MLflow UI")
    parser.add_argument("--tracking-uri", help=TRACKING_HELP)
    parser.add_argument("--port", type=int, default=5000, help="port to listen on (default: 5000)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    uri = existing(tracking_uri(args.tracking_uri))

    if not uri.startswith("http"):
        _check_port(args.host, args.port)
    from mlflow.tracking import MlflowClient

    from eqscale.study.tracking import experiment_link, unreachable

    try:
        experiments = MlflowClient(tracking_uri=uri).search_experiments()
    except Exception as error:
        raise unreachable(uri, error) from error
    for experiment in experiments:
        if experiment.name.startswith("eqscale-"):
            print(f"{experiment.name}: {experiment_link(uri, experiment.experiment_id, args.port)}")
    if uri.startswith("http"):
        return 0
    print("starting the server; stop it with Ctrl-C", flush=True)
    # One worker and no job runner: a sixth of the memory and start-up time of the defaults.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1"]
    os.execve(sys.executable, [*command, "--host", args.host, "--port", str(args.port)], environment)
    return 0


def _check_port(host: str, port: int) -> None:
    """Refuse a port that the server couldn't listen on: the links would open somebody else's server."""
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--host {host} --port {port}: {reason}; name another with --port") from error
