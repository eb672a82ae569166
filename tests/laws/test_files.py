import gzip
import json

import numpy as np
import pandas as pd
import pytest

from eqscale.errors import InputError
from eqscale.laws import read_runs
from eqscale.laws.files import read_file

RUNS = pd.DataFrame({"N": [1e6, 2e6, 3.5e6], "D": [1e8, 2e8, 3e8], "loss": [3.25, 2.5, 2.125], "arm": list("aab")})


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    return path


CSV = RUNS.to_csv(index=False)
GERMAN = "N;D;loss;arm\n1.000.000;1E8;3,25;a\n2.000.000;2E8;2,5;a\n3.500.000;3E8;2,125;b\n"
RECORDS = RUNS.to_dict("records")
PACKED = gzip.compress(CSV.encode(), mtime=0)  # of one time, so that every worker collects the same tests
DAMAGED = PACKED[:20] + b"\xff" * 10 + PACKED[30:]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("runs.csv", CSV.encode()),
        ("runs.csv", CSV.encode("utf-8-sig")),
        ("runs.csv", CSV.encode("utf-16")),
        ("runs.csv", RUNS.to_csv(index=False, sep=";").encode()),
        ("runs.csv", RUNS.to_csv(index=False, sep="\t").encode()),
        ("runs.tsv", RUNS.to_csv(index=False, sep="\t").encode()),
        ("runs.csv", GERMAN.encode()),
        ("runs.csv.gz", PACKED),
        ("runs.csv", b"N,D,loss,arm\n1M,100M,3.25,a\n2M,200M,2.5,a\n3.5M,0.3B,2.125,b\n"),
        ("runs.json", json.dumps(RECORDS).encode()),
        ("runs.json", json.dumps(RUNS.to_dict("list")).encode()),
        ("runs.json", RUNS.to_json().encode()),
        ("runs.jsonl", "\n".join(map(json.dumps, RECORDS)).encode()),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_the_same_table_in_any_dialect(tmp_path, name, content):
    found = read_runs(written(tmp_path, name, content))
    np.testing.assert_array_equal(found[["N", "D", "loss"]], RUNS[["N", "D", "loss"]])
    assert list(found["arm"]) == ["a", "a", "b"]


def test_nested_records_become_columns_with_dots(tmp_path):
    rows = [{"config": {"n": n}, "summary": {"loss": loss}, "D": 1e8} for n, loss in [(1, 3.0), (2, 2.5)]]
    path = written(tmp_path, "runs.json", json.dumps(rows).encode())
    assert list(read_runs(path, {"N": "config.n", "loss": "summary.loss"})["N"]) == [1, 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.csv", None, "no such file; give a table as .csv"),
        ("empty.csv", b"", "not a readable table"),
        ("bad.parquet", b"no", "not a readable table"),
        ("runs.csv", CSV.encode("utf-16-le"), "UTF-16 without a byte order mark; save the table as UTF-8"),
        ("runs.csv", "N,D,loss,größe\n1,2,3,4\n".encode("latin-1"), "neither UTF-8 nor marked as UTF-16"),
        ("runs.csv", b"N;loss\n1.5;2,5\n2;2,25\n", "row 1, column 'N': 1.5 has a decimal point, other columns have"),
        ("runs.json", b"[1, 2]", "neither a list of objects"),
        ("runs.json", b"{", "not JSON, neither as a whole nor line by line"),
        ("runs.csv", b"N,D,N\n1,2,3\n", "column 'N' appears more than once"),
        ("runs.csv.gz", b"not packed", "not a readable table"),
        ("runs.csv.gz", DAMAGED, "not a readable table (Error -3 while decompressing data"),
        ("runs.xlsx", b"PK\3\4 cut", "not a readable table (File is not a zip file)"),
        pytest.param("runs.json", b"[" * 100_000, "not a readable table (maximum recursion depth", id="deep"),
    ],
)  # fmt: skip
def test_what_can_not_be_read_is_refused_with_its_cause(tmp_path, name, content, message):
    path = tmp_path / name if content is None else written(tmp_path, name, content)
    with pytest.raises(InputError) as error:
        read_file(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_is_no_table(tmp_path):
    with pytest.raises(InputError, match=r"a folder; give a table in it, such as .*runs\.csv"):
        read_file(tmp_path)


def test_excel_without_its_reader_names_the_package(tmp_path, monkeypatch):
    def missing(*args):
        raise ImportError("Missing optional dependency 'openpyxl'.")

    monkeypatch.setattr(pd, "read_excel", missing)
    with pytest.raises(InputError, match=r"reading \.xlsx needs openpyxl: install it, or save the table as CSV"):
        read_file(written(tmp_path, "runs.xlsx", b"PK"))


def test_excel(tmp_path):
    pytest.importorskip("openpyxl")
    RUNS.to_excel(tmp_path / "runs.xlsx", index=False)
    pd.testing.assert_frame_equal(read_file(tmp_path / "runs.xlsx"), RUNS, check_dtype=False)


def test_a_parquet_file_may_have_columns_in_its_index(tmp_path):
    pytest.importorskip("pyarrow")
    RUNS.set_index(RUNS.columns[0]).to_parquet(tmp_path / "runs.parquet")
    assert set(read_file(tmp_path / "runs.parquet")) == set(RUNS)
