"""``eqscale ui``: the MLflow user interface, started light."""

from __future__ import annotations

import argparse
import os
import socket
import sys

from eqscale.errors import InputError
from eqscale.tracking import TRACKING_HELP, existing, tracking_uri

_DESCRIPTION = """Start MLflow's user interface, and print one link a study: loss against compute, one line an arm.

To compare single runs by hand, write into the page's search field
    attributes.status = 'FINISHED' and tags.arm != ''           all runs of the study that have ended
    tags.budget = '1e+10' and tags.outcome = 'finished'         those of one budget
then look at their curves in the chart view, or tick some and press Compare. For tables and laws of them:
    eqscale fit mlflow:eqscale-NAME --by arm --where outcome=finished

From another machine: ssh -L 5000:localhost:5000 HOST, or --host 0.0.0.0 in a network that you trust: MLflow asks
nobody for a password. A browser that doesn't know the name in the link opens it at 127.0.0.1 as well.
"""

LOCAL_NAME = "eqscale.localhost"
"""This machine by a name of its own: at 127.0.0.1 MLflow opens an assistant's panel beside every page."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_ANY = ("0.0.0.0", "::", "")


def register(verbs: argparse._SubParsersAction) -> None:
    """Add the verb ``ui``."""
    parser = verbs.add_parser(
        "ui",
        help="loss against compute of all studies, and their runs, in the MLflow UI",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tracking-uri", help=TRACKING_HELP)
    parser.add_argument("--port", type=int, default=5000, help="port to listen on (default: 5000; 0: any free one)")
    help_text = "address or name to listen on (default: this machine only; 0.0.0.0: others can open it too)"
    parser.add_argument("--host", default="127.0.0.1", help=help_text)
    help_text = "another name or address by which browsers know this machine, e.g. a public one; MLflow refuses others"
    parser.add_argument("--name", help=help_text)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    uri = existing(tracking_uri(args.tracking_uri))
    served = not uri.startswith("http")
    port = _free_port(args.host, args.port) if served else 0
    from mlflow.tracking import MlflowClient

    from eqscale.study.overview import VIEW_TAG, experiment_link
    from eqscale.study.tracking import unreachable

    try:
        experiments = MlflowClient(tracking_uri=uri).search_experiments()
    except Exception as error:
        raise unreachable(uri, error) from error
    names = _names(args.host, args.name)
    base = f"http://{names[0]}:{port}" if served else uri
    for experiment in experiments:
        study = experiment.name.removeprefix("eqscale-")
        if VIEW_TAG in experiment.tags:
            print(f"{study}: {experiment_link(base, experiment.experiment_id)}")
        elif study != experiment.name:
            print(f"{study}: not drawn yet; the study's next start does it, or: eqscale check {study} --mend")
    if not served:
        return 0
    print("starting the server; stop it with Ctrl-C", flush=True)
    # One worker and no job runner: a sixth of the memory and start-up time of the defaults.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # With any port, for those who forward one; in brackets, MLflow would take an address for a pattern.
    allowed = [host for name in names for host in (name, f"{name}:{port if '[' in name else '*'}")]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1"]
    command += ["--host", args.host, "--port", str(port), "--allowed-hosts", ",".join(allowed)]
    command += ["--cors-allowed-origins", ",".join(f"http://{name}" for name in allowed)]
    os.execve(sys.executable, command, environment)
    return 0


def _free_port(host: str, port: int) -> int:
    """The port that the server will listen on.

    Raises InputError if it can't: the links would open somebody else's server.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.create_server((address[0], port), family=family) as server:
            return server.getsockname()[1]
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        way_out = "--host" if isinstance(error, socket.gaierror) else "--port"
        raise InputError(f"--host {host} --port {port}: {reason}; name another with {way_out}") from error


def _names(host: str, name: str | None) -> list[str]:
    """What browsers may call the server, the best first: MLflow answers 403 to any other name."""
    import psutil

    names = [name] if name else []
    if host in _LOOPBACK:
        names.append(LOCAL_NAME)
    elif host in _ANY:
        found = [
            address.address
            for own in psutil.net_if_addrs().values()
            for address in own
            if address.family in (socket.AF_INET, socket.AF_INET6) and "%" not in address.address
        ]
        names += [socket.gethostname(), socket.getfqdn(), LOCAL_NAME, *found]
    else:
        names.append(host)
    return list(dict.fromkeys(f"[{n}]" if ":" in n else n for n in (*names, *_LOOPBACK)))
