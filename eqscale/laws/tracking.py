"""Run tables from an MLflow experiment; MLflow is imported only when one is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from eqscale.errors import InputError
from eqscale.tracking import existing, tracking_uri


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
        name: experiment name or id, at ``tracking_uri()``.

    Raises:
        InputError: MLflow isn't installed, no such experiment, no runs, or the address does not answer.
    """
    if not name:
        raise InputError("mlflow: no experiment given; write mlflow:EXPERIMENT")
    try:
        import mlflow
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise InputError(f"mlflow:{name}: reading an experiment needs the package mlflow") from error

    uri = existing(tracking_uri())
    client = mlflow.MlflowClient(tracking_uri=uri)
    try:
        experiment = client.get_experiment_by_name(name)
        if experiment is None and name.isdigit():
            experiment = _by_id(client, name)
        if experiment is not None:
            return _read_runs(client, experiment.experiment_id, f"experiment {name!r} at {uri}")
        known = ", ".join(e.name for e in client.search_experiments(max_results=20))
    except MlflowException as error:
        raise InputError(f"mlflow: {uri}: {str(error).splitlines()[0]}") from error
    raise InputError(f"mlflow: no experiment {name!r} at {uri}, which has {known}")


def _by_id(client: Any, experiment_id: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_experiment(experiment_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _read_runs(client: Any, experiment_id: str, where: str) -> pd.DataFrame:
    rows: list[dict[str, object]] = []
    for run in search_runs(client, experiment_id):
        tags = {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")}
        head = {"run_id": run.info.run_id, "status": run.info.status.lower()}
        plain = {name.rpartition("/")[2]: value for name, value in run.data.metrics.items()}
        rows.append({**plain, **tags, **run.data.params, **run.data.metrics, **head})
    if not rows:
        raise InputError(f"mlflow: {where} has no runs")
    return pd.DataFrame(rows).sort_values("run_id", ignore_index=True)
