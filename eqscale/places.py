"""Where a study lies: its folder by its name, and the results folder that it remembers."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path

from eqscale.errors import InputError
from eqscale.storage import AnyPath, RemotePath, open_place, subfolders, write_atomically

STUDIES = "studies"
"""Default folder of studies."""

RESULTS_HELP = "results folder, or the name of its study"

_FILE = "places.json"


def check_name(study: str) -> None:
    """Raise InputError unless a study's name can be that of a folder."""
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", study):
        raise InputError(f"--study {study!r}: use letters, digits, '.', '_' and '-' only")


def remember_results(study: AnyPath, results: Path) -> None:
    """Note a study's results folder in the study's folder: relative to it on the same disk, so that both can move."""
    place = results.resolve()
    text = str(place) if isinstance(study, RemotePath) else os.path.relpath(place, study.resolve())
    write_atomically(study / _FILE, json.dumps({"results": text}).encode())


def remembered_results(study: AnyPath) -> Path | None:
    """The results folder that a study has noted, relative to the working folder if it lies in it; None if none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # not there, or damaged
        noted = Path(json.loads((study / _FILE).read_bytes())["results"])
        place = noted if isinstance(study, RemotePath) else (study.resolve() / noted).resolve()
        return place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place
    return None


def studies_in(place: AnyPath) -> list[str]:
    """Names of the studies in a folder of studies."""
    return [name for name in subfolders(place) if (place / name / "ledger").exists()]


def find_results(word: str, storage: str = STUDIES) -> Path:
    """A results folder, by its path or by the name of its study.

    Raises:
        InputError: neither is there; names the studies that are.
    """
    if (folder := Path(word)).is_dir():
        return folder
    place = open_place(storage)
    if "/" not in word and (found := remembered_results(place / word)) is not None:
        return found
    known = f"; there are: {', '.join(names)}" if (names := studies_in(place)) else ""
    raise InputError(f"{word!r} is neither a results folder nor a study in {storage!r}{known}")
