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


def test_the_report_recovers_the_laws_and_names_the_winner(tmp_path):
    write_report(runs(), tmp_path, {"training": 12.0})
    fits = json.loads((tmp_path / "fits.json").read_text())
    for arm, (_, _, _, alpha, beta) in TRUTH.items():
        assert fits[arm]["alpha"] == pytest.approx(alpha, abs=0.15)
        assert fits[arm]["beta"] == pytest.approx(beta, abs=0.15)
    text = (tmp_path / "report.md").read_text()
    assert "the fitted laws put `" in text
    for picture in tmp_path.glob("*.png"):
        assert f"({picture.name})" in text
        assert picture.with_suffix(".svg").exists()
    assert len(list(tmp_path.glob("*.png"))) == 7
    assert len(pd.read_csv(tmp_path / "coefficients.csv")) == 12


def test_a_rebuilt_report_is_the_same(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    write_report(runs(), first)
    write_report(runs(), second)
    for name in ("report.md", "fits.json", "coefficients.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_lost_runs_are_listed_and_left_out(tmp_path):
    table = runs()
    table.loc[0, ["status", "loss", "name"]] = ["diverged", np.nan, "lost-run"]
    write_report(table, tmp_path)
    assert "Not in the fits: `lost-run` diverged." in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "fits.json").read_text())["plain"]["n"] == 14


def test_too_few_runs_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match=r"no arm can be fitted: plain: .*too few"):
        write_report(runs(sizes=1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.drop(columns="N"), "the column 'N' is missing"),
        (lambda t: t.assign(D=t["D"].where(t.index != 3, -1.0)), "column 'D'"),
        (lambda t: t.assign(loss=t["loss"].where(t.index != 3, np.inf)), "column 'loss'"),
    ],
)
def test_the_command_names_what_is_wrong_with_a_table(tmp_path, capsys, damage, message):
    damage(runs()).to_csv(tmp_path / "runs.csv", index=False)
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_command_rebuilds_a_folder(tmp_path, capsys):
    runs().to_csv(tmp_path / "runs.csv", index=False)
    assert main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "report.md").exists()
    assert main(["report", str(tmp_path / "absent")]) == 2
