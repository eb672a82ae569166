import math

import pytest

from eqscale.laws.render import with_interval


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ((1.23456, 1.1, 1.4), "1.23 [1.10, 1.40]"),
        ((1.23456, 1.1, 1.4, 5), "1.2346 [1.1000, 1.4000]"),
        ((2.0, 1.5, math.inf), "2.00 [1.50, inf]"),
        ((2.0, math.nan, math.nan), "2.00"),
        ((123.4, 0.0, 1000.0), "123 [0, 1000]"),
        ((math.nan, 1.0, 2.0), "–"),
    ],
)
def test_a_number_stands_with_what_is_known_of_its_interval(found, text):
    assert with_interval(*found) == text
