import dataclasses
import json
import re

import pandas as pd
import pytest

from eqscale.cli import main
from eqscale.errors import InputError
from eqscale.report.joint import check_joint, write_joint
from eqscale.report.split import MEASURED
from eqscale.report.study import write_study_report
from eqscale.tasks import get_task
from tests.report import planted


def test_a_joint_page_says_where_the_tasks_disagree(tmp_path):
    folders = []
    for task, arms in (("rigid", planted.LIKE_THE_PAPER), ("forces", planted.UNLIKE_THE_PAPER)):
        folders.append(tmp_path / task)
        planted.write_part(planted.compute_grid(arms), folders[-1])
        (folders[-1] / "task.json").write_text(json.dumps(dataclasses.asdict(get_task(task).words)))
    assert main(["predict", str(folders[0]), "--compute", "3e13"]) == 0
    planted.write_part(planted.validation(planted.LIKE_THE_PAPER, 3e13), folders[0] / "validation")
    (folders[0] / "validation/study.json").write_text(json.dumps({"runs": ["to come"]}))
    with planted.undrawn_figures():
        contents = [write_study_report(folder) for folder in folders]
        parts = pd.DataFrame({"budget": 1e13, "part": MEASURED.keys(), "ratio": 2.0, "low": 1.9, "high": 2.1})
        contents[0] = dataclasses.replace(contents[0], split=parts)
        write_joint(contents, tmp_path / "joint")
    text = (tmp_path / "joint/report.md").read_text()
    assert "disagree at their largest budgets. Lowest is `gatr` for sure on rigid, `transformer` for sure on f" in text
    assert "`gatr` on forces at 1e10" in text
    assert "[forces](../forces/report.md)" in text
    assert (
        "| each arm's loss falls as a power law of compute | holds (`gatr`) | holds (`gatr`) | holds (`gatr`) |" in text
    )
    assert "| the equivariant arm is ahead at every tested budget | holds (`gatr`) | fails (`gatr`) | – |" in text
    last = text.split("## Does it last above these budgets?")[1].split("##")[0]
    best = pd.read_csv(folders[0] / "validation.csv").groupby("arm")["observed"].min()
    ratio, *limits = re.findall(r"\| rigid \| 3e13 \| \*\*best\*\* \| (\S+) \[(\S+), (\S+)\] \|", last)[0]
    assert float(ratio) == pytest.approx(best["transformer"] / best["gatr"], rel=0.01)
    assert float(limits[0]) < float(ratio) < float(limits[1])
    assert "forces" not in last
    assert "Unfinished (planned runs that haven't ended): rigid 1." in last
    assert "- Unfinished (planned runs that haven't ended): validation 1." in (folders[0] / "report.md").read_text()
    assert "| lead | 2.00 [1.90, 2.10] |\n| asymmetry | 2.00 [1.90, 2.10] |" in text
    table = pd.read_csv(tmp_path / "joint/joint.csv").set_index(["task", "arm", "budget"])
    behind = table.loc[("rigid", "transformer", 1e13)]
    laws = [planted.optimal_loss(*planted.LIKE_THE_PAPER[arm][:2], 1e13) for arm in ("transformer", "gatr")]
    assert behind["ratio"] == pytest.approx(laws[0] / laws[1], rel=0.03)
    assert behind["low"] < behind["ratio"] < behind["high"]
    with pytest.raises(InputError, match="compares different tasks"):
        check_joint([folders[0], folders[0]], tmp_path / "other")
    for taken in (folders[0], tmp_path / "joint/report.md"):  # whose own report would be lost
        with pytest.raises(InputError, match="give a folder of its own"):
            check_joint(folders, taken)
