import json
import re

import numpy as np
import pandas as pd
import pytest

from eqscale.cli import main
from eqscale.errors import InputError
from eqscale.laws.contrast import contrast, log_optimum, scaled
from eqscale.report import checks
from eqscale.report.analysis import (
    Analysis,
    analyse,
    at_equal_cost,
    find_minima,
    fit_every_arm,
    on_axis,
    pooled_noise,
    seed_noise,
)
from eqscale.report.answer import answer, which_arm
from eqscale.report.conclusions import Conclusion, conclude
from eqscale.report.data_grid import read_data_grid
from eqscale.report.parts import UNIQUE, read_study
from eqscale.report.prediction import predict, trend
from eqscale.report.render import Content, render
from eqscale.report.roles import Roles
from eqscale.report.split import split_lead
from eqscale.report.tables import lead_table
from eqscale.roles import Role
from tests.report import planted
from tests.report.planted import BUDGETS

ROLES = Roles(
    dict.fromkeys(Role, ())
    | {Role.LEARN: ("transformer",), Role.AUGMENT: ("transformer_aug",), Role.BUILD_IN: ("gatr",)},
    {},
)


def analysed(tmp_path, table) -> Content:
    planted.write_part(table, tmp_path)
    study = read_study(tmp_path)
    found = analyse(study)
    grid = read_data_grid(study.part("data_grid"), study.part("compute"), "scenes")
    split = split_lead(found.minima["executed"], study.evaluations)
    return Content(study, found, grid, split, conclude(study.roles, found.arms, found.minima, grid), [])


def data_grid(data, compute=None):
    """The data grid of a raw table."""
    compute = pd.DataFrame() if compute is None else compute
    return read_data_grid(data.rename(columns={"unique_scenes": UNIQUE}), compute, "scenes")


def verdicts(conclusions: list[Conclusion]) -> dict[tuple[int, str], str]:
    return {(c.number, c.axis): c.verdict for c in conclusions}


@pytest.fixture(scope="module")
def unlike(tmp_path_factory) -> Content:
    """The plain arm overtakes the equivariant one."""
    arms = planted.UNLIKE_THE_PAPER
    return analysed(tmp_path_factory.mktemp("unlike"), planted.compute_grid(arms, seeds=(0, 1), rng=1))


def test_a_planted_crossing_is_found_and_contradicts_the_paper(unlike):
    found = verdicts(unlike.conclusions)
    assert found[1, ""] == "not decidable at this scale"  # no data grid
    assert {found[2, axis] for axis in ("executed", "nominal", "seconds")} == {"not reproduced"}
    truth = planted.crossing(planted.UNLIKE_THE_PAPER, 1e10, 1e13)
    text = which_arm(unlike.analysis, ROLES.built_in)
    line = next(line for line in text.splitlines() if "shown to cross" in line)
    C, low, high = map(float, re.search(r"at (\S+) \[(\S+), (\S+)\] FLOPs", line).groups())
    assert low <= truth <= high
    assert truth == pytest.approx(C, rel=0.3)
    assert line.count("`transformer` ahead above") == 3
    assert re.search(r"\| 1e10 FLOPs: `gatr`<br>.*<br>1e13 FLOPs: `transformer` \|", text)
    card = answer(unlike.study, unlike.analysis, "")
    assert card.startswith("**At equal compute, the lowest loss is gatr's at 1e10")
    assert "`transformer` is ahead on all three axes" in card
    assert {row[1].split(": ")[1] for row in lead_table(unlike.analysis, ROLES).rows} == {"shrinks"}


def test_laws_and_measured_optima_must_agree(unlike):
    found = unlike.analysis
    swapped = {axis: {"gatr": own["transformer"], "transformer": own["gatr"]} for axis, own in found.minima.items()}
    for axis in ("executed", "nominal", "seconds"):
        agreed, contradicted = (
            next(c.checks[0] for c in conclusions if (c.number, c.axis) == (3, axis))
            for conclusions in (unlike.conclusions, conclude(ROLES, found.arms, swapped, None))
        )
        assert agreed.claim == "the equivariant arm wants fewer parameters"
        assert (agreed.outcome, contradicted.outcome) == ("fails", "open")
        assert contradicted.by_law == f"{agreed.by_law} (fails)"
        assert contradicted.measured.endswith("(holds)")
    without = conclude(ROLES, found.arms, {}, None)
    assert {check.outcome for c in without for check in c.checks} == {"open"}
    assert "no measured optimum of `gatr` and `transformer`" in without[1].checks[0].measured


def test_noise_makes_the_conclusions_undecidable(tmp_path):
    table = planted.compute_grid(planted.LIKE_THE_PAPER, seeds=(0,), sizes=4, noise=0.25)
    found = verdicts(analysed(tmp_path, table).conclusions)
    assert found[2, "executed"] == found[3, "executed"] == "not decidable at this scale"


@pytest.mark.parametrize("rng", range(4))
def test_hopeless_runs_still_get_a_report(tmp_path, rng):
    """Laws that lose a term have no optimum; the report says so instead of failing."""
    table = planted.compute_grid(
        planted.LIKE_THE_PAPER, BUDGETS[:3], sizes=3, seeds=(0,), noise=0.8, spread=2.0, rng=rng
    )
    content = analysed(tmp_path, table)
    text = render(content)
    assert "not decidable at this scale" in text
    assert set(re.findall(r"\]\(#(table-\w+)\)", text)) <= set(re.findall(r'<a id="([\w-]+)">', text))
    assert "no table" not in text
    assert " nan" not in text


def test_one_arm_alone_gets_a_report_without_a_comparison(tmp_path):
    content = analysed(tmp_path, planted.compute_grid({"gatr": planted.LIKE_THE_PAPER["gatr"]}, seeds=(0,)))
    assert "only `gatr` has a law" in which_arm(content.analysis, ["gatr"])
    assert set(verdicts(content.conclusions).values()) == {"not decidable at this scale"}


def test_augmentation_that_leaves_half_of_the_gap_does_not_close_it():
    for left, verdict in ((0.0, "reproduced"), (0.5, "not reproduced"), (0.25, "not decidable at this scale")):
        grid = data_grid(planted.data_grid(planted.LIKE_THE_PAPER, left=left))
        assert conclude(ROLES, {}, {}, grid)[0].verdict == verdict, left


def test_what_repetition_costs_and_the_whole_gap_are_two_checks():
    """With a lead at fresh data that augmentation can't close, only the first can tell."""
    for lead, outcomes in ((0.0, ["holds"] * 3), (0.2, ["holds", "holds", "fails"]), (0.8, ["holds", "holds", "open"])):
        data = planted.data_grid(planted.LIKE_THE_PAPER, left=0.0)
        data["loss"] *= np.where(data["arm"] == "gatr", 1.0, np.exp(lead))
        found = conclude(ROLES, {}, {}, data_grid(data))[0].checks
        assert [check.outcome for check in found] == outcomes, lead
        assert found[1].power.startswith("holds in 100 % if repetition costs both the same")
        assert ("holds in 0 % at best" in found[2].power) == (lead == 0.8)
    assert "a perfect augmentation leaves" in found[2].power


def test_a_wider_interval_sees_larger_factors_only():
    assert checks.sees(0.1) == "sees a factor of 1.15"
    assert checks.sees(np.inf) == "sees nothing: its interval is unbounded"
    rng = np.random.default_rng(0)
    for margin, half in ((0.3, 0.2), (0.1, 0.2), (0.2, 0.2)):
        drawn = half / 1.96 * rng.standard_normal(20_000)
        assert checks.passing(margin, half) == pytest.approx(np.mean(drawn + half < margin), abs=0.02)


def test_gaps_need_seeds_to_be_known():
    data = planted.data_grid(planted.LIKE_THE_PAPER)
    grid = data_grid(data)
    weights = {"transformer": 1.0, "gatr": -1.0}
    found = grid.gap(weights, [30, 300])
    truth = 0.2 + 0.1 * np.mean(np.log10([300, 30]))
    assert found.low < truth < found.high < found.low + 0.05
    alone = data_grid(data[data["seed"] == 0]).gap(weights, [30, 300])
    assert not alone.known
    assert alone.low == -np.inf


def test_what_repetition_costs_leaves_out_the_lead_on_fresh_data():
    data = planted.data_grid(planted.LIKE_THE_PAPER)
    grid = data_grid(data)
    found = grid.excess({"gatr": 1.0}, [300])
    assert found.low < np.log(1 + 0.2 * np.log10(30)) < found.high < found.low + 0.05
    found = grid.excess({"transformer": 1.0, "gatr": -1.0}, [30, 300])
    assert found.low < 0.1 * np.mean(np.log10([300, 30])) < found.high < found.low + 0.05
    repeated_only = data_grid(data[data["epochs"] > 2])
    unknown = repeated_only.excess({"gatr": 1.0}, [300])
    assert np.isnan(unknown.value)
    assert not unknown.known


def test_equivalent_data_reads_off_the_reference_curve():
    grid = data_grid(planted.data_grid(planted.LIKE_THE_PAPER, noise=0.0))
    worth = grid.equivalent_data("gatr", "transformer")
    assert worth[30000] == np.inf  # the reference never gets there
    assert 1 < worth[30] < 1000
    assert grid.equivalent_data("transformer", "transformer")[300] == pytest.approx(1.0)


def test_the_law_of_repeated_data_comes_back(tmp_path):
    (E, A, B, alpha, beta), kappa, *_ = spec = planted.LIKE_THE_PAPER["gatr"]
    rng = np.random.default_rng(0)
    rows = []
    for repeats in (0.0, 1.0, 3.0, 10.0, 30.0, 100.0):
        for N in (2000, 8000, 30000):
            D = 1e12 / (kappa * N)
            U = D / (1 + repeats)
            effective = U * (1 + 8 * (1 - np.exp(-repeats / 8)))
            value = (E + A / N**alpha + B / effective**beta) * np.exp(0.003 * rng.normal())
            extra = dict(D=D, unique_tokens=U, unique_scenes=round(U), epochs=1 + repeats)
            rows.append(planted.row("gatr", spec, 1e12, N, 0, value, **extra))
    grid = data_grid(pd.DataFrame(rows), planted.compute_grid({"gatr": spec}))
    found = grid.laws["gatr"].found["R_D"]
    assert found.estimate == pytest.approx(8, rel=0.15)
    assert min(found.model[0], found.robust[0]) < 8 < max(found.model[1], found.robust[1])


def with_budgets_and_sizes(data, worse=1.1):
    """A data grid with half the epochs at half the budget too, where losses are higher, and a size that is worse."""
    half = data.assign(budget=data["budget"] / 2, epochs=data["epochs"] / 2, loss=1.2 * data["loss"])
    both = pd.concat([half, data])
    table = pd.concat([both, both.assign(N=2 * both["N"], loss=worse * both["loss"])], ignore_index=True)
    return table.assign(run_id=[f"run-{i}" for i in table.index])


def test_of_a_data_grid_the_best_size_and_the_most_epochs_count():
    data = planted.data_grid(planted.LIKE_THE_PAPER)
    one, several = data_grid(data), data_grid(with_budgets_and_sizes(data))
    assert several.levels["log_loss"].tolist() == pytest.approx(one.levels["log_loss"].tolist())
    assert several.levels["epochs"].tolist() == one.levels["epochs"].tolist()
    better = data_grid(with_budgets_and_sizes(data, worse=0.9))
    assert better.levels["log_loss"].tolist() == pytest.approx((one.levels["log_loss"] + np.log(0.9)).tolist())
    assert better.levels["N"].tolist() == (2 * one.levels["N"]).tolist()
    cells = several.cells[(several.cells["arm"] == "gatr") & (several.cells[UNIQUE] == 300)]
    assert cells["epochs"].tolist() == [15.0, 30.0]
    assert np.diff(cells["log_loss"]) == pytest.approx(-np.log(1.2))
    first, same = (conclude(ROLES, {}, {}, grid)[0] for grid in (one, several))
    assert [check.outcome for check in same.checks] == [check.outcome for check in first.checks]


def test_a_data_grid_at_several_budgets_is_one_and_shows_its_epochs(tmp_path):
    planted.write_part(with_budgets_and_sizes(planted.data_grid(planted.LIKE_THE_PAPER)), tmp_path)
    assert read_study(tmp_path).part("compute").empty
    planted.write_text(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "loss_vs_epochs.png" in text
    assert "at 1e12 executed FLOPs" in text
    assert "the lowest of up to 2 sizes" in text


def test_a_folder_with_one_budget_and_several_data_sizes_is_a_data_grid(tmp_path):
    planted.write_part(planted.data_grid(planted.LIKE_THE_PAPER), tmp_path)
    study = read_study(tmp_path)
    assert study.part("compute").empty
    assert len(study.part("data_grid")) == 36
    assert analyse(study).arms == {}


def test_seed_noise_is_pooled_over_budgets_and_sizes():
    noise = seed_noise(planted.compute_grid(planted.LIKE_THE_PAPER, noise=0.02, sizes=12))
    assert noise.groupby(["arm", "budget"]).size().tolist() == [12] * 8
    for arm in planted.LIKE_THE_PAPER:
        sd, df = pooled_noise(noise, arm)
        assert sd == pytest.approx(0.02, rel=0.15)
        assert df == 96
    none = seed_noise(planted.compute_grid(planted.LIKE_THE_PAPER, seeds=(0,)))
    assert none.empty
    assert pooled_noise(none, "gatr")[1] == 0


def test_optima_at_an_edge_are_flagged_with_the_size_to_add(tmp_path):
    arms = planted.LIKE_THE_PAPER
    table = planted.compute_grid(arms, seeds=(0,), noise=0.001)
    (law, kappa, *_) = arms["gatr"]
    best = optimal = planted.optimal_size(law, kappa, 1e12)
    cut = (table["arm"] == "gatr") & (table["budget"] == 1e12) & (table["N"] < 1.3 * optimal)
    edges: list = analysed(tmp_path, table[~cut]).analysis.edges
    flagged = [e for e in edges if e.arm == "gatr" and e.budget == 1e12]
    assert {e.axis for e in flagged} == {"executed", "nominal", "seconds"}
    assert all(e.side == "smallest" and e.suggested < 1.1 * best for e in flagged)
    assert not [e for e in edges if e not in flagged]


def test_panels_of_another_axis_hold_runs_at_equal_cost(unlike: Content):
    analysis: Analysis = unlike.analysis
    panels = at_equal_cost(analysis.arms["seconds"], "seconds")
    costs = {float(c) for arm in panels.values() for c in arm.C}
    assert len(costs) <= len(planted.BUDGETS)
    for name, arm in panels.items():
        before = analysis.arms["seconds"][name]
        np.testing.assert_allclose(arm.cost.cost(arm.N, arm.D), arm.C, rtol=0.02)
        np.testing.assert_allclose(arm.fit.residuals, before.fit.residuals, atol=1e-9)


def test_contrasts_cover_the_planted_difference():
    """Over simulated studies the wider interval of log L_opt holds the truth at least 90 % of the time."""
    arms = planted.UNLIKE_THE_PAPER
    one, two = (planted.optimal_loss(law, kappa, 1e12) for law, kappa, *_ in arms.values())
    hits = 0
    for seed in range(10):
        fitted, _ = fit_every_arm(planted.compute_grid(arms, seeds=(0,), noise=0.01, rng=seed))
        found = contrast(
            [
                (fitted["transformer"], log_optimum(fitted["transformer"].cost, 1e12, "loss")),
                (fitted["gatr"], scaled(log_optimum(fitted["gatr"].cost, 1e12, "loss"), -1.0)),
            ]
        )
        hits += found.low < np.log(one / two) < found.high
        assert found.low <= found.model[0] < found.value < found.model[1] <= found.high
    assert hits >= 9


def test_predictions_are_made_once_and_above_the_runs(tmp_path, capsys):
    planted.write_part(planted.compute_grid(planted.LIKE_THE_PAPER, seeds=(0,)), tmp_path)
    study = read_study(tmp_path)
    with pytest.raises(InputError, match="nothing would be predicted"):
        predict(study, 1e12, up_to=1e13)
    with pytest.raises(InputError, match="unknown axis 'hours'; choose one of executed, nominal, seconds"):
        predict(study, 1e14, axis="hours")
    for compute in (1e13, 1.05e13):  # runs of 1e13 are at that cost, not below it
        assert predict(study, compute)["largest_budget_seen"] == 1e12
    record = predict(study, 3e4, axis="seconds")
    assert record["largest_budget_seen"] == 1e13
    assert record["arms"]["gatr"]["at_sizes"]["low"][0] < record["arms"]["gatr"]["at_sizes"]["high"][0]
    assert main(["predict", str(tmp_path), "--compute", "3e13"]) == 0
    assert main(["predict", str(tmp_path), "--compute", "3e13"]) == 2
    assert "it is made once" in capsys.readouterr().err


def test_plan_names_the_arm_and_a_rung_of_its_ladder(tmp_path, capsys):
    planted.write_part(planted.compute_grid(planted.LIKE_THE_PAPER, seeds=(0,)), tmp_path)
    out = tmp_path / "plan.json"
    options = ["--resamples", "100", "--json", str(out)]
    assert main(["plan", "--from", str(tmp_path), "--compute", "2h", "--axis", "seconds", *options]) == 0
    record = json.loads(out.read_text())
    assert record["compute"] == 7200
    best = record["suggestions"][0]
    law, kappa, *_ = planted.LIKE_THE_PAPER["gatr"]
    assert best["arm"] == "gatr"
    assert best["N_optimal"] == pytest.approx(planted.optimal_size(law, kappa, 7.2e12), rel=0.1)
    assert 0.5 < best["N"] / best["N_optimal"] < 2
    assert re.fullmatch(r"\d+x\d+", best["size"])
    assert best["costs"]["seconds"] == pytest.approx(7200, rel=0.01)
    assert best["costs"]["executed"] == pytest.approx(7.2e12, rel=0.01)
    truth = planted.loss(law, best["N"], best["D"])
    low, high = best["new_run"]
    assert low < truth < high
    assert best["loss"]["value"] == pytest.approx(truth, rel=0.02)
    assert best["trend"]["loss"] == pytest.approx(planted.optimal_loss(law, kappa, 7.2e12), rel=0.02)
    shown = capsys.readouterr().out
    assert "Train gatr" in shown
    assert "misfit" not in shown
    assert "misses structure" not in shown
    assert main(["plan", "--from", str(tmp_path), "--compute", "2e10", "--resamples", "100", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["suggestions"][0]["trend"] == {}  # the line is that of the largest budgets


def test_plan_names_what_was_trained_at_this_cost(tmp_path, capsys):
    table = planted.compute_grid(planted.LIKE_THE_PAPER, seeds=(0, 1))
    planted.write_part(table, tmp_path)
    further = table[(table["budget"] == 1e13) & (table["arm"] == "gatr")]
    further = further.assign(flops_executed=2e14, budget=2e14, loss=further["loss"] / 2, run_id="v" + further["run_id"])
    planted.write_part(further, tmp_path / "validation")
    options = ["plan", "--from", str(tmp_path), "--resamples", "100", "--compute"]
    assert main([*options, "1.9e14"]) == 0
    sizes = further.groupby("N")["loss"].mean()
    told = " ".join(capsys.readouterr().out.split())
    best = f"mean loss of the best size: gatr {sizes.min():#.3g} with {sizes.idxmin():,} parameters."
    assert f"Trained at this cost, within 10 %, {best}" in told
    assert main([*options, "1e13"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "an extrapolation" not in told
    assert re.search(r"best size: gatr \S+ with \S+ parameters, transformer ", told)
    assert main([*options, "5e13"]) == 0
    assert "Trained at this cost" not in capsys.readouterr().out


def test_plan_uses_the_panels_and_draws_of_the_report(tmp_path, capsys):
    table = planted.compute_grid(planted.LIKE_THE_PAPER, seeds=(0,)).drop(columns="task")
    # real runs spend their budget only nearly, each arm by another share
    spent = np.where(table["arm"] == "gatr", 0.97, 1.02)
    planted.write_part(table.assign(flops_executed=table["flops_executed"] * spent), tmp_path)
    out = tmp_path / "plan.json"
    options = ["--axis", "seconds", "--resamples", "100", "--json", str(out)]
    assert main(["plan", "--from", str(tmp_path), "--compute", "20000", *options]) == 0
    shown = json.loads(out.read_text())["suggestions"]
    analysis = analyse(read_study(tmp_path))
    for suggestion in shown:
        assert suggestion["trend"] == trend(analysis.minima["seconds"][suggestion["arm"]], 20000)
    assert main(["plan", "--from", str(tmp_path), "--compute", "20000", "--by", "width"]) == 2
    assert "--by would change nothing" in capsys.readouterr().err
    assert main(["plan", "--from", str(tmp_path), "--compute", "1e14", "--axis", "hours"]) == 2
    assert "--axis 'hours': choose one of executed, nominal, seconds" in capsys.readouterr().err


def bent(table):
    """The compute grid with a plain arm that follows no power law: its losses fall faster and faster."""
    fall = np.exp(-0.03 * np.log(table["D"] / table["D"].min()) ** 2)
    return table.assign(loss=table["loss"] * np.where(table["arm"] == "transformer", fall, 1.0))


def test_plan_tells_its_laws_verdicts_and_takes_lines_for_one_that_misfits(tmp_path, capsys):
    planted.write_part(bent(planted.compute_grid(planted.LIKE_THE_PAPER, seeds=(0, 1))), tmp_path)
    out = tmp_path / "plan.json"
    assert main(["plan", "--from", str(tmp_path), "--compute", "1e14", "--resamples", "100", "--json", str(out)]) == 0
    first, second, *others = filter(str.strip, capsys.readouterr().out.splitlines())
    told = " ".join(map(str.strip, others))
    assert "by straight lines through its last measured optima, since its law misses structure" in told
    assert "of the resamples" not in told  # such a law can't be sure
    best, other = json.loads(out.read_text())["suggestions"]
    assert (best["arm"], best["N_optimal"]) == ("transformer", best["trend"]["N"])
    assert other["N_optimal"] != other["trend"]["N"]  # its law fits
    assert first.startswith("transformer: 48 runs, verdict: misfit: loss falls faster than the law at ")
    assert second.startswith("gatr: 48 runs, verdict: ")
    assert "misfit" not in second


def two_arms(table):
    fitted, _ = fit_every_arm(table)
    laws = {name: on_axis(arm, table, "executed") for name, arm in fitted.items()}
    return laws, find_minima(laws, "executed")


def test_a_law_that_misses_structure_has_no_vote():
    pair = ("gatr", "transformer")
    laws, minima = two_arms(bent(planted.compute_grid(planted.LIKE_THE_PAPER, seeds=(0, 1))))
    found = checks.by_laws(pair, laws, "FLOPs")
    assert {finding.outcome for findings in found.values() for finding in findings} == {checks.NO_VOTE}
    assert "`transformer` lacks fit, p = " in found[3][1].text
    measured = checks.by_minima(pair, minima, "FLOPs")
    decided = [c for c in conclude(ROLES, {"executed": laws}, {"executed": minima}, None) if c.axis == "executed"]
    assert [check.outcome for c in decided for check in c.checks] == [
        finding.outcome for n in (2, 3) for finding in measured[n]
    ]
    assert decided[0].checks[1].by_law.endswith("(no vote)")


def test_a_law_without_floor_has_no_vote_on_whether_it_is_a_power_law():
    laws, _ = two_arms(planted.compute_grid(planted.LIKE_THE_PAPER, seeds=(0, 1), rng=1))
    straight, *others = checks.by_laws(("gatr", "transformer"), laws, "FLOPs")[2]
    assert straight.outcome == checks.NO_VOTE
    assert "has E = 0, a power law by construction" in straight.text
    assert [finding.outcome for finding in others] == ["holds", "holds"]


def test_arms_keep_their_law_on_every_axis():
    runs = planted.compute_grid(planted.LIKE_THE_PAPER, seeds=(0,))
    fitted, _ = fit_every_arm(runs)
    moved = on_axis(fitted["gatr"], runs, "nominal")
    assert moved.fit is fitted["gatr"].fit
    np.testing.assert_allclose(moved.C, 1.5 * fitted["gatr"].C)
