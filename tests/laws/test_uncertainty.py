import numpy as np
import pytest

from eqscale.errors import InputError
from eqscale.laws import bootstrap, disagreement, fit, intervals
from eqscale.laws.uncertainty import derived


def test_published_bootstrap_intervals(chinchilla):
    """Besiroglu et al. 2024: case bootstrap of the 240 runs; some Monte Carlo error is allowed."""
    found = fit(chinchilla.N, chinchilla.D, chinchilla.loss)
    limits = intervals(found, bootstrap(found, "case", resamples=2000, seed=1))
    published = {
        "A": (286.1, 743.6),
        "B": (1042.4, 5810.4),
        "E": (1.7694, 1.8712),
        "alpha": (0.3168, 0.3733),
        "beta": (0.3313, 0.4154),
    }
    for name, (low, high) in published.items():
        width = high - low
        assert limits[name].robust == pytest.approx((low, high), abs=0.12 * width)
    assert "beta" in disagreement(limits)


def test_published_spread_by_kind_of_resampling(chinchilla):
    """Standard errors of a = β/(α+β), reference/laws.md section 1.4."""
    found = fit(chinchilla.N, chinchilla.D, chinchilla.loss)
    expected = {"residual": 0.0082, "wild": 0.0167, "case": 0.0197}
    for kind, se in expected.items():
        boot = bootstrap(found, kind, resamples=1000, seed=2)
        assert boot.values(derived("a")).std() == pytest.approx(se, rel=0.12)


@pytest.mark.parametrize("kind", ["case", "residual", "wild", "cluster"])
def test_same_seed_same_resamples(isoflop, kind):
    found = fit(isoflop.N, isoflop.D, isoflop.loss)
    draw = {"resamples": 50, "clusters": isoflop.C}
    first, again = (bootstrap(found, kind, seed=7, **draw).theta for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, bootstrap(found, kind, seed=8, **draw).theta)


def test_refits_are_the_fits_of_their_resamples(isoflop):
    """A warm-started batched refit is what a fit from scratch to the resampled runs gives."""
    found = fit(isoflop.N, isoflop.D, isoflop.loss)
    boot = bootstrap(found, "case", resamples=20, seed=4)
    counts = np.random.default_rng(4).multinomial(30, np.full(30, 1 / 30), size=20)
    for k in range(20):
        alone = fit(isoflop.N, isoflop.D, isoflop.loss, weights=counts[k])
        assert boot.coefficients["alpha"][k] == pytest.approx(alone.params["alpha"], rel=1e-4)


def test_refits_may_sit_on_the_floor_boundary(isoflop):
    rng = np.random.default_rng(0)
    loss = (60 / isoflop.N**0.3 + 300 / isoflop.D**0.3) * np.exp(0.01 * rng.standard_normal(30))
    boot = bootstrap(fit(isoflop.N, isoflop.D, loss), "case", resamples=200)
    share = np.mean(boot.coefficients["E"] == 0.0)
    assert 0.05 < share < 0.95


def test_bad_bootstraps(isoflop):
    found = fit(isoflop.N, isoflop.D, isoflop.loss)
    with pytest.raises(InputError, match="unknown bootstrap 'jackknife'"):
        bootstrap(found, "jackknife")
    with pytest.raises(InputError, match="needs a column"):
        bootstrap(found, "cluster")
    with pytest.raises(InputError, match="at least 3 groups, not 2"):
        bootstrap(found, "cluster", clusters=np.arange(30) % 2)
    with pytest.raises(InputError, match="0 resamples"):
        bootstrap(found, resamples=0)
