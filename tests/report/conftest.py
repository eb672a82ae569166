import shutil

import numpy as np
import pandas as pd
import pytest

from eqscale.cli import main
from eqscale.report import analysis
from eqscale.report.study import write_report
from tests.report import planted


@pytest.fixture(autouse=True, scope="session")
def _few_resamples():
    """A fifth of the usual resamples: enough for intervals that a test can rely on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "RESAMPLES", 200)
        yield


@pytest.fixture(scope="session")
def like_the_paper(tmp_path_factory, _few_resamples):
    """A study with every part, planted to reproduce all three conclusions; one was lost, two are unplanned."""
    folder = tmp_path_factory.mktemp("like")
    arms = planted.LIKE_THE_PAPER
    table = planted.compute_grid(arms).assign(equivariance_yaw=0.03, nmse_free=0.1)
    table.loc[0, ["status", "loss", "name"]] = ["diverged", np.nan, "lost-run"]
    table.loc[0, "reason"] = "its loss is NaN"
    table.loc[1, "name"] = "<script>alert(1)</script>"
    former = table.tail(2).assign(status="unplanned", name="former-shape", reason="finished, not in the study's plan")
    planted.write_part(pd.concat([table, former]), folder)
    planted.write_part(planted.data_grid(arms), folder / "data_grid")
    planted.write_part(planted.controls(arms), folder / "controls")
    planted.write_evaluation(folder, "gatr")
    assert main(["predict", str(folder), "--compute", "3e13"]) == 0
    planted.write_part(planted.validation(arms, 3e13).assign(nmse_free=0.1), folder / "validation")
    write_report(folder)
    return folder


@pytest.fixture
def copy_inputs():
    """Copy the run tables and the prediction of a study, without its report."""

    def copy(source, target):
        for path in source.rglob("*"):
            if path.name in ("runs.csv", "task.json", "prediction_3e13.json", "gatr.json", "gatr.gif"):
                (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / path.relative_to(source))

    return copy
