import numpy as np
import pytest
import torch

from eqscale.errors import InputError
from eqscale.tasks.dataset import open_split
from eqscale.tasks.loader import batches
from eqscale.tasks.rigid.engine import ENGINES, simulate
from eqscale.tasks.rigid.families import FAMILIES
from eqscale.tasks.rigid.motion import Objects, ballistic, spin
from eqscale.tasks.rigid.scene import random_frame, sample_scene
from eqscale.tasks.rigid.task import data_spec


def by_hand(index: int, horizon: int, sigma: float, frame: np.ndarray):
    """Position, velocity and target of a window's tokens, straight from a simulation."""
    from scipy.spatial.transform import Rotation

    scene = sample_scene(FAMILIES["S"], 0, "train", index // 24)
    run = simulate(scene, 32)
    start = index % 24 + 1
    positions, velocities, targets = [], [], []
    time, dt = horizon / 24, 1 / 480
    mean = run.state[start, :, :3].mean(0)
    for i, track in enumerate(run.vertices(scene)):
        center, velocity, omega = np.split(run.state[start, i, [0, 1, 2, 7, 8, 9, 10, 11, 12]], 3)
        arm = track[start] - center
        turned = Rotation.from_rotvec(omega * time).apply(arm)
        fall = np.array([0, 0, -9.81]) * time * (time + dt) / 2
        positions.append(track[start] - mean)
        velocities.append(velocity + np.cross(omega, arm))
        targets.append((track[start + horizon] - (center + velocity * time + fall + turned)) / sigma)
    return [np.concatenate(x) @ frame.T for x in (positions, velocities, targets)]


@pytest.mark.parametrize("horizon", [1, 4, 8])
@pytest.mark.parametrize("frame", ["random", "upright"])
def test_batch_matches_the_simulation(spec, root, horizon, frame):
    windows = open_split(spec, root, "train", horizon=horizon, frame=frame)
    indices = np.array([0, 23, 24 * 7 + 11])
    batch = windows.batch(indices, dtype=torch.float64)
    for row, index in enumerate(indices):
        matrix = random_frame(0, "train", index // 24) if frame == "random" else np.eye(3)
        mask = batch.mask[row].numpy()
        expected = by_hand(index, horizon, windows.sigma, matrix)
        for value, truth in zip((batch["position"], batch["velocity"], batch.target), expected, strict=True):
            assert mask.sum() == len(truth)
            np.testing.assert_allclose(value[row].numpy()[mask], truth, atol=3e-6 / windows.sigma)


@pytest.mark.parametrize("size", [1, 7, 16, 600])
def test_batches_assembled_together_have_the_bits_of_each_alone(train, size):
    rng = np.random.default_rng(size)
    order = [rng.integers(len(train), size=size) for _ in range(2 + 1200 // size)]
    built = list(batches(train, order.__getitem__, range(len(order))))
    assert len(built) == len(order)
    for indices, batch in zip(order, built, strict=True):
        for one, other in zip(tensors(batch), tensors(train.batch(indices)), strict=True):
            assert torch.equal(one, other)
            assert one.is_contiguous()


def tensors(batch):
    return (*batch.values.values(), *batch.labels.values(), batch.mask, batch.target, batch.weight, batch.system)


def test_padding_is_zero_and_weights_sum_to_one(train):
    batch = train.batch(np.arange(0, len(train), 7))
    assert batch.mask.shape[1] == train.tokens.max()
    np.testing.assert_array_equal(batch.mask.sum(1), train.tokens[batch.system])
    for value in tensors(batch):
        if value.shape[:2] == batch.mask.shape:
            assert not value[~batch.mask].any()
    torch.testing.assert_close(batch.weight.sum(1), torch.ones(len(batch.weight)))


def test_centred_on_the_mean_centre_of_mass_with_the_floor_to_match(spec, root):
    windows = open_split(spec, root, "train", frame="upright")
    indices = np.arange(0, len(windows), 29)
    batch = windows.batch(indices, dtype=torch.float64)
    objects = Objects(batch)
    mean = objects.mean(batch["center"]).sum(1) / objects.exists.sum(1, keepdim=True)
    assert mean.abs().max() < 1e-12
    scenes = [sample_scene(FAMILIES["S"], 0, "train", int(i) // 24) for i in indices[:3]]
    for row, (scene, index) in enumerate(zip(scenes, indices[:3], strict=True)):
        height = simulate(scene, int(index) % 24 + 1).state[-1, :, 2].mean()
        assert batch["floor"][row, 3] == pytest.approx(-height, abs=1e-6)


def test_targets_have_unit_mean_square_on_the_prefix_that_defines_sigma(spec, root):
    for horizon in (1, 2, 4, 8):
        windows = open_split(spec, root, "train", horizon=horizon, systems=128)
        batch = windows.batch(np.arange(len(windows)), dtype=torch.float64)
        assert (batch.weight * batch.target.square().sum(-1)).sum(1).mean() == pytest.approx(1, abs=1e-6)
        assert open_split(spec, root, "test", horizon=horizon).sigma == windows.sigma


def test_free_flight_has_no_target_but_precession(train):
    """The centre of mass of an object that touches nothing falls exactly as in the ballistic reference."""
    batch = train.batch(np.arange(0, len(train), 5), dtype=torch.float64)
    objects = Objects(batch)
    free = objects.mean(batch["contact"].double()) == 0
    local = objects.mean(batch["center"])
    flight = ballistic(batch, objects, train.time, train.time_step)
    from eqscale.tasks.rigid.motion import kabsch

    _, center = kabsch(batch, objects, flight.position + train.sigma * batch.target)
    chosen = free & objects.exists
    assert chosen.sum() > 100
    assert (center - flight.center)[chosen].norm(dim=-1).max() < 1e-5
    touched = ~free & objects.exists
    assert (center - flight.center)[touched].norm(dim=-1).median() > 1e-2
    assert local.shape == center.shape


def test_spin_is_recovered_from_vertex_velocities(train):
    indices = np.arange(0, len(train), 31)
    batch = train.batch(indices, dtype=torch.float64)
    objects = Objects(batch)
    omega = spin(batch, objects)
    for row, index in enumerate(indices[:20]):
        state, _ = train.states(np.array([index // 24]), np.array([[index % 24 + 1]]))
        matrix = random_frame(0, "train", index // 24)
        n = int(objects.exists[row].sum())
        truth = np.linalg.det(matrix) * state[0, 0, :n, 10:] @ matrix.T  # an axial vector
        np.testing.assert_allclose(omega[row, :n].numpy(), truth, atol=1e-4)


def test_subsets_nest_and_unique_data_are_counted(spec, root, train):
    part = open_split(spec, root, "train", systems=40)
    assert (part.n_systems, part.samples_per_system, len(part)) == (40, 24, 960)
    indices = np.arange(0, 960, 17)
    torch.testing.assert_close(part.batch(indices).target, train.batch(indices).target, rtol=0, atol=0)
    assert part.unique_tokens == 24 * train.tokens[:40].sum()


def test_true_vertices_continue_the_batch(train):
    indices = np.arange(0, len(train), 24)[:30]
    track = train.track(indices, 4 * np.arange(7), dtype=torch.float64)
    batch = train.batch(indices, dtype=torch.float64)
    torch.testing.assert_close(track[0], batch["position"])
    later = train.batch(indices + train.horizon, dtype=torch.float64)
    objects = Objects(later)
    end = ballistic(later, objects, train.time, train.time_step).position + train.sigma * later.target
    # the later batch is centred on its own mean: compare up to that shift
    shift = (track[2] - end)[:, :1]
    torch.testing.assert_close(track[2], (end + shift) * later.mask[..., None])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"horizon": 3}, "horizon 3"),
        ({"frame": "tilted"}, "'tilted'"),
        ({"systems": 129}, "129 train systems"),
        ({"split": "validation"}, "'validation'"),
    ],
)
def test_bad_arguments_are_named(spec, root, arguments, message):
    with pytest.raises(InputError, match=message):
        open_split(spec, root, **{"split": "train", **arguments})


def test_bad_specs_are_named():
    with pytest.raises(InputError, match="unknown family 'XL'; choose from S, M, L"):
        data_spec("XL")
    with pytest.raises(InputError, match="unknown engine 'bullet'"):
        data_spec(engine="bullet")
    assert set(ENGINES) == {"standard", "stiff", "soft"}


def test_indices_outside_are_refused(train):
    with pytest.raises(IndexError):
        train.batch(np.array([len(train)]))
