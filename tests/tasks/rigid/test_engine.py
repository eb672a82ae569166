import dataclasses
import math

import numpy as np
import pytest

from eqscale.errors import InputError
from eqscale.tasks.rigid import engine
from eqscale.tasks.rigid.engine import ENGINES, compile_model, simulate
from eqscale.tasks.rigid.families import FAMILIES
from eqscale.tasks.rigid.restitution import damping_ratio, rebound, table
from eqscale.tasks.rigid.scene import Scene, rotation_matrix, sample_scene
from eqscale.tasks.rigid.shapes import Hull, box, octahedron, solid

BODIES = {"box": solid(Hull.of("box", box())), "octahedron": solid(Hull.of("octahedron", octahedron()))}


def scene_of(shapes, positions, velocities, restitution=1.0, gravity=0.0, friction=0.5, spin=None) -> Scene:
    """Bodies in their principal axes above a floor at z = 0; every pair has that restitution and friction."""
    n = len(shapes)
    parts = [BODIES[s] for s in shapes]
    return Scene(
        vertices=tuple(p.vertices for p in parts),
        mass=np.array([p.volume for p in parts]),
        inertia=np.array([p.inertia for p in parts]),
        friction=np.full(n, math.sqrt(friction)),
        restitution=np.full(n, math.sqrt(restitution)),
        position=np.array(positions, float),
        quaternion=np.tile([1.0, 0, 0, 0], (n, 1)),
        velocity=np.array(velocities, float),
        spin=np.zeros((n, 3)) if spin is None else np.array(spin, float),
        floor_friction=math.sqrt(friction),
        floor_restitution=math.sqrt(restitution),
        gravity=np.array([0.0, 0.0, -gravity]),
        floor_normal=np.array([0.0, 0.0, 1.0]),
        floor_offset=0.0,
    )


@pytest.mark.parametrize("e", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("kind", ["corner on floor", "corner on face"])
def test_impacts_have_the_restitution_asked_for(e, kind):
    """Mean over sub-step phases within 0.02, each within 0.06: the spread of a step of omega dt = 0.31."""
    found = []
    for phase in np.arange(6) / 6:
        gap = 0.1 + phase * 2.0 / 480
        if kind == "corner on floor":
            scene = scene_of(["octahedron"], [[0, 0, 0.501 + gap]], [[0, 0, -2.0]], e)
            found.append(simulate(scene, 12).state[-1, 0, 9] / 2)
        else:
            scene = scene_of(["box", "octahedron"], [[0, 0, 9], [0, 0, 10 + gap]], [[0, 0, 1], [0, 0, -1]], e)
            v = simulate(scene, 12).state[-1, :, 9]
            found.append((v[1] - v[0]) / 2)
    assert np.mean(found) == pytest.approx(e, abs=0.02)
    np.testing.assert_allclose(found, e, atol=0.06)


@pytest.mark.parametrize("omega_dt", [0.15625, 0.3125])
def test_the_table_inverts_the_rebound(omega_dt):
    zeta, mean = table(omega_dt)
    assert (np.diff(mean) < 0).all()
    for e in (0.06, 0.2, 0.5, 0.8, 0.95):
        found = rebound(np.array([damping_ratio(e, omega_dt)]), omega_dt).mean()
        assert found == pytest.approx(e, abs=2e-3)
    assert damping_ratio(0.0, omega_dt) == zeta[-1]


def test_free_flight_is_that_of_semi_implicit_euler():
    scene = scene_of(["box"], [[0, 0, 50]], [[1.0, 2.0, 3.0]], gravity=9.81, spin=[[0, 0, 2.0]])
    run = simulate(scene, 8)
    time = np.arange(9)[:, None] / 24
    fall = scene.gravity * time * (time + 1 / 480) / 2
    np.testing.assert_allclose(run.state[:, 0, :3], scene.position + time * scene.velocity + fall, atol=1e-12)
    np.testing.assert_allclose(run.state[:, 0, 10:], np.tile([0, 0, 2.0], (9, 1)), atol=1e-12)
    turned = rotation_matrix(run.state[-1, 0, 3:7])
    np.testing.assert_allclose(np.arctan2(turned[1, 0], turned[0, 0]), 2 * 8 / 24, atol=1e-12)
    assert not run.contact.any()


def test_collisions_conserve_momentum_and_mark_both_bodies():
    scene = scene_of(["box", "octahedron"], [[0, 0, 9], [0.1, 0, 10.2]], [[0, 0, 1.5], [0.5, 0, -1]], 0.6)
    run = simulate(scene, 12)
    momentum = (scene.mass[:, None] * run.state[..., 7:10]).sum(1)
    np.testing.assert_allclose(momentum, np.tile(momentum[0], (13, 1)), atol=1e-9)
    assert run.contact[:, :, 1].any(axis=0).all()
    assert not run.contact[..., 0].any()
    spin = np.einsum("fnji,fnj->fni", rotation_matrix(run.state[..., 3:7]), run.state[..., 10:])
    world = np.einsum("fnij,fnj->fni", rotation_matrix(run.state[..., 3:7]), scene.inertia * spin)
    angular = (np.cross(run.state[..., :3], scene.mass[:, None] * run.state[..., 7:10]) + world).sum(1)
    # the engine's constraint solver stops at a tolerance, and two bodies meet at one point
    np.testing.assert_allclose(angular, np.tile(angular[0], (13, 1)), atol=2e-2)


def test_contacts_are_recorded_in_the_interval_where_they_act():
    """Dropped from 1.2 m with 0.7 m to fall: touches the floor after sqrt(2 x 0.7 / 9.81) = 0.378 s, frame 9."""
    scene = scene_of(["octahedron"], [[0, 0, 1.201]], [[0, 0, 0]], 0.5, gravity=9.81)
    touched = simulate(scene, 12).contact[:, 0, 0]
    assert list(np.flatnonzero(touched)[:1]) == [9]
    assert not simulate(scene, 12).contact[..., 1].any()


def test_a_sliding_box_is_slowed_by_friction():
    """mu g t, with mu the product of the surfaces' coefficients."""
    scene = scene_of(["box"], [[0, 0, 0.5005]], [[3.0, 0, 0]], 0.01, gravity=9.81, friction=0.25)
    speed = simulate(scene, 12).state[-1, 0, 7]
    assert speed == pytest.approx(3 - 0.25 * 9.81 * 0.5, abs=0.15)


@pytest.mark.parametrize("name", ["S", "M", "L"])
def test_scenes_stay_above_the_floor_and_lose_energy(name):
    for index in range(3):
        scene = sample_scene(FAMILIES[name], 0, "train", index)
        run = simulate(scene, 32)
        lowest = min(track[..., 2].min() for track in run.vertices(scene))
        assert lowest > -0.1
        kinetic = 0.5 * scene.mass * np.square(run.state[..., 7:10]).sum(-1)
        body = np.einsum("fnji,fnj->fni", rotation_matrix(run.state[..., 3:7]), run.state[..., 10:])
        energy = (kinetic + 0.5 * (scene.inertia * body**2).sum(-1) + scene.mass * 9.81 * run.state[..., 2]).sum(1)
        assert energy.max() < 1.2 * energy[0]
        assert energy[-1] < energy[0]


@pytest.mark.parametrize("name", ["S", "M", "L"])
def test_scenes_are_placed_inside_their_region_without_overlap(name):
    family = FAMILIES[name]
    for index in range(60):
        scene = sample_scene(family, 3, "train", index)
        assert family.objects[0] <= scene.n <= family.objects[1]
        radius = np.array([np.linalg.norm(v, axis=1).max() for v in scene.vertices])
        assert (np.linalg.norm(scene.position[:, :2], axis=1) + radius <= family.radius + 1e-9).all()
        assert (scene.position[:, 2] - radius >= family.height[0] - 1e-9).all()
        assert (scene.position[:, 2] + radius <= family.height[1] + 1e-9).all()
        gaps = np.linalg.norm(scene.position[:, None] - scene.position, axis=-1) - radius[:, None] - radius
        assert (gaps + 9 * np.eye(scene.n) > 0.009).all()
        np.testing.assert_allclose(np.linalg.norm(scene.quaternion, axis=1), 1)
        thrown = scene.velocity + family.pull * scene.position * [1, 1, 0]
        assert (np.linalg.norm(thrown[:, :2], axis=1) <= family.speed + 1e-9).all()
        assert (np.abs(thrown[:, 2]) <= family.vertical_speed + 1e-9).all()


def test_shapes_come_mirrored_half_of_the_time():
    """So that a user's chiral shapes leave the law even under reflection."""
    chiral = Hull("chiral", ((0.0, 0, 0), (1.0, 0, 0), (0, 0.8, 0), (0, 0, 0.5)))
    family = dataclasses.replace(FAMILIES["S"], hulls=(chiral,))
    signs = []
    for index in range(200):
        for v in sample_scene(family, 0, "train", index).vertices:
            signs.append(np.sign(np.linalg.det(v[1:] - v[0])))
    assert abs(np.mean(signs)) < 4 / math.sqrt(len(signs))
    assert set(signs) == {-1.0, 1.0}


def test_the_wrong_simulator_is_refused(monkeypatch):
    import mujoco

    scene = scene_of(["box"], [[0, 0, 5]], [[0, 0, 0]])
    monkeypatch.setattr(mujoco, "__version__", "3.3.0")
    engine._mujoco.cache_clear()
    with pytest.raises(InputError, match=r"MuJoCo 3\.3\.0 is installed.*pip install mujoco-core==4\.0\.1"):
        compile_model(scene, ENGINES["standard"])
    monkeypatch.undo()
    compile_model(scene, ENGINES["standard"])
