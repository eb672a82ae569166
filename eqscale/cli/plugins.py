"""The options by which commands get users' arms, tasks and optimisers."""

from __future__ import annotations

import argparse

_KINDS = ("task", "arm", "optimizer")


def add_plugin_options(parser: argparse._ActionsContainer) -> None:
    """Add ``--task-file``, ``--arm-file`` and ``--optimizer-file``; each may be given several times."""
    for kind in _KINDS:
        help_text = f"Python file that registers a {kind}".replace("a arm", "an arm").replace("a opt", "an opt")
        parser.add_argument(f"--{kind}-file", action="append", default=[], metavar="FILE.py", help=help_text)


def load_plugins(args: argparse.Namespace) -> None:
    """Import the files that were given.

    Raises:
        InputError: if a file doesn't exist, can't be imported, or registers nothing.
    """
    files = {kind: getattr(args, f"{kind}_file") for kind in _KINDS}
    if any(files.values()):
        from eqscale.training import plugins  # imports torch: only if needed

        plugins.load_plugins(files)
