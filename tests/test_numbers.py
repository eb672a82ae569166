import math

import pytest

from eqscale.numbers import number


@pytest.mark.parametrize(
    ("value", "options", "text"),
    [
        (5512.1, {"digits": 3}, "5510"),
        (123456.0, {"digits": 2}, "120000"),
        (1.0e6, {}, "1e6"),
        (2.144e6, {}, "2.144e6"),
        (3.0e13, {"digits": 3}, "3e13"),
        (-4.2e-7, {}, "-4.2e-7"),
        (0.0, {}, "0"),
        (1.9, {"digits": 3, "kind": "#g"}, "1.90"),
        (1.9e13, {"digits": 3, "kind": "#g"}, "1.90e13"),
        (1900.0, {"digits": 4, "kind": "#g"}, "1900"),
        (0.5, {"digits": 2, "kind": "f"}, "0.50"),
        (math.nan, {}, "–"),
        (math.inf, {}, "–"),
        (None, {}, "–"),
    ],
)
def test_numbers_are_written_as_people_write_them(value, options, text):
    assert number(value, **options) == text
