"""Loss functions of the residuals themselves; those of their logarithms are tested in test_fit.py."""

import numpy as np
import pytest
from scipy.optimize import minimize

from eqscale.laws import fit

from .conftest import law


def test_linear_huber_ends_where_a_brute_force_search_does(isoflop):
    found = fit(isoflop.N, isoflop.D, isoflop.loss, loss_fn="huber", delta=0.01)
    n, d = np.log(isoflop.N / 1e8).to_numpy(), np.log(isoflop.D / 1e10).to_numpy()

    def objective(p):
        r = np.abs(isoflop.loss.to_numpy() - p[0] - np.exp(p[1] - p[3] * n) - np.exp(p[2] - p[4] * d))
        return 1e6 * np.sum(np.where(r <= 0.01, 0.5 * r * r, 0.01 * (r - 0.005)))

    best = minimize(objective, [1.8, -0.2, -0.6, 0.35, 0.37], method="BFGS", options={"gtol": 1e-6}).fun / 1e6
    assert found.objective == pytest.approx(best, rel=1e-6)
    assert found.objective <= best * (1 + 1e-9)
    assert found.verdict.good


def test_linear_huber_is_least_squares_within_delta_and_shrugs_off_an_outlier(isoflop):
    wide, squares = (fit(isoflop.N, isoflop.D, isoflop.loss, loss_fn=f, delta=1e3) for f in ("huber", "lsq"))
    assert wide.params == pytest.approx(squares.params, rel=1e-9)
    spoilt = isoflop.loss.copy()
    spoilt[12] *= 1.5
    robust, pulled = (fit(isoflop.N, isoflop.D, spoilt, loss_fn=f, delta=0.005) for f in ("huber", "lsq"))
    clean = law(isoflop.N, isoflop.D)
    errors = [np.abs(f.predict(isoflop.N, isoflop.D) / clean - 1).max() for f in (robust, pulled)]
    assert 3 * errors[0] < errors[1]
