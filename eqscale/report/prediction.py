"""A prediction made before the runs, and its comparison with what they gave."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eqscale.errors import InputError
from eqscale.laws import frontier
from eqscale.laws.arms import ArmFit
from eqscale.laws.axes import AXES
from eqscale.laws.minima import Minima, extrapolate, of_one_run
from eqscale.laws.render import plain
from eqscale.laws.validate import predict_new_runs
from eqscale.numbers import number
from eqscale.report.analysis import find_minima, fit_every_arm, on_axis
from eqscale.report.parts import Study, read_prediction

_SIZES = np.geomspace(1 / 8, 8, 49)
SAME_COST = 0.1
"""Runs within this share of a cost are at it."""


def predict(
    study: Study, compute: float, axis: str = "executed", up_to: float | None = None, names: Collection[str] = ()
) -> dict[str, Any]:
    """Predict each arm's loss and optimal size at a cost, from the compute grid's budgets below it.

    Args:
        study: a study with a compute grid.
        compute: the cost, in units of the axis.
        axis: one of ``AXES``.
        up_to: largest budget (executed FLOPs) that the laws may see; by default the largest whose runs all
            cost less than ``compute`` on the axis.
        names: the arms to predict; by default all.

    Returns:
        A JSON-ready mapping: what was seen, and for each arm the law, the optimal size and tokens and the loss
        there with 95 % intervals (``mean``: of the law; ``new_run``: of one further run; each model-based and
        robust), at sizes from an eighth to eight times the optimum the loss with new-run limits, and, without a law
        (``trend``), size and loss by straight lines through the measured optima of the last three budgets.

    Raises:
        InputError: a cost that isn't above the runs that are seen, no compute grid, an arm that isn't in it, or too
            few runs.
    """
    if axis not in AXES:
        raise InputError(f"unknown axis {axis!r}; choose one of {', '.join(AXES)}")
    if not 0 < compute < np.inf:
        raise InputError(f"compute {compute:g} is not positive and finite")
    runs = study.part("compute")
    for name in names:
        if name not in set(runs["arm"]):
            raise InputError(f"no arm {name!r} in the compute grid, which has {', '.join(runs['arm'].unique())}")
    if names:
        runs = runs[runs["arm"].isin(names)]
    highest = runs.groupby("budget")[AXES[axis].column].max()
    if up_to is None:
        up_to = highest.index[highest * (1 + SAME_COST) < compute].max()
    runs = _up_to(runs, up_to)
    if runs.empty:
        raise InputError(f"no budget of the compute grid has only runs well below {compute:g} {AXES[axis].unit}")
    most = float(runs[AXES[axis].column].max())
    if most * (1 + SAME_COST) >= compute:
        raise InputError(
            f"compute {number(compute, 6)} is not above the runs to predict from (up to {number(most, 3)} "
            f"{AXES[axis].unit}): nothing would be predicted"
        )
    fitted, unfitted = fit_every_arm(runs)
    arms = {name: on_axis(arm, runs, axis) for name, arm in fitted.items()}
    minima = find_minima(arms, axis)
    trends = {name: trend(optima, compute) for name, optima in minima.items()}
    return {
        "axis": axis,
        "compute": compute,
        "largest_budget_seen": float(runs["budget"].max()),
        "runs_seen": len(runs),
        "runs_digest": _digest(runs),
        "arms": {
            name: _predict_arm(arm, compute) | ({"trend": trends[name]} if trends.get(name) else {})
            for name, arm in arms.items()
        },
        "not_predicted": unfitted,
    }


def _up_to(runs: pd.DataFrame, budget: float) -> pd.DataFrame:
    return runs[runs["budget"] <= budget * (1 + 1e-9)]


def _digest(runs: pd.DataFrame) -> str:
    """SHA-256 of what the fits saw, to tell later whether the runs are still the same."""
    seen = runs[["arm", "N", "D", "loss"]].sort_values(["arm", "N", "D", "loss"])
    return hashlib.sha256(seen.to_csv(index=False).encode()).hexdigest()


def _predict_arm(arm: ArmFit, compute: float) -> dict[str, Any]:
    best = frontier(arm.fit, np.array([compute]), arm.cost, arm.boot)

    def limits(what: str) -> dict[str, list[float]]:
        kinds = (("model", best.model), ("robust", best.robust))
        return {kind: [float(bands[what].low[0]), float(bands[what].high[0])] for kind, bands in kinds}

    record: dict[str, Any] = {
        "law": arm.fit.params, "verdict": str(arm.fit.verdict),
        "N": float(best.N[0]), "N_interval": limits("N"), "D": float(best.D[0]), "D_interval": limits("D"),
        "cost_per_token": float(best.per_token[0]),
        "loss": float(best.loss[0]), "mean": limits("loss"), "new_run": limits("new_run"),
    }  # fmt: skip
    if np.isfinite(best.N[0]):
        N = best.N[0] * _SIZES
        D = arm.cost.tokens(N, compute)
        loss, low, high = predict_new_runs(arm.fit, {"N": N, "D": D})
        record["at_sizes"] = {"N": N, "D": D, "loss": loss, "low": low, "high": high}
    return plain(record)


def trend(minima: Minima, compute: float) -> dict[str, Any]:
    """Size and loss by straight lines through the last three measured optima; empty with fewer than two of them."""
    try:
        loss, size = (extrapolate(minima, what, compute) for what in ("loss", "N"))
    except InputError:
        return {}
    new_run = np.exp(of_one_run(minima, loss))
    loss, size = loss.exp(), size.exp()
    found = {
        "N": size.value, "N_interval": {"model": size.model, "robust": size.robust},
        "loss": loss.value, "mean": {"model": loss.model, "robust": loss.robust}, "new_run": {"model": new_run},
    }  # fmt: skip
    return plain(found)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One validation run beside its prediction."""

    row: int
    arm: str
    N: float
    observed: float
    predicted: float
    low: float
    high: float
    """Limits of a new run at this size."""

    @property
    def inside(self) -> bool:
        """Whether the run lies within its 95 % limits."""
        return self.low <= self.observed <= self.high


def outcomes(prediction: Mapping[str, Any], validation: pd.DataFrame) -> list[Outcome]:
    """Validation runs at the predicted cost, each beside the loss that was predicted for its size.

    Runs that cost another amount on the prediction's axis (by more than 10 %), whose arm was not predicted, or
    whose size lies beyond eight times the optimum are left out.
    """
    column, compute = AXES[prediction["axis"]].column, prediction["compute"]
    found = []
    for row, run in validation.iterrows():
        at = prediction["arms"].get(run["arm"], {}).get("at_sizes")
        if at is None or abs(run[column] / compute - 1) > SAME_COST or not at["N"][0] <= run["N"] <= at["N"][-1]:
            continue
        logs = (np.interp(np.log(run["N"]), np.log(at["N"]), np.log(at[k])) for k in ("loss", "low", "high"))
        values = [float(np.exp(log)) for log in logs]
        found.append(Outcome(int(row), run["arm"], float(run["N"]), float(run["loss"]), *values))  # type: ignore[arg-type]
    return found


def best_runs(found: Sequence[Outcome]) -> dict[str, float]:
    """The lowest observed loss of each arm, the lowest first."""
    best = {o.arm: o.observed for o in sorted(found, key=lambda o: -o.observed)}
    return dict(sorted(best.items(), key=lambda item: item[1]))


def outcome_frame(study: Study) -> pd.DataFrame:
    """Validation runs beside their predictions, one row each."""
    columns = ["arm", "N", "observed", "predicted", "low", "high", "inside"]
    rows = [
        (prediction["axis"], prediction["compute"], *(getattr(o, name) for name in columns))
        for prediction in study.predictions
        for o in outcomes(prediction, study.part("validation"))
    ]
    return pd.DataFrame(rows, columns=["axis", "compute", *columns])


def seen_the_same_runs(prediction: Mapping[str, Any], study: Study) -> bool:
    """Whether the runs that the prediction was made from are in the study unchanged."""
    seen = _up_to(study.part("compute"), prediction["largest_budget_seen"])
    seen = seen[seen["arm"].isin({*prediction["arms"], *prediction.get("not_predicted", {})})]
    return _digest(seen) == prediction["runs_digest"]


def _between(record: Mapping[str, Any]) -> float | None:
    trend = record.get("trend", {}).get("N")
    return record["N"] if record["N"] is None or trend is None else math.sqrt(record["N"] * trend)


def predicted_optima(folder: Path, arms: Sequence[str]) -> dict[float, dict[str, float]]:
    """Predicted optimal parameters of arms by budget, from all predictions for executed FLOPs in a results folder.

    Where there is an optimum without a law too, it is the geometric mean of both: runs around it test either.

    Args:
        folder: where ``eqscale predict`` wrote them.
        arms: the arms to be run, each at the budgets that it is predicted for.

    Raises:
        InputError: there is no such file, one is damaged, it is in a git repository and not committed, or none has an
            optimum for one of the arms.
    """
    found: dict[float, dict[str, float]] = {}
    why: dict[str, str] = {}
    for path in sorted(folder.glob("prediction*.json")):
        _require_committed(path)
        prediction = read_prediction(path)
        if prediction["axis"] == "executed":
            sizes = {name: _between(record) for name, record in prediction["arms"].items() if name in arms}
            found[prediction["compute"]] = {name: size for name, size in sizes.items() if size is not None}
            why |= prediction.get("not_predicted", {})
    if not found:
        raise InputError(
            f"there is no prediction for executed FLOPs in {str(folder)!r}: write one with eqscale predict {folder} "
            "--compute FLOPS, and commit it before these runs"
        )
    for name in arms:
        if not any(name in sizes for sizes in found.values()):
            said = why.get(name, "no optimum, or not in the compute grid")
            raise InputError(
                f"no prediction in {str(folder)!r} has an optimum for {name} ({said}): leave it out of --arms"
            )
    return dict(sorted(found.items()))


def _require_committed(path: Path) -> None:
    """Refuse a prediction in a git repository that isn't committed as it is."""
    git = ["git", "-C", str(path.absolute().parent)]
    if subprocess.run([*git, "rev-parse", "--is-inside-work-tree"], capture_output=True).returncode == 0:
        status = subprocess.run([*git, "status", "--porcelain", "--", path.name], capture_output=True)
        if status.stdout or status.returncode:
            raise InputError(f"prediction {str(path)!r} is not committed as it is: commit it before these runs")
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", "--", path.name], capture_output=True)
        if tracked.returncode:
            raise InputError(
                f"prediction {str(path)!r} is not committed, and git ignores it: git add -f it, and commit it before "
                "these runs"
            )
