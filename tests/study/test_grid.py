import dataclasses
import json
import re

import pytest

from eqscale.arms import get_arm
from eqscale.cli import main
from eqscale.errors import InputError
from eqscale.study import grid
from eqscale.study.alone import read_plan
from eqscale.study.grid import (
    aspect_ratio_grid,
    choose_sizes,
    compute_grid,
    controls_grid,
    data_grid,
    design_run,
    expected_batch,
    shape_groups,
    validation_grid,
)
from eqscale.study.presets import (
    ASPECT_RATIOS,
    COMPUTE_GRIDS,
    CONTROLS,
    DATA_GRIDS,
    VALIDATIONS,
    extra_size,
    overridden,
)
from eqscale.tasks import get_task
from eqscale.training import optim
from eqscale.training.optim import step_flops
from tests.jobs import ROOT

TASK = get_task("rigid")

QUICK = dataclasses.replace(COMPUTE_GRIDS["quick"], arms=("transformer", "transformer_aligned"))


def planned(preset):
    """The preset; skips where the packages of its task are missing."""
    if preset.task == "forces":
        pytest.importorskip("tblite", reason="pip install 'eqscale[forces]'")
    return preset


@pytest.mark.parametrize("optimizer", ["", "unsearched"])
def test_a_recipe_can_have_another_rate_on_one_task(optimizer, monkeypatch):
    if optimizer:
        monkeypatch.setitem(
            optim._OPTIMIZERS, optimizer, dataclasses.replace(optim.get_optimizer("adamw"), name=optimizer)
        )
    usual = get_arm("gatr_slim")
    arm = dataclasses.replace(usual, recipe=dataclasses.replace(usual.recipe, rate_on={"forces": 0.5}))
    for task, factor in (("rigid", 1.0), ("forces", 0.5)):
        preset = overridden(QUICK, {"task": task, "optimizer": optimizer})
        runs = [design_run(one, one.ladder[3], 1e11, preset, 0) for one in (usual, arm)]
        assert runs[1].learning_rate == pytest.approx(factor * runs[0].learning_rate, rel=1e-3)
        assert runs[1].steps == runs[0].steps


@pytest.mark.parametrize("name", COMPUTE_GRIDS)
def test_every_preset_can_be_planned(name):
    preset = planned(COMPUTE_GRIDS[name])
    specs = compute_grid(preset)
    many, few = len(preset.seeds), preset.fewest_seeds
    per_size = sum(many if budget <= preset.replicate_up_to else few for budget in preset.budgets)
    extra = sum(many if at <= preset.replicate_up_to else few for _, at, _ in map(extra_size, preset.extra_sizes))
    ladders = per_size * len(preset.arms) * preset.sizes_per_budget
    assert len({spec.run_id for spec in specs}) == len(specs) == ladders + extra


@pytest.mark.parametrize("name", DATA_GRIDS)
def test_every_data_grid_can_be_planned(name):
    preset = planned(DATA_GRIDS[name])
    specs = data_grid(preset)
    assert {spec.train_systems for spec in specs} == set(preset.systems)
    cells = {(spec.size, spec.steps) for spec in specs if spec.arm == "gatr"}
    assert len(cells) == preset.sizes_per_cell * len(preset.budgets)
    few = [spec for spec in specs if spec.train_systems <= preset.replicate_up_to]
    assert {spec.seed for spec in few} <= set(preset.seeds)
    assert {spec.seed for spec in specs if spec not in few} == set(preset.seeds[: preset.fewest_seeds])


def test_a_data_grid_varies_epochs_and_sizes_at_fixed_unique_data():
    one = dataclasses.replace(DATA_GRIDS["quick"], arms=("transformer",), systems=(30, 400))
    wider = dataclasses.replace(
        one, budgets=(2e10, *one.budgets), sizes_per_cell=3, seeds=(0, 1, 2), replicate_up_to=30, fewest_seeds=2
    )
    specs = data_grid(wider)
    cells = {(spec.budget, spec.train_systems, spec.size) for spec in specs}
    assert len({spec.run_id for spec in specs}) == len(specs) == 2 * 3 * (3 + 2)
    assert len(cells) == 2 * 2 * 3
    for budget in wider.budgets:
        assert {cell[2] for cell in cells if cell[:2] == (budget, 30)} == {
            cell[2] for cell in cells if cell[:2] == (budget, 400)
        }
    seen = {spec.budget: spec.steps * spec.batch_size for spec in specs if spec.size == specs[0].size}
    assert sorted(seen, key=seen.__getitem__) == sorted(seen)


def test_a_data_grid_beyond_the_data_is_an_error():
    with pytest.raises(InputError, match="--systems asks for 5000 unique systems; --train-systems has 4000"):
        data_grid(dataclasses.replace(DATA_GRIDS["quick"], systems=(100, 5000)))


def cost_of_step(arm, size, batch_size):
    """Executed FLOPs of a training step, the optimiser's included."""
    counts = expected_batch(QUICK, batch_size)
    return arm.executed_flops(size, TASK, counts) + step_flops(arm.recipe.optimizer, arm, size, TASK)


def test_every_run_spends_its_budget():
    for spec in compute_grid(QUICK):
        spent = spec.steps * cost_of_step(get_arm(spec.arm), spec.size, spec.batch_size)
        assert spent == pytest.approx(spec.budget, rel=0.5 / spec.steps + 1e-12)


def test_a_grid_has_every_budget_arm_and_size_once():
    specs = compute_grid(QUICK)
    assert len({spec.run_id for spec in specs}) == len(specs) == 4 * 2 * 4
    assert {(s.budget, s.arm) for s in specs} == {(b, a) for b in QUICK.budgets for a in QUICK.arms}


def test_the_warm_up_of_a_preset_is_that_of_its_runs():
    specs = compute_grid(dataclasses.replace(QUICK, warmup=0.05))
    assert {spec.warmup for spec in specs} == {0.05}
    assert not {spec.run_id for spec in specs} & {spec.run_id for spec in compute_grid(QUICK)}


def test_identities_are_stable_and_depend_on_every_field():
    spec = compute_grid(QUICK)[0]
    assert spec.run_id == compute_grid(QUICK)[0].run_id
    assert spec.from_dict(dataclasses.asdict(spec)) == spec
    changes = {"seed": 1, "steps": spec.steps + 1, "learning_rate": 0.5, "train_systems": 7, "data": "other"}
    ids = {dataclasses.replace(spec, **{name: value}).run_id for name, value in changes.items()}
    assert len(ids | {spec.run_id}) == len(changes) + 1


def test_more_budgets_leave_the_other_runs_alone():
    larger = dataclasses.replace(QUICK, budgets=(*QUICK.budgets, 1e12), seeds=(0, 1), replicate_up_to=3e10)
    assert {s.budget for s in compute_grid(larger) if s.seed == 1} == {1e10, 3e10}
    assert {s.run_id for s in compute_grid(QUICK)} < {s.run_id for s in compute_grid(larger)}


def test_a_budget_below_one_step_is_an_error():
    with pytest.raises(InputError, match=r"budget 100000 FLOPs is too small for a single step .*transformer"):
        compute_grid(dataclasses.replace(QUICK, budgets=(1e5,)))


def test_a_budget_for_too_few_sizes_says_what_to_change():
    with pytest.raises(InputError, match="--min-steps"):
        compute_grid(dataclasses.replace(QUICK, budgets=(1e8,)))


def test_sizes_are_spread_around_the_guessed_optimum():
    arm = get_arm("transformer")
    batch = expected_batch(QUICK, arm.recipe.batch_size(1e11))
    sizes = choose_sizes(arm, 1e11, 4, QUICK)
    cost = [arm.executed_flops(size, TASK, batch) / batch.tokens for size in sizes]
    assert cost == sorted(cost)
    assert cost[0] < arm.optimal_cost * 1e11**0.5 < cost[-1]


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_have_twins_in_the_compute_grid(name):
    preset = CONTROLS[name]
    grid = compute_grid(COMPUTE_GRIDS[name])
    trained = {spec.run_id for spec in grid}
    points = {(spec.arm, spec.budget, str(spec.size), spec.seed) for spec in grid}
    specs = controls_grid(preset)
    assert {spec.arm for spec in specs} == set(preset.arms)
    for spec in specs:
        assert spec.run_id not in trained
        if of := get_arm(spec.arm).control_of:
            assert (of, spec.budget, str(spec.size), spec.seed) in points
        else:
            assert spec.options["frame"] == "upright"
            assert dataclasses.replace(spec, view=()).run_id in trained


def test_a_control_has_the_middle_sizes_of_the_grid():
    for arm, count in (("gatr_turned", 4), ("gatr", 1)):
        specs = controls_grid(dataclasses.replace(CONTROLS["cpu"], arms=(arm,), budgets=(1e12,)))
        sizes = list(dict.fromkeys(spec.size for spec in specs))
        whole = choose_sizes(get_arm("gatr"), 1e12, 6, CONTROLS["cpu"])
        assert sizes == (whole[1:5] if count == 4 else whole[2:3])


def test_controls_that_cannot_be_are_refused():
    quick = CONTROLS["quick"]
    with pytest.raises(InputError, match="--task forces has no variant that gatr should ignore: leave gatr out"):
        controls_grid(dataclasses.replace(quick, task="forces", task_options=()))
    with pytest.raises(InputError, match=r"--sizes-per-budget 5: .* has 4 at each budget"):
        controls_grid(dataclasses.replace(quick, sizes_per_budget=5))


@pytest.mark.parametrize("name", VALIDATIONS)
def test_validation_sizes_lie_around_the_predicted_optimum(name):
    preset = VALIDATIONS[name]
    optima = {arm: get_arm(arm).parameters(get_arm(arm).ladder[6], TASK) for arm in preset.arms}
    lead = preset.arms[-1]
    budget = 4 * COMPUTE_GRIDS[name].budgets[-1]
    preset = dataclasses.replace(preset, extra_sizes=())
    specs = validation_grid(preset, {budget: optima, 3 * budget: {lead: optima[lead]}})
    assert [(s.arm, s.budget) for s in specs[-3:]] == [(lead, 3 * budget)] * 3
    specs = specs[:-3]
    assert len(specs) == 3 * len(preset.arms)
    assert {spec.budget for spec in specs} == {budget}
    for name in preset.arms:
        sizes = [get_arm(name).parameters(spec.size, TASK) for spec in specs if spec.arm == name]
        assert sizes == sorted(set(sizes))
        assert sizes[1] == optima[name]


def test_a_validation_builds_no_size_that_its_budget_cannot_train(monkeypatch):
    preset, built = VALIDATIONS["quick"], set()
    monkeypatch.setattr(grid, "step_flops", lambda name, arm, *rest: built.add(rest[0]) or step_flops(name, arm, *rest))
    arm = get_arm("gatr")
    optima = {4e11: {"gatr": arm.parameters(arm.ladder[6], TASK)}}
    specs = validation_grid(dataclasses.replace(preset, arms=("gatr",)), optima)
    assert {spec.size for spec in specs} < built
    most = 4e11 / preset.min_steps
    assert all(arm.executed_flops(size, TASK, expected_batch(preset, specs[0].batch_size)) <= most for size in built)


def test_a_validation_budget_that_trains_too_few_sizes_is_an_error():
    with pytest.raises(InputError, match=r"trains only \d sizes of transformer .* 3 are asked for"):
        validation_grid(VALIDATIONS["quick"], {1e8: {"transformer": 1e3, "gatr": 1e3}})


def test_sizes_are_added_where_they_are_asked_for():
    before = compute_grid(QUICK)
    known = {spec.size for spec in before if (spec.arm, spec.budget) == ("transformer", 1e11)}
    new = next(size for size in get_arm("transformer").ladder if size not in known)
    extra = (f"transformer:1e11:{new}", f"transformer:1e11:{min(known, key=str)}")
    added = [s for s in compute_grid(dataclasses.replace(QUICK, extra_sizes=extra)) if s not in before]
    assert [(spec.arm, spec.budget, spec.size) for spec in added] == [("transformer", 1e11, new)]


def test_a_larger_size_is_added_to_a_validation_where_it_is_asked_for():
    preset = dataclasses.replace(VALIDATIONS["quick"], arms=("transformer", "gatr"))
    optima = {4e11: {name: get_arm(name).parameters(get_arm(name).ladder[6], TASK) for name in preset.arms}}
    before = validation_grid(preset, optima)
    known = {spec.size for spec in before if spec.arm == "gatr"}
    new = next(size for size in get_arm("gatr").ladder[6:] if size not in known)
    after = validation_grid(dataclasses.replace(preset, extra_sizes=(f"gatr:4e11:{new}",)), optima)
    added = [spec for spec in after if spec not in before]
    assert [(spec.arm, spec.budget, spec.size) for spec in added] == [("gatr", 4e11, new)]
    assert len(after) == len(before) + 1
    for bad in ("gatr:3e11:8x1", "gatr_slim:4e11:8x1", "gatr:4e11:7x9"):
        message = re.escape(f"--extra-sizes '{bad}'") + r".* one of the budgets \(4e11\)"
        with pytest.raises(InputError, match=message):
            validation_grid(dataclasses.replace(preset, extra_sizes=(bad,)), optima)


def test_extra_sizes_of_a_preset_go_with_their_arms_and_budgets():
    preset = dataclasses.replace(QUICK, extra_sizes=("transformer:1e11:52x1", "transformer_aligned:1e10:16x1"))
    assert overridden(preset, {"seeds": (7,)}).extra_sizes == preset.extra_sizes
    assert overridden(preset, {"budgets": (3e10, 1e11)}).extra_sizes == preset.extra_sizes[:1]
    assert overridden(preset, {"arms": ("transformer_aligned",)}).extra_sizes == preset.extra_sizes[1:]
    unknown = overridden(preset, {"arms": ("gatr",), "extra_sizes": preset.extra_sizes})
    with pytest.raises(InputError, match="--extra-sizes 'transformer:1e11:52x1'"):
        compute_grid(unknown)


@pytest.mark.parametrize("text", ["transformer:1e11:7x9", "gatr:1e11:8x1", "transformer:1e12:8x1", "transformer"])
def test_a_bad_extra_size_is_named(text):
    with pytest.raises(InputError, match=f"--extra-sizes '{text}'"):
        compute_grid(dataclasses.replace(QUICK, extra_sizes=(text,)))


SHAPES = dataclasses.replace(ASPECT_RATIOS["cpu"], budgets=(2e11,), costs=(1.0, 2.0), depths=(1, 2, 4), seeds=(0, 1))


def test_shapes_of_a_group_cost_the_same_and_the_ladders_own_is_among_them():
    groups = shape_groups(SHAPES)
    assert {group.arm for group in groups} == set(SHAPES.arms)
    assert sum(len(group.shapes) for group in groups) >= 3 * len(groups)
    for group in groups:
        arm = get_arm(group.arm)
        batch = arm.recipe.batch_size(group.budget)
        cost = {shape: cost_of_step(arm, shape, batch) for shape in group.shapes}
        assert group.rung in arm.ladder
        assert len(group.shapes) >= 2  # narrow networks: not every depth has a width that costs the same
        assert {shape.depth for shape in group.shapes} <= {1, 2, 4, group.rung.depth}
        for shape in group.shapes:
            assert cost[shape] == pytest.approx(cost[group.rung], rel=0.13)
            assert (shape.width > group.rung.width) == (shape.depth < group.rung.depth)


def test_shapes_are_trained_with_every_seed_at_the_budget():
    specs = aspect_ratio_grid(SHAPES)
    shapes = {(group.arm, shape) for group in shape_groups(SHAPES) for shape in group.shapes}
    assert len(specs) == 2 * len(shapes) == len({spec.run_id for spec in specs})
    for spec in specs:
        spent = spec.steps * cost_of_step(get_arm(spec.arm), spec.size, spec.batch_size)
        assert spent == pytest.approx(2e11, rel=0.01)


@pytest.mark.parametrize(
    ("compute", "arms"), [(3e13, {"gatr": 4, "transformer": 3}), (2e13, {"gatr": 3, "transformer": 3})]
)
def test_extra_sizes_of_a_validation_preset_go_with_the_budgets_that_are_predicted(tmp_path, compute, arms):
    prediction = json.loads((ROOT / "results/cpu2/prediction_3e13.json").read_text())
    (tmp_path / "prediction.json").write_text(json.dumps(prediction | {"compute": compute}))
    plan, results = tmp_path / "plan.jsonl", tmp_path / "validation"
    words = ["--preset", "cpu", "--arms", *arms, "--results", results, "--storage", tmp_path, "--export", plan]
    assert main(["run", "validate", *map(str, words)]) == 0
    planned = [run.spec.arm for run in read_plan(plan)]
    assert {arm: planned.count(arm) for arm in arms} == arms
    assert main(["run", "validate", *map(str, words), "--extra-sizes", "gatr:1e15:8x5"]) == 2
