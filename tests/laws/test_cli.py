import json
import os
import subprocess
import sys

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
    assert "_lines" not in record["frontier"]["approaches"][0]
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
        (["--at", "big"], "--at 'big': not a positive number such as 1e21"),
        (["--at", "1h"], "--at 1h: a time, but the cost is counted in FLOPs"),
        (["--map", "C="], "--map C= names no column"),
        (["--where", "N"], "--where: bad entry 'N'"),
        (["--where", "D/N>1e9"], "no row has D/N>1e9"),
        (["--steps", "100"], "no step column"),
        (["--best-of", "lr"], "no column 'lr' of the sweep"),
        (["--map", "loss=C*0+2.5"], "all 30 losses are 2.5: there is nothing to fit"),
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
    assert "far (1e23 to 1e27) and near (1e17 to 1e21) have no cost in common" in shown.err


@pytest.mark.parametrize(
    "option", [["--at", "1e20"], ["--budget", "C"], ["--figures", "figures"], ["--hold-out", "1"]], ids=lambda o: o[0]
)
def test_a_law_in_one_variable_takes_no_option_about_the_split(table, tmp_path, monkeypatch, capsys, option):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", str(table), "--form", "power:D", *option]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"{option[0]}: the form 'power:D' has no split into N and D" in shown.err


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


def test_runs_from_an_mlflow_experiment(isoflop, tmp_path, monkeypatch, capsys):
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlruns.db"  # where a study of this project writes
    client = mlflow.MlflowClient(tracking_uri=uri)  # not set_tracking_uri, which would outlive the test
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
    files = set(tmp_path.iterdir())
    assert main(["fit", "mlflow:absent"]) == 2
    assert f"no experiment 'absent' at {uri}, which has laws, Default" in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == files


def test_laws_load_without_torch_ray_or_mlflow():
    import subprocess
    import sys

    code = (
        "import sys, eqscale.laws, eqscale.cli; eqscale.cli.build_parser();"
        "print([m for m in ('torch', 'ray', 'mlflow', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


ASK = ["--resamples", "50"]


def test_predict_answers_what_is_asked_with_units_after_the_verdict(table, tmp_path, capsys):
    out = tmp_path / "answers.json"
    questions = ["--at", "N=100M,D=2B", "--target-loss", "2.3,1.2", "--compute", "3EFLOP", "--json", str(out)]
    assert main(["predict", str(table), *ASK, *questions]) == 0
    first, point, target, never, bought, *_ = capsys.readouterr().out.splitlines()
    assert first == "30 runs, verdict: converged"
    assert point.startswith("1e8 parameters, 2e9 tokens: loss 3.3")
    assert "1.2e18 FLOPs; 20 tokens per parameter" in point
    assert target.startswith("loss 2.3: ")
    assert all(f" {unit} [" in target for unit in ("FLOPs", "parameters", "tokens"))
    assert never.startswith("loss 1.2: no training reaches it: the law's floor is 1.8")
    assert bought.startswith("3e18 FLOPs: loss ")
    record = json.loads(out.read_text())
    assert record["cost_unit"] == "FLOPs"
    assert record["verdicts"] == {"all runs": "converged"}
    assert len(record["answers"]["all runs"]) == 4


def test_predict_of_overtrained_models(table, capsys):
    questions = ["--at", "N=100M", "--target-loss", "2.3", "--compute", "1e21", "--tokens-per-parameter", "200"]
    assert main(["predict", str(table), *ASK, *questions]) == 0
    _, point, target, bought, *_ = capsys.readouterr().out.splitlines()
    assert point.startswith("1e8 parameters, 2e10 tokens: ")
    assert target.startswith("loss 2.3, 200 tokens per parameter: ")
    assert "200 tokens per parameter: loss" in bought


def test_predict_counts_time_where_the_cost_is_one(isoflop, tmp_path, capsys):
    path = tmp_path / "runs.csv"
    isoflop.assign(seconds=isoflop.C / 1e14).drop(columns="C").to_csv(path, index=False)
    assert main(["predict", str(path), *ASK, "--axis", "seconds", "--compute", "1h"]) == 0
    assert "3600 s (60 min): loss" in capsys.readouterr().out
    assert main(["predict", str(path), *ASK, "--map", "C=seconds", "--target-loss", "2.3"]) == 0
    assert " s (" in capsys.readouterr().out


def test_predict_names_each_arm_and_its_verdict(isoflop, tmp_path, capsys):
    both = pd.concat([isoflop.assign(arm="a"), isoflop.assign(arm="b", loss=0.9 * isoflop.loss)])
    both.to_csv(tmp_path / "runs.csv", index=False)
    assert main(["predict", str(tmp_path / "runs.csv"), *ASK, "--at", "N=1e8,D=2e9"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in shown[:2]] == ["a", "b"]
    assert shown[3].startswith("b, 1e8 parameters, 2e9 tokens: loss")


def test_predict_with_a_law_in_one_variable(table, capsys):
    assert main(["predict", str(table), *ASK, "--form", "power:C", "--at", "C=1e21"]) == 0
    assert "C = 1e21: loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "predict: ask with --at N=…,D=…, --target-loss or --compute"),
        (["--at", "N=1e9"], "predict needs N, D; missing D"),
        (["--at", "N"], "--at: bad entry 'N'; write NAME=NUMBER"),
        (["--at", "N=big,D=1"], "--at N 'big': not a positive number such as 1e9 or 7M"),
        (["--at", "N=1e9,D=1e9", "--tokens-per-parameter", "20"], "with --tokens-per-parameter give either N or D"),
        (["--target-loss", "-2"], "--target-loss '-2': not a positive number"),
        (["--compute", "100h"], "--compute 100h: a time, but the cost is counted in FLOPs"),
        (["--form", "power:C", "--target-loss", "2"], "has no split into N and D: ask with --at C=…"),
        (["--compute", "1e20", "--up-to", "1e19"], "--up-to and --arms are for a study's results folder"),
    ],
)
def test_questions_that_make_no_sense_are_refused(table, capsys, arguments, message):
    assert main(["predict", str(table), "--bootstrap", "none", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_study_takes_no_questions_of_a_table(tmp_path, capsys):
    assert main(["predict", str(tmp_path), "--at", "N=1e9,D=1e9", "--form", "gamma"]) == 2
    assert "takes --compute, --axis, --up-to and --arms, not --at, --form" in capsys.readouterr().err


def test_costs_that_follow_nothing_get_a_warning_and_shuffled_losses_no_optimum(isoflop, tmp_path, capfd):
    rng = np.random.default_rng(0)
    path = tmp_path / "runs.csv"
    isoflop.assign(C=rng.permutation(isoflop.C)).to_csv(path, index=False)
    out = tmp_path / "fit.json"
    assert main(["fit", str(path), *ASK, "--json", str(out)]) == 0
    assert "warning: cost hardly follows from N and D: it scatters" in capfd.readouterr().out
    assert json.loads(out.read_text())["warnings"][-1].startswith("cost hardly follows")
    isoflop.assign(C=1e19).to_csv(path, index=False)
    assert main(["fit", str(path), *ASK]) == 0
    assert "warning: cost hardly follows from N and D" in capfd.readouterr().out
    isoflop.assign(loss=rng.permutation(isoflop.loss)).to_csv(path, index=False)
    assert main(["fit", str(path), *ASK]) == 0
    shown = capfd.readouterr()
    assert "nan" not in shown.out
    assert "inf" not in shown.out
    assert shown.err == ""


def test_a_law_that_runs_do_not_determine_offers_no_split(isoflop, tmp_path, capsys):
    path = tmp_path / "runs.csv"
    rng = np.random.default_rng(0)
    isoflop.assign(loss=isoflop.loss * np.exp(0.5 * rng.standard_normal(len(isoflop)))).to_csv(path, index=False)
    for command in (["fit"], ["predict", "--compute", "1e20"]):
        assert main([command[0], str(path), *ASK, *command[1:]]) == 0
        shown = capsys.readouterr().out
        assert "verdict: unidentified" in shown.splitlines()[0]
        assert "the runs don't tell the best split into N and D (see the verdict)" in shown
        assert "N_opt" not in shown
    assert main(["predict", str(path), *ASK, "--at", "N=1e8,D=2e9"]) == 0
    assert "best split" not in capsys.readouterr().out


def test_a_partly_empty_cost_changes_no_law_and_is_counted(isoflop, tmp_path, capsys):
    records = []
    for name, C in (("all", isoflop.C), ("some", isoflop.C.where(isoflop.index % 7 > 0))):
        isoflop.assign(C=C).to_csv(tmp_path / f"{name}.csv", index=False)
        out = tmp_path / f"{name}.json"
        assert main(["fit", str(tmp_path / f"{name}.csv"), *ASK, "--hold-out", "1", "--json", str(out)]) == 0
        records.append(json.loads(out.read_text()))
    assert "note: column 'C' is empty in 5 of 30 rows; their cost is that of a model" in capsys.readouterr().err
    assert records[0]["intervals"] == records[1]["intervals"]
    assert [len(record["notes"]) for record in records] == [0, 1]
    assert records[0]["frontier"]["N"] == pytest.approx(records[1]["frontier"]["N"])


def test_an_experiment_that_is_not_there_leaves_no_file_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["fit", "mlflow:nosuch"]) == 2
    assert "there is no MLflow database '" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_without_the_signs_gets_others(table):
    code = "import sys; from eqscale.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "fit", str(table), "--resamples", "50"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="ascii", check=False)
    assert done.returncode == 0, done.stderr
    assert "verdict: converged" in done.stdout
