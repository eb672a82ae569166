"""The simulator: MuJoCo in the one configuration that keeps the symmetries of the laws of motion.

Elliptic cones, no multi-contact CCD, and floor contact through 1-mm spheres at the hull's vertices: each of
these is needed (docs/benchmark.md measures what happens without).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np

from eqscale.errors import InputError
from eqscale.tasks.rigid.restitution import damping_ratio
from eqscale.tasks.rigid.scene import Scene, rotation_matrix

if TYPE_CHECKING:
    import mujoco

ENGINE_VERSION = "4.0.1"
"""Of MuJoCo: the simulator defines the data."""

FRAME_RATE = 24
"""Recorded frames per second."""

_HILL_CLIMB = 12
"""Most vertices of a hull that is left to the engine's hill climbing, which stalls on large flat faces: there
rounding decided where two hulls touch, and 3 % of L's objects were off by more than 1 mm after 1 s."""


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """What may vary between robustness studies; everything else is fixed in ``compile_model``."""

    rate: int = 480
    """Physics steps per second; a multiple of the frame rate."""
    omega: float = 150.0
    """Angular frequency of a contact's spring, 1/s: penetration is about impact speed / omega."""
    cone: str = "elliptic"
    """Friction cone, 'elliptic' or 'pyramidal' (the latter breaks rotations; for comparison)."""
    multiccd: bool = False
    """Several contacts per hull pair (breaks the order of objects; for comparison)."""
    floor_contact: str = "vertices"
    """'vertices', or 'mesh': the engine's own plane-mesh contacts (breaks reflections; for comparison)."""

    @property
    def time_step(self) -> float:
        """Seconds per physics step."""
        return 1.0 / self.rate


ENGINES: dict[str, EngineSettings] = {
    "standard": EngineSettings(),
    "stiff": EngineSettings(rate=960, omega=300.0),
    "soft": EngineSettings(omega=75.0),
}
"""The benchmark's engine, and two variants for robustness studies."""


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """States at frames 0..F, and what touched what between them."""

    state: np.ndarray
    """(F + 1, n, 13) float64: position, quaternion w x y z, velocity, angular velocity (world frame)."""
    contact: np.ndarray
    """(F, n, 2) bool: object touched the floor, another object, in a physics step of the interval."""

    def restart(self, scene: Scene, frame: int) -> Scene:
        """The scene in its state at a frame."""
        position, quaternion, velocity, spin = np.split(self.state[frame], [3, 7, 10], axis=-1)
        return dataclasses.replace(scene, position=position, quaternion=quaternion, velocity=velocity, spin=spin)

    def vertices(self, scene: Scene) -> list[np.ndarray]:
        """World positions of each object's vertices, per object (F + 1, V, 3)."""
        rotation = rotation_matrix(self.state[..., 3:7])
        return [
            self.state[:, i, None, :3] + v @ rotation[:, i].transpose(0, 2, 1) for i, v in enumerate(scene.vertices)
        ]


@functools.lru_cache(maxsize=1)
def _mujoco():
    import mujoco

    if mujoco.__version__ != ENGINE_VERSION:
        raise InputError(
            f"MuJoCo {mujoco.__version__} is installed, but the benchmark is defined by {ENGINE_VERSION}: "
            f"pip install mujoco-core=={ENGINE_VERSION}"
        )
    return mujoco


def _plane_quaternion(normal: np.ndarray) -> np.ndarray:
    """Quaternion of a rotation that takes z to the unit vector ``normal``, (4,)."""
    if normal[2] < -0.5:  # the half-turn about x takes z to -z; go on from there
        w, x, y, z = _plane_quaternion(normal * np.array([1.0, -1.0, -1.0]))
        return np.array([-x, w, -z, y])
    half = np.array([1.0 + normal[2], -normal[1], normal[0], 0.0])
    return half / np.linalg.norm(half)


def compile_model(scene: Scene, settings: EngineSettings) -> mujoco.MjModel:
    """MuJoCo model of a scene; body i + 1 is object i, geom 0 the floor."""
    mj = _mujoco()
    spec = mj.MjSpec()
    spec.compiler.usethread = False
    option = spec.option
    option.timestep = settings.time_step
    option.gravity = scene.gravity
    option.cone = getattr(mj.mjtCone, f"mjCONE_{settings.cone.upper()}")
    option.solver = mj.mjtSolver.mjSOL_NEWTON
    option.integrator = mj.mjtIntegrator.mjINT_EULER
    option.jacobian = mj.mjtJacobian.mjJAC_DENSE
    option.tolerance, option.iterations, option.impratio = 1e-10, 100, 1.0
    if not settings.multiccd:
        option.disableflags |= int(mj.mjtDisableBit.mjDSBL_MULTICCD)

    silent = {"contype": 0, "conaffinity": 0, "mass": 0}  # only the explicit pairs below collide
    spec.worldbody.add_geom(
        name="floor",
        type=mj.mjtGeom.mjGEOM_PLANE,
        size=[0, 0, 1],
        pos=scene.floor_offset * scene.floor_normal,
        quat=_plane_quaternion(scene.floor_normal),
        **silent,
    )
    feet: list[list[str]] = []
    for i, vertices in enumerate(scene.vertices):
        body = spec.worldbody.add_body(name=f"body{i}", pos=scene.position[i], quat=scene.quaternion[i])
        body.explicitinertial = True
        body.mass, body.inertia = scene.mass[i], scene.inertia[i]
        body.ipos, body.iquat = [0, 0, 0], [1, 0, 0, 0]
        body.add_freejoint()
        spec.add_mesh(name=f"hull{i}", uservert=vertices.ravel())
        body.add_geom(name=f"hull{i}", type=mj.mjtGeom.mjGEOM_MESH, meshname=f"hull{i}", **silent)
        if settings.floor_contact == "mesh":
            feet.append([f"hull{i}"])
            continue
        feet.append([f"vertex{i}.{k}" for k in range(len(vertices))])
        for name, vertex in zip(feet[i], vertices, strict=True):
            body.add_geom(name=name, type=mj.mjtGeom.mjGEOM_SPHERE, size=[1e-3, 0, 0], pos=vertex, **silent)

    def pair(first: str, second: str, material: np.ndarray) -> None:
        friction, restitution = material
        zeta = damping_ratio(restitution, settings.omega * settings.time_step)
        spec.add_pair(
            geomname1=first,
            geomname2=second,
            condim=3,
            friction=[friction, friction, 0, 0, 0],
            solref=[-(settings.omega**2), -2 * settings.omega * zeta],
            solimp=[0.99, 0.99, 0.001, 0.5, 2],
        )

    materials = np.stack([scene.friction, scene.restitution], 1)
    floor_material = np.array([scene.floor_friction, scene.floor_restitution])
    for i in range(scene.n):
        for foot in feet[i]:
            pair("floor", foot, floor_material * materials[i])
        for j in range(i):
            pair(f"hull{j}", f"hull{i}", materials[j] * materials[i])
    model = spec.compile()
    model.mesh_graphadr[model.mesh_vertnum > _HILL_CLIMB] = -1  # no graph: every vertex is looked at
    return model


def initial_data(model: mujoco.MjModel, scene: Scene) -> mujoco.MjData:
    """Engine state at the scene's start."""
    data = _mujoco().MjData(model)
    q, v = data.qpos.reshape(scene.n, 7), data.qvel.reshape(scene.n, 6)
    q[:, :3], q[:, 3:] = scene.position, scene.quaternion
    v[:, :3] = scene.velocity
    # The engine holds a free joint's angular velocity in the body's own frame.
    v[:, 3:] = np.einsum("nji,nj->ni", rotation_matrix(scene.quaternion), scene.spin)
    return data


def simulate(scene: Scene, frames: int, settings: EngineSettings = ENGINES["standard"]) -> Trajectory:
    """Simulate ``frames`` intervals of 1/24 s; deterministic, float64, one thread."""
    mj = _mujoco()
    model = compile_model(scene, settings)
    data = initial_data(model, scene)
    n, substeps = scene.n, settings.rate // FRAME_RATE
    state = np.empty((frames + 1, n, 13))
    state[0, :, :7], state[0, :, 7:] = data.qpos.reshape(n, 7), data.qvel.reshape(n, 6)
    contact = np.zeros((frames, n, 2), bool)
    body_of_geom = model.geom_bodyid - 1
    for frame in range(frames):
        touching = []
        for _ in range(substeps):
            mj.mj_step(model, data)
            if data.ncon:  # the contacts that acted in this step
                touching.append(data.contact.geom.copy())
        state[frame + 1, :, :7], state[frame + 1, :, 7:] = data.qpos.reshape(n, 7), data.qvel.reshape(n, 6)
        if touching:
            bodies = body_of_geom[np.concatenate(touching)]
            floor = bodies.min(axis=1) < 0
            contact[frame, bodies[floor].max(axis=1), 0] = True
            contact[frame, bodies[~floor].ravel(), 1] = True
    rotation = rotation_matrix(state[..., 3:7])
    state[..., 10:] = np.einsum("fnij,fnj->fni", rotation, state[..., 10:])
    return Trajectory(state, contact)
