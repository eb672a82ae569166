"""A law for each class of a column. Depth grows with the budget, as in a ladder that knows its budget."""

import json

import numpy as np
import pandas as pd
import pytest

from eqscale.cli import main
from eqscale.errors import InputError
from eqscale.laws import fit, nd_cost
from eqscale.laws.envelope import fit_envelope, lower_envelope, read_classes

TRUTH = {1: (1.0, 300.0, 900.0), 2: (0.7, 400.0, 1200.0), 3: (0.45, 600.0, 1700.0)}  # E, A, B; alpha .35, beta .4
DEPTHS = {1e15: (1,), 1e16: (1, 2), 1e17: (2,), 1e18: (2, 3), 1e19: (3,)}


def loss_of(depth, N, D):
    E, A, B = (np.array([TRUTH[k][i] for k in np.atleast_1d(depth)]) for i in range(3))
    return E + A / N**0.35 + B / D**0.4


@pytest.fixture(scope="module")
def runs():
    """Two seeds of five sizes at each budget and depth, with 1 % noise."""
    rng = np.random.default_rng(2)
    points = [(C, depth, N) for C, depths in DEPTHS.items() for depth in depths
              for N in 0.1 * C**0.5 * np.geomspace(1 / 6, 6, 5)]  # fmt: skip
    C, depth, N = (np.repeat(v, 2) for v in np.array(points).T)
    frame = pd.DataFrame({"C": C, "depth": depth.astype(int), "N": N, "D": C / (6 * N)})
    frame["clean"] = loss_of(frame.depth, frame.N, frame.D)
    return frame.assign(loss=frame.clean * np.exp(0.01 * rng.standard_normal(len(frame))))


def envelope_of(runs, loss, resamples=200):
    classes = read_classes(runs.depth, runs.N.to_numpy(), runs.D.to_numpy(), 4, "runs")
    return fit_envelope(
        fit(runs.N, runs.D, runs[loss]), classes, nd_cost(), runs.C.to_numpy(), resamples=resamples
    )  # fmt: skip


@pytest.fixture(scope="module")
def envelope(runs):
    return envelope_of(runs, "loss")


def test_classes_are_recovered_from_noise_free_losses(runs):
    found = envelope_of(runs, "clean", resamples=2).fit
    assert found.params["alpha"] == pytest.approx(0.35, rel=1e-6)
    assert found.params["beta"] == pytest.approx(0.4, rel=1e-6)
    for depth, values in TRUTH.items():
        assert [found.params[f"{name}[{depth}]"] for name in "EAB"] == pytest.approx(values, rel=1e-5)


def test_classes_cure_the_misfit_of_one_law(envelope):
    assert envelope.plain_lack_of_fit.p_value < 1e-6
    assert not envelope.lack_of_fit.rejects
    assert envelope.aicc_gain > 20


def test_the_envelope_is_the_lowest_law_within_its_band(envelope):
    C = np.array([1e15, 1e17, 1e19])
    found = lower_envelope(envelope, C)
    assert found.best == ("1", "2", "3")
    assert (found.share > 0.8).all()
    covered = []
    for i, (depth, c) in enumerate(zip((1, 2, 3), C, strict=True)):
        N = np.geomspace(1e-2, 1e2, 4001) * found.N[i]
        truth = loss_of(np.full(len(N), depth), N, c / (6 * N))
        assert found.loss[i] == pytest.approx(truth.min(), rel=0.01)
        assert found.N[i] == pytest.approx(N[truth.argmin()], rel=0.2)
        covered.append(found.bands["loss"].low[i] < truth.min() < found.bands["loss"].high[i])
        assert found.bands["loss"].low[i] < found.loss[i] < found.bands["loss"].high[i]
        assert found.bands["loss"].high[i] / found.bands["loss"].low[i] < 1.05
    assert sum(covered) >= 2
    assert found.inside.all()


def test_a_class_wins_only_near_its_own_runs(envelope):
    """Below the runs of depth 3 its law is an extrapolation, whatever it says; far off the nearest class decides."""
    found = lower_envelope(envelope, [1e13, 2e15, 1e22])
    assert found.best == ("1", "1", "3")
    assert list(found.inside) == [False, True, False]


def test_classes_without_need_are_said_not_to_be_worth_it(runs):
    same = runs.assign(loss=loss_of([2] * len(runs), runs.N, runs.D) * runs.loss / runs.clean)
    found = envelope_of(same, "loss", resamples=2)
    assert found.aicc_gain < 0


def test_small_classes_go_with_their_neighbours():
    N, D = np.arange(1.0, 15), np.arange(20.0, 34)
    depth = pd.Series([1] * 2 + [2] * 4 + [3] * 5 + [4] + [5] * 2, name="depth")
    assert read_classes(depth, N, D, 4, "runs").labels == ("1–2", "3–5")
    assert read_classes(depth, N, D, 2, "runs").labels == ("1", "2", "3", "4–5")
    ladder = pd.Series([1] + [2] * 8 + [3] * 3 + [4] * 2, name="depth")  # 2 is rich, and doesn't take 3 and 4
    assert read_classes(ladder, N, D, 4, "runs").labels == ("1–2", "3–4")
    seeds = read_classes(
        pd.Series([1] * 6 + [2] * 6, name="depth"), np.repeat([1.0, 2, 3, 4], 3), np.ones(12), 2, "runs"
    )
    assert seeds.labels == ("1", "2")
    assert list(np.bincount(seeds.member)) == [6, 6]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["wide"] * 9 + ["deep"] * 5, "no error"),
        (["wide"] * 12 + ["deep"] * 2, "shape = deep has 2 distinct points; a class needs 4"),
        ([1] * 14, "column 'shape' has fewer than two classes with 4 distinct points"),
        ([1.0] * 13 + [np.nan], "row 14, column 'shape': empty class"),
    ],
)
def test_classes_that_can_not_be_fitted_are_named(values, message):
    column = pd.Series(values, name="shape")
    if message == "no error":
        assert read_classes(column, np.arange(1.0, 15), np.arange(20.0, 34), 4, "runs").labels == ("deep", "wide")
        return
    with pytest.raises(InputError, match=message):
        read_classes(column, np.arange(1.0, 15), np.arange(20.0, 34), 4, "runs")


def test_command(runs, tmp_path, capsys):
    runs.to_csv(tmp_path / "runs.csv", index=False)
    arguments = ["fit", str(tmp_path / "runs.csv"), "--envelope", "depth", "--resamples", "50", "--at", "1e17"]
    out = ["--json", str(tmp_path / "out.json"), "--markdown", str(tmp_path / "out.md")]
    assert main([*arguments, *out]) == 0
    printed = capsys.readouterr().out
    assert "a law for each depth: E + A/N^alpha + B/D^beta" in printed
    assert "one law for all: the form misses structure" in printed
    assert "these laws: no lack of fit seen" in printed
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["frontier"]["best"] == ["2"]
    assert record["notes"] == []
    assert record["runs"] == {"1": 20, "2": 30, "3": 20}
    assert "| E[3] |" in (tmp_path / "out.md").read_text()
    for extra, message in {
        ("--hold-out", "1"): "can't be joined with --hold-out",
        ("--all-intervals",): "can't be joined with --all-intervals",
        ("--budget", "C", "--replicates", "C"): "can't be joined with --budget, --replicates",
        ("--bootstrap", "cluster:C"): "can't be joined with --bootstrap cluster",
        ("--bootstrap", "none"): "an envelope needs resamples",
        ("--form", "power:C"): "has no split into N and D",
        ("--by", "depth"): "fewer than two classes",
    }.items():
        assert main([*arguments, *extra]) == 2
        assert message in capsys.readouterr().err
