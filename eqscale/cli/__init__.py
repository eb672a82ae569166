"""The ``eqscale`` command: one module per group of verbs, imported only when needed."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence

from eqscale import __version__
from eqscale.arguments import ArgumentParser
from eqscale.errors import InputError

# Each module offers register(subparsers); heavy imports stay inside the functions it sets as `run`.
_GROUPS = (
    "adopt",
    "check_own",
    "compare",
    "evaluate",
    "laws",
    "measure",
    "plan",
    "predict",
    "report",
    "run",
    "scenes",
    "study",
    "time",
    "train",
    "ui",
)


def build_parser() -> ArgumentParser:
    """Build the parser of ``eqscale`` with all its verbs."""
    parser = ArgumentParser(prog="eqscale", description="Scaling studies of equivariant and plain architectures.")
    parser.add_argument("--version", action="version", version=f"eqscale {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for group in _GROUPS:
        importlib.import_module(f"eqscale.cli.{group}").register(verbs)
    return parser


def run_or_exit(run, *args) -> int:
    """Call ``run(*args)``; InputError or a missing package is one line on stderr and exit code 2, Ctrl-C is 130.

    So is a full disk, with exit code 1.

    Packages are missing where only those of the law commands were installed. What a terminal's encoding lacks is
    printed as ?.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        return run(*args) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or "a file"
        print(
            f"error: {where} can't be written: {error.strerror}; free some space, and start it again", file=sys.stderr
        )
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "eqscale").partition(".")[0] == "eqscale":
            raise
        print(f"error: this needs the package {error.name!r}, which is not installed", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    # Figures go to files, whatever backend and style the user has for their own; workers inherit it.
    os.environ |= {"MPLBACKEND": "Agg", "MATPLOTLIBRC": os.devnull}
    return run_or_exit(_run, argv)


def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    args.rest = rest
    if rest and not getattr(args, "takes_rest", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args.run(args)
