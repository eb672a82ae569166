import re

import numpy as np
import pandas as pd

from eqscale.laws.arms import fit_arms
from eqscale.laws.minima import measured_minima
from eqscale.report.card import answer_card, measured_card


def runs(**losses):
    """Two budgets, two sizes of each arm; ``losses`` are those of the better size."""
    rows = [
        {"arm": arm, "budget": budget, "N": N, "seed": 0, "loss": loss * worse}
        for arm, of_arm in losses.items()
        for budget, loss in zip((1e10, 1e11), of_arm, strict=True)
        for N, worse in ((1000, 1.5), (2000, 1.0))
    ]
    return pd.DataFrame(rows)


def test_the_card_says_who_is_ahead_where_and_by_how_much():
    card = answer_card(runs(gatr=(0.4, 0.2), transformer=(0.5, 0.3)))
    assert card.sentences[0] == (
        "At equal compute, gatr has the lowest loss at every budget; at 1e11 FLOPs the loss of transformer is 1.50 "
        "times that of gatr (at 1e10 FLOPs 1.25 times)."
    )
    assert card.sentences[1].startswith("Each run has one seed, and other seeds change a loss by about 5 %: ")
    assert card.sentences[1].endswith("the lead over the second is more than chance at every budget.")
    assert card.rows == (("1e10", "0.4", "0.5", "1.25"), ("1e11", "0.2", "0.3", "1.50"))


def test_the_card_says_where_the_order_of_the_arms_changes():
    card = answer_card(runs(gatr=(0.6, 0.2), transformer=(0.5, 0.3)))
    assert "the lowest loss is transformer's at 1e10, gatr's at 1e11 FLOPs;" in card.sentences[0]
    assert "(at 1e10 FLOPs 0.83 times)" in card.sentences[0]


def test_the_scatter_between_seeds_is_the_measured_one():
    finished = runs(gatr=(0.4, 0.2), transformer=(0.5, 0.3))
    again = finished.assign(seed=1, loss=finished["loss"] * 1.1)
    assert "scatter by 6.7 %" in answer_card(pd.concat([finished, again])).sentences[1]


def test_a_lead_within_the_scatter_of_seeds_is_called_chance():
    near = runs(gatr=(0.4, 0.2), transformer=(0.42, 0.3))
    assert answer_card(near).sentences[1].endswith("more than chance at 1e11 FLOPs only.")
    sure = pd.concat([near, near.assign(seed=1, loss=near["loss"] * 1.001)])
    assert answer_card(sure).sentences[1].endswith("more than chance at every budget.")


def test_every_arm_is_in_the_sentence_and_only_budgets_that_all_have_are_compared():
    three = runs(gatr=(0.4, 0.2), transformer=(0.5, 0.3), aligned=(0.45, 0.25))
    first = answer_card(three).sentences[0]
    assert (
        "the loss of aligned is 1.25 times that of gatr, that of transformer 1.50 times (at 1e10 FLOPs 1.12 and 1.25 "
        in first
    )
    lacking = three[(three["arm"] != "aligned") | (three["budget"] > 1e10)]
    said = answer_card(lacking).sentences[0]
    assert said.startswith("Where all arms have runs: at equal compute, gatr has the lowest loss at every budget; at")
    assert said.endswith("that of transformer 1.50 times.")


def test_one_arm_alone_is_compared_with_nothing():
    assert "nothing to compare" in answer_card(runs(gatr=(0.4, 0.2))).sentences[0]


def law_of(name, factor, costs, steeper=0.0, noise=0.01):
    """Minima of runs at six sizes and three seeds, of an arm whose losses are a factor of C^-0.2 at best."""
    rng = np.random.default_rng(len(name))
    grid = [(C, N, s) for C in costs for N in (500, 1000, 2000, 4000, 8000, 16000) for s in range(3)]
    C, N, _ = np.array(grid).T
    best = factor * (C / costs[0]) ** -(0.2 + steeper)
    loss = best * np.exp(0.1 * np.log(N / 2500) ** 2 + noise * rng.normal(size=len(C)))
    arm = fit_arms(
        pd.DataFrame({"arm": name, "N": N, "D": C / (6 * N), "loss": loss, "flops": C, "budget": C}),
        cost="flops", budget="budget", resamples=50,
    )[name]  # fmt: skip
    return measured_minima(arm, resamples=200)


def test_where_optima_are_measured_the_card_gives_intervals_and_whether_the_lead_grows():
    costs = (1e10, 1e11, 1e12)
    minima = {"gatr": law_of("gatr", 0.3, costs, steeper=0.1), "transformer": law_of("transformer", 0.3, costs)}
    card = measured_card(minima, "transformer")
    assert card.header == ("executed FLOPs", "gatr", "transformer")
    ratio, low, high = re.fullmatch(r"× (\S+) \[(\S+), (\S+)\]", card.rows[-1][2]).groups()
    assert float(low) < 100**0.1 < float(high)
    assert f"at 1e12 FLOPs the loss of transformer is {ratio} [" in card.sentences[0]
    assert card.sentences[1].startswith("The lead over transformer grows: ")
    assert card.sentences[2] == "All others are behind by their 95 % intervals at every budget but 1e10."
    assert card.rows[-1][1].endswith(", best")


def test_without_a_budget_that_all_arms_were_measured_at_there_is_no_measured_card():
    one, other = law_of("gatr", 0.3, (1e10, 1e11)), law_of("transformer", 0.3, (1e12, 1e13))
    assert measured_card({"gatr": one, "transformer": other}, "transformer") is None
    assert measured_card({"gatr": one}, None) is None
    assert measured_card({}, None) is None
