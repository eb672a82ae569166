import itertools
import json

import numpy as np
import pandas as pd
import pytest

from eqscale.cli import main
from eqscale.errors import InputError
from eqscale.laws import fit
from eqscale.laws.arms import fit_arms
from eqscale.laws.plan import advise, parse_question, plan_runs

from .conftest import law


@pytest.fixture(scope="module")
def arms():
    rng = np.random.default_rng(0)
    rows = []
    for arm, B in {"plain": 2100.0, "better": 1500.0}.items():
        for C in 10.0 ** np.arange(17, 21):
            for N in 0.1 * np.sqrt(C) * np.geomspace(1 / 6, 6, 6):
                D = C / (6 * N)
                loss = law(N, D, B=B) * np.exp(0.006 * rng.standard_normal())
                rows.append({"arm": arm, "N": N, "D": D, "C": C, "loss": loss})
    return fit_arms(pd.DataFrame(rows), resamples=100)


@pytest.mark.parametrize("text", ["a", "alpha", "E", "size@1e22", "loss@1e22"])
def test_planned_runs_deliver_the_standard_error_they_promise(arms, text):
    """Making the planned runs (noise-free at the fitted law) and refitting gives the promised error."""
    one = {"plain": arms["plain"]}
    question = parse_question(text, one)
    plan = plan_runs(question, one, budget=3e20, runs=8)
    assert plan.se_now == pytest.approx(
        arms["plain"].fit.standard_error(lambda c: _value(text, arms["plain"], c)), rel=0.02
    )
    assert plan.cost <= 3e20 * (1 + 1e-9)
    errors = [plan.se_now, *(r.expected_se for r in plan.runs)]
    assert all(b < a for a, b in itertools.pairwise(errors))
    old = arms["plain"].fit
    N, D = (np.array([getattr(r, k) for r in plan.runs]) for k in ("N", "D"))
    loss = np.concatenate([old.observed, old.predict(N, D)])
    new = fit(np.concatenate([old.columns["N"], N]), np.concatenate([old.columns["D"], D]), loss)
    moved = new.covariance / new.noise**2 * old.noise**2  # at the old noise level
    g = new.quantity_gradient(lambda c: _value(text, arms["plain"], c))[0]
    assert np.sqrt(g @ moved @ g) == pytest.approx(plan.runs[-1].expected_se, rel=0.1)


def _value(text, arm, c):
    from eqscale.laws.frontier import frontier_values

    if "@" in text:
        return frontier_values(c, arm.cost, np.array([1e22]))[0 if text.startswith("size") else 2][:, 0]
    return c.form.derived(c)["a"] if text == "a" else c[text]


def test_gap_plans_runs_for_both_arms(arms):
    plan = plan_runs(parse_question("gap@1e22", arms), arms, budget=1e21, runs=12)
    assert {r.arm for r in plan.runs} == {"plain", "better"}
    assert plan.runs[-1].expected_se < 0.8 * plan.se_now


def test_new_runs_stay_near_the_runs_at_hand_unless_told_otherwise(arms):
    one = {"plain": arms["plain"]}
    question = parse_question("loss@1e22", one)
    plan = plan_runs(question, one, budget=1e21)
    ratio = arms["plain"].D / arms["plain"].N
    for run in plan.runs:
        assert arms["plain"].C.min() / 3.01 < run.C < 3.01 * arms["plain"].C.max()
        assert ratio.min() / 2.01 < run.D / run.N < 2.01 * ratio.max()
        assert pytest.approx(6 * run.N * run.D) == run.C
    with pytest.raises(InputError, match=r"a spend of 1e12 is below 3.33e16, the cheapest run .*a third"):
        plan_runs(question, one, budget=1e12)
    small = plan_runs(question, one, budget=1e12, cost_range=(1e11, 1e12))
    assert small.cost <= 1e12 * (1 + 1e-9)
    assert sum(count for _, count in small.points) == len(small.runs)


def shuffled(arm):
    """The arm's runs with the losses of others: no law at all."""
    loss = np.random.default_rng(0).permutation(arm.loss)
    return fit_arms(pd.DataFrame({"arm": arm.name, "N": arm.N, "D": arm.D, "C": arm.C, "loss": loss}), resamples=20)


def test_a_law_that_says_nothing_is_planned_for_as_unknown(arms):
    nothing = shuffled(arms["plain"])
    question = parse_question("a", nothing)
    assert np.isnan(question.estimate)
    plan = plan_runs(question, nothing, budget=1e21)
    assert plan.se_now > 0.2
    assert plan.runs[-1].expected_se < plan.se_now


def test_what_sits_on_a_bound_counts_as_unknown(isoflop):
    """A floor at zero with its ordinary standard error of zero would be the best known of all parameters."""
    loss = (50 / isoflop.N**0.3 + 300 / isoflop.D**0.3 - 0.02) * np.exp(
        1e-3 * np.random.default_rng(5).standard_normal(30)
    )
    one = fit_arms(isoflop.assign(arm="all", loss=loss), resamples=0)
    assert one["all"].fit.params["E"] == 0
    assert plan_runs(parse_question("E", one), one, budget=1e21).se_now > 1e-3


def test_a_ladder_is_answered_by_runs_beside_it():
    rng = np.random.default_rng(0)
    N = np.repeat(np.geomspace(1e7, 1e10, 10), 3)
    D = 20 * N * np.exp(1e-3 * rng.standard_normal(30))
    frame = pd.DataFrame({"arm": "all", "N": N, "D": D, "C": 6 * N * D})
    one = fit_arms(frame.assign(loss=law(N, D, beta=0.28) * np.exp(0.01 * rng.standard_normal(30))), resamples=0)
    assert str(one["all"].fit.verdict).startswith("unidentified")
    plan = plan_runs(parse_question("alpha", one), one, budget=1e21)
    ratios = {round(run.D / run.N) for run in plan.runs}
    assert min(ratios) < 12 < 35 < max(ratios)
    assert plan.runs[-1].expected_se < 0.5 * plan.se_now


def chosen_runs(arm, gradient, share):
    """Of the runs at hand those that the criterion would have picked for a share of their cost, knowing the law."""
    jac, noise = arm.fit.jacobian.T, arm.fit.noise**2
    sigma = np.diag(1 / np.sum(jac**2, 0)) * 1e6 * noise
    left, chosen = share * arm.C.sum(), []
    while True:
        pull = jac @ sigma
        gain = (pull @ gradient) ** 2 / (noise + np.sum(pull * jac, 1))
        worth = np.where((left >= arm.C) & ~np.isin(np.arange(arm.fit.n), chosen), gain / arm.C, 0.0)
        if worth.max() <= 0:
            return np.array(chosen)
        chosen.append(int(np.argmax(worth)))
        left -= arm.C[chosen[-1]]
        j = sigma @ jac[chosen[-1]]
        sigma = sigma - np.outer(j, j) / (noise + jac[chosen[-1]] @ j)


def test_published_gain_of_choosing_runs_well(chinchilla):
    """10 % of the FLOPs of the 240 runs give 0.0114/0.0092 of the standard error of all if chosen for a, and
    0.0157/0.0092 if they are the cheapest: reference/laws.md, section 4.
    """
    one = fit_arms(chinchilla.assign(arm="all"), resamples=0)
    question = parse_question("a", one)
    chosen = chosen_runs(one["all"], question.gradients["all"], 0.1)
    assert one["all"].C[chosen].sum() <= 0.1 * one["all"].C.sum()

    def se(rows):
        jac = one["all"].fit.jacobian[:, rows]
        g = question.gradients["all"]
        return np.sqrt(g @ np.linalg.inv(jac @ jac.T) @ g)

    C, everything = one["all"].C, np.arange(240)
    order = np.argsort(C)
    cheapest = order[np.cumsum(C[order]) <= 0.1 * C.sum()]
    assert se(chosen) / se(everything) == pytest.approx(0.0114 / 0.0092, rel=0.02)
    assert se(cheapest) / se(everything) == pytest.approx(0.0157 / 0.0092, rel=0.02)


def test_advice_ranks_arms(arms):
    best, second = advise(arms, 1e21)
    assert best.arm == "better"
    assert best.loss < second.loss
    assert best.probability_best + second.probability_best == pytest.approx(1.0)
    assert best.extrapolated
    assert best.N_band[0] < best.N < best.N_band[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed", "unknown quantity 'speed'; choose one of E, A, B, alpha, beta, a, b, size@C"),
        ("loss", "unknown quantity 'loss'"),
        ("loss@big", "'big' is not a positive cost"),
        ("a", "about one arm, not 2"),
    ],
)
def test_bad_questions(arms, text, message):
    with pytest.raises(InputError, match=message):
        parse_question(text, arms)
    with pytest.raises(InputError, match="about two arms, not 1"):
        parse_question("crossing", {"plain": arms["plain"]})


def test_command(arms, tmp_path, capsys):
    frame = pd.concat([pd.DataFrame({"arm": k, "N": a.N, "D": a.D, "C": a.C, "loss": a.loss}) for k, a in arms.items()])
    failed = pd.DataFrame({"arm": ["plain"], "N": [1e7], "D": [1e9], "C": [1e17], "loss": [np.nan]})
    frame = frame.assign(seconds=frame.C / 1e15)
    frame = pd.concat([frame.assign(status="finished"), failed.assign(status="failed")])
    frame.to_parquet(tmp_path / "runs.parquet")
    frame.to_csv(tmp_path / "runs.csv", index=False)
    out = tmp_path / "advice.json"
    table = [str(tmp_path / "runs.parquet"), "--where", "status=finished", "--resamples", "20"]
    assert main(["plan", *table, "--compute", "1e21", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["advice"][0]["arm"] == "better"
    assert capsys.readouterr().out.startswith("plain: 24 runs, verdict: converged")
    assert main(["design", *table, "--question", "gap@1e22", "--spend", "1e21", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["runs"]
    assert json.loads(out.read_text())["verdicts"] == {"plain": "converged", "better": "converged"}
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith("plain: 24 runs, verdict: converged better: 24 runs, verdict: converged")
    assert "loss of plain / loss of better at 1e22 FLOPs: " in printed
    assert "plain: D/N varies by 1,300x: at 0.51 % noise, expect alpha within ± 0.012" in printed
    assert main(["design", *table, "--axis", "seconds", "--question", "a", "--arms", "plain", "--spend", "100h"]) == 0
    assert "chosen for plain from 33.3 s to 300000 s (3.47 d) a run" in " ".join(capsys.readouterr().out.split())
    gap = ("--question", "gap@1e22", "--spend", "1e21")
    for arguments, message in {
        ("design", *table, *gap, "--arms", "best"): "no arm 'best'; there are plain, better",
        ("design", *table, *gap, "--axis", "hours"): "no column 'hours'",
        ("plan", *table, "--compute", "-1"): "'-1': not a positive number",
        ("plan", *table, "--compute", "1h"): "--compute 1h: a time, but the cost is counted in FLOPs",
        ("design", *table, "--question", "gap@1e22", "--spend", "100h"): "--spend 100h: a time, but",
        ("design", *table, *gap, "--range", "1e18"): "write two costs, as in 1e17,1e20",
        ("design", *table, *gap, "--range", "1e19,1e18"): "the lowest cost comes first",
        ("design", *table, *gap, "--runs-planned", "0"): "--runs-planned 0: at least 1",
        ("design", *table, "--question", "a", "--arms", "plain", "--spend", "1e12"): "below 3.33e16, the cheapest run",
        ("plan", *table, "--compute", "1", "--from", str(tmp_path)): "either a run table or --from",
        ("plan", "--from", str(tmp_path), "--compute", "1"): "the column 'budget' is missing",
        ("plan", "--from", str(tmp_path), "--compute", "1", "--where", "arm=gatr"): "--where would change nothing",
    }.items():
        assert main(list(arguments)) == 2
        assert message in capsys.readouterr().err
