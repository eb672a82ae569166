"""A study in which a trial fails however often it is tried."""

import shutil

import pandas as pd

from tests.jobs import TINY_ARGUMENTS, run_here
from tests.report.planted import undrawn_figures

BROKEN_ARM = """
import dataclasses
from eqscale.arms import get_arm, register
from eqscale.arms.plain import PlainModel

plain = get_arm("transformer")


class Broken(PlainModel):
    def forward(self, batch):
        raise RuntimeError("the widest size is broken")


def build(size, task):
    model = plain.build(size, task)
    return Broken(model.net.config) if size.width == 20 else model


# larger sizes than the plain arm's: one run has the widest
register(dataclasses.replace(plain, name="broken", build=build, optimal_cost=6 * plain.optimal_cost))
"""


def test_failing_trials_do_not_stop_the_study(tmp_path, shared_ray, empty_database):
    (tmp_path / "broken.py").write_text(BROKEN_ARM)
    shutil.copy(empty_database, tmp_path / "mlruns.db")
    arms = ("--arm-file", "broken.py", "--arms", "broken", "transformer")
    with undrawn_figures():
        result = run_here(tmp_path, "grid", *TINY_ARGUMENTS, *arms, ray=shared_ray)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "RuntimeError: the widest size is broken" in result.stdout
    rows = pd.read_csv(tmp_path / "results/quick/runs.csv").groupby("arm")["status"].value_counts()
    assert rows.to_dict() == {("broken", "failed"): 1, ("broken", "finished"): 8, ("transformer", "finished"): 9}
    assert "failed" in (tmp_path / "results/quick/report.md").read_text()
