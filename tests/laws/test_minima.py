import dataclasses

import numpy as np
import pytest

from eqscale.errors import InputError
from eqscale.laws import fit, nd_cost
from eqscale.laws.arms import ArmFit
from eqscale.laws.minima import (
    bend,
    combine,
    compute_multiplier,
    extrapolate,
    line_to_top,
    loss_ratio,
    measured_minima,
    of_one_run,
    weights_at,
)

BUDGETS = np.array([1e11, 3e11, 1e12, 3e12])


def arm(sizes=7, seeds=2, noise=0.0, rng=0, level=0.3, falls=0.2, grows=0.5, curve=0.1, shift=0.0, budgets=BUDGETS):
    """Runs whose log loss is a parabola in log N at each budget, the optimum of which is known."""
    rng = np.random.default_rng(rng)
    budget, spread, _ = np.meshgrid(budgets, np.linspace(-1.2, 1.2, sizes), range(seeds), indexing="ij")
    budget, N = budget.ravel(), (1e4 * (budget / 1e11) ** grows * np.exp(spread)).ravel()
    off = spread.ravel() - shift
    loss = level * (budget / 1e11) ** -falls * np.exp(curve * off**2 + noise * rng.normal(size=N.size))
    D = budget / (6 * N)
    return ArmFit("a", fit(N, D, loss), None, nd_cost(), budget, budget)


def test_the_vertex_of_runs_without_noise_is_exact():
    found = measured_minima(arm(shift=0.3), resamples=50)
    assert found.cost == pytest.approx(BUDGETS)
    assert np.exp(found.loss.value) == pytest.approx(0.3 * (BUDGETS / 1e11) ** -0.2, rel=1e-9)
    assert np.exp(found.N.value) == pytest.approx(1e4 * (BUDGETS / 1e11) ** 0.5 * np.exp(0.3), rel=1e-9)
    assert found.scatter < 1e-10
    assert found.df == 4 * (12 - 4)  # of seven sizes the one furthest off is 22 % above the best


def test_an_optimum_outside_the_sizes_is_unknown_and_its_loss_that_of_the_last_size():
    found = measured_minima(arm(shift=2.0), resamples=50)
    assert np.isnan(found.N.value).all()
    assert np.exp(found.loss.value[0]) == pytest.approx(0.3 * np.exp(0.1 * 0.8**2), rel=1e-9)
    size = combine([(found, found.N, weights_at(found, BUDGETS[:1], np.ones(1)))])
    assert (size.low, size.high) == (-np.inf, np.inf)


def test_losses_that_rise_more_steeply_on_one_side_do_not_shift_the_optimum():
    """A parabola through all sizes would be 3 % off."""
    near, N = 1e4, 1e4 * np.geomspace(0.25, 5, 7).repeat(3)

    def log_loss(N):
        return np.log(0.1 + 0.1 * (near / N) ** 1.5 + 0.1 * (N / near) ** 0.5)

    grid = np.geomspace(N[0], N[-1], 10_001)
    lowest, best = log_loss(grid).min(), np.log(grid[log_loss(grid).argmin()])
    C = np.full(len(N), 1e12)
    exact = ArmFit("a", fit(N, C / (6 * N), np.exp(log_loss(N))), None, nd_cost(), C, C)
    found = measured_minima(exact, resamples=2)
    assert abs(found.loss.value[0] - lowest) < 0.004
    assert abs(found.N.value[0] - best) < 0.1
    parabola = np.polyfit(np.log(N / near), log_loss(N), 2)
    assert np.polyval(parabola, np.log(grid / near)).min() - lowest < -0.025
    rng, hits = np.random.default_rng(3), np.zeros(2)
    for trial in range(100):
        noisy = exact.loss * np.exp(0.03 * rng.normal(size=len(N)))
        drawn = dataclasses.replace(exact, fit=dataclasses.replace(exact.fit, observed=noisy))
        found = measured_minima(drawn, resamples=200, seed=trial)
        one = weights_at(found, C[:1], np.ones(1))
        for i, (optima, truth) in enumerate(((found.loss, lowest), (found.N, best))):
            at = combine([(found, optima, one)])
            hits[i] += at.low < truth < at.high
    assert np.all(hits >= 88), hits


def test_budgets_with_few_sizes_are_left_out():
    assert measured_minima(arm(sizes=3)) is None
    assert measured_minima(arm(sizes=4)).cost == pytest.approx(BUDGETS)


@pytest.mark.parametrize("what", ["loss", "N"])
def test_both_intervals_cover_the_truth_about_as_often_as_they_say(what):
    truth = {"loss": np.log(0.3) - 0.2 * np.log(10), "N": np.log(1e4) + 0.5 * np.log(10)}[what]
    hits = np.zeros(2)
    trials = 150
    plain = arm(noise=0.0)
    rng = np.random.default_rng(1)
    for trial in range(trials):
        loss = plain.loss * np.exp(0.03 * rng.normal(size=plain.loss.size))
        noisy = dataclasses.replace(plain, fit=dataclasses.replace(plain.fit, observed=loss))
        found = measured_minima(noisy, resamples=200, seed=trial)
        at = combine([(found, getattr(found, what), weights_at(found, BUDGETS[2:3], np.ones(1)))])
        hits += [low < truth < high for low, high in (at.model, at.robust)]
    assert np.all(hits / trials > 0.88), hits / trials
    assert hits[0] / trials < 1.0


def test_the_ratio_of_two_arms_is_that_of_their_optima():
    one, two = measured_minima(arm(noise=0.01)), measured_minima(arm(noise=0.01, level=0.39, rng=1), seed=1)
    found = loss_ratio(one, two, BUDGETS[1]).exp()
    assert found.low < 1.3 < found.high
    assert found.high / found.low < 1.06
    apart = loss_ratio(two, one, BUDGETS[1]).exp()
    assert apart.value == pytest.approx(1 / found.value)


def test_the_compute_for_an_equal_loss_is_that_of_power_laws():
    one, two = measured_minima(arm()), measured_minima(arm(level=0.36))
    exact = compute_multiplier(one, two, 1e12).exp()  # a straight line in log L over log C is a power law
    assert exact.value == pytest.approx((0.36 / 0.3) ** (1 / 0.2))
    assert exact.high / exact.low == pytest.approx(1)


@pytest.mark.parametrize(("level", "cost", "bound"), [(0.5, 1e11, 1.0), (0.2, 3e12, 1.0), (0.5, 3e11, 3.0)])
def test_a_loss_that_the_arm_has_no_runs_at_gives_a_bound(level, cost, bound):
    found = compute_multiplier(measured_minima(arm()), measured_minima(arm(level=level)), cost).exp()
    assert found.value == pytest.approx(bound)
    known, open_end = (found.low, found.high) if level > 0.3 else (found.high, found.low)
    assert known == pytest.approx(bound)
    assert open_end == (np.inf if level > 0.3 else 0)


def test_intervals_of_a_compute_multiplier_cover_the_truth():
    truth, trials, hits = 5 * np.log(1.2), 150, np.zeros(2)
    plain, base = arm(), arm(level=0.36)
    rng = np.random.default_rng(2)
    for trial in range(trials):
        one, two = (
            measured_minima(
                dataclasses.replace(
                    a, fit=dataclasses.replace(a.fit, observed=a.loss * np.exp(0.03 * rng.normal(size=a.loss.size)))
                ),
                resamples=200,
                seed=2 * trial + k,
            )
            for k, a in enumerate((plain, base))
        )
        found = compute_multiplier(one, two, 1e12)
        hits += [low < truth < high for low, high in (found.model, found.robust)]
    assert np.all(hits / trials > 0.88), hits / trials
    assert hits[0] / trials < 1.0


def test_a_line_through_the_last_optima_leads_on():
    exact = measured_minima(arm(), resamples=50)
    assert extrapolate(exact, "loss", 1e14).exp().value == pytest.approx(0.3 * 1e3**-0.2)
    assert extrapolate(exact, "N", 1e14).exp().value == pytest.approx(1e4 * 1e3**0.5)
    noisy = measured_minima(arm(noise=0.02))
    ahead = extrapolate(noisy, "loss", 1e14)
    assert ahead.low < np.log(0.3 * 1e3**-0.2) < ahead.high
    one = of_one_run(noisy, ahead)
    assert one[1] - one[0] > 4 * noisy.scatter
    assert one[1] - one[0] > ahead.model[1] - ahead.model[0]
    with pytest.raises(InputError, match="0 measured optimum"):
        extrapolate(measured_minima(arm(shift=2.0)), "N", 1e14)


def test_a_power_law_has_no_bend_and_a_floor_has():
    straight = bend(measured_minima(arm(noise=0.005)), BUDGETS)
    assert straight.low < 0 < straight.high
    assert straight.high - straight.low < 1
    exact = measured_minima(arm())
    assert bend(exact, BUDGETS).value == pytest.approx(0, abs=1e-9)
    exact.loss.value[:] = np.log(0.1 + 0.2 * (BUDGETS / 1e11) ** -0.3)
    x = np.log(BUDGETS)
    curve = np.polynomial.Polynomial.fit(x, exact.loss.value, 2)
    low, high = x[0], x[-1]
    a, b, c, d = curve(np.linspace(low, high, 4))
    assert bend(exact, BUDGETS).value == pytest.approx(np.log((c - d) / (a - b)))
    assert bend(exact, BUDGETS).value < -0.1


def test_a_line_from_below_is_held_against_the_top():
    exact = measured_minima(arm())
    assert line_to_top(exact) == pytest.approx(0.0, abs=1e-9)
    value = exact.loss.value.copy()
    value[-1] += 0.1
    off = dataclasses.replace(exact, loss=dataclasses.replace(exact.loss, value=value))
    assert line_to_top(off) == pytest.approx(-0.1, abs=1e-9)
    assert line_to_top(measured_minima(arm(budgets=BUDGETS[:2]))) is None
