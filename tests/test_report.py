import json

import numpy as np
import pandas as pd
import pytest

from eqscale.cli import main
from eqscale.errors import InputError
from eqscale.report import write_report

TRUTH = {"plain": (0.05, 30.0, 300.0, 0.45, 0.42), "built_in": (0.03, 20.0, 150.0, 0.45, 0.45)}
FLOPS_PER_TOKEN = {"plain": 6.0, "built_in": 30.0}


def runs(noise=0.005, sizes=5):
    """A run table drawn from two known laws."""
    rng = np.random.default_rng(0)
    rows = []
    for arm, (E, A, B, alpha, beta) in TRUTH.items():
        for budget in (1e10, 1e11, 1e12):
            for N in np.geomspace(0.1, 10, sizes) * 2e-2 * budget**0.5:
                D = budget / (FLOPS_PER_TOKEN[arm] * N)
                loss = (E + A / N**alpha + B / D**beta) * np.exp(noise * rng.normal())
                rows.append(
                    dict(
                        run_id=f"{arm}-{budget}-{N}", name="run", arm=arm, budget=budget, seed=0, status="finished",
                        N=N, D=D, loss=loss, loss_se=0.01, flops_executed=budget, flops_nominal=6 * budget,
                        seconds=budget / 1e9, epochs=0.5, hardware="cpu", code="test", data="digest",
                    )
                )  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report on a table in which one run was lost."""
    folder = tmp_path_factory.mktemp("report")
    table = runs()
    table.loc[0, ["status", "loss", "name"]] = ["diverged", np.nan, "lost-run"]
    table.to_csv(folder / "runs.csv", index=False)
    write_report(table, folder)
    return folder


def test_the_report_recovers_the_laws_and_names_the_winner(report):
    fits = json.loads((report / "fits.json").read_text())
    for arm, (_, _, _, alpha, beta) in TRUTH.items():
        assert fits[arm]["alpha"] == pytest.approx(alpha, abs=0.15)
        assert fits[arm]["beta"] == pytest.approx(beta, abs=0.15)
    text = (report / "report.md").read_text()
    assert "`plain` would need" in text
    for picture in report.glob("*.png"):
        assert f"({picture.name})" in text
        assert picture.with_suffix(".svg").exists()
    assert len(list(report.glob("*.png"))) == 7
    assert len(pd.read_csv(report / "coefficients.csv")) == 12


def test_lost_runs_are_listed_and_left_out(report):
    assert "Not in the fits: `lost-run` diverged." in (report / "report.md").read_text()
    assert json.loads((report / "fits.json").read_text())["plain"]["n"] == 14


def test_the_command_rebuilds_the_same_report(report, tmp_path):
    (tmp_path / "runs.csv").write_bytes((report / "runs.csv").read_bytes())
    assert main(["report", str(tmp_path)]) == 0
    for path in report.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_too_few_runs_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match=r"no arm can be fitted: arm = plain: .*too few"):
        write_report(runs(sizes=1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.drop(columns="N"), "the column 'N' is missing"),
        (lambda t: t.assign(D=t["D"].where(t.index != 3, -1.0)), "column 'D'"),
        (lambda t: t.assign(loss=t["loss"].where(t.index != 3, np.inf)), "column 'loss'"),
        (lambda t: t.assign(seconds=t["seconds"].where(t.index != 3)), "column 'seconds'"),
    ],
)
def test_the_command_names_what_is_wrong_with_a_table(tmp_path, capsys, damage, message):
    damage(runs()).to_csv(tmp_path / "runs.csv", index=False)
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_empty_table_is_one_line(tmp_path, capsys):
    (tmp_path / "runs.csv").write_text("")
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "not a readable table" in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["runs.csv"]


def test_a_folder_without_a_run_table_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path / "absent")]) == 2
    assert "holds neither runs.parquet nor runs.csv" in capsys.readouterr().err
