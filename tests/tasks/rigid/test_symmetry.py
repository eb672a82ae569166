import numpy as np
import pytest
import torch

from benchmarks.rigid_symmetry import permute_objects, permute_vertices, transform_scene
from eqscale.tasks.dataset import open_split
from eqscale.tasks.metrics import augment
from eqscale.tasks.rigid.engine import ENGINES, EngineSettings, simulate
from eqscale.tasks.rigid.families import FAMILIES
from eqscale.tasks.rigid.motion import Objects, ballistic
from eqscale.tasks.rigid.scene import Scene, random_frame, sample_scene
from eqscale.tasks.rigid.symmetry import ELEMENTS, align, random_vertical
from eqscale.tasks.rigid.task import TASK
from eqscale.tasks.symmetry import random_orthogonal, transform, translate


def haar(rng: np.random.Generator, det: int) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * (det * np.sign(np.linalg.det(q)))


def motion_error(scene: Scene, frames: int, act, undo, settings=ENGINES["standard"]) -> tuple[float, float]:
    """Sum of squares: simulate(act(scene)) taken back less simulate(scene), and the motion."""
    plain, moved = simulate(scene, frames, settings), simulate(act(scene), frames, settings)
    here, there = plain.state[..., :3], undo(moved.state[..., :3])
    return float(np.square(here[-1] - there[-1]).sum()), float(np.square(here[-1] - here[0]).sum())


def relative(runs, act_of, settings=ENGINES["standard"], frames=12) -> float:
    """rms discrepancy over rms motion, over mid-flight starts of several scenes."""
    rng = np.random.default_rng(1)
    pairs = []
    for scene, run in runs:
        act, undo = act_of(rng, scene.n)
        pairs.append(motion_error(run.restart(scene, int(rng.integers(1, 20))), frames, act, undo, settings))
    errors, motions = np.array(pairs).sum(0)
    return float(np.sqrt(errors / motions))


def euclidean(det: int):
    def act_of(rng, n):
        matrix, shift = haar(rng, det), rng.uniform(-5, 5, 3)
        return lambda s: transform_scene(s, matrix, shift), lambda x: (x - shift) @ matrix

    return act_of


def object_order(rng, n):
    order = rng.permutation(n)
    return lambda s: permute_objects(s, order), lambda x: x[:, np.argsort(order)]


def vertex_order(rng, n):
    def shuffled(scene):
        return permute_vertices(scene, [rng.permutation(len(v)) for v in scene.vertices])

    return shuffled, lambda x: x


@pytest.mark.parametrize(
    "act_of",
    [euclidean(1), euclidean(-1), object_order, vertex_order],
    ids=["rotation", "reflection", "objects", "vertices"],
)
def test_the_simulated_map_is_equivariant(runs, act_of):
    assert relative(runs, act_of) < 1e-6


def test_the_bar_is_tight_enough_to_catch_a_pyramidal_cone(runs):
    assert relative(runs[:6], euclidean(1), EngineSettings(cone="pyramidal")) > 1e-3


def test_restarting_from_a_recorded_state_continues_the_motion(runs):
    for scene, run in runs[:6]:
        again = simulate(run.restart(scene, 6), 8)
        np.testing.assert_allclose(again.state[-1, :, :3], run.state[14, :, :3], atol=1e-6)


@pytest.mark.parametrize(("det", "k"), [(1, 3), (-1, 5)])
def test_rotated_data_equal_the_simulation_of_the_rotated_scene(runs, train, det, k):
    """Augmented labels are exact: acting on stored windows gives what simulating the scene acted on gives."""
    scene, _ = runs[k]
    matrix = haar(np.random.default_rng(2), det)
    turned = transform_scene(scene, matrix @ random_frame(0, "train", k), np.zeros(3))
    run = simulate(turned, 32)
    tracks = run.vertices(turned)
    indices = np.arange(24 * k, 24 * k + 24)
    batch = transform(train.batch(indices, dtype=torch.float64), torch.from_numpy(matrix).expand(24, 3, 3))
    free = ballistic(batch, Objects(batch), train.time, train.time_step).position
    for row in range(8):
        start, mask = row + 1, batch.mask[row].numpy()
        mean = run.state[start, :, :3].mean(0)
        begin, end = (np.concatenate([t[f] for t in tracks]) - mean for f in (start, start + 4))
        np.testing.assert_allclose(batch["position"][row].numpy()[mask], begin, atol=3e-6)
        np.testing.assert_allclose((free + train.sigma * batch.target)[row].numpy()[mask], end, atol=1e-5)
        np.testing.assert_allclose(batch["gravity"][row], turned.gravity, atol=1e-6)
        np.testing.assert_allclose(batch["floor"][row, :3], turned.floor_normal, atol=1e-6)
        assert float(batch["floor"][row, 3]) == pytest.approx(-turned.floor_normal @ mean, abs=1e-5)


def test_random_vertical_fixes_the_vertical():
    g = random_vertical(2000, torch.Generator().manual_seed(0), torch.float64)
    torch.testing.assert_close(g @ g.transpose(1, 2), torch.eye(3, dtype=torch.float64).expand_as(g))
    up = torch.tensor([0, 0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(g @ up, up.expand(2000, 3))
    assert abs(float(torch.linalg.det(g).mean())) < 0.07
    assert g[:, :2].mean(0).abs().max() < 0.07


def test_scalars_of_a_batch_are_invariant(train):
    batch = train.batch(np.arange(0, 200, 13), dtype=torch.float64)
    n = len(batch)
    generator = torch.Generator().manual_seed(0)
    moved = transform(batch, random_orthogonal(n, generator, torch.float64))
    moved = translate(moved, torch.randn(n, 3, generator=generator, dtype=torch.float64))

    def height(b):
        normal, offset = b["floor"][:, None, :3], b["floor"][:, None, 3]
        return ((b["position"] * normal).sum(-1) - offset) * b.mask

    def speed_along_gravity(b):
        return (b["velocity"] * b["gravity"][:, None]).sum(-1)

    for scalar in (height, speed_along_gravity, lambda b: b.target.norm(dim=-1)):
        torch.testing.assert_close(scalar(moved), scalar(batch))
    assert not moved["position"][~moved.mask].any()


@pytest.mark.parametrize("frame", ["random", "upright"])
def test_augmentation_stays_in_the_frame_protocol(spec, root, frame):
    windows = open_split(spec, root, "train", frame=frame)
    batch = windows.batch(np.arange(0, 400, 9), dtype=torch.float64)
    moved = augment(batch, TASK.elements(windows.options), torch.Generator().manual_seed(3))
    if frame == "upright":
        torch.testing.assert_close(moved["gravity"], batch["gravity"])
        torch.testing.assert_close(moved["floor"], batch["floor"])
    assert not torch.allclose(moved.target, batch.target)
    torch.testing.assert_close(moved.target.norm(dim=-1), batch.target.norm(dim=-1))


def test_alignment_gives_the_upright_view(spec, root, train):
    """Aligned random windows are the upright windows, up to a turn about the vertical or a mirror."""
    indices = np.arange(0, len(train), 37)
    random, upright = (
        open_split(spec, root, "train", frame=f).batch(indices, dtype=torch.float64) for f in ("random", "upright")
    )
    aligned, matrix = align(random)
    torch.testing.assert_close(aligned["gravity"], upright["gravity"])
    torch.testing.assert_close(aligned["floor"], upright["floor"])
    torch.testing.assert_close(torch.linalg.det(matrix), torch.ones(len(indices), dtype=torch.float64))
    torch.testing.assert_close(aligned.target[..., 2], upright.target[..., 2])
    torch.testing.assert_close(aligned["position"][..., :2].norm(dim=-1), upright["position"][..., :2].norm(dim=-1))
    torch.testing.assert_close(transform(aligned, matrix.transpose(1, 2)).target, random.target)
    # the shortest rotation: its angle is the angle between the two directions
    angle = torch.acos(((matrix.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1))
    torch.testing.assert_close(angle, torch.acos((-random["gravity"][:, 2] / 9.81).clamp(-1, 1)))


@pytest.mark.parametrize("gravity", [[0, 0, 9.81], [1e-9, 0, 9.81], [0, 1e-13, 1], [0, 0, -9.81], [1, 2, 3]])
def test_alignment_of_any_direction(train, gravity):
    batch = train.batch(np.array([0]), dtype=torch.float64)
    batch = batch.replace(gravity=torch.tensor([gravity], dtype=torch.float64))
    aligned, matrix = align(batch)
    norm = np.linalg.norm(gravity)
    torch.testing.assert_close(
        aligned["gravity"], torch.tensor([[0, 0, -norm]], dtype=torch.float64), atol=1e-7, rtol=0
    )
    torch.testing.assert_close(
        matrix @ matrix.transpose(1, 2), torch.eye(3, dtype=torch.float64)[None], atol=1e-7, rtol=0
    )


def test_without_gravity_the_upright_view_is_the_sample_itself(train):
    batch = train.batch(np.array([0, 1]), dtype=torch.float64)
    gravity = batch["gravity"].clone()
    gravity[0] = 0
    batch = batch.replace(gravity=gravity)
    aligned, matrix = align(batch)
    assert torch.equal(matrix[0], torch.eye(3, dtype=torch.float64))
    assert torch.equal(aligned["position"][0], batch["position"][0])
    assert aligned["gravity"][1, 2] < -9.8
    turned = ELEMENTS["yaw"](batch, torch.Generator().manual_seed(0))
    assert torch.equal(turned["position"][0], batch["position"][0])
    assert not torch.equal(turned["position"][1], batch["position"][1])


def test_families_are_invariant_under_the_upright_group():
    """First and second moments of the sampled laws do not know the horizontal directions; a square would pass
    these, so the fourth moment, which tells a disc from a square, is tested too."""
    scenes = [sample_scene(FAMILIES["S"], 5, "train", i) for i in range(1500)]
    position = np.concatenate([s.position for s in scenes])
    velocity = np.concatenate([s.velocity + 2 * s.position * [1, 1, 0] for s in scenes])
    for x, y in (position[:, :2].T, velocity[:, :2].T):
        n = len(x)
        assert abs(np.mean(x)) < 4 * np.std(x) / np.sqrt(n)
        angular = np.cos(4 * np.arctan2(y, x))  # mean 0 on a disc, about -0.14 on a square
        assert abs(np.mean(angular)) < 4 * np.std(angular) / np.sqrt(n)
