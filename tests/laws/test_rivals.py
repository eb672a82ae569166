import numpy as np
import pytest

from eqscale.laws import fit
from eqscale.laws.render import FORM_HEADER, form_rows
from eqscale.laws.rivals import clearly_better, compare_forms, judged
from tests.laws.conftest import law
from tests.laws.test_structure import design, gamma_law, noisy


def test_the_form_that_made_the_runs_describes_them_best_and_the_verdict_says_so():
    rng, N, D = design(200)
    found = fit(N, D, noisy(rng, gamma_law(N, D)))
    forms = compare_forms(found)
    assert [f.name for f in forms] == ["chinchilla", "chinchilla, E = 0", "gamma"]
    plain, no_floor, gamma = forms
    assert gamma.aicc == 0.0
    assert no_floor.aicc > plain.aicc > 10
    assert gamma.held_out < plain.held_out < no_floor.held_out
    assert (plain.verdict.state, gamma.verdict.state) == ("misfit", "converged")
    assert clearly_better(forms) is gamma
    said = str(judged(found, forms).verdict)
    assert said.startswith(str(found.verdict))
    assert f"best described by the gamma form: AICc -{plain.aicc:.0f}, held-out error " in said
    assert len(form_rows(forms)[0]) == len(FORM_HEADER)


def test_a_quick_search_of_a_rival_finds_what_a_full_one_does():
    rng, N, D = design(120)
    loss = noisy(rng, gamma_law(N, D))
    plain, full = fit(N, D, loss), fit(N, D, loss, form="gamma")
    difference = compare_forms(plain)[0].aicc - compare_forms(plain)[2].aicc
    ours, rival = compare_forms(full)[0], next(f for f in compare_forms(full) if f.name == "chinchilla")
    assert rival.aicc - ours.aicc == pytest.approx(difference, rel=1e-6)


def test_no_form_is_clearly_better_than_the_right_one():
    rng, N, D = design(200)
    found = fit(N, D, noisy(rng, law(N, D)))
    forms = compare_forms(found)
    assert clearly_better(forms) is None
    assert judged(found, forms).verdict.good
    assert forms[1].aicc > 10  # it has a floor
    exact = compare_forms(fit(N, D, law(N, D)))
    assert exact[0].aicc == 0.0


def test_a_misfit_that_no_form_cures_says_so():
    rng, N, D = design(200)
    found = fit(N, D, noisy(rng, law(N, D) * (1 + 0.04 * np.tanh(np.log(N / 1e8)) ** 2)))
    assert "no built-in form describes the runs clearly better" in str(judged(found, compare_forms(found)).verdict)


def test_forms_of_other_columns_and_held_parameters_are_no_rivals():
    C = np.geomspace(1e15, 1e22, 20)
    rng = np.random.default_rng(0)
    of_compute = fit(C=C, loss=noisy(rng, 0.7 + 1e3 / C**0.2, 0.003), form="power:C")
    assert [f.name for f in compare_forms(of_compute)] == ["power:C", "power:C, E = 0"]
    rng, N, D = design(60)
    held = compare_forms(fit(N, D, noisy(rng, law(N, D)), fix={"E": 1.8}))
    assert [(f.name, f.parameters) for f in held] == [
        ("chinchilla, E = 1.8", 4), ("chinchilla, E = 0", 4), ("chinchilla", 5), ("gamma", 6),
    ]  # fmt: skip


def test_too_few_budgets_leave_the_held_out_error_unknown():
    rng, N, D = design(24)
    found = fit(N, D, noisy(rng, law(N, D)))
    forms = compare_forms(found, np.where(np.arange(24) < 5, 1.0, 2.0))
    assert {f.held_out for f in forms} == {None}
    assert form_rows(forms)[0][3] == "–"
