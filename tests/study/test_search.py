import contextlib
import dataclasses
import itertools
import json
import math
import os
import shlex
import shutil

import numpy as np
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from eqscale.arms import Recipe, arm_names, get_arm
from eqscale.console import make_console
from eqscale.errors import InputError
from eqscale.study import backend, job
from eqscale.study.options import parse_options
from eqscale.study.presets import SEARCHES
from eqscale.study.search import (
    RecipeFit,
    Search,
    best_checked,
    check_specs,
    check_table,
    fit_recipe,
    found_wanting,
    search_cells,
)
from eqscale.study.trials import Devices
from eqscale.tasks import get_task
from eqscale.training.spec import CurvePoint, RunRecord
from tests.jobs import ROOT, run_here
from tests.study.test_ledger import make_spec

PRESET = dataclasses.replace(
    SEARCHES["quick"],
    arms=("transformer",),
    optimizers=("adamw",),
    budgets=(1e9, 3e9),
    min_steps=5,
    trials=7,
    train_systems=100,
)


@pytest.mark.parametrize("name", SEARCHES)
def test_every_arm_gets_the_same_number_of_trials(name):
    preset = SEARCHES[name]
    counts = pd.Series([(cell.arm, cell.optimizer) for cell in search_cells(preset)]).value_counts()
    assert set(counts.index) == set(itertools.product(preset.arms, ("adamw", "muon")))
    assert counts.nunique() == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": (1e-2, 1e-3)}, "--rates needs two values, the smaller first"),
        ({"rates": (1e-3,)}, "--rates needs two values"),
        ({"rates": (1e-2, 3.0)}, "--rates must be at most 1, not 3"),
        ({"momenta": (0.9, 1.0)}, "--momenta must be below 1, not 1"),
        ({"warmups": (0.5,)}, "--warmups needs two values"),
        ({"optimizers": ("adamw", "sgdd")}, "unknown optimiser 'sgdd'"),
        ({"batch_sizes": (8, 48)}, "--batch-sizes must be powers of two"),
        ({"budgets": (1e4,)}, "too small for a single step"),
        ({"trials": 1}, "--trials 1: 4 trials of an arm and optimiser, .* are too few to fit a recipe, which takes 8"),
    ],
)
def test_a_search_that_cannot_work_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        search_cells(dataclasses.replace(PRESET, **changes))


def record(spec, loss, status="finished"):
    return RunRecord(
        spec=spec, run_id=spec.run_id, status=status, parameters=1, tokens=1, padded_tokens=1, epochs=1.0,
        unique_samples=1, unique_tokens=1, flops_nominal=1.0, flops_executed=1.0, seconds=1.0,
        evaluation_seconds=0.0, peak_memory_mb=1.0, steps_done=spec.steps, test={"nmse": loss}, curve=[],
        hardware="", code="", started="",
    )  # fmt: skip


def loss_of(spec, best=1e-2):
    return 0.5 + 0.1 * math.log(spec.learning_rate / best) ** 2


def point(spec, share, loss):
    return CurvePoint(round(share * spec.steps), 0.0, loss, 0.0, 0.0)


def test_a_search_asks_each_cell_for_its_trials_and_learns_from_them(tmp_path):
    preset = dataclasses.replace(PRESET, trials=20)
    search = Search(preset, tmp_path / "journal")
    assert len(search) == 4 * 20
    tried = []
    while (spec := search.ask()) is not None:
        tried.append(spec)
        assert search.running_specs() == [spec]
        search.tell(spec, record(spec, loss_of(spec)))
    assert search.running_specs() == []
    assert len(tried) == 80
    assert len(search) == 0
    assert {spec.batch_size for spec in tried} <= {8, 16, 32, 64}
    assert all(1e-3 <= spec.learning_rate <= 1e-1 for spec in tried)
    assert all(0.8 <= spec.momentum <= 0.98 and 0.05 <= spec.warmup <= 0.6 for spec in tried)
    for cell in search.cells:  # no trial shares the luck of another of its cell
        assert len({spec.seed for spec in tried if (spec.size, spec.budget) == (cell.size, cell.budget)}) == 20
    off = np.abs(np.log([spec.learning_rate / 1e-2 for spec in tried]))
    assert np.median(off[-40:]) < 0.7 * np.median(off[:20])  # the sampler closes in on the optimum


def test_every_cell_has_one_trial_by_the_recipe_so_far_however_often_it_is_continued(tmp_path):
    usual = get_arm("transformer").recipe_with("adamw")
    preset = dataclasses.replace(PRESET, rates=(1e-3, 1e-2))
    by_recipe = []
    for _ in range(3):
        search = Search(preset, tmp_path / "journal")
        for _ in range(10):
            if spec := search.ask():
                search.tell(spec, record(spec, 0.5))
                by_recipe += [spec] * (spec.weight_decay == usual.weight_decay)
    assert len(search) == 0
    assert {(spec.size, spec.budget) for spec in by_recipe} == {(cell.size, cell.budget) for cell in search.cells}
    assert len(by_recipe) == 4
    for spec in by_recipe:
        rate = usual.learning_rate(
            get_arm("transformer").parameters(spec.size, get_task("rigid")), spec.steps, spec.batch_size
        )
        assert (spec.warmup, spec.momentum) == (usual.warmup, usual.momentum)
        assert (spec.batch_size, spec.learning_rate) == (usual.batch_size(spec.budget), min(rate, 1e-2))


def test_bad_trials_are_pruned_in_their_last_quarter(tmp_path):
    search = Search(PRESET, tmp_path / "journal")
    pruned = []
    for k in range(4 * 7):
        spec = search.ask()
        loss = 0.5 if k < 20 else 5.0
        assert not search.should_prune(spec, point(spec, 0.5, loss))
        if search.should_prune(spec, point(spec, 0.75, loss)):
            pruned.append(spec)
            search.tell(spec, None)
        else:
            search.tell(spec, record(spec, loss))
    assert len(pruned) == 8
    assert len(search.ended_specs()) == 28
    assert search.ask() is None


def test_a_killed_search_goes_on_with_the_runs_that_were_under_way(tmp_path):
    first = Search(PRESET, tmp_path / "journal")
    done, cut = first.ask(), first.ask()
    first.tell(done, record(done, 0.5))
    second = Search(PRESET, tmp_path / "journal")
    assert len(second) == 4 * 7 - 1
    asked = [second.ask() for _ in range(4)]
    assert cut.run_id in {spec.run_id for spec in asked}
    assert done.run_id not in {spec.run_id for spec in asked}


def planted(recipe, seed, noise=0.01):
    """Trials whose losses are parabolas around a known recipe."""
    rng = np.random.default_rng(seed)
    rows = []
    for budget in (1e10, 3e10, 1e11):
        for width, N in ((8, 2000), (16, 12_000)):
            for _ in range(12):
                batch = int(2 ** rng.integers(3, 7))
                steps = max(50, round(budget / (6 * N * 31 * batch)))
                rate = 10 ** rng.uniform(-3, -1)
                off = math.log(rate / recipe.learning_rate(N, steps, batch))
                off_batch = math.log(batch / (recipe.batch * (budget / 1e11) ** recipe.by_budget))
                warmup, momentum = rng.uniform(0.05, 0.6), 1 - 10 ** rng.uniform(-1.7, -0.7)
                decay = 10 ** rng.uniform(-3, -0.5)
                worse = 0.02 * off**2 + 0.01 * off_batch**2 + 0.4 * (warmup - recipe.warmup) ** 2
                worse += 0.03 * math.log((1 - momentum) / (1 - recipe.momentum)) ** 2
                worse += 0.004 * math.log(decay / recipe.weight_decay) ** 2
                rows.append(
                    {"budget": budget, "width": width, "depth": 1, "N": N, "steps": steps, "batch_size": batch,
                     "learning_rate": rate, "warmup": warmup, "momentum": momentum, "weight_decay": decay,
                     "loss": 0.4 * N**-0.02 * math.exp(worse + noise * rng.normal())}
                )  # fmt: skip
    return pd.DataFrame(rows)


def test_a_planted_recipe_is_recovered():
    truth = Recipe(
        rate=1.2e-2, by_parameters=-0.4, by_steps=-0.1, by_batch=0.3, batch=20.0, by_budget=0.25, warmup=0.2,
        momentum=0.95, weight_decay=0.05,
    )  # fmt: skip
    off = []
    for seed in range(5):
        fit = fit_recipe(planted(truth, seed))
        assert fit.recipe.warmup == pytest.approx(0.2, abs=0.07)
        assert math.log((1 - fit.recipe.momentum) / 0.05) == pytest.approx(0, abs=0.4)
        assert math.log(fit.recipe.weight_decay / 0.05) == pytest.approx(0, abs=1.2)
        assert fit.scatter < 0.02
        off += [
            math.log(fit.recipe.learning_rate(N, steps, 16) / truth.learning_rate(N, steps, 16))
            for N, steps in ((2000, 1000), (12_000, 1000), (12_000, 300))
        ]
        assert 10 < fit.recipe.batch < 40
    assert np.sqrt(np.mean(np.square(off))) < 0.3


def test_check_runs_pull_a_recipe_towards_their_best_rate():
    trials = planted(Recipe(rate=1.2e-2, by_steps=-0.15), 0)
    first = fit_recipe(trials)
    N, steps = 20_000, 10_000
    best = first.recipe.learning_rate(N, steps, 16) / 3
    checks = pd.DataFrame(
        {"budget": 1e12, "width": 24, "depth": 3, "N": N, "steps": steps, "batch_size": 16, "learning_rate": rate,
         "warmup": 0.4, "momentum": 0.9, "weight_decay": 0.01,
         "loss": 0.3 * math.exp(0.05 * math.log(rate / best) ** 2)}
        for rate in best * np.array([0.5, 1, 2, 4])
    )  # fmt: skip
    again = fit_recipe(trials, checks)
    assert (first.checks, again.checks, again.trials) == (0, 4, first.trials + 4)
    off = [math.log(fit.recipe.learning_rate(N, steps, 16) / best) for fit in (first, again)]
    assert 0 <= off[1] < 0.95 * off[0]


def test_picks_are_compared_with_the_best_of_all_rounds():
    preset = dataclasses.replace(PRESET, check_budgets=(6e9, 1e10))
    old = {("transformer", "adamw"): Recipe(rate=2e-2)}
    new = {("transformer", "adamw"): Recipe(rate=5e-3)}
    rows = [
        {"arm": spec.arm, "optimizer": "adamw", "budget": spec.budget, "N": 1000, "batch_size": spec.batch_size,
         "learning_rate": spec.learning_rate, "loss": loss}
        for recipes, losses in ((old, (0.5, 0.4, 0.6)), (new, (0.52, 0.44, 0.58)))
        for spec, loss in zip(check_specs(preset, recipes, {}, recipes), losses * 2, strict=True)
    ]  # fmt: skip
    table = check_table(preset, new, pd.DataFrame(rows))
    assert list(table["budget"]) == [6e9, 1e10]
    assert list(table["loss"]) == [0.44, 0.44]
    assert list(table["best_loss"]) == [0.4, 0.4]
    assert table["excess"].to_numpy() == pytest.approx([0.1, 0.1])


def test_of_all_recipes_that_were_checked_the_one_with_the_lowest_losses_is_kept():
    preset = dataclasses.replace(PRESET, arms=("transformer", "gatr"), check_budgets=(6e9, 1e10))
    keys = [(arm, "adamw") for arm in preset.arms]
    old, new, newer = ({key: Recipe(rate=rate) for key in keys} for rate in (2e-2, 5e-3, 1e-3))
    specs = check_specs(preset, new, {}, old)
    assert len(specs) == 2 * 2 * 4
    specs = list(dict.fromkeys([*specs, *check_specs(preset, newer, {}, old)]))
    best = {"transformer": 2e-2, "gatr": 5e-3}
    rates = {
        (arm, b): max(s.learning_rate for s in specs if (s.arm, s.budget) == (arm, b))
        for arm in best
        for b in (6e9, 1e10)
    }
    runs = pd.DataFrame(
        {"run_id": s.run_id, "loss": loss_of(s, best[s.arm] / 2e-2 * rates[s.arm, s.budget])} for s in specs
    )
    tried = {key: [RecipeFit(r[key], 9, 0, 0.1, 1.0, 1.0, {}) for r in (old, new, newer)] for key in keys}
    kept = best_checked(preset, tried, runs)
    assert {key: fit.recipe.rate for key, fit in kept.items()} == {keys[0]: 2e-2, keys[1]: 5e-3}


def test_a_check_whose_runs_all_failed_or_diverged_is_not_within_the_goal():
    preset = dataclasses.replace(PRESET, check_budgets=(6e9,))
    recipes = {("transformer", "adamw"): get_arm("transformer").recipe_with("adamw")}
    specs = check_specs(preset, recipes, {}, recipes)
    runs = pd.DataFrame(
        {"arm": s.arm, "budget": s.budget, "N": math.nan, "batch_size": s.batch_size, "learning_rate": s.learning_rate}
        for s in specs
    ).assign(loss=math.nan, optimizer="adamw")
    table = check_table(preset, recipes, runs)
    assert list(table["learning_rate"]) == [specs[1].learning_rate]
    assert list(table["N"]) == [get_arm("transformer").parameters(specs[1].size, get_task("rigid"))]
    assert found_wanting(table) == [("transformer", "adamw")]


def test_too_few_trials_for_a_recipe_are_an_error():
    with pytest.raises(InputError, match="too few to fit a recipe"):
        fit_recipe(planted(Recipe(rate=1e-2), 0).head(5))


def test_checks_go_on_until_the_best_rate_is_bracketed():
    preset = dataclasses.replace(PRESET, check_budgets=(6e9,))
    recipes = {("transformer", "adamw"): get_arm("transformer").recipe_with("adamw")}
    specs = check_specs(preset, recipes, {}, recipes)
    picked = specs[1].learning_rate
    assert [s.learning_rate for s in specs] == [float(f"{picked * f:.4g}") for f in (0.5, 1, 2)]
    losses = {}
    while any(spec.run_id not in losses for spec in specs):
        losses |= {spec.run_id: loss_of(spec, best=5 * picked) for spec in specs}
        specs = check_specs(preset, recipes, losses, recipes)
    assert len(specs) == 5  # up to 8 times the pick: 4 times is best
    assert max(s.learning_rate for s in specs) == float(f"{8 * picked:.4g}")


def test_recipes_round_batches_to_powers_of_two():
    recipe = Recipe(rate=1e-2, batch=20.0, by_budget=0.3)
    assert [recipe.batch_size(budget) for budget in (1e8, 1e11, 1e13)] == [16, 16, 64]
    assert recipe.learning_rate(160_000, 1000, 16) == pytest.approx(5e-3)


def test_every_built_in_arm_has_a_recipe_of_its_own():
    recipes = json.loads((ROOT / "eqscale/arms/recipes.json").read_text())
    assert set(recipes) == {name for name in arm_names() if name in SEARCHES["cpu"].arms}


def test_the_job_searches_fits_checks_and_continues(tmp_path, shared_ray, empty_database):
    shutil.copy(empty_database, tmp_path / "mlruns.db")
    arguments = [
        "--arms", "transformer", "--optimizers", "adamw", "muon", "--budgets", "1e9", "--check-budgets", "2e9",
        "--trials", "8", "--rates", "4e-3", "3e-2", "--min-steps", "5", "--train-systems", "24", "--test-systems", "8",
        "--batch-sizes", "4", "16",
    ]  # fmt: skip
    first = run_here(tmp_path, "search", *arguments, ray=shared_ray)
    assert first.returncode == 0, first.stdout + first.stderr
    _, journal = shlex.split(first.stdout[first.stdout.index("\noptuna-dashboard ") :].splitlines()[1])
    assert JournalStorage(JournalFileBackend(str(tmp_path / journal))).get_all_studies()  # as the dashboard opens it
    folder = tmp_path / "results/quick/learning_rate"
    trials = pd.read_csv(folder / "trials.csv")
    assert len(trials) == 32
    (recipes,) = json.loads((folder / "recipes.json").read_text()).values()
    assert sorted(recipe["optimizer"] for recipe in recipes) == ["adamw", "muon"]
    figure = (folder / "search.svg").read_text()
    for label in ("1e9 FLOPs", "2e9 FLOPs", "learning rate", "test NMSE"):
        assert label in figure
    report = (folder / "report.md").read_text()
    checks = pd.read_csv(folder / "check_runs.csv")
    assert len(checks) >= 3
    second = run_here(tmp_path, "search", *arguments)  # nothing is trained again
    assert second.returncode == 0, second.stdout + second.stderr
    assert (folder / "report.md").read_text() == report


def test_the_rounds_of_a_search_share_one_ray(tmp_path, monkeypatch, empty_database):
    shutil.copy(empty_database, tmp_path / "mlruns.db")
    starts, trained = [], []

    @contextlib.contextmanager
    def session(address, cpus):
        starts.append("started")
        yield Devices(2, 0, 1)
        starts.append("ended")

    for name, fake in (
        ("ray_session", session), ("gpu_names", list), ("smallest_share", lambda *_: lambda spec: 1.0),
        ("run_trials", lambda planned, *_, **__: trained.append(planned)),
    ):  # fmt: skip
        monkeypatch.setattr(backend, name, fake)
    monkeypatch.setattr(job, "prepare_data", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)
    options = parse_options("", SEARCHES, "search", "learning_rate", ["--arms", "transformer"])
    specs = [dataclasses.replace(make_spec(seed), test_systems=8) for seed in range(2)]
    with job.open_study(options, make_console()) as study:
        assert starts == []
        for spec in specs:
            study.train([spec], "check")
        assert starts == ["started"]
    assert starts == ["started", "ended"]
    assert len(trained) == 2


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-20], lambda text: text + bytes(30), lambda text: text + b'{"op']
)
def test_a_journal_that_ends_in_half_a_line_loses_that_line_only(tmp_path, damage):
    journal = tmp_path / "journal"
    first = Search(PRESET, journal)
    assert first.dropped == 0
    first.ask()
    whole = journal.read_bytes()
    journal.write_bytes(damage(whole))
    second = Search(PRESET, journal)
    assert second.dropped > 0
    assert whole.startswith(journal.read_bytes()[: whole.rfind(b"\n", 0, -20) + 1])
    second.ask()
    assert Search(PRESET, journal).dropped == 0


def test_a_search_needs_no_symbolic_links(tmp_path, monkeypatch):
    def symlink(*_):
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "symlink", symlink)
    assert Search(PRESET, tmp_path / "journal").ask() is not None


def test_a_trial_outside_a_range_that_was_moved_is_not_asked_again(tmp_path):
    before = Search(PRESET, tmp_path / "journal").ask()
    moved = dataclasses.replace(
        PRESET, rates=(before.learning_rate * 2, max(PRESET.rates[1], before.learning_rate * 4))
    )
    after = Search(moved, tmp_path / "journal").ask()
    assert after.learning_rate >= moved.rates[0] * 0.999
    again = Search(PRESET, tmp_path / "another")
    assert again.ask() == Search(PRESET, tmp_path / "another").ask()
