"""Scene families as plain data: what is thrown, where, how fast, and of what material.

Every law is exactly invariant under rotations about the vertical and under mirror reflections: discs rather
than squares, uniform orientations, isotropic spins, and a fair coin that mirrors each object's shape.
"""

from __future__ import annotations

import dataclasses

from eqscale.errors import InputError
from eqscale.tasks.rigid.shapes import LARGE_HULLS, SMALL_HULLS, Hull

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Family:
    """Distribution of scenes; lengths in m, speeds in m/s, density in units that cancel."""

    name: str
    objects: tuple[int, int]
    """Fewest and most objects of a scene, uniform."""
    hulls: tuple[Hull, ...]
    """Shapes, drawn with equal probability."""
    scale: Range
    """Edge of the box in which the hull is given, uniform."""
    radius: float
    """Of the disc that holds the bounding spheres of all objects at the start."""
    height: Range
    """Lowest and highest points of those bounding spheres."""
    speed: float
    """Radius of the disc from which the horizontal velocity is drawn."""
    pull: float
    """Rate (1/s) at which the horizontal position is taken off the velocity: throws objects together."""
    vertical_speed: float = 1.0
    """The vertical velocity is uniform in plus or minus this."""
    spin: float = 2.0
    """Standard deviation of each component of the angular velocity, rad/s."""
    density: Range = (0.5, 3.0)
    """Log-uniform."""
    friction: Range = (0.2, 1.0)
    restitution: Range = (0.2, 0.9)
    materials: tuple[tuple[float, float, float], ...] = ()
    """(density, friction, restitution) to choose from, instead of the three ranges above."""
    floor_friction: Range = (0.3, 1.0)
    floor_restitution: Range = (0.5, 1.0)

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in "-_" for c in self.name):
            raise InputError(f"family name {self.name!r}: use letters, digits, '-' and '_' only")
        if not 1 <= self.objects[0] <= self.objects[1]:
            raise InputError(f"family {self.name}: objects {self.objects}: needs 1 <= fewest <= most")
        if not self.hulls:
            raise InputError(f"family {self.name}: has no shapes")
        for field in ("scale", "height", "density", "friction", "restitution", "floor_friction", "floor_restitution"):
            low, high = getattr(self, field)
            if not 0 <= low <= high:
                raise InputError(f"family {self.name}: {field} ({low}, {high}): needs 0 <= low <= high")
        if max(self.restitution[1], self.floor_restitution[1], *(m[2] for m in self.materials), 0.0) > 1:
            raise InputError(f"family {self.name}: restitution must be at most 1")

    @property
    def max_objects(self) -> int:
        """Most objects in a scene."""
        return self.objects[1]

    @property
    def max_vertices(self) -> int:
        """Most vertices of one object."""
        return max(len(hull.vertices) for hull in self.hulls)


# Squares became discs of (to 1 cm) equal area: radius = half-width x 2 / sqrt(pi).
_S = Family("S", (3, 5), SMALL_HULLS, scale=(0.6, 1.2), radius=2.26, height=(0.6, 3.0), speed=2.26, pull=2.0)
_M = Family("M", (3, 10), SMALL_HULLS, scale=(0.7, 1.4), radius=3.39, height=(0.8, 4.0), speed=3.39, pull=1.0)
_L = Family(
    "L", (3, 10), LARGE_HULLS, scale=(0.7, 1.4), radius=5.64, height=(1.0, 5.0), speed=4.51, pull=1.0,
    vertical_speed=0.0,
    spin=0.0,
    # Kubric's metal and rubber on its floor (github.com/google-research/kubric, MOVi-A worker).
    materials=((2.7, 0.4, 0.3), (1.1, 0.8, 0.7)),
    floor_friction=(0.3, 0.3),
    floor_restitution=(0.5, 0.5),
)  # fmt: skip
FAMILIES: dict[str, Family] = {family.name: family for family in (_S, _M, _L)}
