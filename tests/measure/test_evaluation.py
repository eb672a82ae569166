import dataclasses
import json

import numpy as np
import pytest
import torch

from eqscale.cli import main
from eqscale.errors import InputError
from eqscale.measure.evaluation import assess, predictor, zero
from eqscale.tasks.dataset import open_split, open_stored
from eqscale.tasks.metrics import averaged, evaluate
from eqscale.tasks.rigid.task import TASK
from eqscale.training import checkpoint
from eqscale.training.loop import load_trained, train
from tests.training.conftest import DATA
from tests.training.test_loop import make_spec


@pytest.fixture(scope="module")
def trained(data_root, tmp_path_factory):
    """A short run in random frames: its record and its weights."""
    folder = tmp_path_factory.mktemp("trained")
    spec = dataclasses.replace(make_spec(steps=60), data=DATA.digest)
    windows = (open_split(DATA, data_root, split) for split in ("train", "test"))
    record = train(spec, *windows, checkpoints=folder / "c", weights=folder / "w.pt")
    return record, folder / "w.pt"


def test_the_command_prints_the_record_s_numbers_and_writes_them(trained, data_root, tmp_path, capsys):
    record, weights = trained
    out = tmp_path / "metrics.json"
    arguments = ["evaluate", str(weights), "--data", str(data_root), "--average", "4", "--json", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert f"{record.test['nmse']:.4f}" in printed
    results = json.loads(out.read_text())["results"]
    by_column = {(r["frame"], r["predictor"]): r for r in results}
    assert list(by_column) == [
        (frame, name) for frame in ("random", "upright") for name in ("zero", "model", "model, mean of 4")
    ]
    random = by_column["random", "model"]
    assert random["errors"]["nmse"] == record.test["nmse"]
    assert random["errors"]["nmse_se"] == record.test["nmse_se"]
    assert random["equivariance"] == {k: v for k, v in record.test.items() if k.startswith("equivariance_")}
    assert by_column["upright", "model"]["errors"]["nmse"] != record.test["nmse"]
    assert by_column["upright", "zero"]["errors"]["nmse"] == pytest.approx(1)
    assert by_column["random", "zero"]["equivariance"]["equivariance_yaw"] is None
    for frame in ("random", "upright"):
        one, four = by_column[frame, "model"], by_column[frame, "model, mean of 4"]
        key = f"equivariance_{'rotation' if frame == 'random' else 'yaw'}"
        assert four["equivariance"][key] < 0.8 * one["equivariance"][key]
        assert four["equivariance"]["equivariance_permutation"] < 1e-4
    assert by_column["random", "model, mean of 4"]["errors"]["nmse"] < random["errors"]["nmse"]
    rollout = random["rollout"]
    assert rollout["n_windows"] == rollout["n_scenes"] == DATA.test_systems
    np.testing.assert_allclose(rollout["time_s"], np.arange(1, 7) / 6)


def test_averaging_an_equivariant_predictor_changes_nothing(data_root):
    for frame in ("random", "upright"):
        windows = open_split(DATA, data_root, "test", frame=frame)
        batch = windows.batch(np.arange(0, len(windows), 10))
        mean = averaged(lambda b: b["velocity"] - 3 * b["gravity"][:, None], TASK.elements({"frame": frame}), 5)
        torch.testing.assert_close(mean(batch), batch["velocity"] - 3 * batch["gravity"][:, None])


def test_averaging_approaches_an_equivariant_predictor(data_root):
    """A fixed vector averages to zero over O(3), and to its vertical part over turns about the vertical."""
    constant = torch.tensor([1.0, 2.0, 2.0])
    for frame, rest in (("random", 0.0), ("upright", 2.0)):
        batch = open_split(DATA, data_root, "test", frame=frame).batch(np.arange(20))
        mean = averaged(lambda b: constant.expand_as(b.target), TASK.elements({"frame": frame}), 500)(batch)
        torch.testing.assert_close(mean[:, 0], torch.tensor([0.0, 0.0, rest]).expand(20, 3), atol=0.4, rtol=0)


def test_one_is_no_averaging_and_zero_is_refused(windows):
    test = windows[1]
    indices = np.arange(len(test))
    f = lambda b: b["velocity"] * torch.tensor([0.1, 0.2, 0.3])  # noqa: E731
    elements = TASK.elements({"frame": "random"})
    assert evaluate(averaged(f, elements, 1), test, indices) == evaluate(f, test, indices)
    with pytest.raises(InputError, match="averaging over 0 group elements: at least 1"):
        averaged(f, elements, 0)


def test_rollouts_take_as_many_steps_as_a_scene_has_room_for(trained, windows):
    spec, model = load_trained(trained[1])
    test = windows[1]
    for seconds, steps in ((0.1, 1), (0.5, 3), (7 / 6, 7)):
        rollout = assess(predictor(model), spec, test, 1, seconds).rollout
        assert len(rollout["time_s"]) == len(rollout["rotation_rmse_deg"]) == steps
        assert rollout["translation_rmse_m"][-1] > 0.02
    for seconds in (-1, 2.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"choose from 0.167 to 1.17 s, in steps of 0.167 s, or 0 for none"):
            assess(zero, spec, test, 1, seconds)
    assert assess(zero, spec, test, 1, 0).rollout is None


def test_stored_data_open_by_the_digest_of_their_definition(data_root):
    options = {"frame": "upright", "horizon": 2, "systems": 5}
    stored = open_stored("rigid", DATA.digest, data_root, "test", **options)
    named = open_split(DATA, data_root, "test", **options)
    assert stored.time_step == named.time_step
    a, b = (w.batch(np.arange(100)) for w in (stored, named))
    assert torch.equal(a.target, b.target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"results_version": 1}, "was written by another version of the code (results version 1; this is"),
        ({"spec": {"arm": "mine"}}, "unknown arm 'mine'; choose from transformer"),
        ({"spec": {"size": {"width": 16, "depth": 1, "heads": 2}}}, "another version of the arm 'transformer'"),
        ({"spec": {"data": "e" * 64}}, "data eeeeeeeeeeee are not under"),
        ({"spec": {"test_scenes": 7}}, "does not hold 7 test systems yet"),
    ],
    ids=["code", "arm", "size", "data", "scenes"],
)
def test_a_checkpoint_that_does_not_fit_gives_one_line(trained, data_root, tmp_path, capsys, change, message):
    state = checkpoint.load_file(trained[1])
    spec = state["spec"] | change.get("spec", {})
    checkpoint.save_file(tmp_path / "w.pt", state | change | {"spec": spec})
    assert main(["evaluate", str(tmp_path / "w.pt"), "--data", str(data_root)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--average", "0"], "--average 0: must be at least 1"),
        (["--rollout", "5"], "a rollout of 5 s: choose from 0.167 to 1.17 s"),
        (["--view", "family=M"], "--view family=M: write NAME=VALUE, with a name of "),
        (["--view", "horizon=x"], "horizon 'x': must be of type int\n"),
        (["--json", "nowhere/metrics.json"], "the folder nowhere does not exist"),
        (["--data", "nowhere"], "are not under 'nowhere', which holds no data set at all"),
        (["--arm-file", "nowhere.py"], "arm file 'nowhere.py' is not a readable Python file"),
    ],
)
def test_bad_arguments_give_one_line(trained, data_root, capsys, arguments, message):
    assert main(["evaluate", str(trained[1]), "--data", str(data_root), *arguments]) == 2
    assert message in capsys.readouterr().err
