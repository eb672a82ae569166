import numpy as np
import pytest

from eqscale.errors import InputError
from eqscale.laws import nd_cost
from eqscale.laws.answers import at_cost, at_regressors, log_size_to_reach, size_at_ratio, to_reach
from eqscale.laws.arms import fit_arms
from eqscale.laws.cost import CostModel
from tests.laws.conftest import law

TRUE = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}


@pytest.fixture(scope="module")
def arm(isoflop_runs):
    return fit_arms(isoflop_runs.assign(arm="a"), resamples=200)["a"]


@pytest.fixture(scope="module")
def true_arm(isoflop_runs):
    return fit_arms(isoflop_runs.assign(arm="a"), resamples=20, fix=TRUE)["a"]


def test_the_loss_at_a_point_is_the_laws_with_an_interval_that_holds_the_truth(arm):
    found = at_regressors(arm.fit, arm.boot, arm, "", {"N": 1e9, "D": 2e10})
    assert found.loss.value == pytest.approx(float(arm.fit.predict(1e9, 2e10)), rel=1e-12)
    assert found.loss.interval[0] < law(1e9, 2e10) < found.loss.interval[1]
    assert found.new_run[0] < found.loss.interval[0] < found.loss.interval[1] < found.new_run[1]
    noise = arm.fit.t_value(0.95) * arm.fit.spread
    assert found.new_run[1] > found.loss.value * np.exp(noise)
    assert found.cost.value == pytest.approx(6 * 1e9 * 2e10)
    assert found.beyond == pytest.approx(6 * 1e9 * 2e10 / 1e21)


def test_a_point_needs_the_columns_of_the_law(arm):
    with pytest.raises(InputError, match="missing D"):
        at_regressors(arm.fit, arm.boot, arm, "", {"N": 1e9})
    with pytest.raises(InputError, match="has N, D, no 'M'"):
        at_regressors(arm.fit, arm.boot, arm, "x", {"N": 1e9, "D": 2e10, "M": 1.0})


@pytest.mark.parametrize("ratio", [None, 20.0, 200.0])
def test_what_reaches_a_loss_reaches_it_and_costs_what_buys_it(true_arm, ratio):
    found = to_reach(true_arm, "", 2.4, ratio)
    assert law(found.N.value, found.D.value) == pytest.approx(2.4, rel=1e-9)
    if ratio is not None:
        assert found.D.value / found.N.value == pytest.approx(ratio)
    bought = at_cost(true_arm, "", found.cost.value, ratio)
    assert bought.loss.value == pytest.approx(2.4, rel=1e-8)
    assert bought.N.value == pytest.approx(found.N.value, rel=1e-6)


def test_another_ratio_than_the_best_costs_more(true_arm):
    best = to_reach(true_arm, "", 2.4).cost.value
    assert all(to_reach(true_arm, "", 2.4, ratio).cost.value > best for ratio in (1.0, 200.0))


def test_intervals_of_a_target_hold_the_truth(arm, true_arm):
    found, true = to_reach(arm, "", 2.2), to_reach(true_arm, "", 2.2)
    for name in ("N", "D", "cost"):
        low, high = getattr(found, name).interval
        assert low < getattr(true, name).value < high


def test_a_loss_below_the_floor_is_out_of_reach_and_says_so(arm):
    for ratio in (None, 200.0):
        found = to_reach(arm, "", 1.5, ratio)
        assert found.cost is None
        assert found.note.startswith(f"no training reaches it: the law's floor is {arm.fit.params['E']:.4g} [")


def test_a_loss_that_some_resamples_do_not_reach_has_no_upper_limit(arm):
    floors = np.sort(arm.boot.coefficients["E"])
    loss = float(floors[-20])  # a tenth of the floors lie above
    found = to_reach(arm, "", max(loss, arm.fit.params["E"] + 1e-4))
    assert found.cost.interval[1] == np.inf
    assert "% of the resamples" in found.note


def test_the_size_at_a_ratio_costs_what_was_asked_under_any_cost_model():
    for cost in (nd_cost(), CostModel((-8.0, 1.1, 0.04), 0.9, 14.0, (-3.0, 3.0), kind="quadratic-D")):
        C = np.array([1e17, 1e20])
        N = size_at_ratio(cost, 50.0, C)
        assert cost.cost(N, 50 * N) == pytest.approx(C, rel=1e-9)


def test_sizes_are_searched_for_every_resample(arm):
    log_n = log_size_to_reach(arm.boot.coefficients, 20.0, 2.2)
    reached = arm.fit.form.loss_at(arm.boot.coefficients, {"N": log_n[:, None], "D": log_n[:, None] + np.log(20.0)})
    np.testing.assert_allclose(reached, 2.2, rtol=1e-9)
