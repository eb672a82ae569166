"""The split of the lead says what planted losses say."""

import numpy as np
import pandas as pd
import pytest

from eqscale.arms import get_arm
from eqscale.errors import InputError
from eqscale.report.split import GATR, LEAD, LOCAL, PARTS, PLAIN, SLIM, split_lead, write_split
from eqscale.study.grid import compute_grid
from eqscale.study.presets import SPLITS

LOSS = {PLAIN: 0.40, "transformer_local": 0.32, "gatr_slim": 0.25, GATR: 0.20, "gatr_turned": 0.30}
BUDGETS = (1e11, 1e12)
SHARE = 0.04
TRUTH = {
    "asymmetry": 1 / (1 - SHARE),
    "frames": (1 - SHARE) * 0.40 / 0.32,
    "features": 0.32 / 0.25,
    "multivectors": 0.25 / 0.20,
    LEAD: 2.0,
}


def planted(noise=0.0, seeds=3, rng=0):
    """Three sizes, the middle one best by a third, which has the planted share of asymmetry; the others have more."""
    rng = np.random.default_rng(rng)
    rows = [
        dict(arm=arm, control_of=GATR if arm == "gatr_turned" else None, budget=budget, N=1000 * 2**size, seed=seed,
             status="finished", loss=loss * (1.0 if size == 1 else 1.33) * np.exp(noise * rng.standard_normal()),
             equivariance_loss_share=SHARE * (1.0 if size == 1 else 3.0) * np.exp(noise * rng.standard_normal()))
        for arm, loss in LOSS.items() for budget in BUDGETS for size in range(3) for seed in range(seeds)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_parts_and_controls_are_the_planted_ones_and_multiply_to_the_lead():
    split = split_lead(planted())
    for budget in BUDGETS:
        own = split[split["budget"] == budget].set_index("part")
        assert own["ratio"].to_dict() == pytest.approx(TRUTH | {"gatr_turned of gatr": 1.5})
        parts = own.loc[[part for part in PARTS if part != LEAD]]
        assert parts["ratio"].prod() == pytest.approx(own["ratio"][LEAD])
        assert parts["share"].sum() == pytest.approx(1)
        assert own["share"][LEAD] == 1


def test_unfinished_runs_and_budgets_that_an_arm_lacks_do_not_count():
    runs = planted()
    crashed = runs.assign(status="failed", loss=1e-9)
    at_top = (runs["arm"] == "gatr_slim") & (runs["budget"] == BUDGETS[1])
    split = split_lead(pd.concat([runs[~at_top], crashed]))
    assert split["budget"].unique().tolist() == [BUDGETS[0]]


def test_intervals_cover_the_planted_parts_as_often_as_they_say():
    draws = [split_lead(planted(noise=0.03, rng=k)) for k in range(30)]
    found = pd.concat(draws)[lambda rows: rows["part"].isin(PARTS)]
    truth = found["part"].map(TRUTH)
    inside = (found["low"] <= truth) & (truth <= found["high"])
    assert 0.9 < inside.mean() < 0.99  # 300 intervals
    assert (found["high"] / found["low"]).max() < 1.4


def test_one_seed_gives_ratios_without_intervals(tmp_path):
    split = split_lead(planted(seeds=1))
    assert split[["low", "high"]].isna().all(axis=None)
    write_split(planted(seeds=1), tmp_path)
    assert (
        "| lead | `transformer` over `gatr`: the sum of the parts | × 2 | × 2 |" in (tmp_path / "report.md").read_text()
    )


def test_table_and_figure_are_written(tmp_path):
    write_split(planted(noise=0.02), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "split.csv", "split.png", "split.svg"}
    text = (tmp_path / "report.md").read_text()
    for part in (*PARTS, "gatr_turned of gatr"):
        assert f"| {part} |" in text
    assert pd.read_csv(tmp_path / "split.csv")["part"].nunique() == len(PARTS) + 1


def test_tables_that_cannot_be_split_are_refused_in_one_line():
    runs = planted()
    with pytest.raises(InputError, match="no budget has finished runs of all of transformer, transformer_local"):
        split_lead(runs[runs["arm"] != "gatr_slim"])
    with pytest.raises(InputError, match="lacks the column 'equivariance_loss_share'"):
        split_lead(runs.drop(columns="equivariance_loss_share"))


def test_presets_train_every_arm_of_the_path_and_what_their_controls_are_compared_with():
    for preset in SPLITS.values():
        assert {PLAIN, LOCAL, SLIM, GATR} <= set(preset.arms)
        assert {get_arm(arm).control_of for arm in preset.arms} - {None} <= set(preset.arms)
    quick = SPLITS["quick"]
    assert len(compute_grid(quick)) == len(quick.budgets) * len(quick.arms) * 4
