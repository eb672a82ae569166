"""``eqscale run``: the jobs that train."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.resources

from eqscale.jobs import JOBS

_HELP = "Plan a study, train what is missing with Ray Tune, and report. The jobs:"


def register(verbs: argparse._SubParsersAction) -> None:
    """Add the verb ``run``."""
    parser = verbs.add_parser(
        "run",
        help="train a study, or go on with it",
        description="\n".join([_HELP, "", *(f"  {name:<10} {job.question}" for name, job in JOBS.items())]),
        epilog="eqscale run JOB --help gives a job's presets, times and options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("job", metavar="JOB", choices=JOBS, help=", ".join(JOBS))
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help="options of the job")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from eqscale.study import presets
    from eqscale.study.options import parse_options

    job, own = JOBS[args.job], argparse.ArgumentParser(add_help=False)
    job.add_options(own)
    options = parse_options(_help(args.job), getattr(presets, job.presets), args.job, job.part, args.words, own)
    return importlib.import_module(f"eqscale.jobs.{args.job}").main(options)


def _help(name: str) -> str:
    """Docstring of a job's module, without importing what it needs."""
    source = importlib.resources.files("eqscale.jobs").joinpath(f"{name}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""
