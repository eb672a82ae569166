import numpy as np
import pandas as pd
import pytest

from eqscale.errors import InputError
from eqscale.laws import fit, nd_cost
from eqscale.laws.approaches import approach_bias, isoflop_optima, misallocation
from eqscale.laws.arms import group_budgets
from eqscale.laws.frontier import frontier
from eqscale.laws.validate import hold_out_top, leave_one_budget_out, outliers


@pytest.fixture
def law(isoflop):
    return fit(isoflop.N, isoflop.D, isoflop.loss)


def test_held_out_budgets_are_not_seen_and_predicted_well(law, isoflop):
    held = hold_out_top(law, isoflop.C.to_numpy(), top=2)
    assert held.budgets == (1e20, 1e21)
    assert len(held.observed) == 12
    assert held.median_error < 0.02
    assert held.covered >= 0.75
    spoiled = fit(isoflop.N, isoflop.D, isoflop.loss.where(isoflop.C < 1e20, 9 * isoflop.loss))
    assert hold_out_top(spoiled, isoflop.C.to_numpy(), top=2).params == pytest.approx(held.params, rel=1e-6)
    assert len(leave_one_budget_out(law, isoflop.C.to_numpy())) == 5
    with pytest.raises(InputError, match="cannot hold out 5 of 5"):
        hold_out_top(law, isoflop.C.to_numpy(), top=5)


def test_wrong_form_is_seen_with_seeds_and_only_then():
    rng = np.random.default_rng(1)
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e8, 1e11, 6)))
    N, D = np.tile(n, 3), np.tile(d, 3)
    smooth = 1.5 + 300 / N**0.35 + 900 / D**0.36
    good = fit(N, D, smooth * np.exp(0.003 * rng.standard_normal(108)))
    wiggle = fit(N, D, smooth * (1 + 0.02 * np.sin(2 * np.log(N))) * np.exp(0.003 * rng.standard_normal(108)))
    assert good.lack_of_fit.p_value > 0.01
    assert good.lack_of_fit.pure_error == pytest.approx(0.003, rel=0.2)
    assert wiggle.lack_of_fit.p_value < 1e-6
    assert fit(n, d, smooth[:36]).lack_of_fit is None


def test_outliers_are_named(isoflop):
    loss = isoflop.loss.copy()
    loss[[7, 20]] *= [1.08, 0.93]
    found = sorted(outliers(fit(isoflop.N, isoflop.D, loss)), key=lambda o: -abs(o.score))
    assert {o.index for o in found[:2]} == {7, 20}
    assert len(found) <= 3
    assert outliers(fit(isoflop.N, isoflop.D, 1 + 300 / isoflop.N**0.3 + 900 / isoflop.D**0.4)) == []


def test_lack_of_fit_counts_weights(isoflop):
    """Runs of weight 2 are two runs to the sums of squares, runs of weight 0 none to anything."""
    rng = np.random.default_rng(5)
    both = pd.concat([isoflop, isoflop], ignore_index=True)
    both["loss"] *= np.exp(0.006 * rng.standard_normal(len(both)))
    plain = fit(both.N, both.D, both.loss).lack_of_fit
    doubled = fit(both.N, both.D, both.loss, weights=np.full(len(both), 2.0)).lack_of_fit
    assert doubled.f_statistic == pytest.approx(plain.f_statistic, rel=1e-6)
    wrong = pd.concat([both, both.iloc[:1].assign(loss=99.0)])
    ignored = fit(wrong.N, wrong.D, wrong.loss, weights=np.append(np.ones(len(both)), 0.0)).lack_of_fit
    assert ignored.f_statistic == pytest.approx(plain.f_statistic, rel=1e-6)
    assert ignored.replicates == plain.replicates


@pytest.mark.parametrize(("factor", "error"), [(2, -0.33), (4, -1.30), (8, -2.90), (16, -5.10)])
def test_known_bias_of_the_parabola(factor, error):
    """Noise-free runs at 1e17 to 1e21 on Hoffmann's published surface, D_opt extrapolated to 1e24:
    reference/laws.md, section 1.6 (errors in per cent).
    """
    E, A, B, alpha, beta = 1.69, 406.4, 410.7, 0.34, 0.28
    C = np.repeat(10.0 ** np.arange(17, 22), 15)
    best = (alpha * A / (beta * B)) ** (1 / (alpha + beta)) * (C / 6) ** (beta / (alpha + beta))
    N = best * np.tile(np.geomspace(1 / factor, factor, 15), 5)
    D = C / (6 * N)
    surface = fit(N, D, E + A / N**alpha + B / D**beta)
    assert 100 * approach_bias(surface, nd_cost(), C, 1e24).D_error == pytest.approx(error, abs=0.006)


def test_approaches_find_the_optimum_and_refuse_edges(isoflop, law):
    truth = frontier(law, [1e19]).N[0]
    for approach in (1, 2):
        found = isoflop_optima(isoflop.N, isoflop.D, isoflop.loss, isoflop.C, approach)
        assert found.optimum(1e19)[0] == pytest.approx(truth, rel=0.6 if approach == 1 else 0.25)
        assert found.a + found.b == pytest.approx(1.0, abs=0.02)
    small = isoflop[0.1 * np.sqrt(isoflop.C) > isoflop.N]
    with pytest.raises(InputError, match="add sizes beyond the edges"):
        isoflop_optima(small.N, small.D, small.loss, small.C, 1)


def test_approaches_leave_outliers_out_and_say_so(isoflop, law):
    loss = isoflop.loss.to_numpy().copy()
    loss[[13, 20]] *= [1.3, 0.8]
    spoiled = fit(isoflop.N, isoflop.D, loss)
    keep = np.ones(30, bool)
    keep[[o.index for o in outliers(spoiled)]] = False
    assert not keep[[13, 20]].any()
    for approach in (1, 2):
        clean = isoflop_optima(*(isoflop[c][keep] for c in ("N", "D", "loss", "C")), approach)
        found = isoflop_optima(isoflop.N, isoflop.D, loss, isoflop.C, approach, keep)
        assert (found.left_out, found.a) == (30 - keep.sum(), clean.a)
        assert found.a != isoflop_optima(isoflop.N, isoflop.D, loss, isoflop.C, approach).a
        bias = approach_bias(spoiled, nd_cost(), isoflop.C.to_numpy(), 1e21, approach, keep)
        assert (
            bias.a
            == isoflop_optima(isoflop.N, isoflop.D, spoiled.predict(isoflop.N, isoflop.D), isoflop.C, approach, keep).a
        )


def test_misallocation_costs_nothing_at_the_optimum(law):
    half, exact, double = misallocation(law, nd_cost(), 1e20, [0.5, 1.0, 2.0])
    assert exact.waste == pytest.approx(0.0, abs=1e-9)
    assert exact.loss < min(half.loss, double.loss)
    assert 0.01 < half.waste < 0.5


def test_budgets_of_measured_costs():
    C = np.array([1.0, 1.05, 0.97, 3.0, 3.1, 10.0])
    assert list(group_budgets(C)) == [1.0, 1.0, 1.0, 3.05, 3.05, 10.0]
    assert len(np.unique(group_budgets(np.geomspace(1, 100, 200)))) > 10  # a continuum is not one budget
    assert isinstance(pd.Series(group_budgets(C)).nunique(), int)
