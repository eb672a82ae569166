import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
from urllib.parse import parse_qs

import aiohttp
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from eqscale.study.overview import LINE_METRIC, VIEW_TAG, draw, drawn, experiment_link
from eqscale.study.tracking import Tracker
from tests.study.test_ledger import make_record, make_spec

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LINES = {"gatr": [(1_000, 0.5), (10_000, 0.25)], "transformer": [(1_000, 0.6), (10_000, 0.4), (10**13, 0.3)]}
COLOURS = {"gatr": "#D55E00", "transformer": "#0072B2"}
TABLE = pd.DataFrame(
    [
        ("transformer", "learn", 1e9, 0.6, "finished"),
        ("transformer", "learn", 1e9, 0.7, "finished"),
        ("transformer", "learn", 1e10, 0.4, "finished"),
        ("transformer", "learn", 1e10, 0.1, "outdated"),
        ("transformer", "learn", 1e19, 0.3, "finished"),
        ("gatr", "build_in", 1e9, 0.5, "finished"),
        ("gatr", "build_in", 1e10, 0.25, "finished"),
        ("gatr", "build_in", 1e11, float("nan"), "diverged"),
    ],
    columns=["arm", "role", "budget", "loss", "status"],
)


@pytest.fixture(scope="module")
def database(tmp_path_factory, empty_database):
    """A database with a study of the lines above, a run that has ended and one whose driver was killed."""
    path = tmp_path_factory.mktemp("overview") / "mlruns.db"
    shutil.copy(empty_database, path)
    tracker = Tracker(f"sqlite:///{path}", "eqscale-tiny", {"study": "tiny"})
    tracker.run_ended(make_record(make_spec(1)))
    tracker.run_started(make_spec(2))
    tracker.draw(TABLE)
    tracker.close()
    assert tracker.errors == []
    return path


@pytest.fixture
def experiment(database):
    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    return client, client.get_experiment_by_name("eqscale-tiny")


def test_the_view_that_the_link_names_shows_one_run_an_arm_and_no_other(experiment):
    client, tiny = experiment
    address, _, query = experiment_link("http://host:1/", tiny.experiment_id).partition("?")
    assert address == f"http://host:1/#/experiments/{tiny.experiment_id}/runs"
    words = {name: value for name, (value,) in parse_qs(query).items()}
    assert words | {"viewStateShareKey": ""} == {
        "workflowType": "machine_learning",
        "compareRunsMode": "CHART",
        "viewStateShareKey": "",
    }
    state = json.loads(json.loads(tiny.tags[f"mlflow.sharedViewState.{words['viewStateShareKey']}"])["state"])
    (chart,), (section,) = state["compareRunCharts"], state["compareRunSections"]
    assert chart["metricSectionId"] == section["uuid"]
    order = [f"{state['orderByKey']} {'ASC' if state['orderByAsc'] else 'DESC'}"]
    shown = client.search_runs([tiny.experiment_id], state["searchFilter"], order_by=order)
    assert [run.info.run_name for run in shown] == ["gatr", "transformer"]  # by loss at the largest budget
    assert {run.info.run_name: run.data.tags["mlflow.runColor"] for run in shown} == COLOURS
    for run in shown:
        points = client.get_metric_history(run.info.run_id, chart["metricKey"])
        assert sorted((point.step, point.value) for point in points) == LINES[run.info.run_name]


def test_a_line_is_drawn_once_and_anew_only_where_the_table_has_changed(experiment):
    client, tiny = experiment
    before = {arm: mlflow_id for mlflow_id, arm, _ in drawn(client, tiny.experiment_id)}
    draw(client, tiny.experiment_id, TABLE)
    assert {arm: mlflow_id for mlflow_id, arm, _ in drawn(client, tiny.experiment_id)} == before
    client.set_experiment_tag(tiny.experiment_id, VIEW_TAG, "of another version")
    better = TABLE.assign(loss=TABLE["loss"].mask(TABLE["arm"] == "gatr", 0.2))
    draw(client, tiny.experiment_id, better[better["budget"] < 1e19])
    after = {arm: (mlflow_id, line) for mlflow_id, arm, line in drawn(client, tiny.experiment_id)}
    assert after["gatr"][1] == [(1_000, 0.2), (10_000, 0.2)]
    assert after["transformer"][1] == LINES["transformer"][:2]
    draw(client, tiny.experiment_id, TABLE)
    assert {arm: line for _, arm, line in drawn(client, tiny.experiment_id)} == LINES
    assert client.get_experiment(tiny.experiment_id).tags == tiny.tags


SEEN = """(() => {
    const plot = document.querySelector('.js-plotly-plot')
    return plot?.data?.length ? {
        traces: plot.data.filter(trace => trace.mode.includes('markers')).map(
            trace => ({name: trace.name, x: trace.x, y: trace.y, colour: trace.marker.color})),
        axes: [plot.layout.xaxis.type, plot.layout.yaxis.type],
        drawn: document.querySelectorAll('.scatterlayer path.point').length,
        assistant: document.querySelectorAll('[data-assistant-ui]').length,
        text: document.body.innerText,
    } : null
})()"""


async def seen(link, profile):
    """What a new browser shows at ``link`` once there is a chart."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,900"]
    options += ["--remote-debugging-port=0", f"--user-data-dir={profile}", link]
    browser = await asyncio.create_subprocess_exec(CHROMIUM, *options, stderr=subprocess.PIPE)
    try:
        async with asyncio.timeout(300), aiohttp.ClientSession() as session:
            async for line in browser.stderr:
                if line.startswith(b"DevTools listening on ws://"):
                    break
            port = line.split(b"/")[2].decode()
            async with session.get(f"http://{port}/json/list") as answer:
                page = next(target for target in await answer.json() if target["type"] == "page")
            async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                question = {"id": 1, "method": "Runtime.evaluate"}
                question["params"] = {"expression": SEEN, "returnByValue": True}
                while True:
                    await socket.send_json(question)
                    result = (await socket.receive_json())["result"].get("result", {})
                    if result.get("value"):
                        return result["value"]
                    await asyncio.sleep(0.2)
    finally:
        browser.kill()
        await browser.wait()


@contextlib.contextmanager
def served(database):
    """``eqscale ui`` at work: the link that it prints."""
    command = [sys.executable, "-m", "eqscale", "ui", "--port", "0", "--tracking-uri", f"sqlite:///{database}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            link = server.stdout.readline().removeprefix("tiny: ").strip()
            printed = next((line for line in server.stdout if "Uvicorn running on" in line), None)
            assert printed is not None
            yield link
        finally:
            server.terminate()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here to open the page with")
def test_a_browser_shows_one_line_an_arm_at_the_link_that_the_command_prints(database, tmp_path):
    with served(database) as link:
        page = asyncio.run(seen(link, tmp_path))
    traces = {trace["name"]: trace for trace in page["traces"]}
    assert {arm: list(zip(trace["x"], trace["y"], strict=True)) for arm, trace in traces.items()} == LINES
    assert {arm: trace["colour"] for arm, trace in traces.items()} == COLOURS
    assert page["axes"] == ["log", "log"]
    assert page["drawn"] == sum(map(len, LINES.values()))
    assert page["assistant"] == 0
    assert "Model training" in page["text"]
    assert LINE_METRIC in page["text"]
    assert make_spec(1).name not in page["text"]
