"""Figures of fitted laws, in one style that stays legible in print and to colour-blind readers.

Each function takes arms by name (see ``arms.fit_arms``) and returns a matplotlib Figure, made without pyplot so that
nothing global changes. ``save`` writes PNG and SVG beside each other, byte-identical for equal input. Arms keep their
colour and marker by position; pass ``colours`` to fix them across figures. In the SVG each group of dots is named
``runs:`` and the table rows of its runs in order (``ArmFit.rows``), for pages that show the run behind a dot.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from eqscale.laws.arms import ArmFit
from eqscale.laws.compare import common_range
from eqscale.laws.contrast import Estimate, loss_gaps
from eqscale.laws.frontier import frontier
from eqscale.laws.minima import Minima, loss_ratio, lowest_loss
from eqscale.storage import write_atomically, write_text

Array = np.ndarray

# Okabe & Ito 2008, the order of greatest contrast first; black is kept for the truth and for text
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DPI = 200
"""Of saved PNG files."""
WIDTH = 6.75
"""Inches: the text width of a two-column paper."""

_STYLE: dict[Any, Any] = {
    "figure.dpi": 150,
    "font.family": "sans-serif",
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), 9),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    "axes.linewidth": 0.7,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "eqscale",
    "svg.fonttype": "none",
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The project's look, on matplotlib's defaults whatever the user's settings, within a ``with`` block only."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def save(figure: Figure, path: Path) -> list[Path]:
    """Write ``path`` as PNG and SVG (any suffix is replaced); without dates, so that reruns are identical."""
    out = [path.with_suffix(".png"), path.with_suffix(".svg")]
    with style():
        # not savefig, which lays a figure out once more for each format
        if (engine := figure.get_layout_engine()) is not None:
            engine.execute(figure)
        figure.set_layout_engine("none")
        figure.dpi = _DPI
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        # 256 colours take a third of the bytes
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(256)
        png, svg = io.BytesIO(), io.StringIO()
        image.save(png, format="png", optimize=True)
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    write_atomically(out[0], png.getvalue())
    write_text(out[1], svg.getvalue())
    return out


def _looks(arms: Iterable[str], colours: Mapping[str, str] | None) -> dict[str, tuple[str, str]]:
    """Colour and marker of each arm."""
    return {
        name: ((colours or {}).get(name, PALETTE[i % len(PALETTE)]), MARKERS[i % len(MARKERS)])
        for i, name in enumerate(arms)
    }


def panel_grid(panels: int, height: float = 2.5, **kwargs) -> tuple[Figure, list[Axes]]:
    """Panels in rows of at most three; superfluous ones removed."""
    columns = 2 if panels == 4 else min(panels, 3)
    rows = -(-panels // columns)
    figure = Figure(figsize=(WIDTH if columns > 1 else 4.6, height * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs).ravel()
    for axis in axes[panels:]:
        axis.remove()
    return figure, list(axes[:panels])


def _log_ticks(axis) -> None:
    """Readable ticks on a logarithmic axis whether it spans a tenth of a decade or ten."""
    low, high = sorted(axis.get_view_interval())
    decades = np.log10(high / low)
    # labels stand side by side below, one above another at the side
    narrow = LogLocator(subs=(1, 2, 5) if axis.axis_name == "x" else (1, 1.5, 2, 3, 4, 6))
    wide = LogLocator(numticks=7)
    axis.set_major_locator(MaxNLocator(4) if decades < 0.4 else narrow if decades < 1.2 else wide)
    axis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
    axis.set_minor_formatter(NullFormatter())


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power_of_ten(value: float) -> str:
    """A number as a label of a tick."""
    mantissa, exponent = f"{value:.3e}".split("e")
    mantissa = f"{float(mantissa):g}"
    # a power of ten is shorter as one from 10⁴ on, another number from 10⁵ on
    if 1e-3 <= value < (1e4 if mantissa == "1" else 1e5):
        return f"{float(f'{value:.4g}'):g}"
    factor = "" if mantissa == "1" else f"{float(f'{value:.1e}'.split('e')[0]):g} × "
    # not math text, which takes a tenth of a report's time to parse
    return factor + "10" + str(int(exponent)).translate(_SUPERSCRIPTS)


def finish(figure: Figure) -> Figure:
    """Readable ticks on every logarithmic axis; the last step of each figure."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                _log_ticks(axis)
    return figure


_BEYOND = 3.0  # how far past the largest run the lines of a law go, dashed


def _budget_range(arms: Mapping[str, ArmFit], beyond: float = _BEYOND, later: Sequence[float] = ()) -> Array:
    spent = np.concatenate([a.C for a in arms.values()])
    return np.geomspace(spent.min(), max([spent.max() * beyond, *later]), 80)


def _draw_frontier(axes: Axes, arm: ArmFit, C: Array, what: str, colour: str) -> None:
    """A frontier with its band; dashed where it extrapolates beyond the arm's runs."""
    best = frontier(arm.fit, C, arm.cost, arm.boot)
    values, band = getattr(best, what), (best.robust or best.model)[what]
    axes.fill_between(C, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(C, np.where(best.inside, values, np.nan), color=colour)
    axes.plot(C, np.where(best.inside, np.nan, values), color=colour, linestyle=(0, (3, 2)), linewidth=1.2)


def _dots(axes: Axes, arm: ArmFit, x: Array, y: Array, which: Any = slice(None), **kwargs: Any) -> None:
    """Runs as dots that carry their table rows into the SVG; ``x`` and ``y`` belong to the runs ``which``."""
    gid = None if arm.rows is None else "runs:" + ",".join(str(row) for row in np.atleast_1d(arm.rows[which]))
    axes.scatter(x, y, gid=gid, **kwargs)


def _with_limits(axes: Axes, x: Array, found: Sequence[Estimate], **kwargs: Any) -> None:
    """Estimates at ``x`` as markers with their 95 % intervals."""
    errors = np.array([[e.value - e.low, e.high - e.value] for e in found]).T
    axes.errorbar(x, [e.value for e in found], errors, capsize=2, elinewidth=1.1, **kwargs)


def _legend(axes: Axes | Figure, looks: Mapping[str, tuple[str, str]], extra: Sequence[Line2D] = ()) -> None:
    handles = [Line2D([], [], color=colour, marker=marker, markersize=4, label=name)
               for name, (colour, marker) in looks.items()] + [*extra]  # fmt: skip
    if isinstance(axes, Figure):
        legend_above(axes, handles)
    else:
        axes.legend(handles=handles)


def legend_above(figure: Figure, handles: Sequence[Artist], **kwargs: Any) -> None:
    """A legend above all panels, where no curve can be; in two rows or more if it is wider than the figure."""
    characters = sum(len(str(handle.get_label())) + 6 for handle in handles)
    ncols = -(-len(handles) // (1 + characters // round(11 * figure.get_figwidth())))
    figure.legend(handles=handles, loc="outside upper center", ncols=ncols, **kwargs)


def loss_against_compute(
    arms: Mapping[str, ArmFit],
    *,
    axis: str = "training FLOPs",
    loss_label: str = "test loss",
    minima: Mapping[str, Minima] | None = None,
    later: Mapping[str, tuple[Array, Array, Array]] | None = None,
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Loss of every run against its compute, with each arm's compute-optimal loss by its law and 95 % band.

    Args:
        arms: by name.
        axis: what the cost is, for the label.
        loss_label: what the loss is.
        minima: by arm, optima as measured: large markers with 95 % intervals.
        later: by arm, cost, loss and table row of runs that the laws have not seen: open markers.
        colours: colour by arm.
    """
    looks = _looks(arms, colours)
    with style():
        figure, (axes,) = panel_grid(1, height=3.6)
        C = _budget_range(arms, later=[cost.max() for cost, *_ in (later or {}).values()])
        for name, arm in arms.items():
            colour, marker = looks[name]
            _dots(axes, arm, arm.C, arm.loss, s=10, color=colour, marker=marker, alpha=0.35, linewidths=0)
            _draw_frontier(axes, arm, C, "loss", colour)
            if minima and name in minima:
                cost = minima[name].cost
                found = [lowest_loss(minima[name], float(c)).exp() for c in cost]
                _with_limits(axes, cost, found, color=colour, marker=marker, markersize=6, markeredgecolor="white",
                             markeredgewidth=0.6, linestyle="", zorder=3)  # fmt: skip
            if later and name in later:
                cost, loss, rows = later[name]
                axes.scatter(cost, loss, s=22, facecolors="none", edgecolors=colour, marker=marker, linewidths=1.1,
                             gid="runs:" + ",".join(map(str, rows)))  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel=axis, ylabel=loss_label)
        notes = [Line2D([], [], color="0.4", linestyle=(0, (3, 2)), label="extrapolated")]
        if minima:
            notes.append(Line2D([], [], color="0.4", linestyle="", marker="o", markersize=6, label="lowest, measured"))
        if later:
            notes.append(Line2D([], [], color="0.4", linestyle="", marker="o", markerfacecolor="none",
                                markersize=4, label="runs not fitted"))  # fmt: skip
        _legend(figure, looks, notes)
        return finish(figure)


def loss_ratios(
    minima: Mapping[str, Minima],
    reference: str,
    arms: Mapping[str, ArmFit],
    *,
    axis: str = "training FLOPs",
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Compute-optimal loss of every arm over that of a reference: measured at single budgets, and by the laws.

    Args:
        minima: measured optima by arm, the reference among them.
        reference: name of the arm whose loss is one.
        arms: laws by arm, with bootstraps.
        axis: what the cost is, for the label.
        colours: colour by arm.
    """
    looks = _looks(minima, colours)
    others = [name for name in minima if name != reference]
    with style():
        figure, (axes,) = panel_grid(1, height=3.1)
        axes.axhline(1, color=looks[reference][0], linewidth=1.2)
        for i, name in enumerate(others):
            colour, marker = looks[name]
            if name in arms and reference in arms:
                C = np.geomspace(*common_range((arms[name], arms[reference])), 40)
                found = [gap.exp() for gap in loss_gaps(arms[reference], arms[name], C)]
                limits = np.array([e.robust for e in found]).T
                axes.fill_between(C, *limits, color=colour, alpha=0.18, linewidth=0)
                axes.plot(C, [e.value for e in found], color=colour, linewidth=1.3)
            cost = np.intersect1d(minima[name].cost, minima[reference].cost)
            found = [loss_ratio(minima[reference], minima[name], float(c)).exp() for c in cost]
            beside = cost * 1.03 ** (i - (len(others) - 1) / 2)
            _with_limits(axes, beside, found, color=colour, marker=marker, markersize=4.5, linestyle="")
        axes.set(xscale="log", yscale="log", xlabel=axis, ylabel=f"loss over that of {reference}")
        _legend(axes, {name: looks[name] for name in (*others, reference)})
        return finish(figure)


def surface_panels(
    arms: Mapping[str, ArmFit],
    *,
    loss_label: str = "test loss",
    axes_of_cost: Mapping[str, Mapping[str, ArmFit]] | None = None,
) -> Figure:
    """The law's prediction as background colour over N × D and the runs as dots in the same colours.

    A dot that vanishes into its background is predicted well. White lines are compute-optimal frontiers. The background
    is grey where the law's loss lies beyond those of all runs.

    Args:
        arms: by name.
        loss_label: what the loss is.
        axes_of_cost: the same arms by cost axis: one frontier each, of its own line style (at most three).
    """
    frontiers = axes_of_cost or {"": arms}
    strokes: dict[str, Any] = dict(zip(frontiers, ("-", (0, (4, 2)), (0, (1, 1.2))), strict=False))
    with style():
        figure, axes = panel_grid(len(arms), height=2.7, sharex=True, sharey=True)
        losses = np.concatenate([a.loss for a in arms.values()])
        norm = LogNorm(losses.min(), losses.max())
        colours = matplotlib.colormaps["viridis"].with_extremes(under="0.6", over="0.6")
        runs = (np.concatenate([getattr(a, axis) for a in arms.values()]) for axis in ("N", "D"))
        N, D = (np.geomspace(v.min() / 1.5, v.max() * 1.5, 90) for v in runs)
        for (name, arm), panel in zip(arms.items(), axes, strict=True):
            surface = arm.fit.predict(N[None, :], D[:, None])
            panel.pcolormesh(N, D, surface, norm=norm, cmap=colours, shading="gouraud", rasterized=True)
            panel.contour(N, D, surface, levels=np.geomspace(losses.min(), losses.max(), 9),
                          colors="white", linewidths=0.4, alpha=0.5)  # fmt: skip
            for label, group in frontiers.items():
                C = _budget_range({name: group[name]}, 1.2)
                best = frontier(arm.fit, C, group[name].cost)
                panel.plot(best.N, best.D, color="white", linewidth=1.4, linestyle=strokes[label])
            _dots(panel, arm, arm.N, arm.D, c=arm.loss, norm=norm, cmap="viridis", s=22, edgecolors="black",
                  linewidths=0.6)  # fmt: skip
            panel.set(xscale="log", yscale="log", title=name, xlabel="parameters N")
            panel.set(xlim=(N[0], N[-1]), ylim=(D[0], D[-1]))
            panel.grid(False)
        axes[0].set_ylabel("training tokens D")
        if axes_of_cost:
            handles = [Line2D([], [], color="0.3", linestyle=stroke, linewidth=1.4, label=f"optimal for {label}")
                       for label, stroke in strokes.items()]  # fmt: skip
            handles.append(Line2D([], [], color="0.6", linewidth=6, label="beyond all losses"))
            legend_above(figure, handles)
        figure.colorbar(ScalarMappable(norm, colours), ax=axes, label=loss_label, pad=0.01, extend="both")
        return finish(figure)


def _tokens_in_panel(arm: ArmFit, here: Array, N: Array) -> Array:
    """Tokens along an isoFLOP curve: by the cost model where the panel's runs share a cost on its axis, else
    through the runs themselves (a budget held on another axis).
    """
    C = arm.C[here]
    if np.ptp(np.log(C)) < 0.1:
        return arm.cost.tokens(N, np.median(C))
    degree = min(2, len(np.unique(arm.N[here])) - 1)
    fitted = np.polynomial.Polynomial.fit(np.log(arm.N[here]), np.log(arm.D[here]), degree)
    return np.exp(fitted(np.log(N)))


_RING: dict[str, Any] = {"marker": "o", "markersize": 8, "fillstyle": "none", "markeredgewidth": 0.9, "linestyle": ""}


def isoflop_panels(
    arms: Mapping[str, ArmFit],
    *,
    loss_label: str = "test loss",
    unit: str = "FLOPs",
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Loss against model size, one panel per budget: dots are runs, lines the law, ticks its optimum, rings the size
    whose runs have the lowest mean loss.
    """
    looks = _looks(arms, colours)
    budgets = np.unique(np.concatenate([a.budget for a in arms.values()]))
    losses = np.concatenate([a.loss for a in arms.values()])
    with style():
        figure, axes = panel_grid(len(budgets), height=2.2, sharey=True)
        for budget, panel in zip(budgets, axes, strict=True):
            for name, arm in arms.items():
                here = arm.budget == budget
                if not here.any():
                    continue
                colour, marker = looks[name]
                sizes = arm.N[here]
                _dots(panel, arm, sizes, arm.loss[here], here, s=16, color=colour, marker=marker, alpha=0.7,
                      linewidths=0)  # fmt: skip
                means = {n: np.exp(np.log(arm.loss[here & (n == arm.N)]).mean()) for n in np.unique(sizes)}
                best = min(means, key=means.__getitem__)
                panel.plot(best, means[best], color="black", **_RING)
                N = np.geomspace(sizes.min() / 1.3, sizes.max() * 1.3, 80)
                predicted = arm.fit.predict(N, _tokens_in_panel(arm, here, N))
                panel.plot(N, predicted, color=colour, linewidth=1.3)
                if 0 < (k := int(np.argmin(predicted))) < len(N) - 1:
                    panel.plot(N[k], predicted[k], marker="|", color=colour, markersize=9, markeredgewidth=1.6)
            panel.set(xscale="log", yscale="log", title=f"{power_of_ten(budget)} {unit}", xlabel="parameters N")
            panel.set_ylim(losses.min() / 1.1, losses.max() * 1.1)
        for panel in axes[:: 2 if len(budgets) == 4 else 3]:
            panel.set_ylabel(loss_label)
        _legend(figure, looks, [
            Line2D([], [], color="0.4", marker="|", markersize=9, markeredgewidth=1.6, label="law and its optimum"),
            Line2D([], [], color="black", label="best size measured", **_RING),
        ])  # fmt: skip
        return finish(figure)


def normalised_curves(curves: Mapping[str, Mapping[float, np.ndarray]]) -> Figure:
    """Loss over final loss against the share of the steps: a panel an arm, a line a budget.

    Args:
        curves: arm -> budget -> share of the steps and loss, (2, points).
    """
    budgets = sorted({budget for own in curves.values() for budget in own})
    colours = dict(zip(budgets, matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(budgets))), strict=True))
    with style():
        figure, axes = panel_grid(len(curves), height=2.3, sharey=True)
        for panel, (name, own) in zip(axes, curves.items(), strict=True):
            for budget, (share, loss) in sorted(own.items()):
                panel.plot(share, loss / loss[-1], color=colours[budget], linewidth=1.2)
            panel.set(yscale="log", title=name, xlabel="share of the steps")
        axes[0].set_ylabel("loss / final loss")
        lines = [Line2D([], [], color=colours[budget], label=power_of_ten(budget)) for budget in budgets]
        legend_above(figure, lines, title="budget, FLOPs")
        return finish(figure)


def _optimum(
    arms: Mapping[str, ArmFit],
    *,
    what: str,
    label: str,
    axis: str = "training FLOPs",
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """An optimum against cost; markers are the best run of each budget."""
    looks = _looks(arms, colours)
    with style():
        figure, (axes,) = panel_grid(1, height=3.1)
        C = _budget_range(arms)
        for name, arm in arms.items():
            colour, marker = looks[name]
            _draw_frontier(axes, arm, C, what, colour)
            for budget in np.unique(arm.budget):
                here = np.flatnonzero(arm.budget == budget)
                best = here[np.argmin(arm.loss[here])]
                x, y = arm.C[best], getattr(arm, what)[best]
                _dots(axes, arm, x, y, best, s=22, color=colour, marker=marker, zorder=3)
        measured = np.concatenate([getattr(arm, what) for arm in arms.values()])
        axes.set(xscale="log", yscale="log", xlabel=axis, ylabel=label)
        # optima of a law that says nothing lie anywhere
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, measured.min() / 100), min(high, 100 * measured.max()))
        _legend(axes, looks, [Line2D([], [], color="0.4", linestyle="", marker="o", markersize=4,
                                     label="best run of a budget")])  # fmt: skip
        return finish(figure)


optimal_size = functools.partial(_optimum, what="N", label="optimal parameters N")
"""Compute-optimal parameters against compute; options as in ``loss_against_compute``."""
optimal_tokens = functools.partial(_optimum, what="D", label="optimal training tokens D")
"""Compute-optimal training tokens against compute; options as in ``loss_against_compute``."""


def optimal_cost_per_token(arms: Mapping[str, ArmFit], *, unit: str = "FLOPs", **options: Any) -> Figure:
    """Compute-optimal size as the cost of one training token: comparable between architectures."""
    return _optimum(arms, what="per_token", label=f"optimal {unit} per token", **options)


def residual_panels(
    arms: Mapping[str, ArmFit], *, axis: str = "training FLOPs", colours: Mapping[str, str] | None = None
) -> Figure:
    """Residuals of the log loss against N, D and cost: a trend is a form that does not fit."""
    looks = _looks(arms, colours)
    with style():
        figure, axes = panel_grid(3, height=2.3, sharey=True)
        for name, arm in arms.items():
            colour, marker = looks[name]
            r = 100 * np.log(arm.loss / arm.fit.predict(**arm.fit.columns))
            for panel, values in zip(axes, (arm.N, arm.D, arm.C), strict=True):
                _dots(panel, arm, values, r, s=14, color=colour, marker=marker, alpha=0.65, linewidths=0)
        for panel, label in zip(axes, ("parameters N", "training tokens D", axis), strict=True):
            panel.axhline(0, color="0.3", linewidth=0.8)
            panel.set(xscale="log", xlabel=label)
        axes[0].set_ylabel("residual of log loss, %")
        _legend(figure, looks)
        return finish(figure)
