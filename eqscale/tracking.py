"""Which MLflow server or database: one rule for all commands."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote, unquote

from eqscale.errors import InputError

_SQLITE = "sqlite:///"
_VARIABLE = "MLFLOW_TRACKING_URI"
TRACKING_HELP = f"MLflow tracking URI (default: ${_VARIABLE}, or else mlruns.db in this folder)"


def tracking_uri(given: str | None = None) -> str:
    """The tracking URI of every command: the one given, else ``MLFLOW_TRACKING_URI``, else ``./mlruns.db``."""
    return given or os.environ.get(_VARIABLE) or f"{_SQLITE}{quote(str(Path.cwd() / 'mlruns.db'))}"


def database(uri: str) -> Path | None:
    """The file of a tracking URI that names an SQLite database, None of any other."""
    return Path(unquote(uri.removeprefix(_SQLITE))) if uri.startswith(_SQLITE) else None


def existing(uri: str) -> str:
    """A tracking URI to read from; MLflow would create a database that isn't there.

    Raises:
        InputError: it names a file that doesn't exist.
    """
    file = database(uri)
    if file is not None and not file.is_file():
        raise InputError(
            f"there is no MLflow database {str(file)!r}: run a study here first, or name another with --tracking-uri "
            f"or {_VARIABLE} (http://HOST:PORT or sqlite:///FILE)"
        )
    return uri
