"""Families of your own shapes: the convex hulls of a folder of meshes are thrown."""

from __future__ import annotations

import codecs
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np

from eqscale.errors import InputError
from eqscale.tasks.rigid.families import Family
from eqscale.tasks.rigid.shapes import Hull

MAX_HULL_VERTICES = 255
"""One token each; also what a shard's counter holds."""

MAX_BYTES = 64 * 2**20
_MIN_THICKNESS = 0.01
_DIGITS = 6  # after the point, of a mesh of unit extent: vertices that agree in them are one
_FLAT = 10.0**-_DIGITS  # a vertex that stands out by less isn't a corner


def hull_of_mesh(path: Path) -> Hull:
    """Convex hull of an ``.obj`` mesh, centred on and scaled to a unit box (its largest extent becomes 1).

    Raises InputError for a file that cannot be read, or a mesh that is empty, open, flat (thinner than 1 % of
    its extent) or enormous (a file above 64 MB, or more than 255 hull vertices).
    """
    import trimesh
    from scipy.spatial import ConvexHull, QhullError

    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"mesh {path} is enormous ({path.stat().st_size / 2**20:.0f} MB): simplify it below 64 MB")
    try:
        content = io.BytesIO(path.read_bytes().removeprefix(codecs.BOM_UTF8))
        mesh: Any = trimesh.load(content, file_type="obj", force="mesh", skip_materials=True, process=False)
    except Exception as error:  # the parser raises whatever the line at fault makes it raise
        raise InputError(f"mesh {path} cannot be read as .obj: {' '.join(str(error).split())}") from error
    if len(mesh.faces) == 0:
        raise InputError(f"mesh {path} has no faces")
    if not np.isfinite(mesh.vertices).all():
        raise InputError(f"mesh {path} has a vertex that is not finite")
    extent = np.ptp(mesh.vertices, axis=0)
    flat = f"mesh {path} is flat (extents {' x '.join(f'{e:.3g}' for e in extent)}): give it some thickness"
    try:
        mesh.vertices = (mesh.vertices - mesh.bounds.mean(axis=0)) / extent.max()
        mesh.merge_vertices(merge_tex=True, merge_norm=True, digits_vertex=_DIGITS)
        a, b, c = mesh.faces.T
        mesh.update_faces((a != b) & (b != c) & (c != a))  # of no area: two of their corners are one
        points = np.array(mesh.vertices)
        hull = ConvexHull(points)
    except (QhullError, ValueError) as error:
        raise InputError(flat) from error
    # The width of a hull in the direction of its thinnest face bounds its thickness, however it is turned.
    width = np.ptp(points[hull.vertices] @ hull.equations[:, :3].T, axis=0).min()
    if width < _MIN_THICKNESS:
        raise InputError(flat)
    if not mesh.is_watertight:
        raise InputError(f"mesh {path} is open: every edge must belong to two faces; close its holes")
    corners = points[np.sort(hull.vertices)]
    if len(corners) <= 4 * MAX_HULL_VERTICES:
        corners = _without_flat(corners)
    if len(corners) > MAX_HULL_VERTICES:
        raise InputError(
            f"mesh {path} is enormous: its hull has {len(corners)} vertices, "
            f"at most {MAX_HULL_VERTICES} are allowed (one token each); simplify it"
        )
    return Hull.of(path.stem, corners)


def _without_flat(corners: np.ndarray) -> np.ndarray:
    """Vertices of a hull (V, 3) without those inside its faces and edges, which rounding makes corners of their own."""
    from scipy.spatial import ConvexHull

    kept = np.ones(len(corners), bool)
    for k, corner in enumerate(corners):
        kept[k] = False
        faces = ConvexHull(corners[kept]).equations if kept.sum() > 3 else np.full((1, 4), np.inf)
        kept[k] = (faces[:, :3] @ corner + faces[:, 3]).max() > _FLAT
    return corners[kept]


def family_of_meshes(folder: Path, base: Family) -> Family:
    """The family ``base`` with the hulls of all ``.obj`` files of a folder, in the order of their names.

    Raises InputError if the folder has none, or one of them is unusable.
    """
    folder = Path(folder)
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".obj") if folder.is_dir() else []
    if not paths:
        raise InputError(f"{folder} is not a folder with .obj meshes")
    hulls = tuple(hull_of_mesh(path) for path in paths)
    return dataclasses.replace(base, name=f"{base.name}-meshes", hulls=hulls)
