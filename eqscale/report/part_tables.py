"""Tables of what a study may hold beside its compute grid: data grid, validation, controls, measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from eqscale.laws.axes import AXES
from eqscale.laws.render import interval_text, number
from eqscale.report.analysis import Analysis, pooled_noise
from eqscale.report.axes import AUGMENTED, BASELINE, EQUIVARIANT
from eqscale.report.data_grid import (
    REPEATED,
    DataGrid,
    Gap,
    equivalent_data,
    excess,
    fresh_levels,
    gap,
    levels_with_epochs,
)
from eqscale.report.parts import Study
from eqscale.report.prediction import outcomes
from eqscale.report.tables import Table, link, two_intervals

CONTACTS = {"nmse_free": "free flight", "nmse_floor": "floor only", "nmse_object": "another object"}
_UNSEEN = "–"


def data_tables(grid: DataGrid) -> list[Table]:
    """Tables 5, 18 and 13: the data grid's means, what repetition costs, and the law of repeated data."""
    names = grid.arms()
    by_level = grid.levels.groupby("unique_scenes")
    equivalents = {
        arm: dict(equivalent_data(grid, arm, BASELINE))
        for arm in (EQUIVARIANT, AUGMENTED)
        if {arm, BASELINE} <= set(names)
    }
    rows = []
    for scenes, level in by_level:
        cells = {
            r.arm: f"{math.exp(r.log_loss):.4f}"
            + (f" ± {math.exp(r.log_loss) * r.sd / math.sqrt(r.n):.4f}" if math.isfinite(r.sd) else "")
            for r in level.itertuples()
        }
        worth = [_times(found.get(int(scenes), math.nan)) for found in equivalents.values()]  # type: ignore[call-overload]
        rows.append(
            [f"{scenes:g}", f"{level['epochs'].mean():.3g}", *(cells.get(n, _UNSEEN) for n in names), *worth]
        )
    header = ["unique scenes", "epochs", *(f"`{n}`" for n in names)]
    header += [f"scenes `{BASELINE}` needs for `{arm}`'s loss" for arm in equivalents]
    budgets = ", ".join(f"{b:.3g}" for b in sorted(grid.runs["budget"].unique()))
    costs = "; ".join(
        f"`{arm}` {own['flops_nominal'].median():.3g} nominal FLOPs, {own['seconds'].median():.3g} s"
        for arm, own in grid.runs.groupby("arm", sort=False)
    )
    note = f"Mean over seeds ± standard error from seeds, at {budgets} executed FLOPs; a run costs {costs}."
    tables = [
        Table(5, "Loss against unique training data at one budget", header, rows, note),
        _price_table(grid),
    ]
    law_rows = [
        [f"`{arm}`", str(law.fit.n), two_intervals(law.found["R"]), two_intervals(law.found["beta"]), law.fit.verdict]
        for arm, law in grid.laws.items()
    ]  # fmt: skip
    law_rows += [
        [f"`{arm}`", _UNSEEN, _UNSEEN, _UNSEEN, f"no law: {why}"] for arm, why in grid.unfitted.items()
    ]
    note = (
        "L = E + A/N^α + B/D_eff^β with D_eff = U (1 + R (1 − exp(−(D/U − 1)/R))) for U unique of D tokens "
        "(Muennighoff et al. 2023), fitted to the compute grid and the data grid together: repeated data are worth at "
        "most R times the unique ones. Intervals as in Table 1. The law can't express a loss that rises with epochs."
    )
    header = ["arm", "runs", "R", "β", "verdict"]
    return [*tables, Table(13, "Law of repeated data", header, law_rows, note)]


def _price_table(grid: DataGrid) -> Table:
    names = grid.arms()
    levels = grid.levels.groupby("unique_scenes")["epochs"].mean()
    rows = []
    for scenes, epochs in levels[levels >= REPEATED].items():
        prices = [excess(grid, {name: 1.0}, [int(scenes)]) for name in names]  # type: ignore[call-overload]
        rows.append([f"{scenes:g}", f"{epochs:.3g}", *map(_factor, prices)])
    return Table(
        18, "What repetition costs", ["unique scenes", "epochs", *(f"`{n}`" for n in names)], rows,
        f"An arm's loss over its own with fresh data (mean over the rows of Table 5 with fewer than {REPEATED:g} "
        "epochs), with the 95 % interval of the seeds' scatter. It leaves out what an arm is ahead by at this "
        "compute with any amount of data, and enters no check of the conclusions.",
    )  # fmt: skip


def data_lines(grid: DataGrid) -> list[str]:
    """What scarce data cost the arms, apart from who is ahead with fresh data."""
    trio = (EQUIVARIANT, BASELINE, AUGMENTED)
    levels = levels_with_epochs(grid, list(trio), REPEATED)
    fewest = {arm: excess(grid, {arm: 1.0}, levels[:1]) for arm in trio}
    if not levels or any(math.isnan(price.value) for price in fewest.values()):
        return []
    lead, left = {BASELINE: 1.0, EQUIVARIANT: -1.0}, {AUGMENTED: 1.0, EQUIVARIANT: -1.0}
    fresh = fresh_levels(grid, list(trio))
    said = ", ".join(f"`{arm}`'s {_factor(price)}" for arm, price in fewest.items())
    return [
        f"Scarce data, at one budget: with {levels[0]} scenes losses are as many times as high as with fresh "
        f"data: {said}. Averaged over "
        f"{', '.join(map(str, levels))} scenes, repetition costs `{BASELINE}` {_factor(excess(grid, lead, levels))} "
        f"and `{AUGMENTED}` {_factor(excess(grid, left, levels))} times what it costs `{EQUIVARIANT}`; with fresh data "
        f"their losses are {_factor(gap(grid, lead, fresh))} and {_factor(gap(grid, left, fresh))} times that of "
        f"`{EQUIVARIANT}` ({link(18)}, {link(5)})."
    ]


def _factor(found: Gap) -> str:
    """A gap in log loss as a ratio of losses."""
    if math.isnan(found.value):
        return _UNSEEN
    limits = f" {interval_text((math.exp(found.low), math.exp(found.high)), 3)}" if found.known else ""
    return f"{number(math.exp(found.value), 3)}{limits}"


def _times(value: float) -> str:
    if math.isnan(value):
        return "fewer than were run"
    return "never reached" if math.isinf(value) else f"{value:.2g} ×"


def validation_table(study: Study) -> Table | None:
    """Table 9: what was predicted and what came."""
    prediction = study.prediction
    if prediction is None:
        return None
    unit = AXES[prediction["axis"]].unit
    found = outcomes(prediction, study.part("validation"))
    rows = []
    for name, p in prediction["arms"].items():
        if p["loss"] is None:
            rows.append([f"`{name}`", "its law", "no optimum", *[_UNSEEN] * 5])
            continue
        own = sorted((o for o in found if o.arm == name), key=lambda o: o.observed)
        runs = "; ".join(
            f"N = {o.N:.3g}: {number(o.observed)} (predicted {number(o.predicted)} {interval_text((o.low, o.high))}, "
            f"{100 * (o.predicted / o.observed - 1):+.1f} %, {'inside' if o.inside else '**outside**'})"
            for o in own
        )
        best = own[0] if own else None
        measured = [number(best.observed), number(best.N, 3)] if best else ["not run yet"] * 2
        by_law = (
            p["loss"],
            p["mean"],
            [p["new_run"]["model"], p["new_run"]["robust"]],
            p["N"],
            p["N_interval"],
        )
        entries = [("its law", by_law, runs or _UNSEEN)]
        if trend := p.get("trend"):
            without = (
                trend["loss"],
                trend["mean"],
                [trend["new_run"]["model"]],
                trend["N"],
                trend["N_interval"],
            )
            entries.append(("no law", without, _UNSEEN))
        for by, (loss, mean, new_run, size, sizes), shown in entries:
            rows.append(
                [
                    f"`{name}`",
                    by,
                    f"{number(loss)} {interval_text(mean['model'])} {interval_text(mean['robust'])}",
                    " ".join(map(interval_text, new_run)),
                    measured[0],
                    f"{number(size, 3)} {interval_text(sizes['model'])} {interval_text(sizes['robust'])}",
                    measured[1],
                    shown,
                ]
            )
    seen = f"{prediction['runs_seen']} runs at budgets up to {prediction['largest_budget_seen']:.3g}"
    header = [
        "arm",
        "by",
        "predicted loss",
        "of a new run",
        "best run",
        "predicted N_opt",
        "N of best run",
        "runs",
    ]
    return Table(
        9, f"Prediction for {prediction['compute']:.3g} {unit} ({prediction['axis']}) and outcome", header, rows,
        f"Predicted from {seen}. 95 % intervals: [model-based] [robust]; limits of single runs are model-based. "
        "*No law*: straight lines in log C through the measured optima of the last three budgets.",
    )  # fmt: skip


def control_table(study: Study, analysis: Analysis) -> Table | None:
    """Table 10: control runs beside the compute grid's at the same budget."""
    controls, grid = study.part("controls"), study.part("compute")
    if controls.empty:
        return None
    rows = []
    point = ["arm", "frame", "budget", "N"]
    for (arm, frame, budget, N), runs in controls.groupby(point, sort=False, dropna=False):
        at = grid[np.isclose(grid["budget"], budget, rtol=1e-6)]
        twin = at[(at["arm"] == arm) & (at["N"] == N) & (at["frame"] != frame)]
        best = {
            str(name): own.groupby("N")["loss"].mean().min()
            for name, own in at.groupby("arm")
            if name in (BASELINE, EQUIVARIANT)
        }
        mean, n = float(runs["loss"].mean()), len(runs)
        rows.append(
            [
                f"`{arm}`",
                str(frame),
                f"{budget:.3g}",
                f"{N:.0f}",
                f"{mean:.4f}" + (f" ({n} seeds)" if n > 1 else ""),
                _twin_text(runs, twin, analysis.noise),
                *(f"× {mean / best[a]:.2f}" if a in best else _UNSEEN for a in (EQUIVARIANT, BASELINE)),
            ]
        )
    header = ["arm", "frame", "budget", "N", "loss", "same size and budget in the grid's frame"]
    header += [f"over the best `{a}`" for a in (EQUIVARIANT, BASELINE)]
    return Table(
        10, "Controls", header, rows,
        "Means over seeds. A control of the same arm and size in another frame is compared with its twin: their ratio "
        "with the 95 % interval that seed noise alone would give it.",
    )  # fmt: skip


def control_lines(study: Study, noise: pd.DataFrame) -> list[str]:
    """What controls and test-time averaging say, in a sentence each."""
    controls, grid = study.part("controls"), study.part("compute")
    lines = []
    best = grid[grid["arm"] == EQUIVARIANT].groupby(["budget", "N"])["loss"].mean().groupby("budget").min()
    for arm, runs in controls[controls["arm"].str.endswith("_off")].groupby("arm"):
        means = runs.groupby(["budget", "N"])["loss"].mean()
        ratio = (means.groupby("budget").min() / best).dropna()
        smallest = all(len(at) > 1 and at.idxmin()[1] == at.index[0][1] for _, at in means.groupby("budget"))
        if len(ratio):
            said = ", ".join(f"{value:.2f} at {budget:.2g}" for budget, value in ratio.items())
            lines.append(
                f"The symmetry switched off in the same backbone: the best `{arm}` has {said} executed FLOPs times the "
                f"loss of the best `{EQUIVARIANT}` ({link(10)})"
                + ("; its smallest size is its best at every budget." if smallest else ".")
            )
    twins = []
    for (arm, frame, budget, N), runs in controls.groupby(["arm", "frame", "budget", "N"], sort=False):
        twin = grid[(grid["arm"] == arm) & (grid["N"] == N) & np.isclose(grid["budget"], budget, rtol=1e-6)]
        twin = twin[twin["frame"] != frame]
        if len(twin):
            twins.append(f"`{arm}` in {frame} frames at {budget:.2g}: {_twin_text(runs, twin, noise)}")
    if twins:
        lines.append(f"The same arm in other frames: {'; '.join(twins)} ({link(10)}).")
    for content in study.evaluations:
        results = content.get("results", [])
        plain = [r for r in results if r.get("average") == 1 and r["predictor"] == "model"]
        most: Mapping[str, Any] = max(results, key=lambda r: r.get("average", 1), default={})
        same = [r for r in plain if r["frame"] == most.get("frame")]
        if same and most.get("average", 1) > 1:
            one, many = same[0]["errors"]["nmse"], most["errors"]["nmse"]
            lines.append(
                f"Test-time averaging over {most['average']} group elements takes the best `{content['spec']['arm']}` "
                f"from a loss of {number(one)} to {number(many)}, {100 * (1 - many / one):.1f} % less, at "
                f"{most['average']} times the cost of a prediction ({link(15)})."
            )
    return lines


def _twin_text(runs: pd.DataFrame, twin: pd.DataFrame, noise: pd.DataFrame) -> str:
    """Ratio to the same size in another frame, and whether seed noise explains it."""
    if twin.empty:
        return _UNSEEN
    ratio = float(np.log(runs["loss"].astype(float)).mean() - np.log(twin["loss"].astype(float)).mean())
    sd, df = pooled_noise(noise, str(runs["arm"].iloc[0]))
    shown = f"{twin['loss'].mean():.4f}, ratio {math.exp(ratio):.3f}"
    if not df:
        return f"{shown} (no seeds to tell the noise)"
    from scipy import stats

    half = float(stats.t.ppf(0.975, df)) * sd * math.sqrt(1 / len(runs) + 1 / len(twin))
    verdict = "equal within noise" if abs(ratio) <= half else "**differs**"
    return f"{shown} [{math.exp(ratio - half):.3f}, {math.exp(ratio + half):.3f}]: {verdict}"


def best_models(study: Study) -> pd.DataFrame:
    """The run with the lowest loss of each arm at its largest budget, of compute grid and validation."""
    finished = pd.concat([study.part("compute"), study.part("validation")])
    top = finished[finished["budget"] == finished.groupby("arm")["budget"].transform("max")]
    return top.loc[top.groupby("arm", sort=False)["loss"].idxmin()]


def contact_table(study: Study) -> Table | None:
    """Table 11: errors of the best models by what a body touches, and in metres and degrees."""
    finished = best_models(study)
    columns = {
        **CONTACTS, "vertex_rmse_m": "vertices, m", "center_rmse_m": "centre of mass, m",
        "rotation_error_deg": "rotation, °", "rigidity_error_m": "rigidity, m",
    }  # fmt: skip
    shown = {c: label for c, label in columns.items() if c in study.runs and study.runs[c].notna().any()}
    if finished.empty or not shown:
        return None
    rows = [
        [f"`{run['arm']}`", f"{run['budget']:.3g}", f"{run['N']:.3g}", number(run["loss"])]
        + [number(run[c], 3) for c in shown]
        for _, run in finished.iterrows()
    ]
    return Table(
        11, "Errors of the best models by kind", ["arm", "budget", "N", "NMSE", *shown.values()], rows,
        "The best run of each arm at its largest budget. NMSE by what a body touches is over the mean squared target "
        "of all bodies; the others are root mean squares.",
    )  # fmt: skip


def equivariance_table(study: Study) -> Table | None:
    """Table 14: equivariance error of every arm at every budget."""
    finished = pd.concat([study.part(p) for p in ("compute", "controls", "validation")])
    columns = [c for c in finished if str(c).startswith("equivariance_") and finished[c].notna().any()]
    if not columns:
        return None
    rows = [
        [f"`{arm}`", f"{budget:.3g}", *(number(own[c].median(), 2) for c in columns)]
        for (arm, budget), own in finished.groupby(["arm", "budget"], sort=False)
        if own[columns].notna().any(axis=None)
    ]
    names = [str(c).removeprefix("equivariance_").replace("_", " ") for c in columns]
    return Table(
        14, "Equivariance error of trained models", ["arm", "budget", *names], rows,
        "|f(gx) − g f(x)| / |f(x)| (root mean square), median over the runs of a budget, by the kind of "
        "transformation; *loss share*: what averaging over the symmetry group would take off the loss.",
    )  # fmt: skip


def measured_tables(evaluations: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Tables 15 and 16: test-time averaging and rollouts, from ``eqscale evaluate --json``."""
    averages, rollouts = [], []
    for content in evaluations:
        spec = content.get("spec", {})
        for result in content.get("results", []):
            who = [
                f"`{spec.get('arm', '?')}`",
                f"{spec.get('budget', math.nan):.3g}",
                result["frame"],
                result["predictor"],
            ]
            errors = result["errors"]
            averages.append([*who, f"{number(errors['nmse'])} ± {number(errors['nmse_se'], 2)}"])
            if result.get("rollout"):
                rollouts.append([*who, *_rollout_cells(result["rollout"])])
    tables = []
    header = ["arm", "budget", "frame", "predictor"]
    if averages:
        tables.append(
            Table(
                15, "Trained models on the test scenes, with and without test-time averaging", [*header, "NMSE"],
                averages, "*mean of K*: predictions averaged over K elements of the frame's symmetry group; ± one "
                "standard error over scenes.",
            )
        )  # fmt: skip
    if rollouts:
        tables.append(
            Table(
                16, "Rollouts: a model's own predictions fed back", [*header, "centre of mass, m", "rotation, °"],
                rollouts, "Root mean squared error after the first, the middle and the last step.",
            )
        )  # fmt: skip
    return tables


def _rollout_cells(rollout: Mapping[str, Any]) -> list[str]:
    steps = len(rollout["time_s"])
    picked = sorted({0, steps // 2, steps - 1})
    return [
        "; ".join(f"{number(rollout[key][i], 3)} at {rollout['time_s'][i]:.3g} s" for i in picked)
        for key in ("translation_rmse_m", "rotation_rmse_deg")
    ]
