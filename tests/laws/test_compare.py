import json
import re

import numpy as np
import pandas as pd
import pytest

from eqscale.cli import main
from eqscale.errors import InputError
from eqscale.laws.arms import fit_arms
from eqscale.laws.compare import compare_arms
from eqscale.laws.joint import compare_hypotheses, joint_fit


def runs_of(arm, seed, E=0.0, A=300.0, B=900.0, alpha=0.35, beta=0.37, kappa=6.0, noise=0.006, budgets=5):
    rng = np.random.default_rng(seed)
    C = np.repeat(10.0 ** np.linspace(17, 21, budgets), 6)
    N = 0.1 * np.sqrt(C * 6 / kappa) * np.tile(np.geomspace(1 / 8, 8, 6), budgets)
    D = C / (kappa * N)
    loss = (E + A / N**alpha + B / D**beta) * np.exp(noise * rng.standard_normal(len(N)))
    return pd.DataFrame({"arm": arm, "N": N, "D": D, "C": C, "loss": loss})


@pytest.fixture(scope="module")
def worth_four():
    """With E = 0 and equal exponents, scaling both coefficients scales the loss: a constant multiplier."""
    a = 0.37 / (0.35 + 0.37)
    gain = 4.0 ** (0.35 * a)  # loss falls as C^(-αβ/(α+β))
    return fit_arms(
        pd.concat([runs_of("plain", 1), runs_of("better", 2, A=300 / gain, B=900 / gain)]),
        fix={"E": 0.0},
        resamples=200,
    )


def test_multiplier_of_compute_is_recovered(worth_four):
    found = compare_arms(worth_four["better"], worth_four["plain"])
    for m in found.multipliers:
        estimate, low, high = m.compute
        assert estimate == pytest.approx(4.0, rel=0.1)
        assert low < 4.0 < high
        assert m.compute_model[0] < 4.0 < m.compute_model[1]
        # at equal exponents tokens and parameters share the factor: k^a and k^b
        assert m.data[0] * m.parameters[0] == pytest.approx(estimate, rel=1e-6)
        assert m.probability_better == 1.0
        assert m.ahead == "better"
        assert m.advantage[0] == pytest.approx(4.0 ** (0.35 * 0.37 / 0.72), rel=0.02)
    assert found.crossing.C is None
    assert found.crossing.describe().startswith("none shown")
    said = re.fullmatch(
        r"better reaches plain's loss with (.+) times less compute between 1e17 and (\S+) of C, and is ahead between "
        r"1e17 and 1e21; at 1e21, plain's loss is .* times as high\.", found.summary
    )  # fmt: skip
    assert said, found.summary
    assert float(said[1].split(" to ")[0]) == pytest.approx(4, rel=0.1)
    within = [m for m in found.multipliers if not m.extrapolated]
    assert float(said[2]) == pytest.approx(within[-1].C, rel=0.01)  # beyond it, plain's runs end before its equivalent


def test_the_reference_that_leads_is_said_to_need_less(worth_four):
    found = compare_arms(worth_four["plain"], worth_four["better"], C=[1e19], unit="FLOPs")
    assert re.match(r"better reaches plain's loss with (3\.\d|4|4\.\d) times less compute at 1e19 FLOPs", found.summary)


def test_multipliers_are_reciprocal(worth_four):
    forth = compare_arms(worth_four["better"], worth_four["plain"], C=[1e19])
    k = forth.multipliers[0].compute[0]
    back = compare_arms(worth_four["plain"], worth_four["better"], C=[1e19 * k])
    assert back.multipliers[0].compute[0] == pytest.approx(1 / k, rel=1e-6)


def test_loss_below_the_reference_floor_is_never_reached():
    arms = fit_arms(pd.concat([runs_of("plain", 1, E=2.0), runs_of("better", 2, E=0.5)]), resamples=50)
    last = compare_arms(arms["better"], arms["plain"]).multipliers[-1]
    assert last.compute[0] > 1e12
    assert last.extrapolated


def test_crossing_is_found_with_its_interval():
    # the arm with the steeper data exponent starts behind and overtakes
    slow, fast = runs_of("slow", 3, beta=0.30, B=300), runs_of("fast", 4, beta=0.40, B=3.5e3)
    arms = fit_arms(pd.concat([slow, fast]), resamples=300)
    crossing = compare_arms(arms["fast"], arms["slow"]).crossing
    assert crossing.C is not None
    assert crossing.interval[0] < crossing.C < crossing.interval[1]
    assert (crossing.better_below, crossing.better_above) == ("slow", "fast")
    exact = fit_arms(
        pd.concat([runs_of("slow", 3, beta=0.30, B=300, noise=0), runs_of("fast", 4, beta=0.40, B=3.5e3, noise=0)]),
        resamples=5,
    )
    truth = compare_arms(exact["fast"], exact["slow"]).crossing.C
    assert crossing.interval[0] < truth < crossing.interval[1]


def test_equal_arms_are_called_equal():
    """One law, 24 runs an arm, 1 % noise: anything is claimed in at most one comparison of twenty."""
    claims = 0
    for seed in range(5):
        same = {"E": 1.0, "noise": 0.01, "budgets": 4}
        arms = fit_arms(pd.concat([runs_of("x", 2 * seed, **same), runs_of("y", 2 * seed + 1, **same)]), resamples=60)
        found = compare_arms(arms["x"], arms["y"])
        claims += bool(found.crossing.better_below) or any(m.ahead for m in found.multipliers)
        for m in found.multipliers:
            assert m.ahead or m.compute[1] <= 1 <= m.compute[2]
        if not claims:
            assert found.summary.startswith("No difference between x and y is shown between 1e17 and 1e21 of C")
    assert claims <= 1


def test_random_halves_of_one_set_do_not_differ(chinchilla):
    frame, claims = chinchilla.assign(C=6 * chinchilla.N * chinchilla.D), 0
    for seed in range(3):
        half = np.random.default_rng(seed).permutation(len(frame)) % 2
        arms = fit_arms(frame.assign(arm=half), resamples=60)
        found = compare_arms(arms["0"], arms["1"])
        claims += bool(found.crossing.better_below) or any(m.ahead for m in found.multipliers)
    assert claims <= 1


def test_joint_fit_with_nothing_shared_is_the_separate_fits(worth_four):
    joint = joint_fit(worth_four, ())
    assert joint.objective == pytest.approx(sum(a.fit.objective for a in worth_four.values()), rel=1e-9)
    assert joint.params["alpha[plain]"] == pytest.approx(worth_four["plain"].fit.params["alpha"], rel=1e-6)


def test_sharing_everything_is_one_fit_to_the_pooled_runs():
    from eqscale.laws import fit

    both = pd.concat([runs_of("x", 1, E=1.0), runs_of("y", 2, E=1.0)])
    joint = joint_fit(fit_arms(both, resamples=0), ("E", "A", "B", "alpha", "beta"))
    pooled = fit(both["N"], both["D"], both["loss"])
    assert joint.objective == pytest.approx(pooled.objective, rel=1e-9)
    assert joint.params["alpha"] == pytest.approx(pooled.params["alpha"], rel=1e-6)


def test_shared_objectives_never_beat_separate_ones(worth_four):
    tested = compare_hypotheses(worth_four, resamples=0)
    separate = next(h for h in tested if not h.shared)
    assert all(h.objective >= separate.objective * (1 - 1e-9) for h in tested)
    assert sum(h.weight for h in tested) == pytest.approx(1.0)


def test_tests_accept_what_is_shared_and_reject_what_is_not():
    arms = fit_arms(pd.concat([runs_of("x", 5, E=1.0), runs_of("y", 6, E=1.0, A=150, B=500, beta=0.33)]), resamples=0)
    tested = {h.shared: h for h in compare_hypotheses(arms, resamples=99)}
    assert tested[("E",)].f_p_value > 0.01
    assert tested[("E",)].bootstrap_p_value > 0.01
    same = tested[("E", "A", "B", "alpha", "beta")]
    assert same.f_p_value < 1e-6
    assert same.bootstrap_p_value == pytest.approx(0.01)
    assert same.weight < 1e-6


def test_the_scale_of_a_small_threshold_decides_no_test():
    """Drops of the resamples are compared with that of the runs, whatever threshold the refits are made with."""
    runs = pd.concat([runs_of("x", 5, E=1.0), runs_of("y", 8, E=1.0, A=305)])
    small, smaller = (
        {h.shared: h for h in compare_hypotheses(fit_arms(runs, resamples=0, delta=delta), resamples=99)}
        for delta in (1e-4, 1e-6)
    )
    for shared in small:
        if shared in smaller and small[shared].bootstrap_p_value is not None:
            assert smaller[shared].bootstrap_p_value == pytest.approx(small[shared].bootstrap_p_value, abs=0.1)
    assert min(h.bootstrap_p_value for h in small.values() if h.bootstrap_p_value is not None) < 0.5


def test_arm_without_an_optimum_is_undecidable():
    flat = runs_of("flat", 3).assign(loss=lambda f: 1.5 + 400 / f.N**0.4)  # D plays no part
    arms = fit_arms(pd.concat([runs_of("plain", 1), flat]), resamples=10)
    found = compare_arms(arms["flat"], arms["plain"])
    assert all(np.isnan(m.compute[0]) for m in found.multipliers)
    assert found.crossing.C is None
    assert "can't be compared" in found.summary


def test_disjoint_costs_are_refused():
    low = runs_of("low", 1)
    high = runs_of("high", 2).assign(C=lambda f: f.C * 1e6, D=lambda f: f.D * 1e6)
    arms = fit_arms(pd.concat([low, high]), resamples=5)
    with pytest.raises(InputError, match=r"high .* and low .* have no cost in common"):
        compare_arms(arms["high"], arms["low"])


def test_command(tmp_path, capsys):
    frame = pd.concat([runs_of("plain", 1, E=1.0), runs_of("better", 2, E=1.0, A=150)])
    frame["seconds"] = 1e-15 * frame.C * np.where(frame.arm == "better", 3.0, 1.0)
    frame.to_csv(tmp_path / "runs.csv", index=False)
    out = tmp_path / "cmp.json"
    arguments = ["compare", str(tmp_path / "runs.csv"), "--reference", "plain", "--resamples", "50"]
    extra = ["--axis", "C", "--axis", "seconds", "--json", str(out), "--markdown", str(tmp_path / "t.md")]
    assert main([*arguments, *extra, "--latex", str(tmp_path / "t.tex")]) == 0
    record = json.loads(out.read_text())
    flops, seconds = record["comparisons"]
    assert (flops["axis"], seconds["axis"]) == ("C", "seconds")
    ratio = flops["multipliers"][2]["compute"][0] / seconds["multipliers"][2]["compute"][0]
    assert ratio == pytest.approx(3.0, rel=0.25)
    printed = capsys.readouterr().out
    first, second, verdict = printed.splitlines()[:3]
    assert re.match(r"On C: better reaches plain's loss with \S+ to \S+ times less compute between ", first)
    assert second.startswith("On seconds: better ")
    assert "runs, verdict:" in verdict
    assert "crossing" in printed
    assert main([*arguments[:2], "--reference", "other", "--resamples", "5"]) == 2
    assert "--reference 'other': not one of better, plain" in capsys.readouterr().err
