"""The console of commands and jobs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console

_LOG_WIDTH = 140


def make_console() -> Console:
    """As wide as the terminal, or wide enough for tables in a log file or a pipe."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=_LOG_WIDTH, highlight=False)


@contextlib.contextmanager
def doing(console: Console, what: str) -> Iterator[None]:
    """Show what takes seconds: a spinner on a terminal, elsewhere a line."""
    if console.is_terminal:
        with console.status(f"{what} …"):
            yield
    else:
        console.print(f"{what} …")
        yield
