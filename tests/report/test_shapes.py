"""The aspect-ratio report says what planted losses say."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from eqscale.arms import Size
from eqscale.errors import InputError
from eqscale.report.shapes import compare_shapes, depth_rule, write_shape_report
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


def test_the_report_shows_every_shape_beside_the_best_of_its_row(tmp_path):
    write_shape_report(runs({WIDE: [0.3, 0.3002], RUNG: [0.4, 0.4002], DEEP: [0.42, 0.4202]}), [GROUP], tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert "| 30: **0.300** | (16: 0.400, +33 %) | 13: 0.420, +40 % |" in report
    assert "standard error of" in report
    assert {path.name for path in tmp_path.iterdir()} == {
        "aspect_ratio.png", "aspect_ratio.svg", "report.md", "shapes.csv",
    }  # fmt: skip


def test_runs_to_come_leave_gaps_and_none_at_all_is_an_error(tmp_path):
    missing = dataclasses.replace(GROUP, arm="gatr")
    write_shape_report(runs({WIDE: [0.4]}), [GROUP, missing], tmp_path)
    assert "| 30: **0.400** |" in (tmp_path / "report.md").read_text()
    with pytest.raises(InputError, match="no run has finished"):
        compare_shapes(runs({WIDE: [0.4]}), [missing])


def grouped(losses):
    """Groups of one arm: (N, budget) -> losses of depths 1, 2, ..."""
    rows = [
        dict(group=k, N=N, budget=budget, depth=depth, loss=loss)
        for k, ((N, budget), values) in enumerate(losses.items())
        for depth, loss in enumerate(values, 1)
    ]
    return pd.DataFrame(rows)


def test_a_rule_of_depth_is_by_what_the_best_depth_follows_from():
    by_size = grouped({
        (1e3, 1e11): (0.5, 0.6, 0.8), (4e3, 1e11): (0.5, 0.4, 0.6), (4e3, 1e12): (0.4, 0.3, 0.35),
        (2e4, 1e12): (0.4, 0.3, 0.2), (1.9e4, 1e11): (0.8, 0.75, 0.6),
    })  # fmt: skip
    assert depth_rule(by_size, "N") == ({1e3: 1, 4e3: 2, 1.9e4: 3}, pytest.approx(0))
    rule, excess = depth_rule(by_size, "budget")
    assert list(rule) == [1e11, 1e12]
    assert excess > 0.05
    by_budget = grouped({(1e3, 1e11): (0.5, 0.6), (2e3, 1e11): (0.5, 0.6), (1e3, 1e12): (0.5, 0.4)})
    assert depth_rule(by_budget, "budget") == ({1e11: 1, 1e12: 2}, pytest.approx(0))


def test_a_rule_never_falls_and_uses_depths_that_all_groups_of_a_value_have():
    falling = grouped({(1e3, 1e11): (0.6, 0.5), (2e3, 1e11): (0.5, 0.51)})
    assert depth_rule(falling, "N") == ({1e3: 2}, pytest.approx(1.02**0.5 - 1))
    uneven = grouped({(1e3, 1e11): (0.5,), (2e3, 1e11): (0.6, 0.5)})
    assert depth_rule(uneven, "budget") == ({1e11: 1}, pytest.approx(1.2**0.5 - 1))
