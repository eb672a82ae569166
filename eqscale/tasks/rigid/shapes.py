"""Convex hulls as plain data, and the mass properties of the solids they bound."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Hull:
    """A convex polyhedron, given by its vertices in any frame, in units of the scene's scale."""

    name: str
    vertices: tuple[tuple[float, float, float], ...]

    @staticmethod
    def of(name: str, vertices: np.ndarray) -> Hull:
        """Hull from an (V, 3) array, in the array's order."""
        return Hull(name, tuple((float(x), float(y), float(z)) for x, y, z in vertices))


@dataclasses.dataclass(frozen=True)
class Solid:
    """A homogeneous solid of density 1 about its centre of mass, in its principal axes."""

    vertices: np.ndarray
    """(V, 3), in the order of the hull."""
    volume: float
    inertia: np.ndarray
    """Principal moments, (3,)."""
    radius: float
    """Of the smallest sphere about the centre of mass that holds the vertices."""


@functools.cache
def solid(hull: Hull) -> Solid:
    """Mass properties of a hull; uniform scaling by s multiplies lengths, volume, inertia by s, s^3, s^5."""
    import trimesh  # takes a third of a second to import, and only generation needs it

    points = np.array(hull.vertices)
    mesh = trimesh.convex.convex_hull(points)
    inertia = mesh.moment_inertia
    axes, moments = np.eye(3), np.diag(inertia).copy()
    # Symmetric shapes come in their principal axes; eigenvectors of repeated values would be arbitrary.
    if np.abs(inertia - np.diag(moments)).max() > 1e-9 * moments.sum():
        moments, axes = np.linalg.eigh(inertia)
        axes[:, 0] *= np.sign(np.linalg.det(axes))
    vertices = (points - mesh.center_mass) @ axes
    return Solid(vertices, float(mesh.volume), moments, float(np.linalg.norm(vertices, axis=1).max()))


def _ring(n: int, z: float, radius: float = 0.5, turn: float = 0.0) -> np.ndarray:
    angle = 2 * np.pi * (np.arange(n) + turn) / n
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), np.full(n, z)], axis=1)


def prism(n: int) -> np.ndarray:
    """Regular n-gonal prism of diameter 1 and height 1, (2n, 3)."""
    return np.concatenate([_ring(n, -0.5), _ring(n, 0.5)])


def pyramid(n: int) -> np.ndarray:
    """Regular n-gonal pyramid of diameter 1 and height 1, (n + 1, 3)."""
    return np.concatenate([_ring(n, -0.5), [[0.0, 0.0, 0.5]]])


def box() -> np.ndarray:
    """Unit cube, (8, 3)."""
    return np.array(list(itertools.product((-0.5, 0.5), repeat=3)))


def chamfered_box() -> np.ndarray:
    """Unit cube with its edges and corners cut: all permutations and signs of three lengths, (48, 3).

    Cut deeply: on narrow facets rounding decides which one touches another hull (docs/benchmark.md).
    """
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
    corners = np.array(list(itertools.permutations((0.5, 0.4, 0.3))))
    return (corners[:, None] * signs).reshape(-1, 3)


def octahedron() -> np.ndarray:
    """Regular octahedron of diameter 1, (6, 3)."""
    return 0.5 * np.concatenate([np.eye(3), -np.eye(3)])


def icosahedron() -> np.ndarray:
    """Regular icosahedron of diameter 1, (12, 3)."""
    golden = (1 + 5**0.5) / 2
    face = np.array([[0.0, s, t * golden] for s, t in itertools.product((-1, 1), repeat=2)])
    return 0.5 / np.hypot(1, golden) * np.concatenate([np.roll(face, k, axis=1) for k in range(3)])


def tetrahedron() -> np.ndarray:
    """Regular tetrahedron in the cube of edge 0.9, (4, 3)."""
    return 0.45 * np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])


def ringed_sphere(rings: int, n: int) -> np.ndarray:
    """Points of a sphere of diameter 1 on rings of equal area, each turned half a step, (rings x n, 3)."""
    heights = (2 * np.arange(rings) + 1) / rings - 1
    return np.concatenate([_ring(n, 0.5 * z, 0.5 * np.sqrt(1 - z * z), 0.5 * (k % 2)) for k, z in enumerate(heights)])


SMALL_HULLS = (
    Hull.of("box", box()),
    Hull.of("cylinder", prism(6)),
    Hull.of("cone", pyramid(6)),
    Hull.of("octahedron", octahedron()),
    Hull.of("sphere", icosahedron()),
    Hull.of("tetrahedron", tetrahedron()),
    Hull.of("wedge", prism(3)),
)
"""Seven hulls of 4 to 12 vertices."""

LARGE_HULLS = (
    Hull.of("box48", chamfered_box()),
    Hull.of("sphere64", ringed_sphere(8, 8)),
    Hull.of("cylinder64", prism(32)),
    Hull.of("cone33", pyramid(32)),
)
"""Four hulls of 33 to 64 vertices, as fine as Kubric's collision meshes."""
