from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from eqscale.errors import InputError
from eqscale.laws import check_runs, read_runs
from eqscale.laws.table import parse_map


@pytest.fixture
def runs() -> pd.DataFrame:
    return pd.DataFrame({"N": [1e6, 2e6, 3e6], "D": [1e8, 2e8, 3e8], "loss": [3.0, 2.5, 2.2], "arm": list("aab")})


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_reads_files_with_declared_columns(runs, tmp_path, suffix):
    path = tmp_path / f"runs.{suffix}"
    renamed = runs.rename(columns={"N": "params", "loss": "val"})
    renamed.to_csv(path, index=False) if suffix == "csv" else renamed.to_parquet(path)
    found = read_runs(path, {"N": "params", "loss": "val"})
    np.testing.assert_array_equal(found[["N", "D", "loss"]], runs[["N", "D", "loss"]])
    assert list(found["arm"]) == ["a", "a", "b"]


@pytest.mark.parametrize(
    "values",
    [
        ["1000000", " 2e6 ", "3000000.0"],
        [Decimal("1000000"), 2000000, 3e6],
        pd.array([1000000, 2000000, 3000000], dtype="Int64"),
        pd.array([1e6, 2e6, 3e6], dtype="float32"),
        pd.Categorical([1000000, 2000000, 3000000]),
        pd.array([1000000, 2000000, 3000000], dtype="int64[pyarrow]"),
    ],
)
def test_numbers_of_any_column_type(runs, values):
    found = check_runs(runs.assign(N=values))
    assert found["N"].dtype == np.float64
    np.testing.assert_allclose(found["N"], [1e6, 2e6, 3e6])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"N": [1e6, 0.0, 3e6]}, "row 2, column 'N': 0 is not positive"),
        ({"loss": [3.0, 2.5, np.nan]}, "row 3, column 'loss': empty is not a finite number; filter failed runs"),
        ({"loss": [3.0, np.inf, 1.0]}, "row 2, column 'loss': inf"),
        ({"D": ["1e8", "many", "3e8"]}, "row 2, column 'D': 'many' is not a finite number"),
        ({"D": [True, False, True]}, "column 'D' holds bool, not numbers"),
        ({"C": [1.0, -1.0, 2.0]}, "row 2, column 'C': -1 is not positive"),
    ],
)
def test_bad_values_are_named_by_row_and_column(runs, change, message):
    with pytest.raises(InputError, match=message):
        check_runs(runs.assign(**change))


def test_missing_column_lists_what_there_is(runs):
    with pytest.raises(InputError, match=r"no column 'loss' .*--map loss=COLUMN; columns: N, D, arm"):
        check_runs(runs.drop(columns="loss"))
    with pytest.raises(InputError, match="no column 'params' to use as N"):
        check_runs(runs, {"N": "params"})


def test_filter_keeps_the_rows_asked_for_and_names_rows_of_the_file(runs):
    frame = runs.assign(status=["failed", "finished", "finished"], loss=[np.nan, 2.5, -2.0])
    with pytest.raises(InputError, match="row 3, column 'loss': -2"):
        check_runs(frame, where=["status=finished"])
    frame["loss"] = [np.nan, 2.5, 2.0]
    assert list(check_runs(frame, where=["status=finished"])["N"]) == [2e6, 3e6]
    with pytest.raises(InputError, match="no row has status = 'done'; it holds failed, finished"):
        check_runs(frame, where=["status=done"])
    with pytest.raises(InputError, match="'status' holds finished, unplanned: choose with --where status"):
        check_runs(runs.assign(status=["unplanned", "finished", "finished"]))


def test_duplicates_are_refused_and_replicates_are_not(runs):
    twice = pd.concat([runs, runs.iloc[[1]]], ignore_index=True)
    with pytest.raises(InputError, match="row 4 repeats row 2"):
        check_runs(twice)
    assert len(check_runs(twice, duplicates="drop")) == 3
    assert len(check_runs(twice, duplicates="keep")) == 4
    twice.loc[3, "loss"] = 2.51
    assert len(check_runs(twice)) == 4
    with pytest.raises(InputError, match=r"row 2 repeats row 1 .*'run_id'"):
        check_runs(runs.assign(run_id=["x", "x", "y"]))


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_runs(tmp_path / "absent.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match="not a readable table"):
        read_runs(tmp_path / "empty.csv")
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(InputError, match="not a readable table"):
        read_runs(tmp_path / "bad.parquet")


def test_map_syntax():
    assert parse_map(["N=params, D=tokens"]) == {"N": "params", "D": "tokens"}
    with pytest.raises(InputError, match="bad entry 'M=x'"):
        parse_map(["M=x"])
