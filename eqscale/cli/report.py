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
    import pandas as pd

    from eqscale.errors import InputError
    from eqscale.laws import check_runs
    from eqscale.report import AXES, write_report

    found = [args.folder / name for name in ("runs.parquet", "runs.csv") if (args.folder / name).is_file()]
    if not found:
        raise InputError(f"{str(args.folder)!r} holds neither runs.parquet nor runs.csv")
    table = pd.read_parquet(found[0]) if found[0].suffix == ".parquet" else pd.read_csv(found[0])
    required = ("N", "D", "loss", "arm", "budget", "status", *(axis.column for axis in AXES.values()))
    for column in required:
        if column not in table:
            raise InputError(f"{found[0]}: the column {column!r} is missing")
    check_runs(table, where={"status": "finished"}, source=str(found[0]))
    write_report(table, args.folder)
    print(f"written: {args.folder / 'report.md'}")
    return 0
