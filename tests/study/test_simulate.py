import pandas as pd
import pytest

from eqscale.cli import main
from eqscale.errors import InputError
from eqscale.study.estimate import Estimator, gpu_guess
from eqscale.study.grid import compute_grid
from eqscale.study.ledger import Ledger
from eqscale.study.presets import COMPUTE_GRIDS
from eqscale.study.schedule import Cluster
from eqscale.study.simulate import GAP_SECONDS, forecast, measured_throughput
from eqscale.study.table import run_table
from tests.study.test_ledger import make_record, make_spec
from tests.study.test_schedule import make_runs, seconds


def test_a_forecast_adds_up():
    lengths = [40.0, 30.0, 20.0, 10.0]
    result = forecast(make_runs(lengths), seconds, Cluster(2, 2))
    assert result.wall == pytest.approx(50 + 2 * GAP_SECONDS)
    assert result.inside == pytest.approx(100 / (2 * result.wall))
    assert result.useful == pytest.approx(result.inside)
    assert (result.longest, result.even, result.gangs) == (40, 50, {1: 4})
    assert result.device_hours == pytest.approx(2 * result.wall / 3600)


def test_wrong_estimates_cost_utilisation():
    specs = make_runs([50.0] * 16)
    exact, wrong = (forecast(specs, seconds, Cluster(8, 8), error=error) for error in (0.0, 0.3))
    assert exact.inside > 0.98
    assert wrong.inside < exact.inside


@pytest.mark.parametrize(("gpus", "alone_inside", "gain"), [(16, 0.85, 1.1), (32, 0.75, 1.2), (64, 0.5, 2.0)])
def test_gangs_keep_gpus_busy_on_the_paper_preset(gpus, alone_inside, gain):
    specs = compute_grid(COMPUTE_GRIDS["paper"])
    estimate, cluster = Estimator(gpu_guess(1e14)), Cluster(gpus, 8)
    alone = forecast(specs, estimate, cluster, error=0.1)
    gangs = forecast(specs, estimate, cluster, largest=8, error=0.1)
    assert alone.inside < alone_inside
    assert gangs.inside > 0.95
    assert gain * gangs.wall < alone.wall


def write_runs(folder, **changes):
    ledger = Ledger(folder / "ledger")
    specs = [make_spec(seed) for seed in range(3)]
    for spec in specs:
        ledger.write(make_record(spec))
    table = run_table(specs, ledger)
    path = folder / "runs.csv"
    table.assign(**changes).to_csv(path, index=False)
    return path


def test_throughput_comes_from_a_run_table(tmp_path):
    estimate, hardware = measured_throughput(write_runs(tmp_path))
    assert hardware == "cpu"
    spec = make_spec()
    assert estimate.throughput(spec.arm).training(spec) == pytest.approx(12.5, rel=1e-6)
    measured_throughput(write_runs(tmp_path / "large", batch_size=256))  # more than the samples of a system


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "failed"}, "has no finished run of a known arm"),
        ({"arm": "cnn"}, "has no finished run of a known arm"),
        ({"hardware": ["a", "b", "b"]}, "mixes hardware (a, b)"),
    ],
)
def test_a_run_table_that_says_nothing_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError) as caught:
        measured_throughput(write_runs(tmp_path, **changes))
    assert message in str(caught.value)


def test_a_table_without_its_columns_is_refused(tmp_path):
    pd.DataFrame({"arm": ["transformer"]}).to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(InputError, match="lacks the column 'status'"):
        measured_throughput(tmp_path / "runs.csv")


def test_the_command_prints_a_row_for_each_number_of_gpus_and_draws(tmp_path, capsys):
    plot = tmp_path / "plot.png"
    words = ["simulate", "--preset", "quick", "--gpus", "2", "4", "--throughput-from"]
    words += [str(write_runs(tmp_path)), "--price", "2", "--plot", str(plot)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "32 runs" in printed
    assert "as measured on cpu" in printed
    assert "cost" in printed
    assert plot.stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "huge"], "unknown preset 'huge'; choose from first, quick"),
        (["--gpu", "Z80"], "unknown GPU 'Z80'; choose from T4"),
        (["--gpus", "0"], "--gpus must be at least 1, not 0"),
        (["--gpus-per-node", "0"], "--gpus-per-node must be at least 1, not 0"),
        (["--flops-per-second", "-1"], "--flops-per-second must be positive, not -1"),
        (["--price", "nan"], "--price must be positive, not nan"),
        (["--estimate-error", "2"], "--estimate-error must lie between 0 and 1, not 2"),
        (["--throughput-from", "absent.csv"], "there is no run table 'absent.csv'"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys):
    assert main(["simulate", *words]) == 2
    assert message in capsys.readouterr().err
