"""The aspect-ratio report says what planted losses say."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from eqscale.arms import Size
from eqscale.errors import InputError
from eqscale.report.shapes import compare_shapes, write_shape_report
from eqscale.study.grid import ShapeGroup

RUNG, WIDE, DEEP = Size(16, 3, 2), Size(30, 1, 3), Size(13, 4, 1)
GROUP = ShapeGroup("transformer", 2e11, RUNG, (WIDE, RUNG, DEEP))


def runs(losses):
    rows = [
        dict(arm="transformer", budget=2e11, width=shape.width, depth=shape.depth, N=9000, steps=5000, seed=seed,
             D=1e6, flops_executed=7e10, loss=loss, seconds=40.0, status="finished")
        for shape, values in losses.items()
        for seed, loss in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_excess_and_its_error_are_those_of_the_seeds():
    table = compare_shapes(runs({WIDE: [0.36, 0.40], RUNG: [0.40, 0.40], DEEP: [0.42, 0.44]}), [GROUP])
    by_depth = table.set_index("depth")
    assert by_depth["excess"].tolist() == pytest.approx([-0.05, 0, 0.075])
    assert by_depth["rung"].tolist() == [False, True, False]
    scatter = (np.log(0.40 / 0.36) ** 2 / 2 + np.log(0.44 / 0.42) ** 2 / 2) / 3
    assert by_depth["se"].tolist() == pytest.approx([scatter**0.5, 0, scatter**0.5])
    assert by_depth["cost"].tolist() == pytest.approx([7e4] * 3)


@pytest.mark.parametrize(
    ("wide", "verdict"),
    [
        ([0.500, 0.501], "the ladder's 16 x 3 (width x depth) is the best of 3 shapes"),
        ([0.395, 0.396], "the ladder is within 2 %"),
        ([0.300, 0.301], "more than the seeds' scatter explains"),
        ([0.300, 0.420], "the seeds' scatter could explain it"),
        ([0.300], "the seeds' scatter could explain it"),
    ],
)
def test_the_verdict_weighs_a_difference_against_the_scatter(tmp_path, wide, verdict):
    others = {RUNG: [0.400, 0.401][: len(wide)], DEEP: [0.42, 0.421][: len(wide)]}
    write_shape_report(runs({WIDE: wide} | others), [GROUP], tmp_path)
    assert verdict in (tmp_path / "report.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {
        "aspect_ratio.png", "aspect_ratio.svg", "report.md", "shapes.csv",
    }  # fmt: skip


def test_runs_to_come_leave_gaps_and_none_at_all_is_an_error(tmp_path):
    missing = dataclasses.replace(GROUP, arm="gatr")
    write_shape_report(runs({WIDE: [0.4]}), [GROUP, missing], tmp_path)
    assert "the ladder's shape has not finished" in (tmp_path / "report.md").read_text()
    with pytest.raises(InputError, match="no run has finished"):
        compare_shapes(runs({WIDE: [0.4]}), [missing])
