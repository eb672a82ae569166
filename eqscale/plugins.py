"""Python files of users that register tasks, arms, optimisers or forms of laws, imported once per process."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from eqscale.errors import InputError

KINDS = ("task", "arm", "optimizer")
"""What a file may register; each has an option ``--KIND-file``."""

_loaded: dict[str, str] = {}  # resolved path -> what it was to register


def add_plugin_options(parser: argparse._ActionsContainer) -> None:
    """Add ``--task-file``, ``--arm-file`` and ``--optimizer-file``; each may be given several times."""
    for kind in KINDS:
        parser.add_argument(
            f"--{kind}-file",
            action="append",
            default=[],
            metavar="FILE.py",
            help=f"Python file that registers {'a' if kind == 'task' else 'an'} {kind}",
        )


def given_files(args: argparse.Namespace) -> dict[str, list[str]]:
    """The files that were named, by kind."""
    return {kind: getattr(args, f"{kind}_file") for kind in KINDS}


def load_files(files: Sequence[str], what: str, names: Callable[[], Collection[str]]) -> None:
    """Import files that register something.

    Args:
        files: paths.
        what: one of ``KINDS``, or ``form``.
        names: lists the names that are registered.

    Raises:
        InputError: if a file doesn't exist, can't be imported or registers nothing.
    """
    for file in files:
        path = str(Path(file).resolve())
        if path in _loaded:
            continue
        name = f"eqscale_plugin_{hashlib.sha256(path.encode()).hexdigest()[:12]}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not Path(path).is_file():
            raise InputError(f"{what} file {file!r} is not a readable Python file")
        before = set(names())
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # so that what it defines can be pickled
        _forget_neighbours_of_others(Path(path).parent)
        sys.path.insert(0, str(Path(path).parent))  # a file may import its neighbours
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise InputError(f"{what} file {file!r} can't be imported: {' '.join(str(error).split())}") from error
        finally:
            sys.path.remove(str(Path(path).parent))
        if not set(names()) - before:
            raise InputError(f"{what} file {file!r} registers no {what}: end it with register(…)")
        _loaded[path] = what


def _forget_neighbours_of_others(folder: Path) -> None:
    """What a file of another folder imported mustn't stand for a neighbour of the same name."""
    others = {Path(path).parent for path in _loaded} - {folder}
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "/")
        if file.parent in others and (folder / file.name).is_file():
            del sys.modules[name]


def loaded_files(what: str) -> list[str]:
    """Resolved paths of the imported files of that kind."""
    return [path for path, kind in _loaded.items() if kind == what]
