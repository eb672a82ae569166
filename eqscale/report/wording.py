"""Reading ``task.json`` of a results folder, in which the job writes the task's own words for reports."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eqscale.errors import InputError
from eqscale.wording import Noun, Wording


def read_wording(path: Path) -> Wording:
    """Read a ``task.json``.

    Raises:
        InputError: it is missing, isn't JSON, lacks an entry or has one of the wrong form.
    """
    content = read_json(path)
    if content is None:
        raise InputError(f"there is no {path}: run the study's job again, which writes it and trains nothing twice")
    return Wording(**{field.name: _entry(path, content, field.name) for field in dataclasses.fields(Wording)})


def _entry(path: Path, content: Mapping[str, Any], name: str) -> Any:
    if name not in content:
        raise InputError(f"{path}: no entry {name!r}")
    value = content[name]
    if name == "variant" and value is None:
        return None
    texts = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    if name in ("unit", "sample", "variant"):
        good, form = texts and value.keys() == {"one", "many"}, 'noun: {"one": TEXT, "many": TEXT}'
    elif name in ("metrics", "rollout"):
        good, form = texts, "mapping of texts to texts"
    else:
        good, form = isinstance(value, str), "text"
    if not good:
        raise InputError(f"{path}: entry {name!r} must be a {form}, not {value!r}")
    return Noun(**value) if name in ("unit", "sample", "variant") else value


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None if there is no such file.

    Raises:
        InputError: it isn't a JSON object.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object")
    return content
