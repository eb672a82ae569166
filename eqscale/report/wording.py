"""What a report calls the things of a study's task: ``task.json`` of the results folder, which the job writes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eqscale.errors import InputError


@dataclasses.dataclass(frozen=True)
class Noun:
    """A word and its plural."""

    one: str
    many: str


@dataclasses.dataclass(frozen=True)
class Wording:
    """A task in the words of its report."""

    name: str
    sentence: str
    """What is predicted from what; no full stop."""
    unit: Noun
    """An independent unit of the data, of which a run has so many; the run table counts them as ``unique_MANY``."""
    trivial: str
    """The predictor whose loss is 1."""
    metrics: Mapping[str, str]
    """Column of the run table -> heading with unit: further errors of the best models."""
    metrics_note: str
    """What these are, in whole sentences."""
    variant: Noun | None
    """An option of the task that controls vary, named as its column: runs that differ in it alone are compared."""
    rollout: Mapping[str, str]
    """Error of a rollout in evaluations -> heading with unit; empty for a task without rollouts."""
    animation: str
    """Caption of an animated prediction, in whole sentences."""


def read_wording(path: Path) -> Wording:
    """Read a ``task.json``.

    Raises:
        InputError: it isn't there, isn't JSON, lacks an entry, or one has another form.
    """
    content = read_json(path)
    if content is None:
        raise InputError(
            f"there is no {path}: run the study's job again, which writes it and trains nothing twice"
        )
    return Wording(**{field.name: _entry(path, content, field.name) for field in dataclasses.fields(Wording)})


def _entry(path: Path, content: Mapping[str, Any], name: str) -> Any:
    if name not in content:
        raise InputError(f"{path}: no entry {name!r}")
    value = content[name]
    if name == "variant" and value is None:
        return None
    texts = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    if name in ("unit", "variant"):
        good, form = texts and value.keys() == {"one", "many"}, 'noun: {"one": TEXT, "many": TEXT}'
    elif name in ("metrics", "rollout"):
        good, form = texts, "mapping of texts to texts"
    else:
        good, form = isinstance(value, str), "text"
    if not good:
        raise InputError(f"{path}: entry {name!r} must be a {form}, not {value!r}")
    return Noun(**value) if name in ("unit", "variant") else value


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None if there is no such file.

    Raises:
        InputError: it isn't JSON, or no object.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object")
    return content
