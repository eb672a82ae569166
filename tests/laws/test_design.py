"""What a design can tell, before and after its runs are made."""

import numpy as np
import pytest

from eqscale.laws import fit
from eqscale.laws.design import confounded, resolution, spread

from .conftest import law


def ladder(noise, jitter, seed, power=1.0):
    """Ten sizes three times, on D = 20 N up to a jitter."""
    rng = np.random.default_rng(seed)
    N = np.repeat(np.geomspace(1e7, 1e10, 10), 3)
    D = 20 * N**power * np.exp(jitter * rng.standard_normal(30))
    return N, D, law(N, D, beta=0.28) * np.exp(noise * rng.standard_normal(30))


@pytest.mark.parametrize("noise", [0.001, 0.005, 0.01, 0.03])
def test_a_ladder_of_constant_tokens_per_parameter_is_unidentified(noise):
    for seed in range(4):
        found = fit(*ladder(noise, 1e-3, seed))
        assert str(found.verdict).startswith("unidentified"), (seed, found.verdict, found.params)


def test_the_verdict_on_a_ladder_says_how_little_tokens_per_parameter_vary():
    verdicts = [fit(*ladder(0.01, 1e-3, seed)).verdict for seed in range(2)]
    assert any("D/N varies by 1.0x" in v.reason and "can't be told apart" in v.reason for v in verdicts)


def test_an_exponent_that_ran_off_to_its_bound_is_unidentified(isoflop):
    rng = np.random.default_rng(0)
    loss = 1.5 + 400 / isoflop.N**0.4 + 0.3 * (isoflop.D / isoflop.D.min()) ** -12
    found = fit(isoflop.N, isoflop.D, loss * np.exp(1e-3 * rng.standard_normal(30)))
    assert str(found.verdict).startswith("unidentified: direction beta")
    assert "beta = 10 (upper bound)" in str(found.verdict)


@pytest.mark.parametrize("noise", [0.0, 0.006, 0.03])
def test_runs_that_fill_the_plane_are_not_confounded(isoflop, noise):
    rng = np.random.default_rng(1)
    for _ in range(5):
        loss = law(isoflop.N, isoflop.D) * np.exp(noise * rng.standard_normal(30))
        assert confounded(fit(isoflop.N, isoflop.D, loss)) is None


def test_fixed_exponents_are_not_confounded():
    found = fit(*ladder(0.005, 1e-3, 1), fix={"beta": 0.28, "B": 2100.0})
    assert found.verdict.good


def test_the_expected_widths_are_those_of_simulated_fits(isoflop):
    rng = np.random.default_rng(0)
    n, d = isoflop.N / np.exp(np.log(isoflop.N).mean()), isoflop.D / np.exp(np.log(isoflop.D).mean())
    truth = (1 + n**-0.34 + d**-0.28) / 3
    fits = [fit(n, d, truth * np.exp(0.01 * rng.standard_normal(30)), loss_fn="log-lsq") for _ in range(60)]
    expected = resolution(isoflop.N, isoflop.D, 0.01)
    for name in ("alpha", "beta"):
        assert 1.96 * np.std([f.params[name] for f in fits]) == pytest.approx(getattr(expected, name), rel=0.3)
    assert expected.apart
    assert "expect alpha within ±" in expected.describe()


def test_spread_names_the_line_that_runs_lie_on(isoflop):
    N, D, _ = ladder(0.0, 1e-3, 0)
    assert spread(N, D).describe() == "D/N varies by 1.0x"
    assert spread(N, N**0.7).describe() == "D follows N^0.70 within a factor of 1"
    one = isoflop[:6]
    assert spread(one.N, one.D).power == pytest.approx(-1)
    assert spread(isoflop.N, isoflop.D).ratio == pytest.approx(
        (isoflop.D / isoflop.N).max() / (isoflop.D / isoflop.N).min()
    )
    for sizes, tokens in ((one.N, one.D), (N, D), (N, N**0.7)):
        assert not resolution(sizes, tokens, 0.01).apart
        assert "alpha and beta can't be told apart at 1 % noise" in resolution(sizes, tokens, 0.01).describe()
