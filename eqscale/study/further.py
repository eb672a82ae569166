"""``further_runs.json`` of a results folder: runs that were chosen after a study's grid, and belong to its plan."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eqscale.errors import InputError
from eqscale.storage import write_atomically
from eqscale.study.grid import further_grid
from eqscale.study.options import JobOptions
from eqscale.study.presets import ComputeGrid
from eqscale.study.records import read_records
from eqscale.training.spec import RunSpec

_TYPES = {"arm": str, "budget": float, "size": str, "seed": int}


def _path(results: Path) -> Path:
    return results / "further_runs.json"


def read_further(results: Path) -> list[dict[str, Any]]:
    """What was chosen so far: arm, budget, size and seed of each run.

    Raises:
        InputError: a damaged file.
    """
    path = _path(results)
    if not path.is_file():
        return []
    try:
        return [{name: kind(entry[name]) for name, kind in _TYPES.items()} for entry in json.loads(path.read_bytes())]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}): restore it") from error


def add_further(results: Path, chosen: Sequence[RunSpec]) -> None:
    """Make runs part of a study's plan."""
    new = [{"arm": s.arm, "budget": s.budget, "size": str(s.size), "seed": s.seed} for s in chosen]
    lines = ",\n".join(f" {json.dumps(entry)}" for entry in [*read_further(results), *new])
    write_atomically(_path(results), f"[\n{lines}\n]\n".encode())


def unfinished(options: JobOptions[ComputeGrid]) -> list[RunSpec]:
    """Runs that were chosen earlier and have not ended."""
    ledger, published = options.storage.ledger, read_records(options.results)
    ended = published.records.keys() | published.failures.keys() | ledger.failures().keys()
    specs = further_grid(options.preset, read_further(options.results))
    return [spec for spec in specs if spec.run_id not in ended and spec.run_id not in ledger]
