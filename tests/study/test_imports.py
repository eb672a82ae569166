"""What doesn't train runs without Ray, and local files are written without pyarrow."""

import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = """
import importlib, pkgutil, runpy, sys
sys.modules["ray"] = None  # every import of it is an ImportError
"""
MODULES = """
import eqscale.study
for module in pkgutil.iter_modules(eqscale.study.__path__):
    if module.name not in ("backend", "gang"):
        importlib.import_module(f"eqscale.study.{module.name}")
"""
VERBS = """
from eqscale.cli import main
assert main(["simulate", "--preset", "quick", "--gpus", "2"]) == 0
for verb in ("check", "evaluate", "time", "measure"):
    assert main([verb, "absent", "--arm-file", "benchmarks/faults/counted_arm.py"]) == 2, verb
assert main(["report", "absent"]) == 2
"""
STORAGE = """
import pathlib, tempfile
sys.modules |= {"pyarrow": None, "fsspec": None}
from eqscale.storage import check_writable, matching, open_place, remove_folder, subfolders, write_atomically
folder = open_place(tempfile.mkdtemp())
check_writable(folder / "new", "folder")
write_atomically(folder / "new" / "file", b"content")
assert subfolders(folder) == ["new"] and [path.name for path in matching(folder / "new", "*")] == ["file"]
remove_folder(folder)
"""
JOB = """
sys.argv = ["compute_grid.py", "--dry-run"]
try:
    runpy.run_path("tune_jobs/compute_grid.py", run_name="__main__")
except SystemExit as end:
    assert end.code == 0
else:
    raise AssertionError("the job didn't exit")
"""


@pytest.mark.parametrize("code", [MODULES + VERBS + JOB, STORAGE], ids=["modules, verbs, dry run", "local files"])
def test_what_does_not_train_runs_without_ray_and_local_files_without_pyarrow(code):
    command = [sys.executable, "-c", BLOCKED + code]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
