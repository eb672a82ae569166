import numpy as np
import pytest
import trimesh

from eqscale.errors import InputError
from eqscale.tasks.dataset import generate
from eqscale.tasks.rigid import meshes
from eqscale.tasks.rigid.families import FAMILIES, Family
from eqscale.tasks.rigid.meshes import family_of_meshes, hull_of_mesh
from eqscale.tasks.rigid.shapes import LARGE_HULLS, SMALL_HULLS, Hull, solid
from eqscale.tasks.rigid.task import data_spec


@pytest.fixture
def folder(tmp_path):
    trimesh.creation.box((2, 1, 1)).export(tmp_path / "brick.obj")
    trimesh.creation.torus(1.0, 0.3, major_sections=16, minor_sections=8).export(tmp_path / "torus.obj")
    return tmp_path


def test_a_folder_of_meshes_is_a_family(folder):
    family = family_of_meshes(folder, FAMILIES["S"])
    assert [h.name for h in family.hulls] == ["brick", "torus"]
    for hull in family.hulls:
        vertices = np.array(hull.vertices)
        assert np.ptp(vertices, axis=0).max() == pytest.approx(1)
    records = generate(data_spec(family), [], "train", 0, 2)
    assert np.isfinite(records["trajectory"]).all()
    assert set(np.unique(records["count"])) <= {0, 8, len(family.hulls[1].vertices)}
    assert data_spec(family).digest != data_spec("S").digest
    assert data_spec(family).digest == data_spec(family_of_meshes(folder, FAMILIES["S"])).digest


def test_the_hull_of_a_concave_mesh_has_no_hole(folder):
    hull = hull_of_mesh(folder / "torus.obj")
    mesh = trimesh.load(folder / "torus.obj", force="mesh")
    assert len(hull.vertices) < len(mesh.vertices)
    extent = np.ptp(mesh.vertices, axis=0).max()
    assert solid(hull).volume > 1.3 * mesh.volume / extent**3


def flat(path):
    trimesh.creation.box((1, 1, 1e-4)).export(path)


def planar(path):
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\nf 1 3 2\n")


def slanted_sheet(path):
    box = trimesh.creation.box((1, 1, 1e-4))
    box.apply_transform(trimesh.transformations.rotation_matrix(0.7, [1, 2, 3]))
    box.export(path)


def opened(path):
    box = trimesh.creation.box()
    box.update_faces(np.arange(len(box.faces)) > 1)
    box.export(path)


def too_fine(path):
    trimesh.creation.icosphere(subdivisions=3).export(path)


def nonsense(path):
    path.write_bytes(b"v 0 0 x\nf 1 2 3\n")


def empty(path):
    path.write_text("")


def infinite(path):
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 inf\nf 1 3 2\nf 1 2 4\nf 2 3 4\nf 3 1 4\n")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (flat, "is flat"),
        (planar, "is flat"),
        (slanted_sheet, "is flat"),
        (opened, "is open"),
        (too_fine, "is enormous: its hull has 642 vertices, at most 255"),
        (nonsense, r"cannot be read as \.obj|has no faces"),
        (empty, r"cannot be read as \.obj|has no faces"),
        (infinite, "not finite"),
    ],
)
def test_unusable_meshes_are_named(tmp_path, make, message):
    make(tmp_path / "bad.obj")
    with pytest.raises(InputError, match=message) as caught:
        family_of_meshes(tmp_path, FAMILIES["S"])
    assert "bad.obj" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_enormous_files_are_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(meshes, "MAX_BYTES", 10)
    too_fine(tmp_path / "bad.obj")
    with pytest.raises(InputError, match="enormous"):
        hull_of_mesh(tmp_path / "bad.obj")


def test_a_folder_without_meshes_is_named(tmp_path):
    with pytest.raises(InputError, match=r"not a folder with \.obj meshes"):
        family_of_meshes(tmp_path / "nowhere", FAMILIES["S"])


@pytest.mark.parametrize("hull", [*SMALL_HULLS, *LARGE_HULLS], ids=lambda h: h.name)
def test_built_in_hulls_are_convex_and_in_principal_axes(hull):
    """Every vertex is a corner of its hull; mass properties agree with a Monte-Carlo integral."""
    from scipy.spatial import ConvexHull, Delaunay

    vertices = np.array(hull.vertices)
    assert len(ConvexHull(vertices).vertices) == len(vertices)
    body = solid(hull)
    assert np.linalg.norm(body.vertices, axis=1).max() == pytest.approx(body.radius)
    rng = np.random.default_rng(0)
    points = rng.uniform(body.vertices.min(0), body.vertices.max(0), (40000, 3))
    box = np.prod(np.ptp(body.vertices, axis=0))
    inside = points[Delaunay(body.vertices).find_simplex(points) >= 0]
    assert body.volume == pytest.approx(box * len(inside) / len(points), rel=0.03)
    np.testing.assert_allclose(inside.mean(0), 0, atol=0.01)
    second = (inside.T @ inside) / len(inside) * body.volume
    np.testing.assert_allclose(np.trace(second) * np.eye(3) - second, np.diag(body.inertia), atol=0.004)


def test_mass_properties_of_a_brick():
    brick = Hull.of("brick", np.array([[x, y, z] for x in (0, 1) for y in (0, 2) for z in (0, 3)], float))
    body = solid(brick)
    assert body.volume == pytest.approx(6)
    np.testing.assert_allclose(body.inertia, 6 / 12 * np.array([4 + 9, 1 + 9, 1 + 4]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objects": (3, 2)}, "objects"),
        ({"hulls": ()}, "no shapes"),
        ({"scale": (2.0, 1.0)}, "scale"),
        ({"restitution": (0.5, 1.5)}, "restitution"),
        ({"name": "a/b"}, "family name"),
    ],
)
def test_bad_families_are_named(change, message):
    import dataclasses

    with pytest.raises(InputError, match=message):
        dataclasses.replace(FAMILIES["S"], **change)


def test_a_region_too_small_is_named():
    import dataclasses

    crowded: Family = dataclasses.replace(FAMILIES["S"], objects=(30, 30))
    with pytest.raises(InputError, match="do not fit"):
        generate(data_spec(crowded), [], "train", 0, 1)


@pytest.mark.parametrize("subdivisions", [1, 2, 3])
def test_a_subdivided_and_turned_box_has_eight_corners(tmp_path, subdivisions):
    box = trimesh.creation.box((2, 1, 1))
    for _ in range(subdivisions):
        box = box.subdivide()
    box.apply_transform(trimesh.transformations.rotation_matrix(1.0, (1, 2, 3)))
    box.export(tmp_path / "box.obj", digits=16)
    assert len(hull_of_mesh(tmp_path / "box.obj").vertices) == 8


def test_faces_without_area_noise_and_a_byte_order_mark_change_no_hull(tmp_path):
    corners = trimesh.creation.box((2, 1, 1)).triangles.reshape(-1, 3)
    noise = 1e-7 * np.random.default_rng(0).uniform(-1, 1, corners.shape)
    lines = [f"v {x:.9f} {y:.9f} {z:.9f}" for x, y, z in corners + noise]
    lines += [f"f {k} {k + 1} {k + 2}" for k in range(1, len(corners), 3)] + ["f 1 1 2"]
    (tmp_path / "box.obj").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    assert len(hull_of_mesh(tmp_path / "box.obj").vertices) == 8


def test_the_case_of_a_suffix_leaves_no_mesh_out(folder):
    (folder / "brick.obj").rename(folder / "BRICK.OBJ")
    assert [hull.name for hull in family_of_meshes(folder, FAMILIES["S"]).hulls] == ["BRICK", "torus"]
