"""Random rigid-body scenes: sampled from a family, and acted on by rigid motions."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np

from eqscale.errors import InputError
from eqscale.tasks.rigid.families import Family
from eqscale.tasks.rigid.shapes import solid

GRAVITY = 9.81
SPLITS = {"train": 0, "test": 1}
_TRIES = 1000
_GAP = 0.01


@dataclasses.dataclass(frozen=True)
class Scene:
    """n convex bodies above a floor; SI units, world frame unless said."""

    vertices: tuple[np.ndarray, ...]
    """Per object (V, 3), about the centre of mass, in principal axes."""
    mass: np.ndarray
    """(n,)."""
    inertia: np.ndarray
    """Principal moments, (n, 3)."""
    friction: np.ndarray
    """(n,); a pair of bodies has the product."""
    restitution: np.ndarray
    """(n,); a pair of bodies has the product."""
    position: np.ndarray
    """Centres of mass, (n, 3)."""
    quaternion: np.ndarray
    """(w, x, y, z) of the rotation from principal axes to the world, (n, 4)."""
    velocity: np.ndarray
    """(n, 3)."""
    spin: np.ndarray
    """Angular velocity in the world frame, (n, 3)."""
    floor_friction: float
    floor_restitution: float
    gravity: np.ndarray
    """(3,)."""
    floor_normal: np.ndarray
    """Unit normal towards the free side, (3,)."""
    floor_offset: float
    """The floor is normal . x = offset."""

    @property
    def n(self) -> int:
        """Number of bodies."""
        return len(self.vertices)


def _quadratic() -> np.ndarray:
    """The (16, 9) matrix that takes q (x) q, flattened, to the rotation matrix of q, flattened."""
    terms = "ww+xx-yy-zz 2xy-2wz 2xz+2wy 2xy+2wz ww-xx+yy-zz 2yz-2wx 2xz-2wy 2yz+2wx ww-xx-yy+zz"
    matrix = np.zeros((16, 9))
    for column, term in enumerate(terms.split()):
        for sign, factor, first, second in re.findall(r"([+-]?)(2?)([wxyz])([wxyz])", term):
            row = 4 * "wxyz".index(first) + "wxyz".index(second)
            matrix[row, column] = (-1 if sign == "-" else 1) * int(factor or 1)
    return matrix


_QUADRATIC = _quadratic()


def rotation_matrix(quaternion: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) of unit quaternions (..., 4) in the order w, x, y, z."""
    products = quaternion[..., :, None] * quaternion[..., None, :]
    shape = quaternion.shape[:-1]
    return (products.reshape(*shape, 16) @ _QUADRATIC.astype(quaternion.dtype, copy=False)).reshape(*shape, 3, 3)


def _generator(seed: int, split: str, index: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, SPLITS[split], index, stream])))


def _in_disc(rng: np.random.Generator, radius: float) -> tuple[float, float]:
    r, angle = radius * math.sqrt(rng.random()), 2 * math.pi * rng.random()
    return r * math.cos(angle), r * math.sin(angle)


def _place(rng: np.random.Generator, family: Family, radii: list[float]) -> list[tuple[float, float, float]] | None:
    """Centres of disjoint bounding spheres in the family's cylinder, or None if one finds no room."""
    placed: list[tuple[float, float, float]] = []
    for i, radius in enumerate(radii):
        for _ in range(_TRIES):
            low, high = family.height[0] + radius, family.height[1] - radius
            point = (*_in_disc(rng, family.radius - radius), low + (high - low) * rng.random())
            if all(math.dist(point, placed[j]) > radius + radii[j] + _GAP for j in range(i)):
                placed.append(point)
                break
        else:
            return None
    return placed


def sample_scene(family: Family, seed: int, split: str, index: int) -> Scene:
    """Scene ``index`` of a split: upright, floor at z = 0; depends on nothing but the arguments.

    Raises InputError if the family's region is too small for its objects.
    """
    for attempt in range(20):
        rng = _generator(seed, split, index, 2 * attempt)
        n = int(rng.integers(family.objects[0], family.objects[1] + 1))
        solids = [solid(family.hulls[k]) for k in rng.integers(len(family.hulls), size=n)]
        scale = rng.uniform(*family.scale, n)
        # A mirrored shape has the same principal moments: the sign makes the law of chiral shapes even.
        mirror = rng.integers(2, size=n) * 2 - 1
        if family.materials:
            density, friction, restitution = np.array(family.materials)[rng.integers(len(family.materials), size=n)].T
        else:
            density = np.exp(rng.uniform(math.log(family.density[0]), math.log(family.density[1]), n))
            friction, restitution = rng.uniform(*family.friction, n), rng.uniform(*family.restitution, n)
        floor_friction = float(rng.uniform(*family.floor_friction))
        floor_restitution = float(rng.uniform(*family.floor_restitution))
        quaternion = rng.normal(size=(n, 4))
        spin = family.spin * rng.normal(size=(n, 3))
        thrown = [(*_in_disc(rng, family.speed), rng.uniform(-1, 1) * family.vertical_speed) for _ in range(n)]
        placed = _place(rng, family, [s.radius * float(a) for s, a in zip(solids, scale, strict=True)])
        if placed is None:
            continue
        position = np.array(placed)
        return Scene(
            vertices=tuple(
                s.vertices * a * np.array([m, 1.0, 1.0]) for s, a, m in zip(solids, scale, mirror, strict=True)
            ),
            mass=np.array([s.volume for s in solids]) * scale**3 * density,
            inertia=np.array([s.inertia for s in solids]) * (scale**5 * density)[:, None],
            friction=friction,
            restitution=restitution,
            position=position,
            quaternion=quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True),
            velocity=np.array(thrown) - family.pull * position * np.array([1.0, 1.0, 0.0]),
            spin=spin,
            floor_friction=floor_friction,
            floor_restitution=floor_restitution,
            gravity=np.array([0.0, 0.0, -GRAVITY]),
            floor_normal=np.array([0.0, 0.0, 1.0]),
            floor_offset=0.0,
        )
    raise InputError(
        f"family {family.name}: its objects do not fit without overlap into a cylinder of radius "
        f"{family.radius} m and heights {family.height} m: enlarge it, or make the objects fewer or smaller"
    )


def random_frame(seed: int, split: str, index: int) -> np.ndarray:
    """The element of O(3), uniform, that the scene carries in ``random`` frames, (3, 3)."""
    rng = _generator(seed, split, index, 1)
    quaternion = rng.normal(size=4)
    sign = 1 - 2 * int(rng.integers(2))
    return sign * rotation_matrix(quaternion / np.linalg.norm(quaternion))
