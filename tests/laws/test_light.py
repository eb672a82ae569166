"""The law commands run where only numpy, scipy, pandas, matplotlib and rich are installed."""

import subprocess
import sys

import pandas as pd
import pytest

HEAVY = (
    "torch", "ray", "mlflow", "optuna", "pyarrow", "mujoco", "trimesh", "jinja2", "markdown_it", "psutil", "filelock",
    "eqscale.algebra", "eqscale.arms", "eqscale.measure", "eqscale.models", "eqscale.report", "eqscale.study",
    "eqscale.tasks", "eqscale.training",
)  # fmt: skip
RUNNER = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if any(name == heavy or name.startswith(heavy + ".") for heavy in {HEAVY!r}):
            raise ImportError(f"{{name}} is not installed")

sys.meta_path.insert(0, Blocked())
from eqscale.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit", "--by", "arm", "--figures", "figures", "--json", "out.json", "--markdown", "out.md"],
        ["compare", "--reference", "a", "--json", "out.json"],
        ["plan", "--compute", "1e22", "--json", "out.json"],
        ["design", "--question", "gap@1e22", "--spend", "1e20", "--json", "out.json"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_law_commands_need_none_of_the_heavy_packages(isoflop, tmp_path, arguments):
    both = pd.concat([isoflop.assign(arm="a"), isoflop.assign(arm="b", loss=0.9 * isoflop.loss)])
    both.to_csv(tmp_path / "runs.csv", index=False)
    command = [arguments[0], "runs.csv", "--resamples", "10", *arguments[1:]]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out.json").exists()
