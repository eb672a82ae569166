"""Whatever stands in an option or a file, the answer is a value or one line that says what is wrong."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from eqscale.cli.predict import parse_point
from eqscale.errors import InputError
from eqscale.laws import check_runs
from eqscale.laws.files import read_file
from eqscale.laws.quantities import parse_quantity
from eqscale.laws.table import parse_map

RUNS = pd.DataFrame({"N": [1e6, 2e6], "D": [1e8, 2e8], "loss": [3.0, 2.5], "arm": ["a", "b"]})
PIECES = [*"NDC<>=!+-*/()`,.'", "**", "1e9", "7M", "loss", "arm", "a", "log(", " ", "\0", "é", "9"]
WORDS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


def value_or_one_line(call, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return call(*args, **options)
        except InputError as error:
            message = str(error)
    assert message
    assert "\n" not in message
    return None


@settings(max_examples=300, deadline=None)
@given(WORDS)
@example("1<N<")
@example("1e9=")
def test_any_condition_and_any_formula(text):
    found = value_or_one_line(check_runs, RUNS, where=[text])
    assert found is None or 0 < len(found) <= 2
    found = value_or_one_line(check_runs, RUNS, {"C": text} if text else None)
    assert found is None or text == "" or (found.get("C", pd.Series([1.0])) > 0).all()


@settings(max_examples=200, deadline=None)
@given(WORDS, st.sampled_from(["FLOPs", "s", "h", "", "tokens"]))
def test_any_amount_any_map_and_any_point(text, unit):
    found = value_or_one_line(parse_quantity, text, unit, "--spend")
    assert found is None or 0 < found < np.inf
    value_or_one_line(parse_map, [text])
    value_or_one_line(parse_point, text)


@pytest.mark.parametrize("name", ["runs.csv", "runs.json", "runs.tsv", "runs.csv.gz", "runs.parquet"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(
    st.binary(max_size=60),
    st.text(alphabet='ND,;\t\n"1.5e{}[]: ', max_size=60).map(str.encode),
    st.text(max_size=20).map(lambda t: t.encode("utf-16")),
))  # fmt: skip
@example(content=b'"\x01\n"\t1')
def test_any_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    frame = value_or_one_line(read_file, tmp_path / name)
    assert frame is None or value_or_one_line(check_runs, frame, source=name) is None
