"""``eqscale report``: rebuild fits, figures and report from a study's run table."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(verbs: argparse._SubParsersAction) -> None:
    """Add the verb ``report``."""
    parser = verbs.add_parser(
        "report",
        help="rebuild the fits, figures and report of a results folder from its run table",
        description="Rebuild fits, figures and report.md of a results folder from its runs.parquet or runs.csv.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="results folder, e.g. results/quick")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from eqscale.errors import InputError
    from eqscale.laws import check_runs
    from eqscale.laws.table import load_table
    from eqscale.report import AXES, write_report

    found = [args.folder / name for name in ("runs.parquet", "runs.csv") if (args.folder / name).is_file()]
    if not found:
        raise InputError(f"{str(args.folder)!r} holds neither runs.parquet nor runs.csv")
    table = load_table(found[0])
    for column in ("N", "D", "loss", "arm", "budget", "status", *(axis.column for axis in AXES.values())):
        if column not in table:
            raise InputError(f"{found[0]}: the column {column!r} is missing")
    for axis in AXES.values():
        check_runs(table, {"C": axis.column}, where={"status": "finished"}, source=str(found[0]))
    write_report(table, args.folder)
    print(f"written: {args.folder / 'report.md'}")
    return 0
