"""Recipes, figure and report of a search of recipes, from its trials."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from eqscale.laws.plots import MARKERS, WIDTH, save, style
from eqscale.numbers import number
from eqscale.report.exhibits import paragraphs, table_of
from eqscale.storage import write_text

if TYPE_CHECKING:
    from eqscale.study.search import RecipeFit

_SHOWN = 1.5  # panels show losses up to this multiple of the lowest


def write_search_report(
    trials: pd.DataFrame,
    runs: pd.DataFrame,
    checks: pd.DataFrame,
    fits: Mapping[tuple[str, str], RecipeFit],
    folder: Path,
    goal: float,
    rounds: int,
) -> None:
    """Write ``trials.csv``, ``check_runs.csv``, ``checks.csv``, ``recipes.json``, ``report.md`` and its figure.

    Args:
        trials: all trials of the search, including pruned ones, in the columns of the run table.
        runs: the check runs, in the same columns.
        checks: per arm, optimiser and budget, the loss of the recipe's pick and the best loss found.
        fits: the fitted recipe of each arm and optimiser.
        folder: created if needed.
        goal: largest relative excess of a pick's loss over the best.
        rounds: most recipes of an arm and optimiser that were checked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "trials.csv", trials.to_csv(index=False))
    write_text(folder / "check_runs.csv", runs.to_csv(index=False))
    write_text(folder / "checks.csv", checks.to_csv(index=False))
    recipes = {
        arm: [dataclasses.asdict(fits[arm, optimizer].recipe) for optimizer in _ranked(checks, arm)]
        for arm in dict.fromkeys(arm for arm, _ in fits)
    }
    write_text(folder / "recipes.json", json.dumps(recipes, indent=1) + "\n")
    save(_figure(trials, runs, fits), folder / "search")
    write_text(folder / "report.md", _report(trials, checks, fits, goal, rounds))


def _ranked(checks: pd.DataFrame, arm: str) -> list[str]:
    """Optimisers of an arm, the one to use first: the first unless another's picks are as low at every budget."""
    losses = checks[checks["arm"] == arm].pivot(index="budget", columns="optimizer", values="loss")
    first, *others = checks.loc[checks["arm"] == arm, "optimizer"].unique()
    for other in others:
        if (losses[other] <= losses[first]).all():
            first = other
    return sorted(losses, key=lambda name: name != first)


def _figure(trials: pd.DataFrame, runs: pd.DataFrame, fits: Mapping[tuple[str, str], RecipeFit]) -> Figure:
    """Loss against learning rate: a row per arm and optimiser, a column per budget, a marker per size, a colour per
    batch size."""
    ended = pd.concat([trials, runs])
    ended = ended[ended["status"] == "finished"]
    arms, budgets = list(fits), sorted(ended["budget"].unique())
    with style():
        figure = Figure(figsize=(1.6 * WIDTH, 1.7 * len(arms)), layout="constrained")
        axes = figure.subplots(len(arms), len(budgets), sharex=True, squeeze=False)
        norm = LogNorm(max(1, ended["batch_size"].min() / 2), ended["batch_size"].max() * 2)
        for i, (row, arm) in enumerate(zip(axes, arms, strict=True)):
            for panel, budget in zip(row, budgets, strict=True):
                chosen = (ended["arm"] == arm[0]) & (ended["optimizer"] == arm[1])
                here = ended[chosen & (ended["budget"] == budget)]
                for marker, ((N, *_), group) in zip(MARKERS, here.groupby(["N", "width", "depth"]), strict=False):
                    panel.scatter(
                        group["learning_rate"], group["loss"], c=group["batch_size"], norm=norm, cmap="viridis",
                        marker=marker, s=14, label=f"N = {N:,.0f}",
                    )  # fmt: skip
                    recipe = fits[arm].recipe
                    batch = recipe.batch_size(budget)
                    steps = (group["steps"] * group["batch_size"]).median() / batch
                    panel.axvline(recipe.learning_rate(N, steps, batch), color="0.6", lw=0.8, zorder=0)
                panel.set_xscale("log")
                if len(here):
                    panel.set_ylim(0.97 * here["loss"].min(), _SHOWN * here["loss"].min())
                panel.legend(fontsize=6, loc="upper right")
                panel.tick_params(labelsize=7)
                if i == 0:
                    panel.set_title(f"{number(budget, 3)} FLOPs")
                if arm == arms[-1]:
                    panel.set_xlabel("learning rate")
            row[0].set_ylabel(f"{' '.join(arm)}\ntest NMSE")
        figure.colorbar(ScalarMappable(norm, "viridis"), ax=axes, label="batch size", fraction=0.02, format="%d")
    return figure


def _report(
    trials: pd.DataFrame, checks: pd.DataFrame, fits: Mapping[tuple[str, str], RecipeFit], goal: float, rounds: int
) -> str:
    recipes = [
        {
            "arm": arm, "optimiser": optimizer, "recipe": "as before" if fit.as_before else "fitted",
            "learning rate": number(fit.recipe.rate),
            "∝ N^": f"{fit.recipe.by_parameters:.2f}", "∝ steps^": f"{fit.recipe.by_steps:.2f}",
            "∝ batch^": f"{fit.recipe.by_batch:.2f}",
            "batch": number(fit.recipe.batch), "∝ budget^": f"{fit.recipe.by_budget:.2f}",
            "warm-up": f"{fit.recipe.warmup:.2f}", "momentum": f"{fit.recipe.momentum:.3f}",
            "weight decay": number(fit.recipe.weight_decay),
            "trials used": str(fit.trials - fit.checks), "check runs used": str(fit.checks),
            "scatter": f"{100 * fit.scatter:.1f} %",
            "loss for 2 x rate": f"{50 * fit.curvature_rate * np.log(2) ** 2:.1f} %",
            "loss for 2 x batch": f"{50 * fit.curvature_batch * np.log(2) ** 2:.1f} %",
        }
        for (arm, optimizer), fit in fits.items()
    ]  # fmt: skip
    shown = [
        {
            "arm": str(row["arm"]), "optimiser": str(row["optimizer"]), "budget": number(row["budget"]),
            "N": f"{row['N']:,}", "batch": str(row["batch_size"]), "recipe's rate": number(row["learning_rate"]),
            "loss": f"{row['loss']:.4f}", "best rate tried": number(row["best_learning_rate"]),
            "its loss": f"{row['best_loss']:.4f}", "above": f"{100 * row['excess']:.1f} %",
        }
        for row in checks.to_dict("records")
    ]  # fmt: skip
    within = int((checks["excess"] <= goal).sum())
    status = trials.groupby(["arm", "optimizer", "status"]).size().unstack(fill_value=0)
    count = [
        {"arm": arm, "optimiser": optimizer, **{k: str(v) for k, v in row.items()}}
        for (arm, optimizer), row in status.to_dict("index").items()
    ]
    parts = [
        "# Recipes",
        "One search for every arm and optimiser, with the same number of trials for each: Optuna (TPE, median pruner) "
        "proposes learning rate, batch size, warm-up, momentum and weight decay of proxy runs, each of which spends "
        "its budget exactly and has a seed of its own. All trials are in `trials.csv`.",
        table_of(count),
        "## What was found",
        "Learning rate at 10,000 parameters, 1,000 steps and batches of 16; batch size at 1e11 executed FLOPs, "
        "rounded to a power of two. Fitted to all finished trials of an arm and optimiser that end at most 30 % above "
        "the best of their cell: log loss is a parabola around the recipe's learning rate plus one around its batch "
        "size, plus one each in warm-up, log (1 - momentum) and log weight decay, plus a constant per cell. Trials "
        "further above the best say little about the optimum and are left out. "
        "Exponents have a normal prior (standard deviation 0.1) around the usual -0.25 (parameters), -0.15 (steps), "
        "0.35 (batch) and 0.2 (batch in budget), all else one around the recipe so far: what a few cells can't tell is "
        "taken from there. The last two columns "
        "say what being off by a factor of two costs.",
        table_of(recipes),
        "![loss against learning rate](search.png)",
        "Grey lines: the recipe's learning rate for each size at the recipe's batch size. The rightmost budgets are "
        "those of the check.",
        "## Check at larger budgets",
        "Larger runs at the recipe's batch size with half, once and twice its learning rate, and further out until "
        "the best is bracketed, and one by the recipe so far. An arm with a pick more than "
        f"{100 * goal:.0f} % above the best run is fitted again, its check runs included (as many as the table above "
        f"says), and the new picks are checked the same way, {rounds} times at most. Of all these recipes and the "
        "one so far, the one whose picks end lowest, on geometric average, is kept; below are its picks, beside the "
        "best of all rounds. "
        f"{within} of {len(checks)} picks lie within {100 * goal:.0f} % of the best; one seed each, so a "
        "difference of the size of the seed noise means nothing.",
        table_of(shown),
    ]
    return paragraphs(parts)
