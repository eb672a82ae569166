"""``study.json`` of a results folder: what the last start of a study wrote about itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TYPES = {"study": str, "preset": str, "values": dict, "stage_seconds": dict, "runs": list}


def description_path(results: Path) -> Path:
    """The description in a results folder."""
    return results / "study.json"


def read_description(results: Path) -> dict[str, Any] | None:
    """Study, preset, its values, seconds of the stages and identities of the planned runs, as far as they are there.

    Returns:
        None if it is damaged, which costs no result: every start of the study writes it anew.
    """
    path = description_path(results)
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return None
    if not isinstance(content, dict) or any(not isinstance(content.get(k, t()), t) for k, t in _TYPES.items()):
        return None
    numbers = all(isinstance(seconds, (int, float)) for seconds in content.get("stage_seconds", {}).values())
    return content if numbers and all(isinstance(run_id, str) for run_id in content.get("runs", ())) else None
