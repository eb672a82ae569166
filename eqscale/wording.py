"""The terms for a task in tables and reports: declared by the task, published beside its runs as ``task.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Noun:
    """A word and its plural."""

    one: str
    many: str


@dataclasses.dataclass(frozen=True)
class Wording:
    """The terms that tables and reports use for a task."""

    name: str
    """Of the task."""
    sentence: str
    """What is predicted from what; no full stop."""
    unit: Noun = Noun("system", "systems")
    """An independent unit of the data; the run table counts them as ``unique_MANY``."""
    sample: Noun = Noun("sample", "samples")
    """What a batch holds; the run table counts them as ``unique_MANY`` too."""
    trivial: str = "predicting zero"
    """The predictor whose loss is 1."""
    metrics: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Column of the run table -> heading with unit: further errors of the best models."""
    metrics_note: str = ""
    """Explains ``metrics``, in whole sentences."""
    variant: Noun | None = None
    """An option of the task that controls vary, named as its column: runs that differ in it alone are compared."""
    rollout: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Error of a rollout in evaluations -> heading with unit; empty for a task without rollouts."""
    animation: str = ""
    """Caption of an animated prediction, in whole sentences."""
