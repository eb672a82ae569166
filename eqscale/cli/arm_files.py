"""The option ``--arm-file`` of the verbs that build models."""

from __future__ import annotations

import argparse


def add_arm_file_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--arm-file``, which may be given several times."""
    parser.add_argument(
        "--arm-file", action="append", default=[], metavar="FILE.py", help="Python file that registers an arm"
    )


def load_arm_files(args: argparse.Namespace) -> None:
    """Import the files that were given.

    Raises:
        InputError: if a file doesn't exist or can't be imported.
    """
    if args.arm_file:
        from eqscale.study import trials  # imports torch: only if needed

        trials.load_arm_files(args.arm_file)
