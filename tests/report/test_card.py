import pandas as pd

from eqscale.report.card import answer_card


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
        "At equal compute, gatr has the lowest loss at every budget; at 1e+11 FLOPs the loss of transformer is 1.50 "
        "times that of gatr (at 1e+10 FLOPs 1.25 times)."
    )
    assert card.sentences[1].startswith("Each run has one seed, and other seeds change a loss by about 5 %: ")
    assert card.sentences[1].endswith("the lead over the second is more than chance at every budget.")
    assert card.rows == (("1e+10", "0.4", "0.5", "1.25"), ("1e+11", "0.2", "0.3", "1.5"))


def test_the_card_says_where_the_order_of_the_arms_changes():
    card = answer_card(runs(gatr=(0.6, 0.2), transformer=(0.5, 0.3)))
    assert "the lowest loss is transformer's at 1e+10, gatr's at 1e+11 FLOPs;" in card.sentences[0]
    assert "(at 1e+10 FLOPs 0.83 times)" in card.sentences[0]


def test_the_scatter_between_seeds_is_the_measured_one():
    finished = runs(gatr=(0.4, 0.2), transformer=(0.5, 0.3))
    again = finished.assign(seed=1, loss=finished["loss"] * 1.1)
    assert "scatter by 6.7 %" in answer_card(pd.concat([finished, again])).sentences[1]


def test_a_lead_within_the_scatter_of_seeds_is_called_chance():
    near = runs(gatr=(0.4, 0.2), transformer=(0.42, 0.3))
    assert answer_card(near).sentences[1].endswith("more than chance at 1e+11 FLOPs only.")
    sure = pd.concat([near, near.assign(seed=1, loss=near["loss"] * 1.001)])
    assert answer_card(sure).sentences[1].endswith("more than chance at every budget.")


def test_every_arm_is_in_the_sentence_and_only_budgets_that_all_have_are_compared():
    three = runs(gatr=(0.4, 0.2), transformer=(0.5, 0.3), aligned=(0.45, 0.25))
    first = answer_card(three).sentences[0]
    assert (
        "the loss of aligned is 1.25 times that of gatr, that of transformer 1.50 times (at 1e+10 FLOPs 1.12 and 1.25 "
        in first
    )
    lacking = three[(three["arm"] != "aligned") | (three["budget"] > 1e10)]
    said = answer_card(lacking).sentences[0]
    assert said.startswith("Where all arms have runs: at equal compute, gatr has the lowest loss at every budget; at")
    assert said.endswith("that of transformer 1.50 times.")


def test_one_arm_alone_is_compared_with_nothing():
    assert "nothing to compare" in answer_card(runs(gatr=(0.4, 0.2))).sentences[0]
