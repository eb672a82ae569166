"""``eqscale report``: rebuild fits, figures and reports from a study's run tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from eqscale.errors import InputError
from eqscale.places import RESULTS_HELP, find_results

_HELP = """\
Rebuild everything that is published about a study from its run tables: fits, figures, report.md and
report.html. The folder may hold

  task.json             the task's own words for the report, from the job
  runs.csv              the compute grid: budgets x arms x sizes x seeds
  data_grid/runs.csv    fewer and fewer unique units of data
  controls/runs.csv     arms whose symmetry is broken, other variants of the data
  validation/runs.csv   runs above the compute grid's budgets, made after their prediction
  step_times.csv        time of a training step of every shape, from eqscale time
  prediction_*.json     from eqscale predict
  evaluation/*.json     measurements of trained models, from eqscale measure or eqscale evaluate --json
  evaluation/*.gif      a prediction beside the truth, from eqscale measure

The compute grid or the data grid must be there; or the folder is that of eqscale run optimizers.
"""


def register(verbs: argparse._SubParsersAction) -> None:
    """Add the verb ``report``."""
    parser = verbs.add_parser(
        "report",
        help="rebuild the fits, figures and report of a results folder from its run tables",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", metavar="DIR", nargs="+", help=RESULTS_HELP)
    parser.add_argument(
        "--joint", metavar="DIR", type=Path, help="also write a page here that compares the studies, of different tasks"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from eqscale.report.joint import check_joint, write_joint
    from eqscale.report.study import write_report, write_study_report

    if (args.joint is not None) != (len(args.folders) > 1):
        raise InputError("--joint DIR takes two or more results folders, and two or more need it")
    folders = [find_results(name) for name in args.folders]
    if args.joint is None:
        written = [write_report(folder) for folder in folders]
    else:
        check_joint(folders, args.joint)
        contents = [write_study_report(folder) for folder in folders]
        write_joint(contents, args.joint)
        written = [*(content.study.folder for content in contents), args.joint]
    for folder in written:
        print("written:", " and ".join(str(page) for page in sorted(folder.glob("report.[mh]*"), reverse=True)))
    return 0
