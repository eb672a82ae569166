import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad, nnls

from eqscale.errors import InputError
from eqscale.laws import FORMS, fit
from eqscale.laws.forms import Centre
from eqscale.laws.forms.sums import Chinchilla
from eqscale.laws.problem import Loss, Problem
from eqscale.laws.solver import derivatives
from eqscale.laws.varpro import nonnegative_least_squares

# reference/laws.md, section 1.3: the minimum of the log-Huber(1e-3) objective on the 240 runs
LOG_HUBER = {"E": 1.81722, "A": 477.826, "B": 2143.42, "alpha": 0.34731, "beta": 0.36717}
LOG_HUBER_OBJECTIVE = 1.01827401780060e-3
# Besiroglu et al. 2024, the least-absolute-deviation point
LAD = {"E": 1.81686, "A": 482.006, "B": 2085.43, "alpha": 0.34781, "beta": 0.36585}


def test_published_minimum_of_the_huber_objective(chinchilla):
    found = fit(chinchilla.N, chinchilla.D, chinchilla.loss)
    assert found.objective <= LOG_HUBER_OBJECTIVE * (1 + 1e-9)
    for name, value in LOG_HUBER.items():
        assert found.params[name] == pytest.approx(value, rel=1e-5)
    assert [state for state, _ in found.verdict.findings] == ["misfit"]  # a third of the scatter follows N and D
    assert found.certificate.gradient < 1e-9
    assert min(found.certificate.eigenvalues) > 0


def test_published_least_absolute_deviations(chinchilla):
    found = fit(chinchilla.N, chinchilla.D, chinchilla.loss, loss_fn="lad")
    for name, value in LAD.items():
        assert found.params[name] == pytest.approx(value, rel=1.5e-5)
    assert not found.verdict.has("not converged")


@settings(max_examples=40, deadline=None)
@given(
    alpha=st.floats(0.05, 1.5),
    beta=st.floats(0.05, 1.5),
    log_a=st.floats(-1.5, 1.0),
    log_b=st.floats(-1.5, 1.0),
    floor=st.sampled_from([0.0, 0.1, 1.0, 3.0]),
    units=st.tuples(st.floats(-9, 9), st.floats(-9, 9), st.floats(-9, 9)),
    loss_fn=st.sampled_from(["log-huber", "log-lsq"]),
    seed=st.integers(0, 2**20),
)
def test_recovers_noise_free_coefficients(alpha, beta, log_a, log_b, floor, units, loss_fn, seed):
    rng = np.random.default_rng(seed)
    un, ud, ul = (10.0**u for u in units)
    n, d = rng.uniform(6, 10, 40), rng.uniform(8, 12, 40)
    # prefactors make the terms 10^log_a and 10^log_b in the middle of the design
    A, B = 10 ** (log_a + 8 * alpha), 10 ** (log_b + 10 * beta)
    loss = floor + A / 10 ** (n * alpha) + B / 10 ** (d * beta)
    found = fit(10**n * un, 10**d * ud, loss * ul, loss_fn=loss_fn)
    expected = {"A": A * ul * un**alpha, "B": B * ul * ud**beta, "alpha": alpha, "beta": beta}
    for name, value in expected.items():
        assert found.params[name] == pytest.approx(value, rel=1e-10)
    assert found.params["E"] == pytest.approx(floor * ul, rel=1e-10, abs=1e-10 * ul)


@pytest.mark.parametrize("loss_fn", ["log-huber", "log-lsq", "huber", "lsq", "lad"])
def test_units_and_row_order_do_not_matter(isoflop, loss_fn):
    base = fit(isoflop.N, isoflop.D, isoflop.loss, loss_fn=loss_fn)
    shuffled = isoflop.sample(frac=1, random_state=1)
    un, ud, ul = 1e-9, 1e12, 1e5
    delta = 1e-3 * (ul if loss_fn == "huber" else 1)
    other = fit(shuffled.N * un, shuffled.D * ud, shuffled.loss * ul, loss_fn=loss_fn, delta=delta)
    for name, factor in {"E": ul, "A": ul * un ** base.params["alpha"], "alpha": 1, "beta": 1}.items():
        assert other.params[name] == pytest.approx(base.params[name] * factor, rel=1e-6)
    assert other.objective == pytest.approx(base.objective * (1 if base.loss.is_log else ul**2), rel=1e-9)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("is_log", [True, False])
def test_derivatives_agree_with_finite_differences(name, is_log):
    form = FORMS[name]
    rng = np.random.default_rng(0)
    columns = {c: 10 ** rng.uniform(6, 9, 20) for c in ("N", "D", "U", "C")}
    columns["U"] = columns["D"] / rng.uniform(0.5, 20, 20)
    centre = Centre(0.3, {c: float(np.log(columns[c]).mean()) for c in form.columns})
    y, w = rng.uniform(0.5, 3, (1, 20)), rng.uniform(0.2, 2, (1, 20))
    theta = rng.uniform(0.2, 0.9, len(form.names))
    loss = Loss("log-huber" if is_log else "lsq")
    problem = Problem(form, loss, columns, y[0], w[0], centre, *form.internal_bounds(), {})

    def at(t):
        return derivatives(problem, t[None], y, w, 0.3)

    scale = np.linalg.norm(at(theta).g)
    assert check_grad(lambda t: at(t).f[0], lambda t: at(t).g[0], theta) < 1e-5 * scale
    step = 1e-6
    numeric = np.array([(at(theta + e).g[0] - at(theta - e).g[0]) / (2 * step) for e in step * np.eye(len(theta))])
    np.testing.assert_allclose(at(theta).h[0], numeric, rtol=1e-5, atol=1e-5 * np.abs(numeric).max())


def test_floor_at_zero_is_a_boundary_and_says_so(isoflop):
    rng = np.random.default_rng(5)
    loss = (50 / isoflop.N**0.3 + 300 / isoflop.D**0.3 - 0.02) * np.exp(1e-3 * rng.standard_normal(30))
    found = fit(isoflop.N, isoflop.D, loss)
    assert found.params["E"] == 0.0
    assert "on boundary: E = 0" in str(found.verdict)
    face = fit(isoflop.N, isoflop.D, loss, fix={"E": 0})
    assert found.objective == pytest.approx(face.objective, rel=1e-9)
    assert "boundary" not in str(face.verdict)  # held there on purpose


def test_term_that_vanished_leaves_its_exponent_unidentified(isoflop):
    found = fit(isoflop.N, isoflop.D, 1.5 + 400 / isoflop.N**0.4)
    assert found.params["A"] == pytest.approx(400, rel=1e-6)
    assert str(found.verdict).startswith("unidentified: direction")
    assert "beta" in str(found.verdict)


@pytest.mark.parametrize("loss_fn", ["log-huber", "log-lsq", "lad"])
def test_term_that_turns_logarithmic_ends_on_the_face_without_floor(isoflop, loss_fn):
    """Loss that bends below −log N: E and A trade places down a flat valley, whose end is E = 0."""
    z = np.log(isoflop.N / 1e8)
    loss = 1.0 - 0.01 * z - 0.0005 * z**2 + (1e9 / isoflop.D) ** 0.5
    found = fit(isoflop.N, isoflop.D, loss, loss_fn=loss_fn)
    assert found.params["E"] == 0.0
    assert found.params["alpha"] < 0.05
    assert "on boundary: E = 0" in str(found.verdict)
    assert "not converged" not in str(found.verdict)
    assert found.objective <= fit(isoflop.N, isoflop.D, loss, loss_fn=loss_fn, fix={"E": 0}).objective * (1 + 1e-9)


def test_handful_of_runs_with_hardly_a_law_ends_at_its_face():
    """Nine runs in which D says little and N nothing: the optimum is a corner, E = A = 0."""
    N = [1115, 1987, 3819, 1115, 1987, 6499, 1115, 1987, 6499]
    D = [32829, 17311, 9671, 65631, 34415, 11754, 130617, 68950, 23401]
    loss = [0.716373, 0.835483, 0.807467, 0.681261, 0.791870, 0.902949, 0.663347, 0.787379, 0.711318]
    found = fit(N, D, loss)
    assert (found.params["E"], found.params["A"]) == (0.0, 0.0)
    assert "on boundary: E = 0" in str(found.verdict)
    assert found.objective == pytest.approx(fit(D=D, loss=loss, form="power:D").objective, rel=1e-9)


def test_equal_exponents(isoflop):
    loss = 1.0 + 400 / isoflop.N**0.4 + 400 / isoflop.D**0.4
    found = fit(isoflop.N, isoflop.D, loss)
    assert found.params["alpha"] == pytest.approx(0.4, rel=1e-10)
    assert found.params["beta"] == pytest.approx(0.4, rel=1e-10)
    assert found.form.derived(found.coefficients) == pytest.approx({"a": 0.5, "b": 0.5})


def test_noise_alone_is_not_called_a_law(isoflop):
    rng = np.random.default_rng(8)
    found = fit(isoflop.N, isoflop.D, np.exp(0.1 * rng.standard_normal(30)))
    assert str(found.verdict).startswith(("unidentified", "on boundary"))


def test_a_verdict_names_every_finding_the_worst_first(isoflop):
    rng = np.random.default_rng(5)
    no_floor = (50 / isoflop.N**0.3 + 300 / isoflop.D**0.3 - 0.02) * np.exp(1e-3 * rng.standard_normal(30))
    bent = fit(isoflop.N, isoflop.D, no_floor * np.exp(-0.05 * np.log(isoflop.D / 1e10) ** 2)).verdict
    states = [state for state, _ in bent.findings]
    assert states[0] == bent.state == "misfit"
    assert "on boundary" in states
    assert str(bent) == "; ".join(f"{state}: {reason}" for state, reason in bent.findings)
    assert bent.has("on boundary")
    assert not bent.good
    good = fit(isoflop.N, isoflop.D, isoflop.loss).verdict
    assert (str(good), good.state, good.reason, good.good) == ("converged", "converged", "", True)


def test_exponent_bound_is_reported(isoflop):
    class Narrow(Chinchilla):
        bounds = Chinchilla.bounds | {"alpha": (0.05, 0.2)}

    found = fit(isoflop.N, isoflop.D, isoflop.loss, form=Narrow())
    assert found.params["alpha"] == pytest.approx(0.2)
    assert "alpha = 0.2 (upper bound)" in str(found.verdict)


def test_fixed_parameters_stay(isoflop):
    found = fit(isoflop.N, isoflop.D, isoflop.loss, fix={"A": 480.0, "beta": 0.37})
    assert found.params["A"] == 480.0
    assert found.params["beta"] == 0.37
    assert found.params["alpha"] == pytest.approx(0.35, abs=0.01)
    assert found.predict(1e8, 1e9) == pytest.approx(1.8 + 480 / 1e8**0.35 + 2100 / 1e9**0.37, rel=0.02)


def test_weights_count_runs(isoflop):
    doubled = fit(*(np.repeat(isoflop[c].to_numpy(), 2) for c in ("N", "D", "loss")))
    weighted = fit(isoflop.N, isoflop.D, isoflop.loss, weights=np.full(30, 2.0))
    assert weighted.objective == pytest.approx(doubled.objective, rel=1e-9)
    outlier = isoflop.loss.copy()
    outlier[4] *= 3
    ignored = fit(isoflop.N, isoflop.D, outlier, weights=np.where(np.arange(30) == 4, 0.0, 1.0))
    dropped = isoflop.drop(4)
    assert ignored.params["alpha"] == pytest.approx(fit(dropped.N, dropped.D, dropped.loss).params["alpha"], rel=1e-6)


def test_gamma_form_recovers_and_contains_the_plain_law(isoflop):
    inner = 3e3 / isoflop.N**0.5 + 5e4 / isoflop.D**0.6
    found = fit(isoflop.N, isoflop.D, 1.2 + inner**0.6, form="gamma")
    for name, value in {"E": 1.2, "A": 3e3, "B": 5e4, "alpha": 0.5, "beta": 0.6, "gamma": 0.6}.items():
        assert found.params[name] == pytest.approx(value, rel=1e-7)
    plain = fit(isoflop.N, isoflop.D, isoflop.loss)
    assert fit(isoflop.N, isoflop.D, isoflop.loss, form="gamma").objective <= plain.objective * (1 + 1e-9)


def test_repetition_law_recovers_and_says_when_it_cannot():
    rng = np.random.default_rng(2)
    N, U = 10 ** rng.uniform(6, 9, 60), 10 ** rng.uniform(6, 9, 60)
    D = U * rng.choice([1, 2, 8, 32, 100], 60)
    effective = U * (1 + 12 * (1 - np.exp(-(D / U - 1) / 12)))
    loss = 1.1 + 300 / N**0.35 + 900 / effective**0.4
    found = fit(N, D, loss, U=U, form="repetition")
    for name, value in {"E": 1.1, "alpha": 0.35, "beta": 0.4, "R_D": 12.0}.items():
        assert found.params[name] == pytest.approx(value, rel=1e-7)
    noisy = loss * np.exp(0.005 * rng.standard_normal(60))
    once = fit(N, D, 1.1 + 300 / N**0.35 + 900 / D**0.4 + 0 * noisy, U=D, form="repetition")
    assert "R_D" in str(once.verdict)
    assert str(once.verdict).startswith(("unidentified", "on boundary"))


def muennighoff_runs(excess):
    """Sizes up to ``excess`` times those that the unique tokens pay for, up to 100 epochs."""
    rng = np.random.default_rng(2)
    U = 10 ** rng.uniform(6, 9, 80)
    paid = (0.35 * 300 / (0.4 * 900) * U**0.4) ** (1 / 0.35)
    N, D = paid * excess ** rng.uniform(-1, 1, 80), U * rng.choice([1, 2, 8, 32, 100], 80)

    def worth(total, unique, decay):
        return np.where(total > unique, unique * (1 + decay * (1 - np.exp(-(total / unique - 1) / decay))), total)

    loss = 1.1 + 300 / worth(N, paid, 5) ** 0.35 + 900 / worth(D, U, 12) ** 0.4
    return N, D, U, loss


def test_excess_parameters_lose_value_under_the_law_with_both_decays():
    N, D, U, loss = muennighoff_runs(excess=100)
    found = fit(N, D, loss, U=U, form="muennighoff")
    for name, value in {"E": 1.1, "A": 300, "B": 900, "alpha": 0.35, "beta": 0.4, "R_D": 12.0, "R_N": 5.0}.items():
        assert found.params[name] == pytest.approx(value, rel=1e-7)
    assert found.verdict.good
    assert fit(N, D, loss, U=U, form="repetition").objective > 1e-3


def test_the_decay_of_parameters_is_unidentified_without_runs_beyond_the_unique_data():
    N, D, U, loss = muennighoff_runs(excess=100)
    paid = (0.35 * 300 / (0.4 * 900) * U**0.4) ** (1 / 0.35)
    few = paid > N
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(few.sum()))
    found = fit(N[few], D[few], loss[few] * noise, U=U[few], form="muennighoff")
    assert "unidentified" in str(found.verdict)
    assert "R_N" in str(found.verdict)


def test_single_variable_power_law():
    C = 10.0 ** np.arange(15, 23)
    found = fit(C=C, loss=0.7 + 1e3 / C**0.2, form="power:C")
    assert found.params == pytest.approx({"E": 0.7, "A": 1e3, "alpha": 0.2}, rel=1e-9)
    assert found.predict(C=1e20) == pytest.approx(0.7 + 1e3 / 1e20**0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"N": 1e8}, r"all 30 runs have N = 1e\+08: the exponent alpha cannot be known"),
        ({"D": 1e9}, "the exponent beta cannot be known"),
        ({"loss": -1.0}, "row 1, column 'loss': -1 is not positive"),
        ({"loss": np.nan}, "row 1, column 'loss'"),
    ],
)
def test_bad_runs_are_named(isoflop, change, message):
    with pytest.raises(InputError, match=message):
        fit(**{c: isoflop.assign(**change)[c] for c in ("N", "D", "loss")})


def test_too_few_distinct_runs(isoflop):
    few = isoflop.iloc[[0, 5, 9, 14, 20, 26] * 3]
    with pytest.raises(InputError, match="6 distinct runs are too few for 5 free parameters; at least 7"):
        fit(few.N, few.D, few.loss)
    assert fit(few.N, few.D, few.loss, fix={"E": 1.8}).n == 18


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "cubic"}, "unknown form 'cubic'"),
        ({"loss_fn": "l3"}, "unknown loss function 'l3'"),
        ({"delta": 0.0}, "delta = 0 is not positive"),
        ({"fix": {"gamma": 1}}, "cannot fix 'gamma'"),
        ({"fix": {"E": 50}}, "fixed E = 50 is not below the smallest loss"),
        ({"form": "repetition"}, "needs a column 'U'"),
        ({"chosen": {"depth": [1, 2]}}, "column 'depth' has 2 values, loss has 30"),
        ({"points": [1, 2, 3]}, "column 'points' has 3 values, loss has 30"),
    ],
)
def test_bad_options_are_named(isoflop, options, message):
    with pytest.raises(InputError, match=message):
        fit(isoflop.N, isoflop.D, isoflop.loss, **options)


def test_nonnegative_least_squares_agrees_with_scipy():
    rng = np.random.default_rng(0)
    for _ in range(100):
        design = rng.uniform(0, 1, (10, 3))
        target = rng.normal(size=10) + design @ rng.normal(size=3)
        found, _ = nonnegative_least_squares((design.T @ design)[None], (design.T @ target)[None], (0, 1, 2))
        np.testing.assert_allclose(found[0], nnls(design, target)[0], atol=1e-8)
