"""The algebra against its axioms, NumPy/SciPy geometry, and the action of Pin(3,0,1)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from eqscale import algebra as ga
from eqscale.algebra import blades
from eqscale.errors import InputError


def multivectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blade(name: str) -> torch.Tensor:
    out = torch.zeros(16, dtype=torch.float64)
    out[blades.INDEX[name]] = 1
    return out


def test_tables_have_the_known_sizes():
    assert len(blades.GEOMETRIC_PRODUCT) == 192
    assert len(blades.JOIN) == len(blades.OUTER_PRODUCT) == 81
    assert blades.NAMES[:5] == ("1", "e0", "e1", "e2", "e3")
    assert blades.NAMES[-2:] == ("e123", "e0123")


@pytest.mark.parametrize(
    ("a", "square"), [("e0", 0), ("e1", 1), ("e2", 1), ("e3", 1), ("e12", -1), ("e123", -1), ("e0123", 0)]
)
def test_squares_of_blades(a, square):
    assert torch.equal(ga.geometric_product(blade(a), blade(a)), square * blade("1"))


def test_products_of_vectors_anticommute_and_spell_blades():
    assert torch.equal(ga.geometric_product(blade("e2"), blade("e1")), -blade("e12"))
    assert torch.equal(ga.geometric_product(ga.geometric_product(blade("e0"), blade("e1")), blade("e3")), blade("e013"))


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_products_are_associative(seed):
    x, y, z = multivectors(3, seed=seed)
    for product in (ga.geometric_product, ga.outer_product, ga.join):
        torch.testing.assert_close(product(product(x, y), z), product(x, product(y, z)))


def test_reverse_and_involution():
    x, y = multivectors(2)
    gp = ga.geometric_product
    torch.testing.assert_close(ga.reverse(gp(x, y)), gp(ga.reverse(y), ga.reverse(x)))
    torch.testing.assert_close(ga.grade_involution(gp(x, y)), gp(ga.grade_involution(x), ga.grade_involution(y)))
    torch.testing.assert_close(ga.inner_product(x, y), gp(ga.reverse(x), y)[0])


def test_grades_add_up():
    x = multivectors(4)
    torch.testing.assert_close(sum(ga.grade_projection(x, g) for g in range(5)), x)


def test_dual_is_the_right_complement():
    for name in blades.NAMES:
        torch.testing.assert_close(ga.outer_product(blade(name), ga.dual(blade(name))), blade("e0123"))
    x = multivectors(5)
    torch.testing.assert_close(ga.undual(ga.dual(x)), x)
    y = multivectors(5, seed=1)
    torch.testing.assert_close(ga.join(x, y), ga.undual(ga.outer_product(ga.dual(x), ga.dual(y))))


def test_embeddings_round_trip():
    x, v = vectors(7), vectors(7, seed=1)
    torch.testing.assert_close(ga.extract_point(ga.embed_point(x)), x)
    torch.testing.assert_close(ga.extract_point(-2.5 * ga.embed_point(x)), x)
    torch.testing.assert_close(ga.extract_direction(ga.embed_direction(v)), v)
    torch.testing.assert_close(ga.extract_weight(ga.embed_direction(v)), torch.zeros(7, dtype=torch.float64))
    normal, offset = ga.extract_plane(ga.embed_plane(v, x))
    torch.testing.assert_close(normal, v)
    torch.testing.assert_close(offset, (v * x).sum(-1))
    torch.testing.assert_close(ga.extract_translation(ga.embed_translation(v)), v)


def test_line_has_direction_and_moment_of_numpy():
    x, v = vectors(6), vectors(6, seed=1)
    direction, moment = ga.extract_line(ga.embed_line(x, v))
    np.testing.assert_allclose(direction, v, atol=1e-14)
    np.testing.assert_allclose(moment, np.cross(x, v), atol=1e-14)


def test_incidence():
    p, q, r = vectors(3)
    n = torch.linalg.cross(q - p, r - p)
    plane = ga.join(ga.join(ga.embed_point(p), ga.embed_point(q)), ga.embed_point(r))
    normal, offset = ga.extract_plane(plane)
    scale = (normal @ n) / (n @ n)
    torch.testing.assert_close(normal, scale * n)
    torch.testing.assert_close(offset, scale * (n @ p))
    # meet of three planes through p is p
    normals = vectors(3, seed=5)
    a, b, c = (ga.embed_plane(m, p) for m in normals)
    torch.testing.assert_close(ga.extract_point(ga.outer_product(ga.outer_product(a, b), c)), p)


def test_versors_act_like_matrices():
    x, t = vectors(9), vectors(1, seed=1)[0]
    q = torch.randn(4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    q = q / q.norm()
    matrix = Rotation.from_quat(q[[1, 2, 3, 0]].numpy()).as_matrix()
    point = ga.embed_point(x)
    moved = ga.transform(ga.embed_translation(t), point, ga.PSEUDO)
    np.testing.assert_allclose(ga.extract_point(moved), x + t, atol=1e-13)
    turned = ga.transform(ga.embed_rotation(q), point, ga.PSEUDO)
    np.testing.assert_allclose(ga.extract_point(turned), x.numpy() @ matrix.T, atol=1e-13)
    torch.testing.assert_close(ga.extract_rotation(ga.embed_rotation(q)), q)
    both = ga.geometric_product(ga.embed_translation(t), ga.embed_rotation(q))
    np.testing.assert_allclose(
        ga.extract_point(ga.transform(both, point, ga.PSEUDO)), x.numpy() @ matrix.T + t.numpy(), atol=1e-13
    )


def test_reflection_keeps_the_weight_of_points_and_mirrors_planes():
    x, p = vectors(5), vectors(1, seed=1)[0]
    n = vectors(1, seed=2)[0]
    n = n / n.norm()
    mirror = ga.embed_reflection(n, p)
    assert ga.is_odd(mirror)
    image = ga.transform(mirror, ga.embed_point(x), ga.PSEUDO)
    torch.testing.assert_close(ga.extract_weight(image), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(ga.extract_point(image), x - 2 * ((x - p) @ n)[:, None] * n)
    v = vectors(5, seed=3)
    plane = ga.transform(mirror, ga.embed_plane(v, x), ga.TRUE)
    torch.testing.assert_close(plane, ga.embed_plane(v - 2 * (v @ n)[:, None] * n, ga.extract_point(image)))


def test_parities_of_products():
    x, y = multivectors(4, 3), multivectors(4, 3, seed=1)
    for p in (ga.TRUE, ga.PSEUDO):
        for q in (ga.TRUE, ga.PSEUDO):
            ga.assert_equivariant(ga.geometric_product, [x, y], [p, q], [p * q])
            ga.assert_equivariant(ga.outer_product, [x, y], [p, q], [p * q])
            ga.assert_equivariant(ga.join, [x, y], [p, q], [-p * q])
    ga.assert_equivariant(ga.reverse, [x], [ga.PSEUDO], [ga.PSEUDO])
    ga.assert_equivariant(ga.grade_involution, [x], [ga.TRUE], [ga.TRUE])
    ga.assert_equivariant(ga.inner_product, [x, y], [ga.PSEUDO] * 2, [None])


def test_displacement_read_out_is_covariant():
    true, pseudo, x = multivectors(6), multivectors(6, seed=1), 100 * vectors(6, seed=2)

    def as_direction(true, pseudo, point):
        return ga.embed_direction(ga.extract_displacement(true, pseudo, ga.extract_point(point)))

    ga.assert_equivariant(as_direction, [true, pseudo, ga.embed_point(x)], [ga.TRUE, ga.PSEUDO, ga.PSEUDO], [ga.PSEUDO])


def test_assert_equivariant_catches_violations():
    x, y = multivectors(4, 3), multivectors(4, 3, seed=1)
    with pytest.raises(AssertionError, match="reflection"):
        ga.assert_equivariant(ga.join, [x, y], [1, 1], [1])
    with pytest.raises(AssertionError, match="output 0"):
        ga.assert_equivariant(lambda z: z.flip(-1), [x], [1], [1])
    ga.assert_equivariant(ga.join, [x, y], [1, 1], [1], reflections=False)  # proper motions alone do not see it
    with pytest.raises(InputError, match="2 parities for 1 inputs"):
        ga.assert_equivariant(ga.reverse, [x], [1, 1], [1])


def test_wrong_shapes_are_named():
    with pytest.raises(InputError, match=r"x: expected a multivector of shape \(..., 16\), got \(4, 8\)"):
        ga.reverse(torch.zeros(4, 8))
    with pytest.raises(InputError, match=r"v: expected shape \(..., 3\)"):
        ga.embed_direction(torch.zeros(4))
    with pytest.raises(InputError, match="quaternion"):
        ga.embed_rotation(torch.zeros(3))


def test_constants_made_in_inference_mode_serve_training():
    with torch.inference_mode():
        ga.extract_plane(ga.geometric_product(torch.zeros(16).half(), torch.zeros(16).half()))
    x = torch.randn(16).half().requires_grad_()
    normal, _ = ga.extract_plane(ga.geometric_product(x, x))
    normal.sum().backward()
    assert x.grad.isfinite().all()
