import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from eqscale.errors import InputError
from eqscale.laws import bootstrap, fit, fit_cost, frontier, nd_cost


@pytest.fixture
def law(isoflop):
    return fit(isoflop.N, isoflop.D, isoflop.loss)


def test_closed_form_for_six_nd(law):
    """Hoffmann et al. 2022, eq. 4."""
    p, C = law.params, np.array([1e18, 1e22])
    G = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    a = p["beta"] / (p["alpha"] + p["beta"])
    best = frontier(law, C)
    np.testing.assert_allclose(best.N, G * (C / 6) ** a, rtol=1e-10)
    np.testing.assert_allclose(best.D, C / 6 / best.N, rtol=1e-10)
    np.testing.assert_allclose(best.loss, law.predict(best.N, best.D), rtol=1e-12)


@pytest.mark.parametrize("bend", [0.0, 0.03, -0.02])
def test_optimum_under_a_measured_cost(law, isoflop, bend):
    u = np.log(isoflop.N / 1e8)
    C = 3e3 * isoflop.N**0.8 * isoflop.D * np.exp(bend * u**2)
    cost = fit_cost(isoflop.N, isoflop.D, C)
    assert cost.residual < 1e-3
    np.testing.assert_allclose(cost.cost(isoflop.N.to_numpy(), isoflop.D.to_numpy()), C, rtol=1e-2)
    budgets = np.geomspace(C.min() / 10, C.max() * 10, 5)
    best = frontier(law, budgets, cost)
    for budget, N, loss in zip(budgets, best.N, best.loss, strict=True):
        brute = minimize_scalar(
            lambda n, budget=budget: law.predict(np.exp(n), cost.tokens(np.exp(n), budget)).item(),
            bounds=(np.log(N) - 3, np.log(N) + 3),
            method="bounded",
            options={"xatol": 1e-9},
        )
        assert loss == pytest.approx(brute.fun, rel=1e-9)
        assert np.log(N) == pytest.approx(brute.x, abs=1e-3)
    assert list(best.inside) == [False, True, True, True, False]


def test_cost_model_is_no_more_complicated_than_the_runs_need(isoflop):
    plain = fit_cost(isoflop.N, isoflop.D, 6 * isoflop.N * isoflop.D)
    assert plain.kind == "kND"
    assert np.exp(plain.polynomial[0]) == pytest.approx(6)
    noisy = 1e-9 * isoflop.N**0.9 * isoflop.D * np.exp(0.05 * np.random.default_rng(1).standard_normal(30))
    seconds = fit_cost(isoflop.N, isoflop.D, noisy)
    assert seconds.polynomial[1] == pytest.approx(0.9, abs=0.05)
    assert seconds.residual == pytest.approx(0.05, rel=0.5)


def test_bands_widen_beyond_the_runs(law):
    boot = bootstrap(law, resamples=200)
    best = frontier(law, [1e19, 1e25], nd_cost(), boot)
    for bands in (best.model, best.robust):
        for name in ("N", "D", "loss", "new_run"):
            low, high = bands[name].low, bands[name].high
            assert (low < high).all()
            assert high[1] / low[1] > high[0] / low[0] or name == "new_run"
        assert (bands["new_run"].low < bands["loss"].low).all()


def test_frontier_needs_a_split_and_a_cost(law):
    with pytest.raises(InputError, match="every C must be positive"):
        frontier(law, [1e18, -1])
    C = 10.0 ** np.arange(15, 23)
    single = fit(C=C, loss=0.7 + 1e3 / C**0.2, form="power:C")
    with pytest.raises(InputError, match="no split into N and D"):
        frontier(single, [1e18])
