"""From a run table to fits, figures 1, 3, 4, 5 and 6, and a one-page report."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from eqscale.errors import InputError
from eqscale.laws import Interval, intervals
from eqscale.laws.arms import ArmFit, fit_arms
from eqscale.laws.compare import compare_arms
from eqscale.laws.frontier import fit_cost, frontier
from eqscale.laws.plots import (
    isoflop_panels,
    loss_against_compute,
    optimal_size,
    optimal_tokens,
    save,
    surface_panels,
)
from eqscale.laws.render import fit_record, markdown_table, number

LOSS = "test NMSE"
REFERENCE = "transformer"
RESAMPLES = 1000
NEVER = "∞"
COEFFICIENTS = ("E", "A", "B", "alpha", "beta", "a")


@dataclasses.dataclass(frozen=True)
class Axis:
    """One way to count training compute."""

    column: str
    label: str
    unit: str
    meaning: str


AXES: dict[str, Axis] = {
    "executed": Axis(
        "flops_executed",
        "training FLOPs, executed",
        "FLOPs",
        "multiply-adds × 2 that the implementation executes, forward and backward",
    ),
    "nominal": Axis(
        "flops_nominal",
        "training FLOPs, dense nominal",
        "FLOPs",
        "as the paper's authors count: 6 per weight per token, every multivector map a dense 16×16 block",
    ),
    "seconds": Axis(
        "seconds", "training seconds", "s", "wall time of the training loop on the hardware named below"
    ),
}


def write_report(table: pd.DataFrame, folder: Path) -> None:
    """Write ``fits.json``, ``coefficients.csv``, the figures (PNG and SVG) and ``report.md`` into ``folder``.

    Args:
        table: run table with the columns of ``eqscale.study.table`` that the fits need: arm, budget, N, D,
            loss, status and the compute axes. Only rows with status ``finished`` enter the fits.
        folder: created if needed; files of an earlier report are overwritten. If it holds a ``study.json``, the
            wall times of the study's stages are taken from there.

    Raises:
        InputError: if no arm has enough finished runs for a fit; the message says how many each has.
    """
    finished = table[table["status"] == "finished"]
    fitted = fit_every_arm(finished)
    arms = {axis: {name: on_axis(arm, finished, axis) for name, arm in fitted.items()} for axis in AXES}
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: intervals(arm.fit, arm.boot) for name, arm in arms["executed"].items()}
    records = {name: fit_record(arm.fit, found[name], arm.boot) for name, arm in arms["executed"].items()}
    (folder / "fits.json").write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
    coefficients(found).to_csv(folder / "coefficients.csv", index=False)
    figures = draw_figures(arms, folder)
    (folder / "report.md").write_text(render(table, arms, found, figures, _stage_seconds(folder)))


def fit_every_arm(finished: pd.DataFrame) -> dict[str, ArmFit]:
    """Fit every arm that has enough runs, with costs in executed FLOPs.

    Raises:
        InputError: if no arm can be fitted.
    """
    fitted: dict[str, ArmFit] = {}
    reasons: list[str] = []
    for name in dict.fromkeys(finished["arm"]):
        runs = finished[finished["arm"] == name]
        try:
            fitted |= fit_arms(runs, cost=AXES["executed"].column, budget="budget", resamples=RESAMPLES)
        except InputError as error:
            reasons.append(str(error))
    if not fitted:
        raise InputError("no arm can be fitted: " + ("; ".join(reasons) or "the table has no finished run"))
    return fitted


def on_axis(arm: ArmFit, finished: pd.DataFrame, axis: str) -> ArmFit:
    """The same law with its runs' costs on another compute axis."""
    cost = finished.loc[finished["arm"] == arm.name, AXES[axis].column].to_numpy(float)
    return dataclasses.replace(arm, C=cost, cost=fit_cost(arm.N, arm.D, cost))


def coefficients(found: Mapping[str, Mapping[str, Interval]]) -> pd.DataFrame:
    """Table of fitted coefficients, one row per arm and coefficient, with both 95 % intervals."""
    rows = []
    for arm, by_name in found.items():
        for name in COEFFICIENTS:
            if name in by_name:
                interval = by_name[name]
                robust = interval.robust or (math.nan, math.nan)
                rows.append((arm, name, interval.estimate, *interval.model, *robust))
    columns = ["arm", "coefficient", "estimate", "model_low", "model_high", "robust_low", "robust_high"]
    return pd.DataFrame(rows, columns=columns)


def draw_figures(arms: Mapping[str, Mapping[str, ArmFit]], folder: Path) -> dict[str, list[str]]:
    """Draw figures 1, 3, 4, 5 and 6; returns the PNG names by figure."""
    executed = arms["executed"]
    drawn = {
        "Figure 1. Loss against compute": {
            f"fig1_loss_vs_compute{suffix}": loss_against_compute(
                arms[axis], axis=AXES[axis].label, loss_label=LOSS
            )
            for axis, suffix in (("executed", ""), ("nominal", "_nominal"), ("seconds", "_seconds"))
        },
        "Figure 3. Loss over model size and training tokens": {
            "fig3_surface": surface_panels(executed, loss_label=LOSS)
        },
        "Figure 4. Loss against model size at each budget": {
            "fig4_isoflop": isoflop_panels(executed, loss_label=LOSS)
        },
        "Figure 5. Compute-optimal model size": {
            "fig5_optimal_size": optimal_size(executed, axis=AXES["executed"].label)
        },
        "Figure 6. Compute-optimal training tokens": {
            "fig6_optimal_tokens": optimal_tokens(executed, axis=AXES["executed"].label)
        },
    }
    for group in drawn.values():
        for name, figure in group.items():
            save(figure, folder / f"{name}.png")
    return {title: [f"{name}.png" for name in group] for title, group in drawn.items()}


def render(
    table: pd.DataFrame,
    arms: Mapping[str, Mapping[str, ArmFit]],
    found: Mapping[str, Mapping[str, Interval]],
    figures: Mapping[str, list[str]],
    stage_seconds: Mapping[str, float],
) -> str:
    """The report as Markdown: answer, evidence, what could make it wrong."""
    finished = table[table["status"] == "finished"]
    parts = [
        "# Does building the symmetry in pay at this scale?",
        _answer(finished, arms),
        "## Best measured loss at each budget",
        "Best of the sizes that were run; ± is one standard error over test scenes, not over seeds.",
        _best_runs(finished),
        "## Fitted laws",
        "L(N, D) = E + A/N^α + B/D^β per arm (log-Huber, δ = 1e-3); a = β/(α+β), so that N_opt ∝ C^a if C ∝ N·D. "
        "Estimate, then the 95 % intervals: [model-based, Gauss–Newton t] and [robust, case bootstrap].",
        _coefficients(found),
        "\n".join(f"- `{name}`: {arm.fit.verdict}." for name, arm in arms["executed"].items()),
        "## Predicted loss at the compute-optimal size",
        *(_predicted(arms[axis], axis) for axis in AXES),
        "## Figures",
        *(
            f"### {title}\n\n" + "\n".join(f"![{title}]({name})" for name in names)
            for title, names in figures.items()
        ),
        "## What these runs don't show",
        _caveats(table, arms["executed"]),
        "## How it was run",
        _provenance(table, stage_seconds),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _best_runs(finished: pd.DataFrame) -> str:
    best = finished.loc[finished.groupby(["budget", "arm"], sort=False)["loss"].idxmin()]
    cells = {
        (row.budget, row.arm): f"{row.loss:.4f} ± {row.loss_se:.4f} (N = {row.N:.0f})"
        for row in best.itertuples()
    }
    names = list(dict.fromkeys(finished["arm"]))
    rows = [
        [f"{budget:.3g}", *(cells.get((budget, name), "–") for name in names)]
        for budget in _budgets(finished)
    ]
    return markdown_table(["budget (executed FLOPs)", *(f"`{name}`" for name in names)], rows)


def _budgets(finished: pd.DataFrame) -> list[float]:
    return sorted(finished["budget"].unique())


def _answer(finished: pd.DataFrame, arms: Mapping[str, Mapping[str, ArmFit]]) -> str:
    sentences = []
    best = finished.groupby(["budget", "arm"])["loss"].min().unstack()
    if best.shape[1] > 1:
        for budget, row in best.iterrows():
            ranked = row.dropna().sort_values()
            if len(ranked) > 1:
                sentences.append(
                    f"- At {budget:.3g} executed FLOPs the best `{ranked.index[0]}` run has {ranked.iloc[0]:.3f}, "
                    f"{ranked.iloc[1] / ranked.iloc[0]:.2f} times less loss than the best `{ranked.index[1]}` run."
                )
    for axis, fits in arms.items():
        sentences += _multipliers(fits, axis)
    return "\n".join(sentences)


def _common_costs(fits: Mapping[str, ArmFit]) -> np.ndarray:
    """Three costs within the range that every arm's runs cover, or the middle of all if they don't overlap."""
    low, high = max(arm.C.min() for arm in fits.values()), min(arm.C.max() for arm in fits.values())
    if low >= high:
        everything = np.concatenate([arm.C for arm in fits.values()])
        return np.array([float(np.exp(np.log(everything).mean()))])
    return np.geomspace(low, high, 3)


def _multipliers(fits: Mapping[str, ArmFit], axis: str) -> list[str]:
    """What every arm is worth against the reference at the largest cost that both have runs at."""
    label, unit = AXES[axis].label, AXES[axis].unit
    reference = fits.get(REFERENCE) or next(iter(fits.values()))
    sentences = []
    for name, arm in fits.items():
        if arm is reference:
            continue
        try:
            best = compare_arms(arm, reference, axis=label).multipliers[-1]
        except InputError as error:
            sentences.append(f"- On {label}: no comparison of `{name}` with `{reference.name}`: {error}.")
            continue
        if not np.isfinite(best.loss):
            sentences.append(f"- On {label}: the law of `{name}` has no optimum, so it says nothing here.")
            continue
        estimate, low, high = map(_factor, best.compute)
        need = (
            f"the law of `{reference.name}` never gets there (95 %: from {low} times the compute)"
            if estimate == NEVER
            else f"`{reference.name}` would need {estimate} times the compute [{low}, {high}] for that"
        )
        sentences.append(
            f"- On {label}, at {best.C:.3g} {unit}: `{name}` reaches {best.loss:.3f} by its law; {need}; "
            f"`{name}` is ahead in {100 * best.probability_better:.0f} % of the resamples"
            + (", extrapolating beyond the runs." if best.extrapolated else ".")
        )
    return sentences


def _factor(value: float) -> str:
    """A multiplier, or that there is none: beyond a million the reference's floor E is in the way."""
    return f"{value:.3g}" if value < 1e6 else NEVER


def _coefficients(found: Mapping[str, Mapping[str, Interval]]) -> str:
    rows = []
    for arm, by_name in found.items():
        row = [f"`{arm}`"]
        for name in COEFFICIENTS:
            interval = by_name[name]
            model = ", ".join(number(v, 3) for v in interval.model)
            robust = ", ".join(number(v, 3) for v in interval.robust) if interval.robust else "–"
            row.append(f"{number(interval.estimate, 3)}<br>[{model}]<br>[{robust}]")
        rows.append(row)
    return markdown_table(["arm", "E", "A", "B", "α", "β", "a"], rows)


def _predicted(fits: Mapping[str, ArmFit], axis: str) -> str:
    C = _common_costs(fits)
    rows = [[f"{c:.3g}"] for c in C]
    for arm in fits.values():
        best = frontier(arm.fit, C, arm.cost, arm.boot)
        band = best.robust["loss"]
        for i, row in enumerate(rows):
            predicted = f"{best.loss[i]:.3f} [{band.low[i]:.3f}, {band.high[i]:.3f}] at N = {best.N[i]:.3g}"
            row.append(predicted if np.isfinite(best.loss[i]) else "no optimum")
    return markdown_table([AXES[axis].label, *(f"`{name}`" for name in fits)], rows)


def _caveats(table: pd.DataFrame, fits: Mapping[str, ArmFit]) -> str:
    finished = table[table["status"] == "finished"]
    notes = [
        f"- Scale: {len(_budgets(finished))} budgets from {min(_budgets(finished)):.3g} to "
        f"{max(_budgets(finished)):.3g} FLOPs and models of {finished['N'].min():.0f} to {finished['N'].max():.0f} "
        "parameters. Dashed lines are extrapolations; nothing here says what happens at a thousand times the compute."
    ]
    seeds = finished.groupby("arm")["seed"].nunique().max()
    if seeds < 2:
        notes.append(
            "- One seed: differences of the size of the seed noise mean nothing, and lack of fit can't be tested."
        )
    for name in dict.fromkeys(finished["arm"]):
        runs = finished[finished["arm"] == name]
        if name not in fits:
            notes.append(f"- `{name}`: too few finished runs ({len(runs)}) for a law.")
            continue
        if fits[name].fit.verdict != "converged":
            notes.append(
                f"- `{name}`: {fits[name].fit.verdict}: its coefficients must not be read one by one."
            )
        edges = [
            f"{budget:.3g}"
            for budget, at in runs.groupby("budget")
            if at.loc[at["loss"].idxmin(), "N"] in (at["N"].min(), at["N"].max())
        ]
        if edges:
            notes.append(
                f"- `{name}`: at {', '.join(edges)} FLOPs the best size is the smallest or largest that was run, "
                "so its optimum is not bracketed there."
            )
    epochs = finished["epochs"].max()
    if epochs > 1:
        notes.append(
            f"- Some runs see their data more than once (up to {epochs:.2g} epochs), which the law ignores."
        )
    outdated = int((table["status"] == "outdated").sum())
    if outdated:
        notes.append(f"- Not in the fits: {outdated} runs of earlier code or other data (status `outdated`).")
    lost = table[~table["status"].isin(["finished", "outdated"])]
    for row in lost.itertuples():
        notes.append(f"- Not in the fits: `{row.name}` {row.status}.")
    return "\n".join(notes)


def _stage_seconds(folder: Path) -> dict[str, float]:
    path = folder / "study.json"
    return json.loads(path.read_text())["stage_seconds"] if path.is_file() else {}


def _provenance(table: pd.DataFrame, stage_seconds: Mapping[str, float]) -> str:
    finished = table[table["status"] == "finished"]
    counts = ", ".join(f"{count} {status}" for status, count in table["status"].value_counts().items())
    lines = [
        f"- {len(table)} runs: {counts}; {finished['seconds'].sum() / 3600:.2g} core-hours of training.",
        f"- Hardware: {'; '.join(sorted(finished['hardware'].unique()))} per run. No GPU figure is in this report."
        if not finished["hardware"].str.contains("NVIDIA").any()
        else f"- Hardware: {'; '.join(sorted(finished['hardware'].unique()))}.",
        f"- Code: {'; '.join(sorted(finished['code'].unique()))}.",
        f"- Data: definition {', '.join(sorted(set(table['data'].str[:12])))}.",
    ]
    lines += [f"- Wall time, {name}: {seconds:.0f} s." for name, seconds in stage_seconds.items()]
    lines += [f"- {axis.label}: {axis.meaning}." for axis in AXES.values()]
    lines.append("- The run table is `runs.csv` (and `.parquet`), the fits `fits.json`.")
    return "\n".join(lines)
