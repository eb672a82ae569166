"""All figures of a report and their captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eqscale.laws import plots
from eqscale.laws.axes import AXES, Axis
from eqscale.numbers import number
from eqscale.report.analysis import Analysis, Arms, at_equal_cost
from eqscale.report.data_grid import DataGrid
from eqscale.report.exhibits import FigureGroup, numbered
from eqscale.report.parts import UNIQUE, Study
from eqscale.report.prediction import outcomes
from eqscale.report.split import split_figure

LOSS = "test NMSE"


def draw_figures(
    study: Study, analysis: Analysis, grid: DataGrid | None, split: pd.DataFrame, folder: Path
) -> list[FigureGroup]:
    """Draw every figure that the study has data for, as PNG and SVG."""
    out: list[FigureGroup] = []
    colours, laws = study.roles.colours(), analysis.arms
    reference = next(iter(study.roles.built_in), "")  # the best arm with the symmetry built in

    def add(key: str, title: str, caption: str, images: Mapping[tuple[str, str], Figure]) -> None:
        for (file, _), figure in images.items():
            plots.save(figure, folder / f"{file}.png")
        if images:
            out.append(FigureGroup(key, title, caption, tuple(images)))

    def by_axis(file: str, draw: Callable[[Arms, Axis], Figure]) -> dict[tuple[str, str], Figure]:
        return {(f"{file}{AXES[axis].suffix}", axis): draw(arms, AXES[axis]) for axis, arms in laws.items()}

    if laws:
        add(
            "loss", "Loss against compute",
            "Dots are runs, lines the compute-optimal loss by the laws (dashed beyond an arm's own runs), bands its "
            "95 % interval (case bootstrap)"
            + ("; large markers are lowest losses as measured, with intervals: where a line disagrees, trust them"
               if any(analysis.minima.values()) else "")
            + ("; open markers are runs that the laws have not seen." if len(study.part("validation")) else "."),
            by_axis("loss_vs_compute", lambda arms, axis: plots.loss_against_compute(
                arms, axis=axis.label, loss_label=LOSS, minima=analysis.minima.get(axis.name),
                later=_later(study, axis), colours=colours,
            )),
        )  # fmt: skip
        add(
            "ratio", f"Loss relative to that of {reference}",
            "Markers are ratios of compute-optimal losses measured at equal cost, on executed FLOPs without a law, "
            "with 95 % intervals (the wider of model-based and robust), lines and bands those of the laws over the "
            "costs that both arms' runs cover. Where they disagree, trust the markers.",
            {
                (f"loss_ratio{AXES[axis].suffix}", axis): plots.loss_ratios(
                    minima, reference, laws[axis], axis=AXES[axis].label, colours=colours
                )
                for axis, minima in analysis.minima.items()
                if reference in minima and len(minima) > 1
            },
        )  # fmt: skip
        add(
            "surface", "Loss over model size and training tokens",
            "Background: the law, grey beyond the losses of all runs; dots: runs in the same colours, which vanish "
            "where they are predicted well; white lines: the compute-optimal split on each of the three axes.",
            {("surface", ""): plots.surface_panels(
                laws["executed"], loss_label=LOSS,
                axes_of_cost={AXES[axis].short: arms for axis, arms in laws.items()},
            )},
        )  # fmt: skip
        add(
            "isoflop", "Loss against model size at equal compute",
            "Dots are runs, lines the law, ticks its optimum, rings the size of lowest mean loss. On executed FLOPs a "
            "panel holds the runs of one budget; on the other axes each run is moved along its law to the nearest "
            "panel's cost.",
            by_axis("isoflop", lambda arms, axis: plots.isoflop_panels(
                at_equal_cost(arms, axis.name), loss_label=LOSS, unit=axis.unit, colours=colours
            )),
        )  # fmt: skip
        size = by_axis("optimal_size", lambda arms, axis: plots.optimal_size(arms, axis=axis.label, colours=colours))
        cost = by_axis("optimal_cost_per_token", lambda arms, axis: plots.optimal_cost_per_token(
            arms, axis=axis.label, unit=axis.unit, colours=colours
        ))  # fmt: skip
        add(
            "size", "Compute-optimal model size",
            "In parameters, and in what one training token costs, which is comparable between architectures. Lines "
            "are the laws' optima with 95 % bands, markers the best run of each budget.", size | cost,
        )  # fmt: skip
        add(
            "tokens", "Compute-optimal training tokens",
            "Lines are the laws' optima with 95 % bands, markers the best run of each budget.",
            by_axis("optimal_tokens", lambda arms, axis: plots.optimal_tokens(arms, axis=axis.label, colours=colours)),
        )  # fmt: skip
        add(
            "residuals", "Residuals of the laws",
            "Observed over fitted loss; a trend is structure that the law misses.",
            {("residuals", ""): plots.residual_panels(
                laws["executed"], axis=AXES["executed"].short, colours=colours
            )},
        )  # fmt: skip
    if len(split):
        add(
            "split", "Parts of the lead",
            "Ratios of lowest losses at every budget, with 95 % intervals; right of 1 the second arm of the pair is "
            "ahead.",
            {("split", ""): split_figure(split)},
        )  # fmt: skip
    if curves := best_curves(study):
        add(
            "curves", "Normalised loss curves",
            "Test loss over final test loss of the best run of each budget. Curves that fall on one line mean that the "
            "recipe suits every budget alike (Qiu et al. 2025, arXiv 2507.02119).",
            {("loss_curves", ""): plots.normalised_curves(curves)},
        )  # fmt: skip
    if grid is not None:
        add(
            "data", "Loss against unique training data",
            "All runs spend the same executed FLOPs, so the epochs fall from left to right; the legend gives the "
            "cost on the other two axes. Lines join the means over seeds, dotted lines are the law of repeated data.",
            {("loss_vs_data", ""): data_figure(grid, colours)},
        )  # fmt: skip
    if grid is not None and grid.cells["budget"].nunique() > 1:
        add(
            "epochs", "Loss against epochs at fixed unique data",
            "Means over seeds at the best size of each budget with their standard errors; a larger budget is more "
            "epochs of the same data.",
            {("loss_vs_epochs", ""): epochs_figure(grid, colours)},
        )  # fmt: skip
    if study.predictions and laws:
        add(
            "validation", "Prediction and outcome",
            "Bands are 95 % limits: of a new run about lines and crosses, of the predicted optimal size about the "
            f"vertical line. {numbered('validation')} says how the optimum is predicted without a law.",
            {
                (f"validation{AXES[axis].suffix}", axis): validation_figure(study, axis, colours)
                for axis in dict.fromkeys(prediction["axis"] for prediction in study.predictions)
            },
        )  # fmt: skip
    return out


def best_curves(study: Study) -> dict[str, dict[float, np.ndarray]]:
    """Curves of the best run of each arm and budget, of arms that have them at two budgets or more."""
    runs = study.part("compute")
    best = runs.loc[runs.groupby(["arm", "budget"], sort=False)["loss"].idxmin()]
    found: dict[str, dict[float, np.ndarray]] = {}
    for arm, budget, run in best[["arm", "budget", "run_id"]].itertuples(index=False):
        if run in study.curves:
            found.setdefault(arm, {})[budget] = study.curves[run]
    return {arm: own for arm, own in found.items() if len(own) > 1}


def _later(study: Study, axis: Axis) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Validation runs by arm: cost, loss, row."""
    return {
        str(arm): (runs[axis.column].to_numpy(float), runs["loss"].to_numpy(float), runs.index.to_numpy())
        for arm, runs in study.part("validation").groupby("arm")
    }


def data_figure(grid: DataGrid, palette: Mapping[str, str]) -> Figure:
    """Loss against unique training tokens, with the number of unique units and the epochs above."""
    with plots.style():
        figure = Figure(figsize=(5.6, 3.8), layout="constrained")
        axes = figure.subplots()
        handles = []
        for i, arm in enumerate(grid.arms()):
            marker = plots.MARKERS[i % len(plots.MARKERS)]
            runs, means = grid.runs[grid.runs["arm"] == arm], grid.levels[grid.levels["arm"] == arm]
            axes.scatter(
                runs["unique_tokens"], runs["loss"], s=14, color=palette[arm], marker=marker, alpha=0.55,
                linewidths=0, gid="runs:" + ",".join(map(str, runs.index)),
            )  # fmt: skip
            axes.plot(means["unique_tokens"], np.exp(means["log_loss"]), color=palette[arm])
            if arm in grid.laws:
                U = np.geomspace(means["unique_tokens"].min(), means["unique_tokens"].max(), 60)
                N, D = np.exp(np.log(means[["N", "D"]]).mean())
                predicted = grid.laws[arm].fit.predict(N=N, D=D, U=U)
                axes.plot(U, predicted, color=palette[arm], linestyle=":", linewidth=1.1)
            nominal = number(runs["flops_nominal"].median(), 2)
            label = f"{arm} ({nominal} nominal FLOPs, {runs['seconds'].median():.3g} s)"
            handles.append(Line2D([], [], color=palette[arm], marker=marker, markersize=4, label=label))
        axes.set(xscale="log", yscale="log", xlabel="unique training tokens", ylabel=LOSS)
        # second x axis: unique units and epochs of each level; a label that would touch its left neighbour is left out
        levels = grid.levels.groupby(UNIQUE).agg(tokens=("unique_tokens", "max"), epochs=("epochs", "mean"))
        top = axes.secondary_xaxis("top")
        width, last, labels = np.ptp(np.log(axes.get_xlim())), -np.inf, []
        for units, tokens, epochs in levels.itertuples():
            free = np.log(tokens) - last > 0.045 * width
            last = np.log(tokens) if free else last
            labels.append(f"{plots.power_of_ten(units)}\n{epochs:.{0 if epochs >= 10 else 1}f}" if free else "")
        top.set_xticks(levels["tokens"], labels, fontsize=7)
        top.tick_params(which="minor", length=0)
        top.set_xlabel(f"unique {grid.units} and, below, epochs", fontsize=8)
        handles.append(Line2D([], [], color="0.4", linestyle=":", label="law of repeated data"))
        axes.legend(handles=handles, fontsize=7)
        return plots.finish(figure)


def epochs_figure(grid: DataGrid, palette: Mapping[str, str]) -> Figure:
    """Loss of every arm against epochs, a panel for each number of unique units at several budgets."""
    budgets = grid.cells.groupby(UNIQUE)["budget"].nunique()
    with plots.style():
        figure, panels = plots.panel_grid(int((budgets > 1).sum()), sharey=True)
        for units, panel in zip(budgets.index[budgets > 1], panels, strict=True):
            for i, arm in enumerate(grid.arms()):
                own = grid.cells[(grid.cells["arm"] == arm) & (grid.cells[UNIQUE] == units)]
                loss = np.exp(own["log_loss"])
                panel.errorbar(
                    own["epochs"], loss, (loss * own["sd"] / np.sqrt(own["n"])).fillna(0.0), color=palette[arm],
                    marker=plots.MARKERS[i % len(plots.MARKERS)], markersize=4, capsize=2, label=arm,
                )  # fmt: skip
            panel.set(xscale="log", yscale="log", title=f"{units:,} {grid.units}", xlabel="epochs")
        panels[0].set_ylabel(LOSS)
        plots.legend_above(figure, panels[0].get_legend_handles_labels()[0])
        return plots.finish(figure)


def validation_figure(study: Study, axis: str, palette: Mapping[str, str]) -> Figure:
    """The predicted isoFLOP curve of each arm at each predicted cost of an axis, and the runs that came after."""
    predictions = [prediction for prediction in study.predictions if prediction["axis"] == axis]
    shown = [(p, name) for p in predictions for name, record in p["arms"].items() if "at_sizes" in record]
    with plots.style():
        figure, panels = plots.panel_grid(max(len(shown), 1), height=2.6, sharey=True)
        for (prediction, name), panel in zip(shown, panels, strict=False):
            record, colour = prediction["arms"][name], palette.get(name, "0.3")
            at = record["at_sizes"]
            panel.fill_between(at["N"], at["low"], at["high"], color=colour, alpha=0.18, linewidth=0)
            panel.plot(at["N"], at["loss"], color=colour)
            low, high = record["N_interval"]["robust"]
            if None not in (low, high):  # else no resample has an optimum
                panel.axvspan(low, high, color="0.5", alpha=0.12, linewidth=0)
            panel.axvline(record["N"], color="0.4", linewidth=0.8)
            if trend := record.get("trend"):
                low, high = trend["new_run"]["model"]
                panel.errorbar(
                    trend["N"], trend["loss"], [[trend["loss"] - low], [high - trend["loss"]]], color="0.2",
                    marker="x", markersize=5, capsize=2, linewidth=1.0,
                )  # fmt: skip
            own = [o for o in outcomes(prediction, study.part("validation")) if o.arm == name]
            panel.scatter(
                [o.N for o in own], [o.observed for o in own], s=26, facecolors="none", edgecolors=colour,
                linewidths=1.3, gid="runs:" + ",".join(str(o.row) for o in own),
            )  # fmt: skip
            title = f"{name}, {number(prediction['compute'], 3)} {AXES[axis].unit}" if len(predictions) > 1 else name
            panel.set(xscale="log", yscale="log", title=title, xlabel="parameters N")
        panels[0].set_ylabel(LOSS)
        handles = [
            Line2D([], [], color="0.3", label="loss predicted by the law"),
            Line2D([], [], color="0.4", linewidth=0.8, linestyle="", marker="|", markersize=12, label="optimal size"),
            Line2D([], [], color="0.2", linestyle="", marker="x", markersize=5, label="predicted without a law"),
            Line2D([], [], color="0.3", linestyle="", marker="o", fillstyle="none", label="runs made afterwards"),
        ]
        plots.legend_above(figure, handles)
        return plots.finish(figure)
