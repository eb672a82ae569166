"""The packages of ``docs/architecture.md``: imports run downward only."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def _imported(path: Path) -> set[str]:
    """Packages of eqscale that a file imports anything from."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {module.split(".")[1] for module in modules if module.startswith("eqscale.")}


def test_imports_run_downward_through_the_packages_as_documented():
    rows = [line for line in (ROOT / "docs/architecture.md").read_text().splitlines() if line.startswith("| [")]
    order = [name for row in rows for name in re.findall(r"\.\./eqscale/(\w+)\)", row.split("|")[1])]
    assert set(order) == {path.parent.name for path in (ROOT / "eqscale").glob("*/__init__.py")}
    upward = [
        f"{path.relative_to(ROOT)} imports {name}"
        for depth, package in enumerate(order)
        for path in (ROOT / "eqscale" / package).rglob("*.py")
        for name in _imported(path) & set(order[:depth])
    ]
    helpers = [p for p in (ROOT / "eqscale").glob("*.py") if p.name != "__main__.py"]
    upward += [f"{path.relative_to(ROOT)} imports {name}" for path in helpers for name in _imported(path) & set(order)]
    assert not upward
