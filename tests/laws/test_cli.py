import json

import numpy as np
import pandas as pd
import pytest

from eqscale.cli import main


@pytest.fixture
def table(isoflop, tmp_path):
    path = tmp_path / "runs.csv"
    isoflop.assign(note="none").to_csv(path, index=False)
    return path


def test_fit_writes_what_it_promises(table, tmp_path, capsys):
    out = tmp_path / "fit.json"
    options = ["--json", str(out), "--latex", str(tmp_path / "t.tex"), "--markdown", str(tmp_path / "t.md")]
    assert main(["fit", str(table), "--resamples", "50", *options]) == 0
    record = json.loads(out.read_text())
    assert {"E", "A", "B", "alpha", "beta", "objective", "n", "verdict", "certificate", "intervals"} <= set(record)
    assert record["n"] == 30
    assert record["verdict"] == "converged"
    assert record["intervals"]["alpha"]["model"][0] < record["alpha"] < record["intervals"]["alpha"]["model"][1]
    assert r"\toprule" in (tmp_path / "t.tex").read_text()
    assert "| alpha |" in (tmp_path / "t.md").read_text()
    shown = capsys.readouterr().out
    assert "converged" in shown
    assert "N_opt" in shown


def test_objective_is_the_unscaled_sum(chinchilla_csv, tmp_path):
    out = tmp_path / "fit.json"
    assert (
        main(["fit", str(chinchilla_csv), "--where", "excluded_by_epoch=0", "--bootstrap", "none", "--json", str(out)])
        == 0
    )
    record = json.loads(out.read_text())
    assert record["objective"] == pytest.approx(1.01827401780060e-3, rel=1e-9)


def test_groups_are_fitted_one_by_one(isoflop, tmp_path):
    both = pd.concat([isoflop.assign(arm="plain"), isoflop.assign(arm="built-in", loss=0.8 * isoflop.loss)])
    both.assign(status="finished").to_parquet(tmp_path / "runs.parquet")
    out, figures = tmp_path / "fit.json", tmp_path / "new" / "figures"
    arguments = ["fit", str(tmp_path / "runs.parquet"), "--by", "arm", "--where", "status=finished"]
    arguments += ["--figures", str(figures)]
    assert main([*arguments, "--bootstrap", "cluster:C", "--resamples", "20", "--json", str(out)]) == 0
    groups = json.loads(out.read_text())["groups"]
    assert len(list(figures.glob("*.svg"))) == 6
    assert groups["built-in"]["E"] == pytest.approx(0.8 * groups["plain"]["E"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--map", "N=params"], "no column 'params' to use as N"),
        (["--form", "cubic"], "unknown form 'cubic'; choose one of chinchilla"),
        (["--loss-fn", "mse"], "unknown loss function 'mse'"),
        (["--fix", "E"], "--fix: bad entry 'E'"),
        (["--bootstrap", "cluster"], "needs a column"),
        (["--bootstrap", "magic"], "unknown bootstrap 'magic'"),
        (["--by", "arm"], "no column 'arm'"),
        (["--at", "big"], "--at: 'big'"),
        (["--seed", "-3"], "--seed -3"),
        (["--hold-out", "-1"], "--hold-out -1"),
        (["--hold-out", "5"], "--hold-out 5 leaves nothing to fit of 5 budgets"),
        (["--weights", "note"], "row 1, column 'note': 'none' is not a finite number"),
        (["--json", "/nowhere/at/all.json"], "does not exist or is not writable"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(table, tmp_path, capsys, arguments, message):
    out = tmp_path / "fit.json"
    assert main(["fit", str(table), "--json", str(out), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_hold_out_that_leaves_too_few_runs_is_refused_before_anything_is_printed(isoflop, tmp_path, capsys):
    few = isoflop[(isoflop.index >= 12) | (isoflop.index % 2 == 0)]
    frame = pd.concat([isoflop.assign(arm="a"), few.assign(arm="b")])
    frame.to_csv(tmp_path / "arms.csv", index=False)
    assert main(["fit", str(tmp_path / "arms.csv"), "--by", "arm", "--hold-out", "3"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "arm = b, without the budgets of --hold-out 3: 6 distinct runs are too few" in shown.err


def test_law_with_all_parameters_fixed_is_judged_but_not_fitted(table, tmp_path):
    out = tmp_path / "fit.json"
    fixed = "E=1.8,A=480,B=2100,alpha=0.35,beta=0.37"
    assert main(["fit", str(table), "--resamples", "10", "--fix", fixed, "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["verdict"] == "converged: all parameters are fixed, nothing was fitted"
    assert (record["E"], record["A"], record["beta"]) == (1.8, 480.0, 0.37)
    factors = [m["factor"] for m in record["frontier"]["misallocation"]]
    waste = [m["waste"] for m in record["frontier"]["misallocation"]]
    assert factors == [0.25, 0.5, 2.0, 4.0]
    assert min(waste[0], waste[3]) > max(waste[1:3]) > 0.05


def test_weight_at_fault_is_named_by_its_row_in_the_table(isoflop, tmp_path, capsys):
    weight = np.where(np.arange(len(isoflop)) == 7, -1.0, 1.0)
    status = np.where(np.arange(len(isoflop)) < 3, "failed", "finished")
    frame = isoflop.assign(weight=weight, status=status)
    frame.to_csv(tmp_path / "runs.csv", index=False)
    arguments = ["fit", str(tmp_path / "runs.csv"), "--where", "status=finished", "--weights", "weight"]
    assert main(arguments) == 2
    assert "row 8, column 'weight': -1 is negative" in capsys.readouterr().err


def test_column_named_twice_is_refused(table, capsys):
    table.write_text(table.read_text().replace("note", "loss", 1))
    assert main(["fit", str(table)]) == 2
    assert "column 'loss' appears more than once" in capsys.readouterr().err


def test_arms_without_a_common_cost_are_refused_before_anything_is_fitted(isoflop, tmp_path, capsys):
    far = isoflop.assign(arm="far", D=isoflop.D * 1e6, C=isoflop.C * 1e6)
    pd.concat([isoflop.assign(arm="near"), far]).to_csv(tmp_path / "arms.csv", index=False)
    assert main(["compare", str(tmp_path / "arms.csv")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "far (1e+23 to 1e+27) and near (1e+17 to 1e+21) have no cost in common" in shown.err


@pytest.mark.parametrize("verb", [["plan", "--compute", "1e22"], ["design", "--question", "a", "--spend", "1e20"]])
def test_table_without_arms_is_one_arm(table, verb, capsys):
    assert main([verb[0], str(table), "--resamples", "20", *verb[1:]]) == 0
    assert "all runs" in capsys.readouterr().out


def test_output_with_awkward_values_is_strict_json(isoflop, tmp_path):
    frame = isoflop.assign(loss=1.5 + 400 / isoflop.N**0.4)
    frame.to_csv(tmp_path / "runs.csv", index=False)
    out = tmp_path / "fit.json"
    assert main(["fit", str(tmp_path / "runs.csv"), "--resamples", "20", "--json", str(out)]) == 0

    def refuse(name):
        raise AssertionError(name)

    record = json.loads(out.read_text(), parse_constant=refuse)
    assert record["B"] == pytest.approx(0, abs=1e-6) or np.isfinite(record["B"])


def test_runs_from_an_mlflow_experiment(isoflop, tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
    client = mlflow.MlflowClient()  # not set_tracking_uri, which would outlive the test
    experiment = client.create_experiment("laws", artifact_location=(tmp_path / "artifacts").as_uri())
    few = isoflop.iloc[::3]
    for row in few.itertuples():
        run = client.create_run(experiment, tags={"arm": "plain"}).info.run_id
        client.log_param(run, "params", str(int(row.N)))
        client.log_param(run, "tokens", str(row.D))
        client.log_metric(run, "eval/test_loss", row.loss)  # in a section of the UI
        client.set_terminated(run)
    client.set_terminated(client.create_run(experiment, tags={"arm": "plain"}).info.run_id, "FAILED")
    out = tmp_path / "fit.json"
    arguments = ["fit", "mlflow:laws", "--map", "N=params,D=tokens,loss=test_loss", "--resamples", "10"]
    assert main([*arguments, "--where", "status=finished", "--fix", "E=1.8", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["n"] == 10
    assert main([*arguments, "--json", str(tmp_path / "none.json")]) == 2  # the failed run has no loss
    assert main(["fit", "mlflow:absent"]) == 2


def test_laws_load_without_torch_ray_or_mlflow():
    import subprocess
    import sys

    code = (
        "import sys, eqscale.laws, eqscale.cli; eqscale.cli.build_parser();"
        "print([m for m in ('torch', 'ray', 'mlflow', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
