"""Tables of a study's other parts: validation, and errors and measurements of the best models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from eqscale.laws.axes import AXES
from eqscale.laws.render import with_interval
from eqscale.numbers import number
from eqscale.report.exhibits import UNSEEN, Table, link
from eqscale.report.parts import VARIANT, Study
from eqscale.report.prediction import outcomes
from eqscale.wording import Noun


def validation_table(study: Study) -> Table:
    """Predictions and outcomes, one row an arm and cost."""
    rows, seen = [], []
    for prediction in study.predictions:
        cost = f"{number(prediction['compute'], 3)} {AXES[prediction['axis']].unit}"
        seen.append(
            f"for {cost} ({prediction['axis']}) from {prediction['runs_seen']} runs at budgets up to "
            f"{number(prediction['largest_budget_seen'], 3)}"
        )
        rows += [[cost, *row] for row in _predicted_arms(prediction, study.part("validation"))]
    header = ["at", "arm", "loss by its law", "loss without a law", "best run", "N_opt by its law"]
    return Table(
        "validation", "Predictions and outcomes",
        [*header, "N_opt without a law", "N of best run", "runs inside"], rows,
        f"Predicted {', '.join(seen)}, with 95 % limits of one run at the optimum. *Without a law*: straight lines in "
        "log C through the measured optima of the last three budgets. *Runs inside*: runs within the law's limits at "
        "their size. `prediction_….json` has all intervals, `validation.csv` every run beside its prediction.",
    )  # fmt: skip


def _predicted_arms(prediction: Mapping[str, Any], validation: pd.DataFrame) -> list[list[str]]:
    found, rows = outcomes(prediction, validation), []
    for name, p in prediction["arms"].items():
        own = sorted((o for o in found if o.arm == name), key=lambda o: o.observed)
        best = [number(own[0].observed), number(own[0].N, 3)] if own else [UNSEEN] * 2
        inside = f"{sum(o.inside for o in own)} of {len(own)}" if own else UNSEEN
        losses = [UNSEEN if r is None or r["loss"] is None else _predicted(r, "loss") for r in (p, p.get("trend"))]
        sizes = [UNSEEN if r is None or r["N"] is None else number(r["N"], 3) for r in (p, p.get("trend"))]
        rows.append([f"`{name}`", *losses, best[0], *sizes, best[1], inside])
    return rows


def _predicted(record: Mapping[str, Any], what: str) -> str:
    low, high = record["new_run"]["model"]
    return with_interval(record[what], low, high, 4)


def metric_table(study: Study) -> Table:
    """The task's own errors of the best models."""
    words, rows = study.wording, []
    variant = words.variant.one if words.variant else ""
    # a model that was measured later has every error that its task tells today
    measured = {
        (content.get("run_id"), result.get(variant, "")): result["errors"]
        for content in study.evaluations
        for result in content.get("results", [])
        if result["predictor"] == "model"
    }
    errors = [run.to_dict() | measured.get((run["run_id"], run[VARIANT]), {}) for _, run in study.best.iterrows()]
    shown = {c: label for c, label in words.metrics.items() if not all(pd.isna(e.get(c)) for e in errors)}
    for e in errors if shown else ():
        own = [f"`{e['arm']}`", number(e["budget"], 3), number(e["N"], 3), number(e["loss"])]
        rows.append(own + [number(e.get(column), 3) for column in shown])
    return Table(
        "metrics", "Errors of the best models by kind", ["arm", "budget", "N", "NMSE", *shown.values()], rows,
        f"The best run of each arm at its largest budget. {words.metrics_note}",
    )  # fmt: skip


def equivariance_table(study: Study) -> Table:
    """Equivariance error of every arm at its largest budget."""
    finished = pd.concat([study.part(part) for part in ("compute", "controls", "validation")])
    shown = (c for c in finished if str(c).startswith("equivariance_") and c != "equivariance_loss_share")
    columns = [c for c in shown if finished[c].notna().any()]
    top = finished[finished["budget"] == finished.groupby("arm")["budget"].transform("max")]
    rows = [
        [f"`{arm}`", number(own["budget"].iloc[0], 3), *(number(own[c].median(), 2) for c in columns)]
        for arm, own in top.groupby("arm", sort=False)
        if own[columns].notna().any(axis=None)
    ]
    names = [str(c).removeprefix("equivariance_").replace("_", " ") for c in columns]
    return Table(
        "equivariance", "Equivariance error of trained models", ["arm", "budget", *names], rows,
        "|f(gx) − g f(x)| / |f(x)| (root mean square) by the kind of transformation, median over the runs of the "
        "largest budget.",
    )  # fmt: skip


def measured_tables(study: Study) -> list[Table]:
    """Test-time averaging and rollouts, from ``eqscale measure`` or ``eqscale evaluate --json``."""
    variant, units, errors_named = study.wording.variant, study.wording.unit.many, study.wording.rollout
    averages, rollouts = [], []
    for content in study.evaluations:
        spec = content.get("spec", {})
        most = max((result.get("average", 1) for result in content.get("results", [])), default=1)
        for result in content.get("results", []):
            who = [f"`{spec.get('arm', '?')}`", number(spec.get("budget", math.nan), 3)]
            who += [result[variant.one]] if variant else []
            who.append(result["predictor"])
            errors = result["errors"]
            if result.get("average", 1) in (1, most) and most > 1:
                averages.append([*who, f"{number(errors['nmse'])} ± {number(errors['nmse_se'], 2)}"])
            if rollout := result.get("rollout"):
                ends = f"{rollout['time_s'][-1]:.3g}"
                rollouts.append([*who, ends, *(number(rollout[key][-1], 3) for key in errors_named)])
    header = ["arm", "budget", *([variant.one] if variant else []), "predictor"]
    group = f"the {variant.one}'s symmetry group" if variant else "the symmetry group"
    return [
        Table(
            "averaging", f"Trained models on the test {units}, with and without test-time averaging",
            [*header, "NMSE"], averages,
            f"*mean of K*: predictions averaged over K elements of {group}; ± one standard error over {units}.",
        ),
        Table(
            "rollouts", "Rollouts: a model's own predictions fed back", [*header, "after, s", *errors_named.values()],
            rollouts, "Root mean squared error after the last step.",
        ),
    ]  # fmt: skip


def averaging_lines(evaluations: Sequence[Mapping[str, Any]], variant: Noun | None) -> list[str]:
    """What test-time averaging does for the measured models, one sentence a number of elements."""
    found: dict[int, list[str]] = {}
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
            said = f"{100 * (1 - many / one):.1f} % off the loss of the best `{content['spec']['arm']}`"
            found.setdefault(most["average"], []).append(said)
    return [
        f"Test-time averaging over {k} group elements, at {k} times the cost of a prediction, takes "
        f"{', '.join(models)} ({link('averaging')})."
        for k, models in found.items()
    ]
