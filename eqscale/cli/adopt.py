"""``eqscale adopt``: a study takes over records that were trained outside it."""

from __future__ import annotations

import argparse
from pathlib import Path

from eqscale.cli.plugins import load_plugins
from eqscale.errors import InputError
from eqscale.places import STUDIES, check_name
from eqscale.plugins import add_plugin_options


def register(verbs: argparse._SubParsersAction) -> None:
    """Add the verb ``adopt``."""
    parser = verbs.add_parser(
        "adopt",
        help="take records of eqscale train, or of another study's results, over into a study",
        description="Take records over into the ledger of a study: of eqscale train, or the records.jsonl of a results "
        "folder. A run keeps its identity; one that the ledger has already is not doubled. Then start the study's job "
        "again: it trains what is missing and reports.",
        epilog="Example: eqscale adopt part*.jsonl --study cpu && eqscale run grid --preset cpu",
    )
    parser.add_argument("records", nargs="+", type=Path, metavar="FILE", help="files of records, or results folders")
    parser.add_argument("--study", required=True, help="name of the study; made if it isn't there")
    parser.add_argument("--storage", default=STUDIES, help=f"folder of studies, or a URI (default: {STUDIES})")
    add_plugin_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    check_name(args.study)
    load_plugins(args)
    from eqscale.storage import check_writable, open_place
    from eqscale.study.lease import only_driver
    from eqscale.study.ledger import Ledger
    from eqscale.study.records import read_records

    sources = [read_records(path).require_sound() for path in args.records]
    for path, source in zip(args.records, sources, strict=True):
        if not source.path.is_file():
            raise InputError(f"there are no records at {path}")
        if not source.records and not source.failures:
            raise InputError(f"{source.path} holds no record of the present results version")
    study = open_place(args.storage) / args.study
    check_writable(study, "study folder")
    ledger = Ledger(study / "ledger")
    with only_driver(study) as still_ours:
        for source in sources:
            adopted = source.adopt(ledger, still_ours)
            known = len(source.records) - adopted
            counts = {"it had already": known, "failed": len(source.failures)}
            notes = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
            others = f" ({notes})" if notes else ""
            print(f"{source.path}: {adopted} records adopted by study {args.study}{others}")
    return 0
