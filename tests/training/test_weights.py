import dataclasses

import pytest
import torch
from PIL import Image

from eqscale.cli import main
from eqscale.errors import InputError
from eqscale.tasks.dataset import prepare
from eqscale.tasks.rigid.task import data_spec
from eqscale.training import checkpoint
from eqscale.training.loop import load_trained, train
from eqscale.training.spec import RESULTS_VERSION
from tests.training.conftest import DATA
from tests.training.test_loop import make_spec


@pytest.fixture
def weights(windows, tmp_path):
    path = tmp_path / "run.pt"
    spec = dataclasses.replace(make_spec(steps=5), data=DATA.digest)
    train(spec, *windows, checkpoints=tmp_path / "c", weights=path)
    return path


# The spec of a weights file from before runs named their task, optimiser and systems.
EARLIER = {
    "arm": "transformer", "size": {"width": 8, "depth": 1, "heads": 2}, "budget": 1e9, "steps": 5, "batch_size": 8,
    "learning_rate": 3e-3, "seed": 3, "data": DATA.digest, "train_scenes": 20, "test_scenes": 6,
    "test_windows_per_scene": 2, "horizon": 4, "frame": "random", "warmup": 0.4, "weight_decay": 0.01, "clip": 1.0,
}  # fmt: skip


def test_trained_weights_load(weights):
    spec, model = load_trained(weights)
    assert spec == dataclasses.replace(make_spec(steps=5), data=DATA.digest)
    assert not model.training
    stored = checkpoint.load_file(weights)["model"]
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())


def test_weights_from_before_tasks_had_names_are_those_of_the_same_run(weights):
    state = checkpoint.load_file(weights)
    assert state["spec"] == EARLIER
    checkpoint.save_file(weights, state | {"spec": dict(EARLIER, horizon=8, frame="upright")})
    spec, _ = load_trained(weights)
    assert spec.options == {"horizon": 8, "frame": "upright"}


def test_trained_weights_animate(weights, data_root, tmp_path):
    out = tmp_path / "prediction.gif"
    assert main(["scenes", "--checkpoint", str(weights), "--data", str(data_root), "--out", str(out)]) == 0
    with Image.open(out) as image:
        assert image.n_frames > 3


def test_a_checkpoint_of_another_version_or_of_an_unknown_arm_is_refused(weights):
    state = checkpoint.load_file(weights)
    checkpoint.save_file(weights, state | {"results_version": RESULTS_VERSION - 1})
    with pytest.raises(InputError, match=f"results version {RESULTS_VERSION - 1}; this is"):
        load_trained(weights)
    checkpoint.save_file(weights, state | {"spec": state["spec"] | {"arm": "mine"}})
    with pytest.raises(InputError, match=r"run.pt'?: unknown arm 'mine'; choose from"):
        load_trained(weights)
    wider = state["spec"] | {"size": state["spec"]["size"] | {"width": 16}}
    checkpoint.save_file(weights, state | {"spec": wider})
    with pytest.raises(InputError, match="of another version of the arm 'transformer'"):
        load_trained(weights)


def test_a_checkpoint_of_other_data_is_refused(weights, tmp_path, capsys):
    prepare(data_spec("S", 2, 2, seed=9), tmp_path / "other", workers=1)
    assert main(["scenes", "--checkpoint", str(weights), "--data", str(tmp_path / "other")]) == 2
    assert f"data {DATA.digest[:12]} are not under" in capsys.readouterr().err


def test_a_damaged_or_absent_checkpoint_is_refused(weights, tmp_path):
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(InputError, match="damaged"):
        load_trained(weights)
    with pytest.raises(InputError, match="there is no checkpoint"):
        load_trained(tmp_path / "absent.pt")


class Crafted:
    """Unpickling it would run code."""

    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    "state",
    [
        {"spec": Crafted()},
        ["spec"],
        {"spec": 3, "results_version": RESULTS_VERSION},
        {"spec": {"arm": 3}, "results_version": RESULTS_VERSION},
        {"spec": EARLIER | {"data": "d"}, "results_version": RESULTS_VERSION},
        {"spec": EARLIER | {"data": "d"}, "results_version": RESULTS_VERSION, "model": [1]},
    ],
)
def test_a_crafted_checkpoint_with_a_valid_digest_runs_nothing_and_is_one_line(tmp_path, capsys, state):
    checkpoint.save_file(tmp_path / "run.pt", state)
    with pytest.raises(InputError, match=r"checkpoint '.*run\.pt' is") as caught:
        load_trained(tmp_path / "run.pt")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""
