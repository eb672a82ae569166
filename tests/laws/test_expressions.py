import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqscale.errors import InputError
from eqscale.laws.expressions import parse_condition, parse_expression

COLUMNS = {"N": np.array([2.0, 3.0]), "D": np.array([4.0, 8.0]), "flops/token": np.array([1.0, 5.0])}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("6*N*D", [48, 144]),
        ("D/N", [2, 8 / 3]),
        ("-(N + 1) ** 2 / 2", [-4.5, -8]),
        ("log(exp(N)) + sqrt(D) * 0", [2, 3]),
        ("D * `flops/token`", [4, 40]),
        ("1e3", 1000),
    ],
)
def test_formulas_of_columns(text, value):
    np.testing.assert_allclose(parse_expression(text, "--map").value(COLUMNS.__getitem__), value)


def test_undefined_values_are_nan_or_infinite_without_a_warning():
    with np.errstate(all="raise"):
        value = parse_expression("1/(N-2) + log(-N)", "--map").value(COLUMNS.__getitem__)
    assert not np.isfinite(value).any()


def test_large_powers_do_not_hang():
    assert parse_expression("9**9**9**9", "--map").value(COLUMNS.__getitem__) == np.inf


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "N.__class__", "N[0]", "lambda: N", "[N for N in D]", "'text'",
        "N if D else N", "N and D", "open(N)", "log(N, D)", "log(x=N)", "N; D", "", "6 N", "f(N)(D)", "True", "1j*N",
        "N @ D", "N // D", "not N", "~N", "N := 3", "*N", "N\nD", "\0", "(" * 500 + "N" + ")" * 500, "N*" * 600 + "N",
    ],
)  # fmt: skip
def test_whatever_is_no_arithmetic_is_refused(text):
    with pytest.raises(InputError, match="is not a formula"):
        parse_expression(text, "--map C")


def test_the_caret_is_no_power():
    with pytest.raises(InputError, match=r"write \*\* for a power"):
        parse_expression("N^2", "--map C")


@settings(max_examples=100, deadline=None)
@given(st.recursive(
    st.sampled_from(["N", "D", "2", "0.5", "`flops/token`"]),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
    max_leaves=8,
))  # fmt: skip
def test_formulas_agree_with_python(text):
    plain = text.replace("`flops/token`", "F")
    expected = eval(plain, {"N": COLUMNS["N"], "D": COLUMNS["D"], "F": COLUMNS["flops/token"]})
    np.testing.assert_array_equal(parse_expression(text, "--map").value(COLUMNS.__getitem__), expected)


@pytest.mark.parametrize(
    ("text", "sides", "comparators"),
    [
        ("status=finished", ("status", "finished"), ("=",)),
        ("arm == a<b=c", ("arm", "a<b=c"), ("=",)),
        ("arm!=gatr", ("arm", "gatr"), ("!=",)),
        ("D/N>=20", ("D/N", "20"), (">=",)),
        ("1e17<C<=1e20", ("1e17", "C", "1e20"), ("<", "<=")),
        ("note=", ("note", ""), ("=",)),
    ],
)
def test_conditions(text, sides, comparators):
    found = parse_condition(text)
    assert (found.sides, found.comparators) == (sides, comparators)


@pytest.mark.parametrize("text", ["status", "=finished", "N>", "1<N=3", "<5"])
def test_what_is_no_condition_is_refused(text):
    with pytest.raises(InputError, match="--where: bad entry"):
        parse_condition(text)
