"""The report takes the words of a task from task.json, and needs nothing but tables."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eqscale.errors import InputError
from eqscale.report.wording import read_wording
from eqscale.tasks import get_task
from tests.report import planted

ROOT = Path(__file__).parents[2]
OTHER = {
    "name": "orbits", "sentence": "From a system of planets, predict where each is a year later",
    "unit": {"one": "system", "many": "systems"}, "sample": {"one": "pair", "many": "pairs"},
    "trivial": "standing still", "metrics": {"radius_error": "radius, AU"},
    "metrics_note": "Errors are root mean squares.", "variant": None, "rollout": {}, "animation": "One system.",
}  # fmt: skip


def test_published_tasks_can_be_read():
    for path in (ROOT / "results").rglob("task.json"):
        task = get_task(json.loads(path.read_text(encoding="utf-8"))["name"])
        assert read_wording(path).unit == task.words.unit
        written = json.dumps(dataclasses.asdict(task.words), indent=1, ensure_ascii=False) + "\n"  # by a rerun
        assert path.read_bytes() == written.encode()


def test_a_report_on_another_task_uses_its_words_only(tmp_path):
    arms = planted.LIKE_THE_PAPER
    for part, table in (
        (".", planted.compute_grid(arms, budgets=planted.BUDGETS[:3], seeds=(0, 1)).assign(radius_error=0.125)),
        ("data_grid", planted.data_grid(arms)),
        ("controls", planted.controls(arms).assign(name="control")),
    ):
        folder = tmp_path / part
        planted.write_part(table.rename(columns={"unique_scenes": "unique_systems"}).drop(columns="frame"), folder)
        (folder / "task.json").write_text(json.dumps(OTHER))
    planted.write_evaluation(tmp_path, "gatr")
    planted.write_text(tmp_path)
    text = (tmp_path / "report.md").read_text()
    rigid = r"scene|vertex|vertices|contact|ballistic|floor|upright|horizon|gravity|frame"
    assert not re.findall(rigid, text, re.IGNORECASE)
    assert "Task `orbits`: From a system of planets" in text
    assert "A loss of 1 is that of standing still." in text
    assert "| unique systems | epochs |" in text
    assert "with 30 systems losses grow over those with fresh data by these factors" in text
    assert "| NMSE | radius, AU |" in text
    assert "| 0.125 |" in text
    assert "One system." in text


@pytest.mark.parametrize(
    ("result", "missing"), [({"errors": {}}, "predictor"), ({"predictor": "model", "errors": {}}, "nmse")]
)
def test_a_measurement_that_lacks_something_is_named(tmp_path, result, missing):
    planted.write_part(planted.compute_grid(planted.LIKE_THE_PAPER, budgets=planted.BUDGETS[:3]), tmp_path)
    (tmp_path / "task.json").write_text(json.dumps(OTHER))
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "gatr.json").write_text(json.dumps({"results": [result]}))
    with pytest.raises(InputError, match=rf"evaluation/gatr.json: result 1 has no '{missing}'"):
        planted.write_text(tmp_path)
    assert not (tmp_path / "report.md").exists()


def test_a_model_that_is_measured_again_shows_the_errors_that_its_task_tells_today(tmp_path):
    table = planted.compute_grid(planted.LIKE_THE_PAPER, budgets=planted.BUDGETS[:3], seeds=(0, 1))
    table["run_id"] = [f"{k:016x}" for k in range(len(table))]
    planted.write_part(table.assign(radius_error=0.125, frame="free"), tmp_path)
    metrics = {"radius_error": "radius, AU", "tilt_error": "tilt"}
    variant = {"one": "frame", "many": "frames"}
    (tmp_path / "task.json").write_text(json.dumps(OTHER | {"metrics": metrics, "variant": variant}))
    top = table[table["budget"] == table["budget"].max()]
    best = top[top["arm"] == "gatr"].sort_values("loss").iloc[0]["run_id"]
    errors = {"nmse": 0.2, "nmse_se": 0.01, "radius_error": 0.25, "tilt_error": 0.5}
    results = [
        {"predictor": "model", "frame": frame, "average": 1, "errors": {name: k * e for name, e in errors.items()}}
        for k, frame in ((1, "free"), (7, "fixed"))  # of its own view alone
    ]
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "gatr.json").write_text(json.dumps({"run_id": best, "spec": {}, "results": results}))
    planted.write_text(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| NMSE | radius, AU | tilt |" in text
    assert re.search(r"`gatr` .*\| 0.25 \| 0.5 \|", text)
    assert re.search(r"`transformer` .*\| 0.125 \| – \|", text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "there is no .*task.json: run the study's job again"),
        ({"unit": "scene"}, r"entry 'unit' must be a noun: .*, not 'scene'"),
        ({"variant": {"one": "frame"}}, "entry 'variant' must be a noun"),
        ({"metrics": ["nmse_free"]}, "entry 'metrics' must be a mapping of texts to texts"),
        ({"name": None}, "entry 'name' must be a text, not None"),
        ({"trivial": ...}, "no entry 'trivial'"),
    ],
)
def test_a_bad_task_file_is_one_line(tmp_path, change, message):
    path = tmp_path / "task.json"
    if change is not None:
        content = {name: value for name, value in (planted.TASK | change).items() if value is not ...}
        path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as error:
        read_wording(path)
    assert "\n" not in str(error.value)


def test_a_report_needs_neither_models_nor_tasks_nor_a_cluster(tmp_path):
    """``eqscale report`` on published results, with every import of what makes them refused."""
    for path in (ROOT / "results/quick").iterdir():
        if path.suffix in (".csv", ".json"):
            shutil.copy(path, tmp_path)
    script = """
import sys

BLOCKED = ("torch", "ray", "mlflow", "mujoco", "optuna", "eqscale.tasks", "eqscale.training", "eqscale.models",
           "eqscale.study", "eqscale.measure", "eqscale.algebra")

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if any(name == blocked or name.startswith(blocked + ".") for blocked in BLOCKED):
            raise ImportError(f"{name} is imported")

sys.meta_path.insert(0, Refuse())
from eqscale.cli import main
from eqscale.report import analysis

analysis.RESAMPLES = 20
sys.exit(main(["report", sys.argv[1]]))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "report.md").read_text().startswith("# Does building the symmetry in pay")
