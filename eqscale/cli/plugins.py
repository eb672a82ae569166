"""Users' files of the verbs that build models."""

from __future__ import annotations

import argparse

from eqscale.plugins import given_files


def load_plugins(args: argparse.Namespace) -> None:
    """Import the files that ``--task-file``, ``--arm-file`` and ``--optimizer-file`` name.

    Raises InputError if a file doesn't exist, can't be imported, or registers nothing.
    """
    files = given_files(args)
    if any(files.values()):
        from eqscale.training import plugins  # imports torch: only if needed

        plugins.load_plugins(files)
