import functools

import pytest
import torch

from eqscale.tasks.fields import Batch, Field, Kind, Schema
from eqscale.tasks.symmetry import (
    E3,
    ELEMENTS,
    SE3,
    permute,
    random_orthogonal,
    random_rotation,
    random_unit,
    shuffle_tokens,
    transform,
    translate,
)

B, T = 6, 5
close = functools.partial(torch.testing.assert_close, atol=1e-12, rtol=0)


@pytest.fixture(params=["token", "sample"])
def batch(request) -> Batch:
    """Every kind of field per token and per sample, in float64; 'axial' is the cross product of two directions."""
    generator = torch.Generator().manual_seed(0)
    target = Field("target", Kind.DIRECTION, request.param)
    fields, values = [], {}
    mask = torch.arange(T) < torch.tensor([5, 3, 4, 1, 2, 5])[:, None]
    for per, shape in (("token", (B, T)), ("sample", (B,))):
        real = mask[..., None] if per == "token" else 1.0
        for name, kind in (("x", Kind.POINT), ("u", Kind.DIRECTION), ("v", Kind.DIRECTION), ("q", Kind.INVARIANT)):
            fields.append(Field(f"{name}_{per}", kind, per, channels=2 if kind is Kind.INVARIANT else 1))
            values[f"{name}_{per}"] = torch.randn(*shape, fields[-1].width, generator=generator).double() * real
        normal = random_unit(B, generator, torch.float64)
        normal = normal if per == "sample" else normal[:, None].expand(B, T, 3)
        offset = torch.randn(*shape, 1, generator=generator).double()
        values[f"plane_{per}"] = torch.cat([normal, offset], -1) * real
        values[f"axial_{per}"] = torch.linalg.cross(values[f"u_{per}"], values[f"v_{per}"])
        fields += [Field(f"plane_{per}", Kind.PLANE, per), Field(f"axial_{per}", Kind.PSEUDOVECTOR, per)]
    return Batch(
        schema=Schema(tuple(fields), target),
        values=values,
        mask=mask,
        target=values[f"u_{request.param}"],
        weight=mask * torch.arange(1.0, T + 1) if request.param == "token" else torch.ones(B),
        system=torch.arange(B),
        labels={"species": torch.where(mask, torch.arange(B * T).reshape(B, T), 0)},
    )


def elements(seed: int) -> torch.Tensor:
    """Matrices of both signs."""
    matrix = random_orthogonal(B, torch.Generator().manual_seed(seed), torch.float64)
    matrix[0] *= torch.linalg.det(matrix[0]).sign()
    matrix[1] *= -torch.linalg.det(matrix[1]).sign()
    return matrix


def shifts(seed: int) -> torch.Tensor:
    return torch.randn(B, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(one: Batch, other: Batch) -> None:
    for name, value in one.values.items():
        close(value, other[name])
    close(one.target, other.target)
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one["species"], other["species"])


def heights(batch: Batch, point: str, plane: str) -> torch.Tensor:
    x, wall = batch[point], batch[plane]
    wall = wall if wall.ndim == x.ndim else wall[:, None]
    height = (x * wall[..., :3]).sum(-1) - wall[..., 3]
    return height * batch.mask if x.ndim == 3 else height


def test_every_kind_turns_as_it_is_declared(batch):
    matrix = elements(0)
    moved = transform(batch, matrix)
    for name in ("x_token", "u_token", "v_token"):
        close(moved[name], torch.einsum("bij,btj->bti", matrix, batch[name]))
    for name in ("x_sample", "u_sample", "v_sample"):
        close(moved[name], torch.einsum("bij,bj->bi", matrix, batch[name]))
    for per in ("token", "sample"):
        close(moved[f"axial_{per}"], torch.linalg.cross(moved[f"u_{per}"], moved[f"v_{per}"]))
        assert torch.equal(moved[f"q_{per}"], batch[f"q_{per}"])
    close(moved.target, moved[f"u_{batch.schema.target.per}"])


def test_reflections_give_pseudovectors_their_other_sign(batch):
    inverted = transform(batch, -torch.eye(3, dtype=torch.float64).expand(B, 3, 3))
    for per in ("token", "sample"):
        close(inverted[f"axial_{per}"], batch[f"axial_{per}"])
        close(inverted[f"u_{per}"], -batch[f"u_{per}"])


def test_heights_above_planes_stay_under_every_motion(batch):
    moved = translate(transform(batch, elements(1)), shifts(1))
    for names in (("x_token", "plane_token"), ("x_token", "plane_sample"), ("x_sample", "plane_sample")):
        close(heights(moved, *names), heights(batch, *names))
    assert not torch.allclose(moved["plane_sample"][:, 3], batch["plane_sample"][:, 3])


def test_shifts_move_points_and_planes_only(batch):
    moved, shift = translate(batch, shifts(2)), shifts(2)
    close(moved["x_token"] - batch["x_token"], shift[:, None] * batch.mask[..., None])
    close(moved["x_sample"] - batch["x_sample"], shift)
    for name in set(batch.values) - {"x_token", "x_sample", "plane_token", "plane_sample"}:
        assert torch.equal(moved[name], batch[name])
    assert torch.equal(moved.target, batch.target)


def test_acting_twice_is_acting_with_the_product(batch):
    g, h, s, t = elements(3), elements(4), shifts(3), shifts(4)
    same(transform(transform(batch, g), h), transform(batch, h @ g))
    same(translate(translate(batch, s), t), translate(batch, s + t))
    turned = (g @ s[..., None])[..., 0]
    same(transform(translate(batch, s), g), translate(transform(batch, g), turned))
    p, q = (torch.rand(B, T, generator=torch.Generator().manual_seed(k)).argsort(1) for k in (0, 1))
    same(permute(permute(batch, p), q), permute(batch, p.gather(1, q)))
    same(permute(transform(batch, g), p), transform(permute(batch, p), g))


def test_everything_of_a_token_goes_with_it(batch):
    moved = shuffle_tokens(batch, torch.Generator().manual_seed(0))
    assert torch.equal(moved.mask, batch.mask)
    assert not torch.equal(moved["species"], batch["species"])
    order = moved["species"].argsort(dim=1, stable=True), batch["species"].argsort(dim=1, stable=True)
    back = [permute(b, o) for b, o in zip((moved, batch), order, strict=True)]
    same(*back)
    assert torch.equal(back[0].weight, back[1].weight)
    for name in (n for n in batch.values if n.endswith("sample")):
        assert torch.equal(moved[name], batch[name])


@pytest.mark.parametrize("name", ELEMENTS)
def test_padded_tokens_stay_zero(batch, name):
    moved = ELEMENTS[name](batch, torch.Generator().manual_seed(0))
    for field in moved.schema.fields:
        if field.per == "token":
            assert not moved[field.name][~moved.mask].any()
    assert any(not torch.equal(moved[n], batch[n]) for n in batch.values)


def test_random_orthogonal_is_uniform_on_both_components():
    g = random_orthogonal(20000, torch.Generator().manual_seed(0), torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(g @ g.transpose(1, 2), eye.expand_as(g))
    assert abs(float(torch.linalg.det(g).mean())) < 0.03
    assert g.mean(0).abs().max() < 0.02
    # second moments of Haar measure: E[g_ij g_kl] = delta_ik delta_jl / 3
    second = torch.einsum("bi,bj->ij", g.reshape(-1, 9), g.reshape(-1, 9)) / len(g)
    assert (second - torch.eye(9, dtype=torch.float64) / 3).abs().max() < 0.02


def test_the_groups_differ_in_their_reflections():
    for group, signs in ((E3, {-1.0, 1.0}), (SE3, {1.0})):
        matrix = group.elements(100, torch.Generator().manual_seed(0), torch.float64)
        assert set(torch.linalg.det(matrix).round().tolist()) == signs
    assert SE3.elements is random_rotation
