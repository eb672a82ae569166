"""Profile limits: right beside a floor of zero, beyond the runs, and where Gauss–Newton intervals are right, too."""

from operator import itemgetter

import numpy as np
import pytest

from eqscale.laws import bootstrap, fit, intervals, nd_cost, uncertainty
from eqscale.laws import profile as profiles
from eqscale.laws.contrast import log_optimum
from eqscale.laws.profile import Region, limits, surface
from eqscale.laws.uncertainty import Target, derived


def study(seed, E, noise, A=6.0, B=40.0, alpha=0.45, beta=0.4):
    """70 runs at five budgets; the law without noise and with it."""
    C = np.repeat(10.0 ** np.linspace(11, 13, 5), 14)
    N = 1e3 * np.sqrt(C / 1e11) * np.tile(np.geomspace(1 / 8, 8, 14), 5)
    D = C / (6 * N)
    loss = E + A / N**alpha + B / D**beta
    return N, D, loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(N)))


def loss_at(C):
    return log_optimum(nd_cost(), C, "loss")


def test_far_from_a_floor_of_zero_limits_are_those_of_gauss_newton():
    for name, i in intervals(fit(*study(1, 0.05, 0.01), loss_fn="log-lsq")).items():
        assert i.recommended == pytest.approx(i.model, abs=0.1 * np.ptp(i.model)), name


@pytest.mark.parametrize("E", [0.0, 0.006])
def test_limits_beside_the_floor_of_zero_cover(E):
    """A third or more of these fits end at E = 0, where Gauss–Newton intervals cover E > 0 in a few per cent."""
    quantities = [itemgetter("E"), itemgetter("beta"), loss_at(3e13)]
    truth = np.ravel([quantity(fit(*study(0, E, 0.0)).coefficients) for quantity in quantities])
    hits, at_zero, trials = np.zeros(3), 0, 40
    for seed in range(trials):
        found = fit(*study(seed, E, 0.04))
        at_zero += found.params["E"] == 0.0
        box = limits(Region([surface(found)]), quantities)
        assert box[0, 1] > 0  # never [0, 0]
        assert (box[:, 0] < box[:, 1]).all()
        hits += (box[:, 0] <= truth + 1e-9) & (truth - 1e-9 <= box[:, 1])
    assert at_zero >= trials / 5
    assert (hits >= 0.85 * trials).all(), hits / trials


def test_an_interval_on_the_boundary_is_one_sided():
    found = next(f for f in (fit(*study(seed, 0.0, 0.04)) for seed in range(20)) if f.params["E"] == 0.0)
    E = intervals(found)["E"]
    assert E.recommended[0] == 0.0 < E.recommended[1]
    assert np.isnan(E.model).all()


def test_the_cut_beside_a_floor_is_that_of_a_one_sided_test_on_it_and_of_a_two_sided_one_far_from_it():
    cuts = profiles._floor_cuts(0.95)
    assert float(cuts([0.0, 1.0])[0]) == pytest.approx(2.706, rel=0.02)
    assert cuts([[2.5, 1.0], [2.5, 0.5], [0.5, 0.0]]) == pytest.approx(3.841, rel=0.02)


def test_intervals_stay_within_the_range_of_their_quantity():
    rng = np.random.default_rng(2)
    N, D, loss = study(1, 0.0, 0.0)
    found = fit(N, D, loss * np.exp(0.3 * rng.standard_normal(len(N))))
    limits = intervals(found, bootstrap(found, resamples=50))
    for name in ("a", "b"):
        for low, high in (limits[name].recommended, limits[name].model, limits[name].robust):
            assert not low < 0
            assert not high > 1


def test_where_the_floor_may_reach_a_loss_the_cost_of_it_has_no_upper_limit():
    found = fit(*study(3, 0.05, 0.04))
    target = Target("cost", lambda c: c.form.cheapest(c, nd_cost(), np.array([[0.053]]))[0][:, 0])
    cost = intervals(found, targets=[target])["cost"]
    assert np.isinf(cost.recommended[1])
    assert np.isfinite(cost.recommended[0])


def test_runs_of_a_cluster_count_once():
    N, D, loss = (np.repeat(v, 4) for v in study(5, 0.05, 0.03))
    found = fit(N, D, loss)
    labels = np.repeat(np.arange(70), 4)
    clustered = intervals(found, bootstrap(found, "cluster", clusters=labels, resamples=20))["alpha"].recommended
    alone = intervals(found)["alpha"].recommended
    assert np.ptp(clustered) / np.ptp(alone) == pytest.approx(2.0, rel=0.25)


@pytest.mark.parametrize("kind", ["case", "residual", "wild", "cluster"])
def test_blocks_of_resamples_change_nothing(isoflop, kind, monkeypatch):
    found = fit(isoflop.N, isoflop.D, isoflop.loss)
    draw = {"resamples": 40, "seed": 3, "clusters": isoflop.C}
    whole = bootstrap(found, kind, **draw).theta
    monkeypatch.setattr(uncertainty, "_BLOCK", 7 * len(isoflop))
    np.testing.assert_allclose(bootstrap(found, kind, **draw).theta, whole, rtol=1e-12)


@pytest.mark.parametrize("kind", ["case", "cluster"])
def test_one_step_for_very_many_runs_is_as_wide_as_refits(kind, monkeypatch):
    rng = np.random.default_rng(0)
    N, D = 10 ** rng.uniform(6, 9, 4000), 10 ** rng.uniform(8, 11, 4000)
    found = fit(N, D, (1.8 + 480 / N**0.35 + 2100 / D**0.37) * np.exp(0.01 * rng.standard_normal(4000)))
    draw = {"resamples": 200, "clusters": rng.integers(0, 300, 4000)}
    refits, exact = bootstrap(found, kind, **draw), intervals(found)["alpha"].recommended
    for module in (profiles, uncertainty):
        monkeypatch.setattr(module, "MANY", 1000)
    step, quick = bootstrap(found, kind, **draw), intervals(found)["alpha"].recommended
    for name in ("alpha", "a"):
        quantity = derived("a") if name == "a" else itemgetter(name)
        assert step.values(quantity).std() == pytest.approx(refits.values(quantity).std(), rel=0.25)
    assert quick == pytest.approx(exact, abs=0.05 * np.ptp(exact))


def test_one_step_stays_on_the_face_or_leaves_it(monkeypatch):
    N, D, loss = study(0, 0.0, 0.0)
    N, D = np.tile(N, 30), np.tile(D, 30)
    found = fit(N, D, np.tile(loss, 30) * np.exp(0.04 * np.random.default_rng(1).standard_normal(len(N))))
    monkeypatch.setattr(uncertainty, "MANY", 1000)
    floor = bootstrap(found, resamples=300).coefficients["E"]
    assert floor.min() == 0.0
    assert floor.max() > 0.0
