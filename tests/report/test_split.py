"""The split of the lead says what planted losses say."""

import numpy as np
import pandas as pd
import pytest

from eqscale.laws.minima import Minima, Optima
from eqscale.report.split import GATR, LEAD, LOCAL, PARTS, PLAIN, SLIM, split_lead, split_lines, split_table

LOSS = {PLAIN: 0.40, LOCAL: 0.32, SLIM: 0.25, GATR: 0.20}
BUDGETS = (1e11, 1e12)
TRUTH = {"frames": 0.40 / 0.32, "features": 0.32 / 0.25, "multivectors": 0.25 / 0.20, LEAD: 2.0}


def planted(noise=0.0, rng=0, budgets=BUDGETS):
    """Measured optima with the planted losses, of errors as large as stated."""
    rng, k = np.random.default_rng(rng), len(budgets)
    found = {}
    for arm, loss in LOSS.items():
        value = np.log(loss) + noise * rng.standard_normal(k)
        optima = Optima(value, np.full(k, noise), value + noise * rng.standard_normal((400, k)))
        found[arm] = Minima(arm, np.array(budgets), optima, optima, noise, 20)
    return found


def measured(arm, budget, share):
    """What ``eqscale measure`` writes of a network."""
    unknown = {"predictor": "zero", "asymmetry": {"share": None, "share_se": None}}  # as NaN is written
    results = [unknown, {"predictor": "model", "asymmetry": {"share": share, "share_se": 0.01}}, {"predictor": "mean"}]
    return {"spec": {"arm": arm, "budget": budget}, "results": results}


def test_parts_are_the_planted_ones_and_multiply_to_the_lead():
    split = split_lead(planted(), [])
    for budget in BUDGETS:
        own = split[split["budget"] == budget].set_index("part")["ratio"]
        assert own.to_dict() == pytest.approx(TRUTH)
        assert own.drop(LEAD).prod() == pytest.approx(own[LEAD])


def test_budgets_that_an_arm_lacks_do_not_count():
    optima = planted() | {SLIM: planted(budgets=BUDGETS[:1])[SLIM]}
    assert split_lead(optima, [])["budget"].unique().tolist() == [BUDGETS[0]]


def test_intervals_cover_the_planted_parts_as_often_as_they_say():
    found = pd.concat([split_lead(planted(noise=0.03, rng=k), []) for k in range(30)])
    truth = found["part"].map(TRUTH)
    inside = (found["low"] <= truth) & (truth <= found["high"])
    assert 0.9 < inside.mean() < 0.99  # 240 intervals
    assert (found["high"] / found["low"]).max() < 1.4


def test_the_table_shows_the_lowest_a_middle_and_the_highest_budget():
    table = split_table(split_lead(planted(noise=0.02, budgets=(1e9, 1e10, 1e11, 1e12)), []))
    assert list(table.header[2:]) == ["1e9 FLOPs", "1e11 FLOPs", "1e12 FLOPs"]
    assert [row[0] for row in table.rows] == list(PARTS)


def test_the_asymmetry_of_a_measured_plain_network_stands_beside_its_budget():
    found = split_lead(planted(), [measured(GATR, BUDGETS[1], 0.5), measured(PLAIN, BUDGETS[1], 0.2)])
    rows = found[found["part"] == "asymmetry"]
    assert rows["budget"].tolist() == [BUDGETS[1]]
    assert rows[["ratio", "low", "high"]].iloc[0].tolist() == pytest.approx([1.25, 1 / 0.8196, 1 / 0.7804])
    assert (
        "the loss of `transformer` over that of `gatr`, 2.00 [2.00, 2.00], is the product of frames 1.25"
        in split_lines(found)[0]
    )
    assert "averaging over the group alone would give 1.25 [1.22, 1.28]" in split_lines(found)[0]
    (row,) = (row for row in split_table(found).rows if row[0] == "asymmetry")
    assert row[2:] == ["–", "1.25 [1.22, 1.28]"]


def test_without_all_four_arms_there_is_no_split():
    optima = planted()
    del optima[SLIM]
    for other in (optima, {}):
        split = split_lead(other, [])
        assert split.empty
        assert not split_lines(split)
        assert not split_table(split).markdown()
