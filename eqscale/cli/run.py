"""``eqscale run``: the jobs that train."""

from __future__ import annotations

import argparse
import importlib

from eqscale.jobs import JOBS

_HELP = "Plan a study, train what is missing with Ray Tune, and report. The jobs:"


def register(verbs: argparse._SubParsersAction) -> None:
    """Add the verb ``run``."""
    parser = verbs.add_parser(
        "run",
        help="train a study, or go on with it",
        description="\n".join([_HELP, "", *(f"  {name:<10} {question}" for name, question in JOBS.items())]),
        epilog="eqscale run JOB --help gives a job's presets, times and options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("job", metavar="JOB", choices=JOBS, help=", ".join(JOBS))
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help="options of the job")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    return importlib.import_module(f"eqscale.jobs.{args.job}").main(args.words)
