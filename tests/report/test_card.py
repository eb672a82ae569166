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
        "At equal compute, gatr has the lowest loss at every budget; at 1e+11 FLOPs that of transformer is 1.50 times "
        "that of gatr, and at 1e+10 FLOPs 1.25 times."
    )
    assert "one seed" in card.sentences[1]
    assert card.rows == (("1e+10", "0.4", "0.5", "1.25"), ("1e+11", "0.2", "0.3", "1.5"))


def test_the_card_says_where_the_order_of_the_arms_changes():
    card = answer_card(runs(gatr=(0.6, 0.2), transformer=(0.5, 0.3)))
    assert "the lowest loss is transformer's at 1e+10, gatr's at 1e+11;" in card.sentences[0]
    assert "and at 1e+10 FLOPs 0.83 times" in card.sentences[0]


def test_the_scatter_between_seeds_is_the_measured_one():
    finished = runs(gatr=(0.4, 0.2), transformer=(0.5, 0.3))
    again = finished.assign(seed=1, loss=finished["loss"] * 1.1)
    assert "scatter by 6.7%" in answer_card(pd.concat([finished, again])).sentences[1]


def test_one_arm_alone_is_compared_with_nothing():
    assert "nothing to compare" in answer_card(runs(gatr=(0.4, 0.2))).sentences[0]
