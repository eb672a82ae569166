"""Closed loop: runs chosen from a study's records become part of it. Training itself is replaced by a law."""

import dataclasses
import json
import math
import re
from unittest.mock import MagicMock

import pandas as pd
import pytest

from eqscale.arms import get_arm
from eqscale.cli import main
from eqscale.errors import InputError
from eqscale.jobs import grid as grid_job
from eqscale.study import job, tracking
from eqscale.study.further import add_further, read_further
from eqscale.study.grid import compute_grid, expected_tokens, further_grid
from eqscale.study.lease import only_driver
from eqscale.study.presets import COMPUTE_GRIDS
from eqscale.tasks import get_task
from eqscale.training.spec import CODE
from tests.jobs import TINY_ARGUMENTS
from tests.study.test_ledger import make_record


def ended(spec, preset):
    """The record of a run that ended with the loss of a law, and a little noise."""
    N = get_arm(spec.arm).parameters(spec.size, get_task(spec.task))
    D = round(expected_tokens(spec, preset))
    noise = 0.01 * math.sin(int(spec.run_id, 16))
    loss = (0.05 + 20 / N**0.6 + (30 if spec.arm == "gatr" else 50) / D**0.5) * math.exp(noise)
    changes = {"parameters": N, "tokens": D, "flops_executed": spec.budget, "flops_nominal": spec.budget, "code": CODE}
    record = make_record(spec)
    return dataclasses.replace(record, test=record.test | {"nmse": loss}, **changes)


class Grid:
    """The compute grid's job in a folder of its own."""

    def __init__(self, folder):
        self.results, self.trained, self.most = folder / "results" / "quick", [], None

    def train(self, study, trials, stage="training", publish=lambda: None):
        for spec in trials[: self.most]:
            study.ledger.write(ended(spec, study.options.preset))
            self.trained.append(spec)

    def __call__(self, *arguments):
        self.trained.clear()
        return main(["run", "grid", *TINY_ARGUMENTS, *arguments])

    @property
    def table(self):
        return pd.read_csv(self.results / "runs.csv")


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(grid_job, "write_study_report", MagicMock(return_value=MagicMock(analysis=None)))
        grid = Grid(folder)
        patch.setattr(job.OpenStudy, "train", lambda study, *rest, **named: grid.train(study, *rest, **named))
        patch.setattr(tracking, "Tracker", MagicMock(return_value=MagicMock(outages=0, errors=[])))
        yield grid


def test_the_loop_of_choosing_training_and_refitting(grid, capsys):
    assert grid("--next", "2") == 2
    assert "holds no runs.csv" in capsys.readouterr().err
    assert grid() == 0
    assert len(grid.table) == 18
    capsys.readouterr()

    assert grid("--next", "4", "--dry-run") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith("transformer: 9 runs, verdict:")
    number = int(re.search(r"(\d) further runs, .* FLOPs: the standard error of the optimal losses", printed)[1])
    assert 2 <= number <= 4  # at most the cost of four average runs
    assert f"18 runs are done, {number} to go" in printed
    assert "gatr: D/N varies by" in printed
    assert read_further(grid.results) == []

    grid.most = 1  # stopped after one run
    assert grid("--next", "4") == 130
    assert len(read_further(grid.results)) == number
    chosen, first = further_grid_of(grid), list(grid.trained)
    grid.most = None
    capsys.readouterr()
    assert grid("--next", "4") == 0
    assert f"{number - 1} runs that were chosen earlier haven't ended" in capsys.readouterr().out
    assert len(grid.trained) == number - 1
    assert {spec.run_id for spec in [*first, *grid.trained]} == {spec.run_id for spec in chosen}
    assert set(grid.table["status"]) == {"finished"}
    assert len(grid.table) == 18 + number
    assert len(json.loads((grid.results / "study.json").read_text())["runs"]) == 18 + number

    assert grid("--next", "3") == 0  # refits to all of them
    number += len(grid.trained)
    assert grid.trained
    assert "verdict:" in capsys.readouterr().out
    assert grid() == 0
    assert grid.trained == []
    assert set(grid.table["status"]) == {"finished"}
    assert len(grid.table) == 18 + number
    points = grid.table.groupby(["arm", "budget", "width", "depth"])["seed"]
    assert points.apply(lambda seeds: sorted(seeds) == list(range(len(seeds)))).all()


def test_no_runs_are_chosen_on_records_of_another_study(grid, capsys):
    before = read_further(grid.results)
    assert grid("--next", "2", "--study", "other", "--results", str(grid.results)) == 2
    assert "runs that study 'other' doesn't have: --adopt" in capsys.readouterr().err
    assert read_further(grid.results) == before


def test_no_runs_are_chosen_while_another_driver_has_the_study(grid, capsys):
    (study := grid.results.parents[1] / "studies/quick").mkdir(parents=True, exist_ok=True)
    before = read_further(grid.results)
    with only_driver(study):
        assert grid("--next", "2") == 2
    assert "'quick' is already being run by process" in capsys.readouterr().err
    assert read_further(grid.results) == before


def further_grid_of(grid):
    preset = dataclasses.replace(
        COMPUTE_GRIDS["quick"], budgets=(3e8, 6e8, 1.2e9), sizes_per_budget=3, min_steps=5, batch_size=8,
        train_systems=24, test_systems=8, cost_range=8,
    )  # fmt: skip
    return further_grid(preset, read_further(grid.results))


def test_further_runs_go_with_their_arms_and_budgets(tmp_path):
    preset = COMPUTE_GRIDS["quick"]
    size = str(get_arm("gatr").ladder[3])
    entries = [{"arm": "gatr", "budget": 1e10, "size": size, "seed": 5}]
    (spec,) = further_grid(preset, entries)
    assert (spec.arm, spec.budget, str(spec.size), spec.seed) == ("gatr", 1e10, size, 5)
    assert spec not in compute_grid(preset)
    add_further(tmp_path, [spec])
    add_further(tmp_path, [dataclasses.replace(spec, seed=6)])
    assert [entry["seed"] for entry in read_further(tmp_path)] == [5, 6]
    for lost in ({"arms": ("transformer",)}, {"budgets": (3e10,)}):
        assert further_grid(dataclasses.replace(preset, **lost), entries) == []
    assert further_grid(preset, [{**entries[0], "size": "7x7"}]) == []


@pytest.mark.parametrize("content", ["[{]", '[{"arm": "gatr"}]', "3"])
def test_a_damaged_list_of_further_runs_is_named(tmp_path, content):
    (tmp_path / "further_runs.json").write_text(content)
    with pytest.raises(InputError, match=r"further_runs.json is damaged .*: restore it"):
        read_further(tmp_path)


@pytest.mark.parametrize("count", ["-1", "0"])
def test_fewer_than_one_further_run_is_refused(grid, capsys, count):
    assert grid("--next", count) == 2
    assert capsys.readouterr().err == f"error: --next {count}: choose at least 1 run\n"
