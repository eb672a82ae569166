from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from eqscale.errors import InputError
from eqscale.laws import check_runs, read_runs
from eqscale.laws.table import History, best_of_sweep, parse_map


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


def test_an_exported_chart_is_no_run_table():
    chart = pd.DataFrame({"Step": [1], "run-a - loss": [3.0], "run-a - loss__MIN": [3.0], "run-a - loss__MAX": [3.0]})
    with pytest.raises(InputError, match="a chart exported from W&B, one column a run"):
        check_runs(chart)


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


def test_a_run_listed_twice_is_refused_whatever_numbers_the_rows(runs):
    twice = pd.concat([runs, runs], ignore_index=True)
    for name in ("Unnamed: 0", "Timestamp", "uuid", "level_0", "started", "Node"):
        with pytest.raises(InputError, match="repeats row 1"):
            check_runs(twice.assign(**{name: range(len(twice))}))


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


def test_map_syntax():
    assert parse_map(["N=params, D=tokens", "C=6*N*D"]) == {"N": "params", "D": "tokens", "C": "6*N*D"}
    with pytest.raises(InputError, match="bad entry 'M=x'"):
        parse_map(["M=x"])
    with pytest.raises(InputError, match="--map C= names no column; write C=COLUMN or a formula"):
        parse_map(["C="])
    with pytest.raises(InputError, match="N is mapped twice, to a and b"):
        parse_map(["N=a", "N=b"])


def test_a_role_can_be_a_formula_of_columns_and_of_other_roles(runs):
    frame = runs.rename(columns={"N": "params", "D": "eval/tokens"}).assign(per_token=[6.0, 12.0, 18.0])
    mapping = {"N": "params", "D": "eval/tokens"}
    assert list(check_runs(frame, {**mapping, "C": "6*N*D"})["C"]) == [6e14, 24e14, 54e14]
    assert list(check_runs(frame, {**mapping, "C": "`eval/tokens`*per_token"})["C"]) == [6e8, 24e8, 54e8]
    assert list(check_runs(frame, {**mapping, "C": "7"})["C"]) == [7, 7, 7]
    assert list(check_runs(runs, {"N": "N*1e3"})["N"]) == [1e9, 2e9, 3e9]  # in its own formula N is the column


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"C": "6*N*tokens"}, "no column 'tokens' to use as C; columns: N, D, loss, arm"),
        ({"C": "6 N D"}, "--map C: '6 N D' is not a formula"),
        ({"C": "U*2", "U": "C/2"}, "--map: the formulas of U and C refer to each other"),
        ({"loss": "loss - 3"}, "row 1, column 'loss - 3': 0 is not positive"),
        ({"N": "log(N - 1e6)"}, "row 1, column 'log(N - 1e6)': -inf is not a finite number"),
        ({"D": "6*arm"}, "row 1, column '6*arm': empty is not a finite number"),
    ],
)
def test_formulas_that_make_no_sense_are_refused(runs, mapping, message):
    with pytest.raises(InputError) as error:
        check_runs(runs, mapping)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("arm=a", [1, 2]),
        ("arm!=a", [3]),
        ("N=2000000", [2]),
        ("N=2M", [2]),
        ("N>1e6", [2, 3]),
        ("N>1M", [2, 3]),
        ("1e6<=N<3e6", [1, 2]),
        ("D/params>=10", [2, 3]),
        ("N/D<=0.1", [2, 3]),
        ("2.2<loss", [1, 2]),
        ("loss*2 < N/5e5", [3]),
    ],
)
def test_conditions_choose_rows_by_column_role_or_formula(runs, condition, kept):
    frame = runs.rename(columns={"N": "params"}).assign(D=[5e6, 20e6, 30e6])
    found = check_runs(frame.assign(row=[1, 2, 3]), {"N": "params"}, where=[condition])
    assert list(found["row"]) == kept


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("N>4e6", "no row has N>4e6"),
        ("arm>3", "no row has arm>3"),
        ("tokens>3", "no column 'tokens'"),
        ("D/tokens>3", "no column 'tokens'"),
        ("arm!=a", "no row has arm != 'a'; it holds a"),
    ],
)
def test_conditions_that_leave_nothing_say_so(runs, condition, message):
    with pytest.raises(InputError) as error:
        check_runs(runs.assign(arm="a"), where=[condition])
    assert message in str(error.value)


def test_a_value_beside_an_empty_cell_meets_no_condition(runs):
    frame = runs.assign(depth=[np.nan, 3.0, 5.0], note=["x", None, "y"])
    assert list(check_runs(frame, where=["depth<9"])["depth"]) == [3.0, 5.0]
    assert list(check_runs(frame, where=["depth!=3"])["depth"].fillna(0)) == [0, 5.0]


def test_a_cost_that_some_runs_lack_does_not_stand_in_the_way(runs):
    found = check_runs(runs.assign(C=[1.0, np.nan, 2.0]))
    np.testing.assert_array_equal(found["C"], [1.0, np.nan, 2.0])
    assert found.attrs["notes"] == [
        "column 'C' is empty in 1 of 3 rows; their cost is that of a model fitted to the other rows"
    ]
    found = check_runs(runs.assign(C=["", " ", None]))
    assert "C" not in found
    assert found.attrs["notes"] == ["column 'C' is empty and not used"]
    with pytest.raises(InputError, match="row 2, column 'C': empty is not a finite number"):
        check_runs(runs.assign(C=[1.0, np.nan, 2.0]), required=("C", "loss"))
    with pytest.raises(InputError, match="row 2, column 'C': 'much' is not a finite number"):
        check_runs(runs.assign(C=[1.0, "much", None]))


def test_a_number_with_a_comma_is_not_guessed_at(runs):
    with pytest.raises(
        InputError, match="row 1, column 'N': '1,234' is not a finite number: write it without the comma"
    ):
        check_runs(runs.assign(N=["1,234", "2000", "3000"]))


@pytest.fixture
def history() -> pd.DataFrame:
    """Two runs with three steps each; the second has no loss at its last."""
    return pd.DataFrame({
        "run": list("aaabbb"), "_step": [10, 30, 20, 10, 20, 30], "N": [1e6] * 3 + [2e6] * 3,
        "D": [1e7, 3e7, 2e7] * 2, "loss": [4.0, 3.0, 3.5, 3.8, 3.3, np.nan],
    })  # fmt: skip


def test_a_history_is_reduced_to_the_last_step_with_a_loss(history):
    found = check_runs(history, history=History("run"))
    assert list(zip(found["run"], found["loss"], strict=True)) == [("a", 3.0), ("b", 3.3)]
    assert found.attrs["notes"] == ["a history: 2 of 6 rows kept, the last step with a loss of 2 runs"]
    known = check_runs(history.rename(columns={"run": "run_id"}))  # a run id that repeats can be nothing else
    assert list(known["loss"]) == [3.0, 3.3]


def test_declared_steps_of_a_history_come_with_what_is_wrong_with_them(history):
    found = check_runs(history, history=History("run", "_step", (10, 20)))
    assert list(found["loss"]) == [4.0, 3.5, 3.8, 3.3]
    first, early, together = found.attrs["notes"]
    assert first == "a history: 4 of 6 rows kept, at the steps asked for of 2 runs"
    assert "not the last of their run" in early
    assert "not independent: intervals are too narrow" in together
    assert "--bootstrap cluster:run" in together
    found = check_runs(history, history=History("run", steps=(30,)))
    assert found.attrs["notes"][1:] == ["1 runs have no such row and are left out"]


def test_conditions_apply_before_the_last_step_is_taken(history):
    found = check_runs(history, history=History("run"), where=["_step<=20"])
    assert list(found["loss"]) == [3.5, 3.3]


@pytest.mark.parametrize(
    ("history_of", "message"),
    [
        (History("name"), "no column 'name' of a history"),
        (History("run", "tick"), "no column 'tick' of a history"),
        (History("run", steps=(5,)), "no run has a loss at the steps asked for; column '_step' has 10 to 30"),
    ],
)
def test_histories_without_their_columns_are_refused(history, history_of, message):
    with pytest.raises(InputError, match=message):
        check_runs(history, history=history_of)
    with pytest.raises(InputError, match="no step column"):
        check_runs(history.drop(columns="_step"), history=History("run"))


def test_the_best_of_a_sweep_keeps_all_seeds_of_the_best_setting():
    frame = pd.DataFrame({
        "N": [1e6] * 4 + [2e6] * 2, "D": [1e8, 1e8 * (1 + 1e-9), 1e8, 1e8] + [1e8] * 2, "lr": [1, 1, 2, 2, 1, 2],
        "seed": [0, 1, 0, 1, 0, 0], "loss": [3.0, 3.2, 2.9, 3.5, 2.8, 2.5],
    })  # fmt: skip
    found = best_of_sweep(check_runs(frame), ["lr"], ["N", "D"], "t")
    assert list(found["loss"]) == [3.0, 3.2, 2.5]  # the lowest loss of a seed is not what decides
    assert found.attrs["notes"] == ["best of a sweep of lr: 3 of 6 runs kept"]
    with pytest.raises(InputError, match="no runs that agree in N, D differ in seed"):
        best_of_sweep(check_runs(frame.iloc[[0, 4]]), ["seed"], ["N", "D"], "t")
    with pytest.raises(InputError, match="no column 'rate' of the sweep"):
        best_of_sweep(check_runs(frame), ["rate"], ["N", "D"], "t")


def test_a_large_table_is_checked_without_copies_as_objects():
    import tracemalloc

    n = 100_000
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({name: rng.uniform(1, 2, n) for name in ("N", "D", "C", "loss", "other")})
    tracemalloc.start()
    check_runs(frame, where=["D/N>0.1"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * n * 8  # a copy as Python objects takes 32 bytes and more for each number
