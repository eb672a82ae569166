"""Reports follow the roles of arms, whatever they are called."""

import json
import re

import pandas as pd
import pytest

from eqscale.errors import InputError
from eqscale.report.parts import read_study
from tests.report import planted

ARMS = planted.LIKE_THE_PAPER


def with_a_second(table, loss):
    """The table with another built-in arm, whose losses are gatr's times a factor."""
    gatr = table[(table["arm"] == "gatr") & (table["frame"] == "random")]
    return pd.concat([table, gatr.assign(arm="egnn", loss=loss * gatr["loss"], run_id="egnn" + gatr["run_id"])])


def renamed(table, names):
    return table.assign(arm=table["arm"].replace(names), control_of=table["control_of"].replace(names))


def tables(text):
    """Title -> header and rows of every table with a number."""
    found = re.findall(r"\*\*Table \d+\. (.*?)\.\*\*.*\n\n((?:\|.*\n)+)", text)
    return {title: rows for title, rows in found}


@pytest.fixture(scope="module")
def two_built_in(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    planted.write_part(with_a_second(planted.compute_grid(ARMS, budgets=planted.BUDGETS[:3]), 1.1), folder)
    planted.write_part(with_a_second(planted.data_grid(ARMS), 1.1), folder / "data_grid")
    planted.write_part(planted.controls(ARMS), folder / "controls")
    planted.write_text(folder)
    return folder


def test_a_second_built_in_arm_is_in_every_table(two_built_in):
    found = tables((two_built_in / "report.md").read_text())
    assert len(found) >= 8
    without = {title for title, rows in found.items() if "egnn" not in rows}
    assert without <= {"Law of repeated data", "Controls"}  # which are those of gatr
    assert "loss over egnn" in (two_built_in / "minima.csv").read_text()


def test_a_second_built_in_arm_has_conclusions_of_its_own(two_built_in):
    record = json.loads((two_built_in / "conclusions.json").read_text())
    assert {(c["arm"], c["baseline"]) for c in record} == {("gatr", "transformer"), ("egnn", "transformer")}
    assert len(record) == 14
    text = (two_built_in / "report.md").read_text()
    # one sentence for both where the verdict is the same
    verdicts = re.findall(r"^`gatr`(?:: \*\*\w+.*;|,) `egnn`: \*\*\w+.*\. Shown by", text, re.MULTILINE)
    assert len(verdicts) == 3
    assert text.count("Scarce data, at one budget") == 1
    assert re.search(r", repetition costs `transformer` and .* it costs `gatr` .*; `egnn` ", text)
    assert "Loss relative to that of gatr\n" in text  # the better of the two
    assert "(loss_ratio.png)" in text


def test_the_built_in_arm_with_the_lower_loss_comes_first(tmp_path):
    planted.write_part(with_a_second(planted.compute_grid(ARMS, seeds=(0,)), 0.9), tmp_path)
    roles = read_study(tmp_path).roles
    assert roles.built_in == ("egnn", "gatr")
    assert roles.baseline == "transformer"
    assert roles.augmented is None


def test_names_mean_nothing(tmp_path, like_the_paper, copy_inputs):
    copy_inputs(like_the_paper, tmp_path)
    names = {"transformer": "simple", "transformer_aug": "turned", "gatr": "exact", "gatr_turned": "inexact"}
    for path in tmp_path.rglob("runs.csv"):
        renamed(pd.read_csv(path, float_precision="round_trip"), names).to_csv(path, index=False)
    (tmp_path / "prediction_3e13.json").unlink()
    planted.write_text(tmp_path)
    verdicts = {c["verdict"] for c in json.loads((tmp_path / "conclusions.json").read_text())}
    assert verdicts == {"reproduced"}
    assert "| `inexact` | random | 1e11 | 5000 | 0.2886 (2 seeds) | – | 1.30 [" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("lacks", "said"),
    [("gatr", "no arm that builds the symmetry in"), ("transformer", "no arm that learns the symmetry")],
)
def test_a_study_that_lacks_a_role_says_what_cannot_be_concluded(tmp_path, lacks, said):
    table = planted.compute_grid(ARMS, seeds=(0,), sizes=4)
    table = table[table["arm"] != lacks]
    other = table.assign(arm="another", role="align", run_id="another" + table["run_id"])
    planted.write_part(pd.concat([table, other]), tmp_path)
    planted.write_text(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert f"- The study has {said}: the paper's conclusions, which compare the two, stay open." in text
    assert f"the study has {said} |" in text
    record = json.loads((tmp_path / "conclusions.json").read_text())
    assert {c["verdict"] for c in record} == {"not decidable at this scale"}
    assert "no table" not in text
    assert "no figure" not in text


def test_colours_follow_the_role(tmp_path):
    planted.write_part(with_a_second(planted.compute_grid(ARMS, seeds=(0,)), 1.1), tmp_path)
    planted.write_part(planted.data_grid(ARMS), tmp_path / "data_grid")
    planted.write_part(planted.controls(ARMS), tmp_path / "controls")
    roles = read_study(tmp_path).roles
    assert roles.built_in == ("gatr", "egnn")  # by loss, which colours don't follow: another study has the same
    assert roles.colours() == {
        "transformer": "#0072B2", "transformer_aug": "#CC79A7", "gatr_turned": "#E69F00",
        "egnn": "#D55E00", "gatr": "#882255",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.drop(columns="role"), "'role' is missing, the table is of an earlier version: run its job"),
        (lambda t: t.drop(columns="control_of"), "'control_of' is missing, the table is of an earlier version"),
        (lambda t: t.assign(role="lead"), "'transformer': column 'role' holds lead; it must be one of learn, augment"),
        (lambda t: t.assign(role=["learn", *t["role"][1:-1], "align"], arm="x"), "holds learn and build_in and align"),
        (lambda t: t.assign(role="control"), "a control, but its column 'control_of' is empty"),
    ],
)
def test_roles_that_cannot_be_are_refused(tmp_path, damage, message):
    planted.write_part(damage(planted.compute_grid(ARMS, seeds=(0,), sizes=2)), tmp_path)
    with pytest.raises(InputError, match=message):
        read_study(tmp_path)
