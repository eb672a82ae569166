import math

import pytest

from eqscale.errors import InputError
from eqscale.laws.quantities import as_number, column_unit, looks_like_flops, parse_quantity, quantity


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("1e21", "FLOPs", 1e21),
        ("3 EFLOP", "FLOPs", 3e18),
        ("3eflops", "FLOPs", 3e18),
        ("2 PF-days", "FLOPs", 2 * 8.64e19),
        ("1 PFLOP/s-day", "FLOPs", 8.64e19),
        ("100h", "s", 360000.0),
        ("100h", "h", 100.0),
        ("90 min", "h", 1.5),
        ("2d", "s", 172800.0),
        ("7M", "parameters", 7e6),
        ("1.4B", "tokens", 1.4e9),
        ("200", "", 200.0),
    ],
)
def test_amounts_are_read_in_the_unit_that_is_counted(text, unit, value):
    assert parse_quantity(text, unit, "--spend") == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "unit", "message"),
    [
        ("100h", "FLOPs", "--spend 100h: a time, but the cost is counted in FLOPs"),
        ("3EFLOP", "s", "an amount of FLOPs, but the cost is counted in s"),
        ("1h", "", "the unit of the cost isn't known: give a plain number"),
        ("30m", "s", "write a time with s, min, h, d, as in 30min"),
        ("1e", "FLOPs", "not a positive number such as 1e21 or 3EFLOP"),
        ("0", "s", "not a positive number such as 3600, 90min"),
        ("-1", "", "not a positive number"),
        ("inf", "FLOPs", "not a positive number"),
        ("nan", "FLOPs", "not a positive number"),
        ("many", "tokens", "not a positive number such as 1e9 or 7M"),
    ],
)
def test_what_is_no_amount_of_that_kind_is_refused(text, unit, message):
    with pytest.raises(InputError) as error:
        parse_quantity(text, unit, "--spend")
    assert message in str(error.value)


def test_amounts_are_shown_with_their_unit_and_times_in_one_that_suits_them():
    assert quantity(1.234e21, "FLOPs") == "1.23e21 FLOPs"
    assert quantity(5400, "s") == "5400 s (90 min)"
    assert quantity(100, "h") == "100 h (4.17 d)"
    assert quantity(12, "s") == "12 s"
    assert quantity(math.inf, "FLOPs") == "unbounded"
    assert quantity(math.nan, "FLOPs") == "–"


def test_a_shown_amount_reads_as_itself():
    for value, unit in [(1.23e21, "FLOPs"), (12.0, "s"), (0.02, "h")]:
        assert parse_quantity(quantity(value, unit).partition(" (")[0], unit, "--spend") == pytest.approx(value)


def test_numbers_with_a_suffix():
    assert [as_number(v) for v in ("7M", "1.4B", "12k", "3e8")] == [7e6, 1.4e9, 12e3, 3e8]
    assert all(math.isnan(as_number(v)) for v in ("7 apples", "", "M", "1h", "1,4"))


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("flops_executed", "FLOPs"),
        ("training FLOPs", "FLOPs"),
        ("seconds", "s"),
        ("wall_s", "s"),
        ("gpu_hours", "h"),
        ("train time (min)", ""),
        ("pflops", ""),
        ("flop_per_s", ""),
        ("C", ""),
        ("tokens", ""),
    ],
)
def test_the_name_of_a_cost_column_tells_its_unit(name, unit):
    assert column_unit(name) == unit


def test_costs_near_six_n_d_are_flops(isoflop):
    assert looks_like_flops(isoflop.N, isoflop.D, isoflop.C)
    assert looks_like_flops(isoflop.N, isoflop.D, isoflop.C.where(isoflop.index > 3))
    assert not looks_like_flops(isoflop.N, isoflop.D, isoflop.C / 1e14)
