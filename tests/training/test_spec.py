import dataclasses
import json
from pathlib import Path

import pytest

from eqscale import tasks
from eqscale.arms import Size
from eqscale.errors import InputError
from eqscale.tasks import Field, Kind, Option, Schema, Task
from eqscale.tasks.rigid.task import data_spec
from eqscale.training import optim
from eqscale.training.loop import train
from eqscale.training.optim import Optimizer
from eqscale.training.spec import ADDED, RESULTS_VERSION, RunRecord, RunSpec
from eqscale.wording import Wording
from tests.training.test_loop import make_spec

RESULTS = Path(__file__).parents[2] / "results"
RIGID_S = "05ebb933beca39809173f1ea4559c4387689d7be4ae606de58ebb48cdffa73b8"


def records():
    """Every published record, as it is stored."""
    for path in (RESULTS / "quick/records.jsonl", *sorted((RESULTS / "cpu").glob("**/records.jsonl"))):
        yield from path.read_text().splitlines()


def test_every_published_run_keeps_its_identity_and_its_bytes():
    lines = list(records())
    assert len(lines) >= 575
    for line in lines:
        record = RunRecord.from_json(line)
        assert record.spec.run_id == json.loads(line)["run_id"]
        written = json.loads(record.to_json(None))
        assert json.dumps({name: written[name] for name in json.loads(line)}) == line
        assert record.outdated == (record.spec.version == 4)


# Beside the stored records, which could be written again.
GOLDEN = {
    "053859b7db34e67f": dict(
        arm="transformer", size=Size(30, 2, 3), budget=3e12, steps=10120, batch_size=64, learning_rate=0.01131
    ),
    "005f9bc3d2ed0f89": dict(
        arm="transformer_aug", size=Size(42, 2, 3), budget=3e12, steps=5477, batch_size=64, learning_rate=0.008554
    ),
    "01c35bc0a1860500": dict(
        arm="transformer_aligned", size=Size(24, 2, 3), budget=3e11, steps=6071, batch_size=16,
        learning_rate=0.006621, warmup=0.05,
    ),
    "0c27b7d2a2389c74": dict(
        arm="gatr", size=Size(5, 3, 2), budget=1e12, steps=4805, batch_size=16, learning_rate=0.01319
    ),
    "54ef54da12fcf8c3": dict(
        arm="gatr", size=Size(4, 4, 2), budget=1e12, steps=5045, batch_size=16, learning_rate=0.01358, seed=2,
        view=(("frame", "upright"),),
    ),
    "04dbfe9b0890b9f6": dict(
        arm="gatr_off", size=Size(3, 2, 2), budget=1e11, steps=298, batch_size=16, learning_rate=0.004746
    ),
}  # fmt: skip


@pytest.mark.parametrize("run_id", GOLDEN)
def test_identities_are_what_they_were_in_results_version_4(run_id):
    common = dict(seed=0, data=RIGID_S, train_systems=100_000, test_systems=3000, test_samples_per_system=4)
    spec = RunSpec(**(common | GOLDEN[run_id]), version=4)
    assert spec.run_id == run_id
    assert run_id in {json.loads(line)["run_id"] for line in records()}


def test_runs_share_their_luck_only_with_twins():
    spec = make_spec()
    twins = [
        {"view": (("frame", "upright"),)}, {"optimizer": "muon", "steps": 91}, {"learning_rate": 1e-3},
        {"warmup": 0.1, "momentum": 0.5, "weight_decay": 0.0}, {"test_systems": 5},
    ]  # fmt: skip
    assert {dataclasses.replace(spec, **change).luck for change in twins} == {spec.luck}
    others = [
        {"seed": 7}, {"size": Size(12, 1, 1)}, {"budget": 2 * spec.budget}, {"batch_size": 3}, {"train_systems": 19},
        {"arm": "transformer_aug"}, {"data": "0" * 64},
    ]  # fmt: skip
    assert len({spec.luck, *(dataclasses.replace(spec, **change).luck for change in others)}) == len(others) + 1


def test_a_run_of_another_results_version_is_not_trained(windows, tmp_path):
    with pytest.raises(InputError, match=r"is of results version 4; this code trains those of 6"):
        train(make_spec(version=4), *windows, checkpoints=tmp_path)


def test_data_keep_their_digest_whatever_their_size():
    assert data_spec("S", seed=0).digest == RIGID_S
    assert data_spec("S", 5, 5).digest == RIGID_S
    assert data_spec("S", seed=1).digest != RIGID_S
    assert data_spec("M", seed=0).digest != RIGID_S


# Fields that results version 4 hashed. A field that is added goes into ADDED, or every published run is orphaned.
FIRST_FIELDS = {
    "arm", "size", "budget", "steps", "batch_size", "learning_rate", "seed", "data", "train_systems", "test_systems",
    "test_samples_per_system", "view", "warmup", "weight_decay", "clip",
}  # fmt: skip
FIRST_STORED = {
    "arm", "size", "budget", "steps", "batch_size", "learning_rate", "seed", "data", "train_scenes", "test_scenes",
    "test_windows_per_scene", "horizon", "frame", "warmup", "weight_decay", "clip",
}  # fmt: skip


def test_a_field_that_came_later_is_named_as_added():
    fields = {field.name: field.default for field in dataclasses.fields(RunSpec)}
    assert fields.keys() - ADDED.keys() == FIRST_FIELDS | {"version"}
    assert {name: fields[name] for name in ADDED} == ADDED


class Toy(Task):
    schema = Schema((Field("x", Kind.POINT),), Field("step", Kind.DIRECTION, at="x"))
    options = (Option("points", 4, "how many"), Option("noise", 0.0, "of what is seen", of_data=False))
    samples_per_system = 24

    def __init__(self, name):
        self.words = Wording(name, "where a point is a little later")

    def max_tokens(self, options):
        return options["points"]


@pytest.fixture
def toys(monkeypatch):
    """Two tasks that differ in their names alone, and an optimiser."""
    monkeypatch.setattr(tasks, "_TASKS", {"rigid": tasks.get_task("rigid")})
    monkeypatch.setattr(optim, "_OPTIMIZERS", dict(optim._OPTIMIZERS))
    for name in ("toy", "toy2"):
        tasks.register(Toy(name))
    adamw = optim.get_optimizer("adamw")
    optim.register(Optimizer("toy_optimizer", "as AdamW", adamw.build))


def test_a_field_that_came_later_is_hashed_at_other_values_only(toys):
    first = make_spec()
    assert first.to_dict().keys() == FIRST_STORED
    assert make_spec(**ADDED) == first
    other = make_spec(optimizer="toy_optimizer")
    assert other.to_dict().keys() == FIRST_STORED | {"optimizer"}
    assert other.run_id != first.run_id
    assert other.name == f"{first.name}-toy_optimizer"
    assert RunSpec.from_dict(json.loads(json.dumps(other.to_dict()))) == other


def test_equal_runs_of_two_tasks_differ(toys):
    one, two = make_spec(task="toy"), make_spec(task="toy2")
    assert len({one.run_id, two.run_id, make_spec().run_id}) == 3
    assert one.to_dict()["train_systems"] == 20  # under the names of specs, where a task states no other
    assert one.name == f"toy-{make_spec().name}"
    for spec in (one, two):
        assert RunSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_options_that_change_no_data_belong_to_a_run_s_identity(toys):
    first = make_spec(task="toy")
    assert first.options == {"noise": 0.0}
    assert make_spec(task="toy", view=(("noise", 0.0),)) == first
    noisy = make_spec(task="toy", view=(("noise", 0.5),))
    assert noisy.run_id != first.run_id
    assert noisy.to_dict() == first.to_dict() | {"noise": 0.5}
    assert noisy.name == f"{first.name}-0.5"
    assert RunSpec.from_dict(noisy.to_dict()) == noisy
    upright = make_spec(view=(("frame", "upright"), ("horizon", 4)))
    assert upright == make_spec(view=(("frame", "upright"),))  # whatever the order
    assert upright.run_id != make_spec().run_id


def test_a_stored_run_with_an_option_that_its_task_does_not_know_gives_one_line():
    content = make_spec().to_dict() | {"fps": 24}
    with pytest.raises(InputError, match=r"a run of task 'rigid' has no option 'fps'; choose from horizon, frame$"):
        RunSpec.from_dict(content)


def test_an_option_may_not_have_the_name_of_a_field(toys, monkeypatch):
    monkeypatch.setattr(Toy, "options", (Option("seed", 0, "of the noise", of_data=False),))
    with pytest.raises(InputError, match=r"task 'toy': option 'seed' has the name of a field of every run"):
        make_spec(task="toy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 481}, "batch size 481 exceeds the 480 windows of 20 training scenes"),
        ({"test_samples_per_system": 25}, "25 test windows per scene; a scene has 24"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"learning_rate": -1.0}, "learning_rate must be positive and finite, not -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive and finite, not nan"),
        ({"learning_rate": 3.0}, "learning rate 3 can't work: .* at most 1"),
        ({"budget": float("inf")}, "budget must be positive and finite"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"warmup": 1.5}, "warmup must be a share of the steps"),
        ({"view": (("fps", 24),)}, "a run of task 'rigid' has no option 'fps'; choose from horizon, frame"),
        ({"view": (("family", "M"),)}, "a run of task 'rigid' has no option 'family'"),
        ({"view": (("horizon", 3),)}, "unknown horizon 3; choose from 1, 2, 4, 8"),
        ({"task": "no_such_task"}, "unknown task 'no_such_task'; choose from rigid.* --task-file"),
        ({"optimizer": "no_such"}, "unknown optimiser 'no_such'; choose from adamw"),
        ({"arm": "no_such_arm"}, "unknown arm 'no_such_arm'; choose from transformer"),
        ({"size": Size(10, 1, 3)}, "transformer, size 10x1: .*width 10 is not divisible by 3 heads"),
        ({"size": Size(8, 0, 2)}, "transformer, size 8x0: .*depth must be at least 1"),
        ({"arm": "gatr", "size": Size(10, 1, 3)}, "gatr, size 10x1: .*do not divide by heads 3"),
        ({"arm": "gatr", "size": Size(1, 1, 1)}, "gatr, size 1x1: .*needs true >= 1"),
    ],
)
def test_a_spec_that_cannot_work_is_refused_in_one_line(change, message):
    with pytest.raises(InputError, match=message) as error:
        dataclasses.replace(make_spec(), **change)
    assert "\n" not in str(error.value)


def test_a_published_run_outlives_its_arm():
    line = next(line for line in records() if '"gatr_off"' in line)
    record = RunRecord.from_json(line)
    assert (record.spec.arm, record.spec.version) == ("gatr_off", 4)
    with pytest.raises(InputError, match="unknown arm 'gatr_off'"):
        dataclasses.replace(record.spec, version=RESULTS_VERSION)
