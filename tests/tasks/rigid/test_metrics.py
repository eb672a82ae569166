import math

import numpy as np
import pytest
import torch

from eqscale.errors import InputError
from eqscale.tasks.dataset import open_split
from eqscale.tasks.metrics import asymmetry, augment, equivariance
from eqscale.tasks.rigid.metrics import CONTACTS, evaluate
from eqscale.tasks.rigid.motion import Objects, kabsch, rotation_by, rotation_vector
from eqscale.tasks.rigid.rollout import STEPS, evaluate_rollout, rollout
from eqscale.tasks.rigid.task import TASK
from eqscale.tasks.symmetry import random_orthogonal, transform


def zero(batch):
    return torch.zeros_like(batch.target)


def truth(batch):
    return batch.target


def test_ballistic_motion_has_nmse_one(test_split):
    result = evaluate(zero, test_split, np.arange(len(test_split)))
    assert result["nmse"] == pytest.approx(1, abs=1e-12)
    assert result["nmse_se"] == pytest.approx(0, abs=1e-12)
    assert result["rigidity_error_m"] < 1e-6
    assert 0.05 < result["vertex_rmse_m"] < 1
    shares, errors = (np.array([result[f"{of}_{name}"] for name in CONTACTS]) for of in ("share", "nmse"))
    assert shares.sum() == pytest.approx(1)
    assert shares @ errors == pytest.approx(result["nmse"])
    assert result["nmse_free"] < 0.05 < result["nmse_floor"]
    assert (result["n_windows"], result["n_scenes"]) == (24 * 12, 12)


def test_the_truth_has_no_error(test_split):
    result = evaluate(truth, test_split, np.arange(len(test_split)), batch_size=100)
    assert result["nmse"] == 0
    assert max(result["vertex_rmse_m"], result["center_rmse_m"], result["rigidity_error_m"]) < 1e-5
    assert result["rotation_error_deg"] < 1e-4


def test_errors_have_the_right_units(test_split):
    """A predictor off by a known shift and by nothing else."""

    def shifted(batch):
        return batch.target + torch.tensor([0.3, 0.0, 0.4]) / test_split.sigma

    result = evaluate(shifted, test_split, np.arange(40))
    assert result["vertex_rmse_m"] == pytest.approx(0.5, rel=1e-5)
    assert result["center_rmse_m"] == pytest.approx(0.5, rel=1e-5)
    assert result["rotation_error_deg"] < 1e-3
    assert result["nmse"] == pytest.approx(
        (0.5 / evaluate(zero, test_split, np.arange(40))["vertex_rmse_m"]) ** 2, rel=1e-5
    )


def test_an_inflated_object_is_a_rigidity_error(test_split):
    def inflated(batch):
        return batch.target + 0.1 * (batch["position"] - batch["center"]) / test_split.sigma

    result = evaluate(inflated, test_split, np.arange(40))
    assert 0.01 < result["rigidity_error_m"] == pytest.approx(result["vertex_rmse_m"], rel=0.3)


def test_the_standard_error_is_that_of_resampled_scenes(test_split):
    """Against a bootstrap over scenes, of a predictor with errors that differ by scene."""

    def half(batch):
        return batch.target * (0.3 + 0.1 * (batch.system % 5))[:, None, None]

    indices = np.arange(len(test_split))
    result = evaluate(half, test_split, indices)
    parts = [evaluate(half, test_split, indices[24 * k : 24 * k + 24]) for k in range(12)]
    scale = np.array(
        [evaluate(zero, test_split, indices[24 * k : 24 * k + 24])["vertex_rmse_m"] ** 2 for k in range(12)]
    )
    error = scale * [p["nmse"] for p in parts]
    draws = np.random.default_rng(0).integers(12, size=(4000, 12))
    bootstrap = (error[draws].sum(1) / scale[draws].sum(1)).std()
    assert result["nmse_se"] == pytest.approx(bootstrap, rel=0.25)
    assert math.isnan(parts[0]["nmse_se"])


def broken_classes(predict, windows):
    """Classes of group elements under which a predictor is not equivariant, and its share of the loss."""
    elements, indices = TASK.elements(windows.options), np.arange(0, len(windows), 7)
    result = equivariance(predict, windows, indices, elements, TASK.classes(), batch_size=30)
    share = result.pop("equivariance_loss_share")
    assert all(value < 1e-5 or value > 0.05 for value in result.values())
    return {name.removeprefix("equivariance_") for name, value in result.items() if value > 0.05}, share


@pytest.mark.parametrize(
    ("predict", "broken"),
    [
        (lambda b: b["velocity"], set()),
        (lambda b: b["position"] - b["floor"][:, None, 3:] * b["floor"][:, None, :3], {"translation"}),
        (lambda b: torch.linalg.cross(b["velocity"], b["gravity"][:, None]), {"reflection"}),
        (lambda b: b["velocity"] * torch.tensor([1.0, 1.0, 3.0]), {"yaw", "rotation", "reflection"}),
        (lambda b: b["velocity"] * (b["object_index"] == 0)[..., None], {"permutation"}),
        (lambda b: b["velocity"] * (torch.arange(b.mask.shape[1]) < 10)[:, None], {"permutation"}),
    ],
    ids=["equivariant", "position", "pseudovector", "preferred axis", "object label", "token order"],
)
def test_the_equivariance_error_names_the_broken_symmetry(test_split, predict, broken):
    found, share = broken_classes(predict, test_split)
    assert found == broken
    assert (share > 1e-3) == bool(broken & {"rotation", "reflection"})


def test_the_equivariance_error_has_the_size_of_what_is_added(test_split):
    """A covariant prediction v and a fixed vector c: |f(gx) - g f(x)| = |c - g c|, sqrt(2) |c| in the mean."""
    c = torch.tensor([0.0, 3.0, 4.0])
    indices = np.arange(len(test_split))

    def f(batch):
        return (20 * batch["floor"][:, None, :3] + c).expand_as(batch.target)

    result = TASK.equivariance(f, test_split, indices)
    size = np.mean([float((20 * n + c.numpy()) @ (20 * n + c.numpy())) for n in test_split.matrix[:, :, 2]])
    assert result["equivariance_rotation"] == pytest.approx(np.sqrt(2) * 5 / np.sqrt(size), rel=0.1)
    assert result == TASK.equivariance(f, test_split, indices)


@pytest.mark.parametrize("frame", ["random", "upright"])
def test_the_share_of_the_loss_is_what_averaging_over_the_group_removes(spec, root, frame):
    """Brute force: the loss of the mean over 64 elements of g^-1 f(g x), plus what 64 elements leave."""
    windows = open_split(spec, root, "train", frame=frame)  # 128 scenes, for a law of x that is nearly invariant
    indices = np.arange(0, len(windows), 5)
    matrix = torch.tensor([[1.5, 0.4, 0.0], [-0.3, 0.2, 0.8], [0.0, 0.6, 0.5]])

    def f(batch):
        return 0.3 * batch["velocity"] @ matrix

    batch = windows.batch(indices)
    plain = float((batch.weight * (f(batch) - batch.target).square().sum(-1)).sum())
    total = torch.zeros_like(batch.target)
    generator = torch.Generator().manual_seed(1)
    for _ in range(64):
        # g^-1 f(g x), with g read off from what it does to three probes carried along as targets
        probes = batch.replace(torch.eye(3).repeat(len(indices), 20, 1)[:, : batch.target.shape[1]])
        moved = augment(probes, TASK.elements(windows.options), generator)
        g = moved.target[:, :3].transpose(1, 2)
        total += f(moved) @ g
    averaged = float((batch.weight * (total / 64 - batch.target).square().sum(-1)).sum())
    removed = (1 - averaged / plain) / (1 - 1 / 64)
    share = TASK.equivariance(f, windows, indices)["equivariance_loss_share"]
    assert 0.05 < share == pytest.approx(removed, rel=0.15)
    assert asymmetry(f, windows, indices, TASK.elements(windows.options))["share"] == pytest.approx(removed, rel=0.15)


def test_kabsch_finds_the_rotation_also_of_a_reflected_scene(train):
    batch = train.batch(np.arange(0, 300, 11), dtype=torch.float64)
    objects = Objects(batch)
    n = len(batch)
    g = random_orthogonal(n, torch.Generator().manual_seed(0), torch.float64)
    g = g * torch.linalg.det(g)[:, None, None]
    rotation, center = kabsch(batch, objects, transform(batch, g)["position"])
    for k in range(objects.n):
        there = objects.exists[:, k]
        torch.testing.assert_close(rotation[there, k], g[there])
    torch.testing.assert_close(center, (objects.mean(batch["center"])) @ g.transpose(1, 2))


def test_rotation_vectors_invert_the_exponential():
    v = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = v * (
        torch.rand(500, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        * 3.1
        / v.norm(dim=1, keepdim=True)
    )
    torch.testing.assert_close(rotation_vector(rotation_by(v)), v)
    tiny = torch.tensor([[1e-9, 0, 0], [0.0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(rotation_vector(rotation_by(tiny)), tiny)


def test_rollout_starts_at_the_truth_and_its_first_step_is_the_prediction(test_split):
    indices = np.arange(0, len(test_split), 24)
    track, true, first = rollout(truth_of(test_split), test_split, indices, dtype=torch.float64)
    assert track.shape == (STEPS + 1, *first["position"].shape)
    torch.testing.assert_close(track[0], true[0])
    torch.testing.assert_close(track[1], true[1], atol=1e-6, rtol=0)


def truth_of(windows):
    """The true residual at the first step, ballistic motion after it."""
    return lambda batch: batch.target


def test_free_flight_rolls_out_exactly(test_split):
    """Ballistic motion repeated is ballistic motion: velocities carry over from step to step."""
    import eqscale.tasks.rigid.rollout as module

    batch = test_split.batch(np.arange(0, 40, 5), dtype=torch.float64)
    objects = Objects(batch)
    state = batch
    for _ in range(3):
        state = module.step(state, torch.zeros_like(state.target), test_split)
    from eqscale.tasks.rigid.motion import ballistic

    once = ballistic(batch, objects, 3 * test_split.time, test_split.time_step)
    torch.testing.assert_close(
        state["center"] * 0 + objects.spread(once.center) * batch.mask[..., None], state["center"]
    )
    torch.testing.assert_close(once.position, state["position"])


def test_rollout_errors_grow_from_the_one_step_error(test_split):
    indices = np.arange(0, len(test_split), 24)
    result = evaluate_rollout(zero, test_split, indices)
    one = evaluate(zero, test_split, indices)
    assert result["translation_rmse_m"][0] == pytest.approx(one["center_rmse_m"], rel=1e-4)
    assert result["rotation_rmse_deg"][0] == pytest.approx(one["rotation_error_deg"], rel=1e-3)
    assert (np.diff(result["translation_rmse_m"]) > 0).all()
    np.testing.assert_allclose(result["time_s"], np.arange(1, 7) / 6)
    with pytest.raises(InputError, match=r"frames 1\.\.8"):
        evaluate_rollout(zero, test_split, np.array([8]))
    assert result["n_scenes"] == 12
