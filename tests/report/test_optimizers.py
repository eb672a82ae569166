"""The comparison of optimisers says what planted losses say."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eqscale.cli import main
from eqscale.errors import InputError
from eqscale.report.optimizers import compare_optimizers, write_optimizers
from eqscale.study.grid import optimizer_grid
from eqscale.study.presets import OPTIMIZERS

LOSS = {("transformer", "adamw"): 0.4, ("transformer", "muon"): 0.3, ("gatr", "adamw"): 0.2, ("gatr", "muon"): 0.18}


def planted(noise=0.0, seeds=3, rng=0):
    rng = np.random.default_rng(rng)
    rows = [
        dict(arm=arm, role="build_in" if arm == "gatr" else "learn", optimizer=optimizer, budget=budget, N=N, seed=seed,
             status="finished", loss=loss * (1.0 if N == 2000 else 1.3) * np.exp(noise * rng.standard_normal()))
        for (arm, optimizer), loss in LOSS.items() for budget in (1e11, 1e12) for N in (1000, 2000, 4000)
        for seed in range(seeds)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_losses_and_leads_are_the_planted_ones():
    found = compare_optimizers(planted()).set_index(["arm", "optimizer", "budget"])
    for (arm, optimizer), loss in LOSS.items():
        for budget in (1e11, 1e12):
            assert found["loss"][arm, optimizer, budget] == pytest.approx(loss)
    assert found["ratio"]["transformer", "muon", 1e12] == pytest.approx(0.75)
    assert found["over gatr"]["transformer", "adamw", 1e12] == pytest.approx(2)
    assert found["over gatr"]["transformer", "muon", 1e12] == pytest.approx(0.3 / 0.18)
    assert found["over gatr"]["gatr"].isna().all()


def test_intervals_of_leads_hold_the_truth():
    draws = [compare_optimizers(planted(noise=0.03, rng=k)) for k in range(40)]
    found = pd.concat(draws)[lambda rows: (rows["arm"] == "transformer") & (rows["optimizer"] == "muon")]
    inside = (found["over gatr low"] <= 0.3 / 0.18) & (found["over gatr high"] >= 0.3 / 0.18)
    assert 0.85 < inside.mean() <= 1


def test_the_table_is_written_with_and_without_seeds(tmp_path):
    write_optimizers(planted(noise=0.02), tmp_path / "many")
    write_optimizers(planted(seeds=1), tmp_path / "one")
    text = (tmp_path / "one" / "report.md").read_text()
    assert "| 1e11 | `transformer` | muon | 0.300 | 0.750 | 1.67 |" in text
    assert "[" in (tmp_path / "many" / "report.md").read_text()
    assert (tmp_path / "many" / "optimizers.csv").is_file()


def test_one_optimiser_is_nothing_to_compare():
    runs = planted()
    with pytest.raises(InputError, match=r"runs with one optimiser \(muon\)"):
        compare_optimizers(runs[runs["optimizer"] == "muon"])
    with pytest.raises(InputError, match="lacks the column 'role'"):
        compare_optimizers(runs.drop(columns="role"))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_arm_has_as_many_runs_with_each_optimiser(name):
    preset = OPTIMIZERS[name]
    specs = optimizer_grid(preset)
    assert len({spec.run_id for spec in specs}) == len(specs)
    counts = pd.Series([(spec.arm, spec.optimizer) for spec in specs]).value_counts()
    assert set(counts) == {len(preset.budgets) * preset.sizes_per_budget * len(preset.seeds)}
    assert len(counts) == len(preset.arms) * 2


def test_the_published_table_is_rebuilt_byte_for_byte(tmp_path):
    published = Path(__file__).parents[2] / "results/cpu2/optimizers"
    shutil.copytree(published, tmp_path / "mine")
    for name in ("report.md", "optimizers.csv"):
        (tmp_path / "mine" / name).write_text("damaged")
    assert main(["report", str(tmp_path / "mine")]) == 0
    for path in published.iterdir():
        assert (tmp_path / "mine" / path.name).read_bytes() == path.read_bytes()
    assert len(list((tmp_path / "mine").iterdir())) == len(list(published.iterdir()))


@pytest.mark.parametrize(("name", "job"), [("aspect_ratio", "shapes"), ("learning_rate", "search")])
def test_reports_that_need_a_plan_are_left_to_their_job(name, job, tmp_path, capsys):
    shutil.copytree(Path(__file__).parents[2] / "results/cpu2" / name, tmp_path / name)
    before = {path: path.read_bytes() for path in (tmp_path / name).iterdir()}
    assert main(["report", str(tmp_path / name)]) == 2
    assert f"`eqscale run {job}`" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / name).iterdir()} == before
