"""``eqscale report``: rebuild fits, figures and reports from a study's run tables."""

from __future__ import annotations

import argparse
from pathlib import Path

_HELP = """\
Rebuild everything that is published about a study from its run tables: fits, figures, report.md and
report.html. The folder must hold the run table of a compute grid (runs.csv) or of a data grid
(data_grid/runs.csv); docs/report.md lists what else it may hold.
"""


def register(verbs: argparse._SubParsersAction) -> None:
    """Add the verb ``report``."""
    parser = verbs.add_parser(
        "report",
        help="rebuild the fits, figures and report of a results folder from its run tables",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="results folder, e.g. results/quick")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from eqscale.report import write_report

    folder = write_report(args.folder)
    print(f"written: {folder / 'report.md'} and {folder / 'report.html'}")
    return 0
