"""A form of your own, as docs/laws.md shows it, goes the whole way without touching the package."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar

from eqscale.cli import main
from eqscale.errors import InputError
from eqscale.laws import FORMS, Form, bootstrap, fit, fit_cost, frontier, intervals, nd_cost, register
from eqscale.laws.frontier import cost_to_reach
from eqscale.laws.problem import Loss, Problem
from eqscale.laws.solver import derivatives
from eqscale.laws.validate import hold_out_top

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "laws.md").read_text()
COUPLED = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "register(" in code)
TRUTH = {"E": 0.5, "A": 300.0, "B": 9e3, "alpha": 0.35, "beta": 0.5, "c": 4.0}


def loss_of(N, D, E, A, B, alpha, beta, c):
    return E + A / N**alpha + B / D**beta + c * np.sqrt(A / N**alpha * B / D**beta)


@pytest.fixture
def form_file(tmp_path):
    """A file that registers a form, and nothing left of it afterwards."""
    path = tmp_path / "coupled.py"
    path.write_text(COUPLED)
    yield str(path)
    FORMS.pop("coupled", None)


@pytest.fixture
def coupled(form_file):
    exec(COUPLED, {})
    return FORMS["coupled"]


@pytest.fixture
def runs():
    """Two arms on a grid of N and D that tells the coupling from the two terms."""
    rng = np.random.default_rng(0)
    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e5, 1e9, 7), np.geomspace(1e7, 1e11, 7)))
    frames = [
        pd.DataFrame({"arm": arm, "N": N, "D": D, "C": kappa * N * D, "loss": loss_of(N, D, **TRUTH | {"A": A})})
        for arm, kappa, A in (("plain", 6, 300.0), ("better", 24, 100.0))
    ]
    frame = pd.concat(frames, ignore_index=True)
    return frame.assign(noisy=frame.loss * np.exp(0.003 * rng.standard_normal(len(frame))))


def plain(runs):
    return runs[runs.arm == "plain"]


def test_it_is_fitted_exactly_by_name(coupled, runs):
    found = fit(plain(runs).N, plain(runs).D, plain(runs).loss, form="coupled")
    assert found.params == pytest.approx(TRUTH, rel=1e-6)
    assert str(found.verdict) == "converged"
    assert found.predict(1e8, 1e9) == pytest.approx(loss_of(1e8, 1e9, **TRUTH), rel=1e-8)


def test_derivatives_that_it_does_not_give_are_exact_enough(coupled):
    rng = np.random.default_rng(0)
    columns = {c: 10 ** rng.uniform(6, 9, 20) for c in ("N", "D")}
    centre = coupled.centre(columns, rng.uniform(1, 2, 20), ())
    problem = Problem(
        coupled, Loss(), columns, rng.uniform(0.5, 3, 20), np.ones(20), centre, *coupled.internal_bounds(), {}
    )
    theta = rng.uniform(0.2, 0.9, 6)

    def at(t):
        return derivatives(problem, t[None], problem.scaled_loss[None], problem.weights[None], 0.3)

    for i, step in enumerate(1e-6 * np.eye(6)):
        assert at(theta).g[0, i] == pytest.approx((at(theta + step).f[0] - at(theta - step).f[0]) / 2e-6, rel=1e-5)
        numeric = (at(theta + step).g[0] - at(theta - step).g[0]) / 2e-6
        np.testing.assert_allclose(at(theta).h[0, i], numeric, rtol=1e-4, atol=1e-4 * np.abs(numeric).max())


def test_it_is_resampled_with_intervals_that_hold_the_truth(coupled, runs):
    found = fit(plain(runs).N, plain(runs).D, plain(runs).noisy, form="coupled")
    limits = intervals(found, bootstrap(found, resamples=60), level=0.999)
    assert set(limits) == set(TRUTH)
    for name, i in limits.items():
        assert i.model[0] < TRUTH[name] < i.model[1]
        assert i.robust[0] < i.estimate < i.robust[1]
        assert i.recommended[0] < TRUTH[name] < i.recommended[1]
        assert i.ratio < 4


def test_it_is_held_out(coupled, runs):
    found = fit(plain(runs).N, plain(runs).D, plain(runs).noisy, form="coupled")
    held = hold_out_top(found, plain(runs).D.to_numpy())
    assert held.median_error < 0.02
    assert held.covered > 0.8


@pytest.mark.parametrize("bend", [0.0, 0.03])
def test_its_optimum_is_that_of_brute_force_and_not_that_of_another_law(coupled, runs, bend):
    N, D = plain(runs).N.to_numpy(), plain(runs).D.to_numpy()
    law = fit(N, D, plain(runs).loss, form="coupled")
    cost = fit_cost(N, D, 6 * N * D * np.exp(bend * np.log(N / 1e7) ** 2))
    C = np.array([1e15, 1e19])
    best = frontier(law, C, cost)
    for budget, size, loss in zip(C, best.N, best.loss, strict=True):
        brute = minimize_scalar(
            lambda n, budget=budget: law.predict(np.exp(n), cost.tokens(np.exp(n), budget)).item(),
            bounds=(np.log(size) - 5, np.log(size) + 5),
            method="bounded",
            options={"xatol": 1e-9},
        )
        assert loss == pytest.approx(brute.fun, rel=1e-10)
        assert np.log(size) == pytest.approx(brute.x, abs=1e-4)
    without = FORMS["chinchilla"].to_natural(law.theta[None, :5], law.centre)
    other = FORMS["chinchilla"].optimal_log_n(without, cost, np.log(C))[0]
    assert np.abs(np.log(best.N) - other).max() > 0.05


def test_the_cost_to_reach_a_loss_leads_back_to_the_optimum(coupled, runs):
    law = fit(plain(runs).N, plain(runs).D, plain(runs).loss, form="coupled")
    C = np.array([1e15, 1e19])
    best = frontier(law, C)
    log_c, log_n, log_d = cost_to_reach(law.coefficients, nd_cost(), np.array([*best.loss, 0.4]))
    np.testing.assert_allclose(np.exp(log_c[0, :2]), C, rtol=1e-8)
    np.testing.assert_allclose(np.exp(log_n[0, :2]), best.N, rtol=1e-4)
    np.testing.assert_allclose(np.exp(log_d[0, :2]), best.D, rtol=1e-4)
    assert log_c[0, 2] == np.inf  # below the floor


@pytest.mark.parametrize("name", ["chinchilla", "gamma", "repetition", "muennighoff"])
@pytest.mark.parametrize("bend", [0.0, 0.03])
def test_closed_forms_agree_with_the_numerical_default(name, bend, runs):
    N, D = plain(runs).N, plain(runs).D
    form = FORMS[name]
    values = {"E": 0.5, "A": 300.0, "B": 900.0, "alpha": 0.3, "beta": 0.4, "gamma": 0.8, "R_D": 10.0, "R_N": 5.0}
    law = form.to_natural(
        form.to_internal(values, centre := form.centre({"N": N, "D": D, "U": D}, N, ()))[None], centre
    )
    cost = fit_cost(N, D, 6 * N * D * np.exp(bend * np.log(N / 1e7) ** 2))
    log_c = np.log([[1e12, 1e20]])
    exact = form.optimal_log_n(law, cost, log_c)
    np.testing.assert_allclose(Form.optimal_log_n(form, law, cost, log_c), exact, atol=1e-6)
    loss = form.loss_at(law, {"N": exact, "D": cost.log_tokens(exact, log_c)})
    for found in (form.cheapest(law, cost, loss), Form.cheapest(form, law, cost, loss)):
        np.testing.assert_allclose(found[0], log_c, atol=1e-6)
        np.testing.assert_allclose(found[1], exact, atol=1e-3)


def test_every_command_takes_it_from_a_file(form_file, runs, tmp_path, capsys):
    runs.to_csv(tmp_path / "runs.csv", index=False)
    out = tmp_path / "out.json"
    table = [str(tmp_path / "runs.csv"), "--map", "loss=noisy", "--form-file", form_file, "--form", "coupled"]
    table += ["--resamples", "20", "--json", str(out)]
    files = ["--markdown", str(tmp_path / "t.md"), "--latex", str(tmp_path / "t.tex")]
    extra = ["--by", "arm", "--figures", str(tmp_path / "figures")]
    assert main(["fit", *table, *files, *extra]) == 0
    record = json.loads(out.read_text())["groups"]["plain"]
    assert record["form"] == "coupled"
    assert record["c"] == pytest.approx(4.0, rel=0.1)
    assert record["frontier"]["N"][0] < record["frontier"]["N"][-1]
    assert record["frontier"]["misallocation"][0]["waste"] > 0
    assert "| plain | c |" in (tmp_path / "t.md").read_text()
    assert "plain & $c$" in (tmp_path / "t.tex").read_text()
    assert (tmp_path / "figures" / "optimal_size.png").exists()
    assert main(["compare", *table, *files]) == 0
    record = json.loads(out.read_text())
    assert ["alpha", "beta", "c"] in [h["shared"] for h in record["hypotheses"]]
    assert all(m["compute"][0] > 0 for m in record["comparisons"][0]["multipliers"])
    assert main(["plan", *table, "--compute", "1e20"]) == 0
    assert {a["arm"] for a in json.loads(out.read_text())["advice"]} == {"plain", "better"}
    assert main(["design", *table, "--arms", "plain", "--question", "c", "--spend", "1e21"]) == 0
    assert json.loads(out.read_text())["estimate"] == pytest.approx(4.0, rel=0.1)


def test_forms_that_can_not_be_used_are_refused(form_file, tmp_path, runs, capsys):
    class Empty(Form):
        name = "empty"

    with pytest.raises(InputError, match="'empty' defines neither value nor evaluate"):
        register(Empty())
    with pytest.raises(InputError, match="'gamma' is registered already"):
        register(FORMS["gamma"])
    runs.to_csv(tmp_path / "runs.csv", index=False)
    (tmp_path / "nothing.py").write_text("x = 1\n")
    (tmp_path / "broken.py").write_text("x = \n")
    for file, message in {
        "absent.py": "is not a readable Python file",
        "nothing.py": "registers no form",
        "broken.py": "can't be imported",
    }.items():
        assert main(["fit", str(tmp_path / "runs.csv"), "--form-file", str(tmp_path / file)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_arms_are_compared_under_every_form_with_an_optimum(tmp_path, runs, capsys):
    runs.to_csv(tmp_path / "runs.csv", index=False)
    arguments = ["compare", str(tmp_path / "runs.csv"), "--resamples", "10", "--form"]
    assert main([*arguments, "gamma"]) == 0
    assert "alpha, beta, gamma" in capsys.readouterr().out
    assert main([*arguments, "power:C"]) == 2
    assert "the form 'power:C' has no split into N and D" in capsys.readouterr().err
