import numpy as np
import pandas as pd
import pytest

from eqscale.laws import fit
from eqscale.laws.arms import Options, fit_arms, fit_table
from eqscale.laws.joint import joint_fit
from eqscale.laws.structure import design_columns
from tests.laws.conftest import law


def gamma_law(N, D):
    return 1.2 + (3e3 / N**0.5 + 5e4 / D**0.6) ** 0.5


def design(n, seed=0):
    rng = np.random.default_rng(seed)
    C = 10 ** rng.uniform(17, 21, n)
    N = 0.1 * np.sqrt(C) * np.exp(rng.uniform(-2, 2, n))
    return rng, N, C / (6 * N)


def noisy(rng, loss, noise=0.01):
    return loss * np.exp(noise * rng.standard_normal(len(loss)))


def test_a_gamma_law_under_the_plain_form_is_a_misfit_in_words():
    rng, N, D = design(400)
    found = fit(N, D, noisy(rng, gamma_law(N, D)))
    assert found.verdict.state == "misfit"
    assert "than the law at" in found.verdict.reason
    assert "residuals +" in found.verdict.reason
    assert str(found.verdict).startswith("misfit: loss falls ")
    assert fit(N, D, noisy(rng, gamma_law(N, D)), form="gamma").verdict.good


def test_runs_that_follow_the_law_are_hardly_ever_called_a_misfit():
    """15 sets each of 24 and 120 runs; outliers and noise that grows towards a corner are no structure."""
    flagged = 0
    for seed in range(15):
        rng, N, D = design(24, seed)
        flagged += fit(N, D, noisy(rng, law(N, D))).verdict.has("misfit")
        rng, N, D = design(120, 100 + seed)
        size = np.where(rng.random(120) < 0.05, 8.0, 1.0) * (1 + 4 * (np.quantile(D, 0.9) < D))
        flagged += fit(N, D, law(N, D) * np.exp(0.006 * size * rng.standard_normal(120))).verdict.has("misfit")
    assert flagged <= 2


@pytest.mark.parametrize("faster", [True, False])
def test_the_direction_is_that_of_the_top_budgets(faster):
    rng, N, D = design(200)
    x = np.log(N * D)
    bend = 0.04 * ((x - x.mean()) / x.std()) ** 2
    found = fit(N, D, noisy(rng, law(N, D) * np.exp(-bend if faster else bend)))
    assert f"loss falls {'faster' if faster else 'slower'} than the law at the top budgets" in found.verdict.reason
    low, middle, high = (float(v) for v in found.structure.direction.split("residuals ")[1].replace(" %", "").split(
        " at")[0].split(", "))  # fmt: skip
    assert (high < 0) == (low < 0) == faster
    assert (middle > 0) == faster


def test_too_few_runs_cannot_tell_and_noise_free_ones_need_no_test():
    rng, N, D = design(14)
    found = fit(N, D, noisy(rng, law(N, D)))
    assert "can't tell" in found.structure.describe()
    assert not found.structure.rejects
    assert not found.verdict.has("misfit")
    assert fit(N, D, law(N, D)).structure is None


def test_a_column_that_the_law_ignores_is_named():
    rng, N, D = design(90)
    batch, optimiser = rng.choice([32, 64, 128, 256], 90), rng.choice(["adam", "muon", "sgd"], 90)
    loss = noisy(rng, law(N, D))
    by_batch = fit(N, D, loss * batch**0.02, chosen={"batch": batch, "optimizer": optimiser})
    assert by_batch.verdict.reason.startswith("loss depends on batch: +")
    by_label = fit(
        N, D, loss * np.where(optimiser == "sgd", 1.05, 1.0), chosen={"batch": batch, "optimizer": optimiser}
    )
    assert by_label.verdict.reason.startswith("loss depends on optimizer: runs with ")
    assert fit(N, D, loss, chosen={"batch": batch, "optimizer": optimiser}).verdict.good
    assert fit(N, D, loss, chosen={"C": 6 * N * D}).structure.patterns[0].along == "N, D"  # C says nothing new


def test_only_runs_that_agree_in_all_that_was_chosen_are_replicates():
    """Three learning rates at each (N, D) are no seeds; their scatter is no pure error."""
    rng, N, D = design(40)
    runs = pd.DataFrame({"N": np.tile(N, 3), "D": np.tile(D, 3), "learning_rate": np.repeat([1e-3, 3e-3, 1e-2], 40)})
    runs["loss"] = law(runs["N"], runs["D"]) * (1 + 0.02 * (runs["learning_rate"] == 1e-2))
    runs["loss"] = noisy(rng, runs["loss"].to_numpy(), 0.003)
    sweep, _ = fit_table(runs, Options(resamples=0), "runs")
    assert sweep.lack_of_fit is None
    assert "loss depends on learning_rate" in str(sweep.verdict)
    seeds = runs.assign(seed=np.repeat([0, 1, 2], 40)).drop(columns="learning_rate")
    assert fit_table(seeds, Options(resamples=0), "runs")[0].lack_of_fit.replicates == 80
    said = fit_table(runs.assign(point=np.tile(np.arange(40), 3)), Options(resamples=0, replicates="point"), "runs")[0]
    assert said.lack_of_fit.replicates == 80


def test_replicates_show_structure_that_no_smooth_pattern_has():
    rng, N, D = design(40)
    point = np.tile(np.arange(40), 4)
    kink = 0.02 * rng.choice([-1, 1], 40)[point]
    found = fit(N[point], D[point], noisy(rng, law(N, D)[point] * np.exp(kink), 0.004))
    assert found.structure.patterns[0].along == "replicates"
    assert "the means of replicates are further from the law" in str(found.verdict)


def test_equal_points_of_two_arms_are_no_replicates_in_a_joint_law():
    rng, N, D = design(40)
    runs = pd.DataFrame({"N": np.tile(N, 2), "D": np.tile(D, 2), "arm": np.repeat(["a", "b"], 40)})
    runs["loss"] = noisy(rng, (law(runs["N"], runs["D"]) * np.repeat([1, 0.8], 40)).to_numpy(), 0.003)
    arms = fit_arms(runs, cost=None, resamples=0)
    assert joint_fit(arms, ()).lack_of_fit is None
    assert "loss depends on arm" in str(joint_fit(arms, ("E", "A", "B", "alpha", "beta")).verdict)


def test_runs_of_weight_zero_say_nothing_about_the_form():
    rng, N, D = design(60)
    loss = noisy(rng, law(N, D))
    wrong = loss * np.where(np.arange(60) < 20, np.exp(rng.uniform(0, 1, 60)), 1.0)
    ignored = fit(N, D, wrong, weights=np.where(np.arange(60) < 20, 0.0, 1.0)).structure
    left_out = fit(N[20:], D[20:], loss[20:]).structure
    assert ignored.p_value == pytest.approx(left_out.p_value, rel=1e-4)
    assert ignored.patterns[0].degrees == left_out.patterns[0].degrees


def test_of_very_many_runs_a_sample_is_looked_at():
    rng, N, D = design(25_000)
    found = fit(N, D, noisy(rng, gamma_law(N, D)))
    assert found.verdict.has("misfit")
    assert sum(found.structure.patterns[0].degrees) < 20_000


def test_what_was_chosen_is_told_from_what_was_measured():
    n = 12
    runs = pd.DataFrame({
        "N": np.arange(n) + 1.0, "D": 2.0, "loss": [1.0, 2.0] * 6, "seed": [0, 1] * 6,
        "run_id": [f"r{i}" for i in range(n)],
        "lr": np.linspace(1e-3, 1e-2, n), "batch_size": [32, 64] * 6, "depth": [1, 2, 3] * 4, "data": ["x", "y"] * 6,
        "train_loss": [1.0, 2.0] * 6, "accuracy": [0.5, 0.6] * 6, "seconds": [1, 2] * 6, "wall_time": [3, 4] * 6,
        "temperature": np.linspace(0, 1, n), "constant": 1, "gap": [1.0, np.nan] * 6, "status": ["a", "b"] * 6,
        "grad_accumulation": [1, 2] * 6, "copy_of_y": [1.0, 2.0] * 6, "shapes": [[1]] * n,
    })  # fmt: skip
    assert list(design_columns(runs, ("N", "D"))) == ["lr", "batch_size", "depth", "data", "grad_accumulation"]
    assert list(design_columns(runs, ("N", "D", "depth"))) == ["lr", "batch_size", "data", "grad_accumulation"]


def test_names_with_other_separators_say_as_well_what_was_chosen():
    n = 12
    runs = pd.DataFrame(
        {"N": np.geomspace(1, 9, n), "loss": 1.0, "opt/lr": np.linspace(1, 2, n), "eval/f1": [0.1, 0.2] * 6}
    )
    assert list(design_columns(runs, ("N", "D"))) == ["opt/lr"]
