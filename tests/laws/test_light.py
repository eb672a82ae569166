"""The law commands run where only numpy, scipy, pandas and rich are installed; figures need matplotlib beside them."""

import json
import subprocess
import sys

import pandas as pd

HEAVY = (
    "torch", "ray", "mlflow", "optuna", "pyarrow", "openpyxl", "mujoco", "trimesh", "jinja2", "markdown_it", "psutil",
    "filelock", "eqscale.algebra", "eqscale.arms", "eqscale.measure", "eqscale.models", "eqscale.report",
    "eqscale.study", "eqscale.tasks", "eqscale.training",
)  # fmt: skip
COMMANDS = [
    ["fit", "--by", "arm", "--json", "fit.json", "--markdown", "out.md"],
    ["compare", "--reference", "a", "--json", "compare.json"],
    ["plan", "--compute", "1e22", "--json", "plan.json"],
    ["design", "--question", "gap@1e22", "--spend", "1e20", "--json", "design.json"],
    ["predict", "--at", "N=1e9,D=1e10", "--json", "predict.json"],
]
LACKING = ["fit", "--by", "arm", "--figures", "figures"]
RUNNER = """
import json, sys

blocked, commands = json.loads(sys.argv[1])

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if any(name == heavy or name.startswith(heavy + ".") for heavy in blocked):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from eqscale.cli import main

for verb, *options in commands:
    assert main([verb, "runs.csv", "--resamples", "10", *options]) == ("--figures" in options) * 2, verb
if "matplotlib" not in blocked:
    import eqscale.laws.plots
"""


def run_blocked(folder, blocked, commands):
    command = [sys.executable, "-c", RUNNER, json.dumps([blocked, commands])]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_law_commands_need_none_of_the_heavy_packages(isoflop, tmp_path):
    both = pd.concat([isoflop.assign(arm="a"), isoflop.assign(arm="b", loss=0.9 * isoflop.loss)])
    both.to_csv(tmp_path / "runs.csv", index=False)
    printed = run_blocked(tmp_path, [*HEAVY, "matplotlib"], [*COMMANDS, LACKING])
    assert printed == "error: this needs the package 'matplotlib', which is not installed\n"
    assert {path.stem for path in tmp_path.glob("*.json")} == {verb for verb, *_ in COMMANDS}


def test_the_figures_need_matplotlib_alone(tmp_path):
    assert run_blocked(tmp_path, HEAVY, []) == ""
