import errno
import os

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.container import ErrorbarContainer

from eqscale.errors import InputError
from eqscale.laws import plots
from eqscale.laws.arms import fit_arms, group_budgets
from eqscale.laws.minima import measured_minima


@pytest.fixture(scope="module")
def arms():
    rng = np.random.default_rng(0)
    rows = []
    for arm, per_token in {"plain": 6.0, "built-in": 40.0}.items():
        for C in (1e11, 3e11, 1e12, 3e12):
            for N in np.geomspace(3e3, 1e5, 6):
                D = C / per_token / N
                loss = (0.02 + 30 / N**0.4 + 60 / D**0.38) * np.exp(0.02 * rng.standard_normal())
                rows.append({"arm": arm, "N": N, "D": D, "C": C, "loss": loss, "budget": C})
    return fit_arms(pd.DataFrame(rows), resamples=50)


FIGURES = {
    "loss_against_compute": 1,
    "surface_panels": 3,  # two arms and a colour bar
    "isoflop_panels": 4,
    "optimal_size": 1,
    "optimal_tokens": 1,
    "residual_panels": 3,
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_show_every_run_and_save_identically(arms, name, tmp_path):
    figure = getattr(plots, name)(arms)
    assert len(figure.axes) == FIGURES[name]
    scatters = [c for axes in figure.axes for c in axes.collections if isinstance(c, PathCollection)]
    drawn = sum(len(c.get_offsets()) for c in scatters)
    if not name.startswith("optimal"):
        runs = sum(len(a.N) for a in arms.values())
        assert drawn == runs * (3 if name == "residual_panels" else 1)
    first = plots.save(figure, tmp_path / "first.png")
    again = plots.save(getattr(plots, name)(arms), tmp_path / "again.png")
    assert [p.suffix for p in first] == [".png", ".svg"]
    for one, two in zip(first, again, strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_the_lowest_losses_as_measured_stand_beside_the_laws(arms):
    minima = {name: measured_minima(arm, resamples=50) for name, arm in arms.items()}
    figure = plots.loss_against_compute(arms, minima=minima)
    (axes,) = figure.axes
    drawn = [bar.lines[0].get_xydata() for bar in axes.containers if isinstance(bar, ErrorbarContainer)]
    expected = [np.column_stack([m.cost, np.exp(m.loss.value)]) for m in minima.values()]
    np.testing.assert_allclose(drawn, expected)
    assert "lowest, measured" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_arms_carry_their_own_cost(arms):
    assert np.exp(arms["plain"].cost.polynomial[0]) == pytest.approx(6)
    assert np.exp(arms["built-in"].cost.polynomial[0]) == pytest.approx(40)


def test_budgets_are_found_from_costs():
    C = np.array([1.0, 1.05, 0.97, 3.0, 3.1, 10.0])
    assert list(group_budgets(C)) == [1.0, 1.0, 1.0, 3.05, 3.05, 10.0]


def test_arms_whose_costs_differ_slightly_share_the_panels_of_their_budgets(isoflop):
    more = isoflop.assign(arm="more", D=1.04 * isoflop.D, C=1.04 * isoflop.C)
    arms = fit_arms(pd.concat([isoflop.assign(arm="less"), more]), resamples=0)
    np.testing.assert_array_equal(arms["less"].budget, arms["more"].budget)
    assert len(plots.isoflop_panels(arms).axes) == 5


def test_arm_without_enough_runs_is_named(isoflop):
    both = pd.concat([isoflop.assign(arm="long"), isoflop.iloc[:4].assign(arm="short")])
    with pytest.raises(InputError, match="arm = short: 4 distinct runs are too few"):
        fit_arms(both)
    with pytest.raises(InputError, match="no column 'seconds'"):
        fit_arms(both, cost="seconds")


def test_a_full_disk_leaves_the_figure_of_before(arms, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("figure.png", "figure.svg"):
        (tmp_path / name).write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*figure\.png"):
        plots.save(plots.optimal_size(arms), tmp_path / "figure.png")
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["before", "before"]


def test_a_users_own_style_changes_no_figure(arms, tmp_path):
    plots.save(plots.optimal_size(arms), tmp_path / "plain")
    with matplotlib.rc_context({"text.usetex": True, "lines.linewidth": 9, "savefig.facecolor": "red"}):
        plots.save(plots.optimal_size(arms), tmp_path / "styled")
    assert (tmp_path / "plain.svg").read_bytes() == (tmp_path / "styled.svg").read_bytes()


def test_optima_of_a_law_that_says_nothing_leave_the_runs_in_sight():
    """Losses that fall with neither size nor tokens: the law's optima span 130 decades."""
    rng = np.random.default_rng(1)
    C = np.repeat(10.0 ** np.linspace(8, 10, 4), 6)
    N = 1e3 * np.tile(np.geomspace(1 / 4, 4, 6), 4)
    frame = pd.DataFrame({"arm": "flat", "N": N, "D": C / (6 * N), "C": C})
    frame["loss"] = 1 + 1e-2 * rng.standard_normal(len(C))
    arms = fit_arms(frame, resamples=40)
    for draw in (plots.optimal_size, plots.optimal_tokens, plots.optimal_cost_per_token):
        (axes,) = draw(arms).axes
        low, high = axes.get_ylim()
        assert 0 < low < high < 1e9 * low


def test_panels_of_budgets_share_their_losses_and_ring_the_best_size(arms):
    panels = plots.isoflop_panels(arms).axes
    assert len({panel.get_ylim() for panel in panels}) == 1
    for panel, budget in zip(panels, (1e11, 3e11, 1e12, 3e12), strict=True):
        rings = [line.get_xdata()[0] for line in panel.lines if line.get_fillstyle() == "none"]
        here = {name: arm.budget == budget for name, arm in arms.items()}
        assert rings == [arm.N[here[name]][np.argmin(arm.loss[here[name]])] for name, arm in arms.items()]


def test_losses_beyond_those_of_all_runs_are_grey(arms):
    figure = plots.surface_panels(arms)
    (mesh,) = (c for c in figure.axes[0].collections if isinstance(c, QuadMesh))
    low, high = mesh.norm.vmin, mesh.norm.vmax
    grey = (0.6, 0.6, 0.6, 1.0)
    assert mesh.cmap(mesh.norm([low / 1.01, high * 1.01])).tolist() == [list(grey)] * 2
    assert mesh.cmap(mesh.norm(high)) != grey


@pytest.mark.parametrize(
    ("value", "label"), [(0.4, "0.4"), (0.15, "0.15"), (1000, "1000"), (1e4, "10⁴"), (2e4, "20000"), (3e11, "3 × 10¹¹")]
)
def test_labels_of_ticks_are_short(value, label):
    assert plots.power_of_ten(value) == label
