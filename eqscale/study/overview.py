"""What MLflow opens a study with: its lowest test loss against compute, one line an arm.

MLflow draws a line from the steps of one run's metric. So each arm has a run of its own for its line, whose steps are
the budgets; a *saved view*, which MLflow keeps in a tag of the experiment, shows those runs alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from urllib.parse import quote, urlencode

import pandas as pd
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from eqscale.laws.tracking import search_runs
from eqscale.roles import Role, colours

LINE_TAG = "eqscale.line"
"""Tag of a run that is a line: its arm."""
LINE_METRIC = "lowest test loss"
_STEP_FLOPS = 1e6
"""Budgets in FLOPs are larger than MLflow's steps can be."""

_VIEW = "eqscale"
VIEW_TAG = f"mlflow.sharedViewState.{_VIEW}"
_SECTION = {
    "uuid": "eqscale-compute",
    "name": "step: compute, millions of FLOPs",
    "display": True,
    "columns": 1,
    "cardHeight": 420,
}
_CHART = {
    "uuid": "eqscale-loss",
    "metricSectionId": _SECTION["uuid"],
    "type": "LINE",
    "metricKey": LINE_METRIC,
    "xAxisKey": "step",
    "xAxisScaleType": "log",
    "scaleType": "log",
    "useGlobalXaxisKey": False,
    "useGlobalLineSmoothing": False,
    "lineSmoothness": 0,
    "displayPoints": True,
}
_VIEW_STATE = {
    "compareRunSections": [_SECTION],
    "compareRunCharts": [_CHART],
    "runsHiddenMode": "SHOW_ALL",
    "searchFilter": f"tags.`{LINE_TAG}` != ''",
    "orderByKey": f"metrics.`{LINE_METRIC}`",  # the loss at the largest budget
    "orderByAsc": True,
}
"""MLflow's own names, those of 3.17."""
VIEW = json.dumps({"name": "loss against compute", "createdAt": 0, "state": json.dumps(_VIEW_STATE)})

Line = list[tuple[int, float]]
"""Steps and losses, in order."""


def experiment_link(base: str, experiment_id: str) -> str:
    """Address of a study's lines in the server at ``base``."""
    view = {"workflowType": "machine_learning", "compareRunsMode": "CHART", "viewStateShareKey": _VIEW}
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs?{urlencode(view, quote_via=quote)}"


def best_losses(table: pd.DataFrame) -> dict[str, Line]:
    """The line of every arm in a run table: the lowest loss of its finished runs at each budget."""
    best = table[table["status"] == "finished"].groupby(["arm", "budget"])["loss"].min()
    lines: dict[str, Line] = {}
    for (arm, budget), loss in best.items():  # type: ignore[misc]  # pandas can't know the index
        lines.setdefault(arm, []).append(_point(max(1, round(budget / _STEP_FLOPS)), loss))
    return lines


def _point(step: int, loss: float) -> tuple[int, float]:
    return step, float(f"{loss:.9g}")  # databases round


def drawn(client: MlflowClient, experiment_id: str) -> Iterator[tuple[str, str, Line]]:
    """The lines that an experiment has: MLflow id, arm, points."""
    for run in search_runs(client, experiment_id, f"tags.`{LINE_TAG}` != ''"):
        history = client.get_metric_history(run.info.run_id, LINE_METRIC)
        yield run.info.run_id, run.data.tags[LINE_TAG], sorted(_point(point.step, point.value) for point in history)


def draw(client: MlflowClient, experiment_id: str, table: pd.DataFrame) -> None:
    """Make an experiment's lines those of a run table; a line that is right stays, any other is replaced."""
    if client.get_experiment(experiment_id).tags.get(VIEW_TAG) != VIEW:
        client.set_experiment_tag(experiment_id, VIEW_TAG, VIEW)
    missing = best_losses(table)
    for mlflow_id, arm, line in drawn(client, experiment_id):
        if missing.get(arm) == line:
            del missing[arm]
        else:
            client.delete_run(mlflow_id)
    roles = table.drop_duplicates("arm").groupby("role")["arm"].agg(list)
    shades = colours({Role(str(role)): arms for role, arms in roles.items()})
    for arm, line in missing.items():
        run = client.create_run(experiment_id, run_name=arm, tags={LINE_TAG: arm, "mlflow.runColor": shades[arm]})
        now = int(time.time() * 1000)
        client.log_batch(run.info.run_id, metrics=[Metric(LINE_METRIC, loss, now, step) for step, loss in line])
        client.set_terminated(run.info.run_id)
