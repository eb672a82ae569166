"""Run tables from an MLflow experiment; MLflow is imported only when one is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from eqscale.errors import InputError


def search_runs(client: Any, experiment_id: str, condition: str = "") -> Iterator[Any]:
    """All runs of an experiment that meet a condition, page by page, by an ``MlflowClient``."""
    token = None
    while True:
        page = client.search_runs([experiment_id], condition, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def read_experiment(name: str) -> pd.DataFrame:
    """All runs of an experiment as a table: params, metrics (last values) and tags become columns.

    Where a param and a metric share a name the metric wins (it is what was measured). Run id and status come
    as ``run_id`` and ``status`` (in MLflow's words, lower case: finished, failed, running, …). A metric in a section
    of the UI, such as ``run/N``, is also found under its name without the section, unless that is taken.

    Args:
        name: experiment name or id; the tracking address is MLflow's own (``MLFLOW_TRACKING_URI``).

    Raises:
        InputError: no such experiment, no runs, or the address does not answer.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    if not name:
        raise InputError("mlflow: no experiment given; write mlflow:EXPERIMENT")
    uri = mlflow.get_tracking_uri()
    client = mlflow.MlflowClient()
    try:
        experiment = client.get_experiment_by_name(name)
        if experiment is None and name.isdigit():
            experiment = client.get_experiment(name)
        if experiment is None:
            known = ", ".join(e.name for e in client.search_experiments(max_results=20))
            raise InputError(f"mlflow: no experiment {name!r} at {uri}; it has: {known}")
        rows: list[dict[str, object]] = []
        for run in search_runs(client, experiment.experiment_id):
            tags = {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")}
            head = {"run_id": run.info.run_id, "status": run.info.status.lower()}
            plain = {name.rpartition("/")[2]: value for name, value in run.data.metrics.items()}
            rows.append({**plain, **tags, **run.data.params, **run.data.metrics, **head})
    except MlflowException as error:
        raise InputError(f"mlflow: {uri}: {str(error).splitlines()[0]}") from error
    if not rows:
        raise InputError(f"mlflow: experiment {name!r} at {uri} has no runs")
    return pd.DataFrame(rows).sort_values("run_id", ignore_index=True)
