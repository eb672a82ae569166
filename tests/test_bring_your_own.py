"""A task, an arm, an optimiser and a law, each from a file, go the whole way: plan, train, table, fit, report."""

import json
import re
import shutil

import pandas as pd
import pytest

from eqscale.cli import main
from tests.jobs import ROOT, forgotten_plugins, run_here
from tests.report.planted import undrawn_figures

TASK = ROOT / "docs" / "examples" / "charged_particles.py"
ARM = """
import dataclasses
from eqscale.arms import get_arm, register
from eqscale.roles import Role

register(dataclasses.replace(get_arm("gatr"), name="second", role=Role.BUILD_IN))
"""


def code(page, part):
    """The Python of a page of the docs that holds ``part``."""
    text = (ROOT / "docs" / page).read_text()
    return next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if part in block)


@pytest.fixture(scope="module")
def study(tmp_path_factory, shared_ray, empty_database):
    """The results of a small grid of the main job on a task, with an arm and an optimiser, from files."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "arm.py").write_text(ARM)
    (folder / "sgd.py").write_text(code("your_own_arm.md", "Optimizer("))
    shutil.copy(empty_database, folder / "mlruns.db")
    arguments = ["--study", "own", "--task-file", str(TASK), "--task", "charged_particles", "--particles", "3"]
    arguments += ["--arm-file", "arm.py", "--arms", "transformer", "gatr", "second"]
    arguments += ["--optimizer-file", "sgd.py", "--optimizer", "sgd", "--train-systems", "150", "--test-systems", "20"]
    arguments += ["--budgets", "3e7", "1e8", "3e8", "--sizes-per-budget", "3", "--min-steps", "2", "--batch-size", "16"]
    with undrawn_figures():
        ended = run_here(folder, "grid", *arguments, ray=shared_ray)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return folder / "results" / "own"


def test_every_run_is_in_the_table_with_its_task_arm_and_optimiser(study):
    runs = pd.read_csv(study / "runs.csv")
    assert set(runs["status"]) == {"finished"}
    assert runs.groupby("arm").size().to_dict() == {"transformer": 9, "gatr": 9, "second": 9}
    assert set(runs["task"]) == {"charged_particles"}
    assert set(runs["optimizer"]) == {"sgd"}
    assert set(runs["unique_trajectories"]) == {150}
    assert (runs["mse"] > 0).all()
    assert runs["name"].str.startswith("charged_particles-").all()
    exact = runs[runs["arm"] != "transformer"]
    assert (exact["equivariance_rotation"] < 1e-4).all()
    plain = runs[runs["arm"] == "transformer"]
    assert (plain["equivariance_rotation"] > 1e-3).all()


def test_the_report_speaks_of_the_task_and_weighs_every_arm_that_builds_the_symmetry_in(study):
    report = (study / "report.md").read_text()
    assert "trajectories" in report
    assert not re.search(r"\b(scene|vertex|vertices|ballistic|window)s?\b", report)
    verdicts = json.loads((study / "conclusions.json").read_text())
    assert all(name in json.dumps(verdicts) for name in ("gatr", "second"))
    assert "MSE of a coordinate" in report
    assert "Optimiser: sgd." in report


def test_a_form_from_a_file_is_fitted_to_the_table(study, tmp_path, capsys):
    (tmp_path / "coupled.py").write_text(code("laws.md", "register("))
    arguments = ["fit", str(study / "runs.csv"), "--where", "status=finished", "--map", "C=flops_executed"]
    arguments += ["--form-file", str(tmp_path / "coupled.py"), "--form", "coupled", "--bootstrap", "none"]
    with forgotten_plugins():
        assert main(arguments) == 0
    assert "c sqrt(A/N^alpha" in capsys.readouterr().out
