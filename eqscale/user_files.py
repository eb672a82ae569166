"""Python files of users that register something: an arm, a form of a law."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence, Sized
from pathlib import Path

from eqscale.errors import InputError


def import_files(files: Sequence[str], what: str, registry: Sized) -> None:
    """Import files, each once per process.

    Args:
        files: paths of Python files.
        what: what they register, for messages, such as ``form``.
        registry: where it is registered.

    Raises:
        InputError: a file doesn't exist, can't be imported, or registers nothing.
    """
    for file in files:
        name = f"eqscale_{what}_{Path(file).stem}"
        if name in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None or not Path(file).is_file():
            raise InputError(f"{what} file {file!r} is not a readable Python file")
        before = len(registry)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise InputError(f"{what} file {file!r} can't be imported: {error}") from error
        if len(registry) == before:
            del sys.modules[name]
            raise InputError(f"{what} file {file!r} registers no {what}")
