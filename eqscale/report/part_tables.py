"""Tables of a study's other parts: validation, and errors and measurements of the best models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from eqscale.laws.axes import AXES
from eqscale.laws.render import interval_text, number
from eqscale.report.exhibits import UNSEEN, Table, link
from eqscale.report.parts import Study
from eqscale.report.prediction import outcomes
from eqscale.wording import Noun


def validation_table(study: Study) -> Table | None:
    """Predictions and outcomes."""
    prediction = study.prediction
    if prediction is None:
        return None
    unit = AXES[prediction["axis"]].unit
    found = outcomes(prediction, study.part("validation"))
    rows = []
    for name, p in prediction["arms"].items():
        if p["loss"] is None:
            rows.append([f"`{name}`", "its law", "no optimum", *[UNSEEN] * 5])
            continue
        own = sorted((o for o in found if o.arm == name), key=lambda o: o.observed)
        runs = "; ".join(
            f"N = {o.N:.3g}: {number(o.observed)} (predicted {number(o.predicted)} {interval_text((o.low, o.high))}, "
            f"{100 * (o.predicted / o.observed - 1):+.1f} %, {'inside' if o.inside else '**outside**'})"
            for o in own
        )
        best_loss, best_size = (number(own[0].observed), number(own[0].N, 3)) if own else ("not run yet",) * 2
        for by, record, shown in (("its law", p, runs or UNSEEN), ("no law", p.get("trend"), UNSEEN)):
            if record:
                mean, sizes, new_run = (
                    " ".join(map(interval_text, record[key].values())) for key in ("mean", "N_interval", "new_run")
                )
                loss, size = f"{number(record['loss'])} {mean}", f"{number(record['N'], 3)} {sizes}"
                rows.append([f"`{name}`", by, loss, new_run, best_loss, size, best_size, shown])
    seen = f"{prediction['runs_seen']} runs at budgets up to {prediction['largest_budget_seen']:.3g}"
    header = ["arm", "by", "predicted loss", "of a new run", "best run", "predicted N_opt", "N of best run", "runs"]
    return Table(
        "validation", f"Prediction for {prediction['compute']:.3g} {unit} ({prediction['axis']}) and outcome",
        header, rows,
        f"Predicted from {seen}. 95 % intervals: [model-based] [robust]; limits of single runs are model-based. "
        "*No law*: straight lines in log C through the measured optima of the last three budgets.",
    )  # fmt: skip


def metric_table(study: Study) -> Table:
    """The task's own errors of the best models."""
    runs, words = study.runs, study.wording
    shown = {c: label for c, label in words.metrics.items() if c in runs and runs[c].notna().any()}
    rows = [
        [f"`{run['arm']}`", f"{run['budget']:.3g}", f"{run['N']:.3g}", number(run["loss"])]
        + [number(run[column], 3) for column in shown]
        for _, run in study.best.iterrows()
        if shown
    ]
    return Table(
        "metrics", "Errors of the best models by kind", ["arm", "budget", "N", "NMSE", *shown.values()], rows,
        f"The best run of each arm at its largest budget. {words.metrics_note}",
    )  # fmt: skip


def equivariance_table(study: Study) -> Table:
    """Equivariance error of every arm at every budget."""
    finished = pd.concat([study.part(part) for part in ("compute", "controls", "validation")])
    columns = [c for c in finished if str(c).startswith("equivariance_") and finished[c].notna().any()]
    rows = [
        [f"`{arm}`", f"{budget:.3g}", *(number(own[c].median(), 2) for c in columns)]
        for (arm, budget), own in finished.groupby(["arm", "budget"], sort=False)
        if own[columns].notna().any(axis=None)
    ]
    names = [str(c).removeprefix("equivariance_").replace("_", " ") for c in columns]
    return Table(
        "equivariance", "Equivariance error of trained models", ["arm", "budget", *names], rows,
        "|f(gx) − g f(x)| / |f(x)| (root mean square), median over the runs of a budget, by the kind of "
        "transformation; *loss share*: the share of the loss that averaging over the symmetry group would remove.",
    )  # fmt: skip


def measured_tables(study: Study) -> list[Table]:
    """Test-time averaging and rollouts, from ``eqscale measure`` or ``eqscale evaluate --json``."""
    variant, units, errors_named = study.wording.variant, study.wording.unit.many, study.wording.rollout
    averages, rollouts = [], []
    for content in study.evaluations:
        spec = content.get("spec", {})
        for result in content.get("results", []):
            who = [f"`{spec.get('arm', '?')}`", f"{spec.get('budget', math.nan):.3g}"]
            who += [result[variant.one]] if variant else []
            who.append(result["predictor"])
            errors = result["errors"]
            averages.append([*who, f"{number(errors['nmse'])} ± {number(errors['nmse_se'], 2)}"])
            if rollout := result.get("rollout"):
                steps = len(rollout["time_s"])
                at = {i: f"{rollout['time_s'][i]:.3g} s" for i in sorted({0, steps // 2, steps - 1})}
                shown = (
                    "; ".join(f"{number(rollout[key][i], 3)} at {t}" for i, t in at.items()) for key in errors_named
                )
                rollouts.append([*who, *shown])
    header = ["arm", "budget", *([variant.one] if variant else []), "predictor"]
    group = f"the {variant.one}'s symmetry group" if variant else "the symmetry group"
    return [
        Table(
            "averaging", f"Trained models on the test {units}, with and without test-time averaging",
            [*header, "NMSE"], averages,
            f"*mean of K*: predictions averaged over K elements of {group}; ± one standard error over {units}.",
        ),
        Table(
            "rollouts", "Rollouts: a model's own predictions fed back", [*header, *errors_named.values()],
            rollouts, "Root mean squared error after the first, the middle and the last step.",
        ),
    ]  # fmt: skip


def averaging_lines(evaluations: Sequence[Mapping[str, Any]], variant: Noun | None) -> list[str]:
    """What test-time averaging does for each measured model."""
    lines = []
    for content in evaluations:
        results = content.get("results", [])
        most: Mapping[str, Any] = max(results, key=lambda r: r.get("average", 1), default={})
        same = [
            r for r in results
            if r.get("average") == 1 and r["predictor"] == "model"
            and (variant is None or r[variant.one] == most.get(variant.one))
        ]  # fmt: skip
        if same and most.get("average", 1) > 1:
            one, many = same[0]["errors"]["nmse"], most["errors"]["nmse"]
            lines.append(
                f"Test-time averaging over {most['average']} group elements takes the best `{content['spec']['arm']}` "
                f"from a loss of {number(one)} to {number(many)}, {100 * (1 - many / one):.1f} % less, at "
                f"{most['average']} times the cost of a prediction ({link('averaging')})."
            )
    return lines
