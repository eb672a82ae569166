"""Which equivariant linear maps there are, by null space, and which of them the parity-typed layer offers."""

import itertools

import pytest
import torch

from eqscale import algebra as ga
from eqscale.algebra.blades import INDEX
from eqscale.models.gatr.layout import Layout
from eqscale.models.gatr.linear import Assembly, Linear, LinearMap, apply_linear

KINDS = ("true", "pseudo", "scalar")

# Dimension of the space of maps that commute with Pin(3,0,1), and how many of them the layer offers:
# [source, target]. Left out are all maps between parities (four multiplications of grades 0 to 3 by e0123, and
# e123 -> 1, e0123 -> 1, e0123 -> e0) and the ideal plane e0, which scalars could fill besides 1.
EXISTING = {
    ("true", "true"): 9, ("true", "pseudo"): 7, ("true", "scalar"): 1,
    ("pseudo", "true"): 7, ("pseudo", "pseudo"): 9, ("pseudo", "scalar"): 2,
    ("scalar", "true"): 2, ("scalar", "pseudo"): 1, ("scalar", "scalar"): 1,
}  # fmt: skip
OFFERED = EXISTING | {("true", "pseudo"): 0, ("pseudo", "true"): 0, ("scalar", "true"): 1}


def versors() -> list[torch.Tensor]:
    """Random elements that generate a dense subgroup; translations of order one keep the null space well
    conditioned."""
    generator = torch.Generator().manual_seed(0)
    return [ga.random_versor(generator, odd=k % 2 == 1, max_translation=2.0) for k in range(6)]


def action(versor: torch.Tensor, kind: str) -> torch.Tensor:
    """Matrix of the action on components, (16, 16), or (1, 1) on scalars."""
    if kind == "scalar":
        return torch.ones(1, 1, dtype=torch.float64)
    parity = ga.TRUE if kind == "true" else ga.PSEUDO
    return ga.transform(versor, torch.eye(16, dtype=torch.float64), parity).T.contiguous()


def equivariant_maps(source: str, target: str) -> torch.Tensor:
    """Orthonormal basis (dimension, target, source) of all maps L with L rho(g) = rho(g) L."""
    conditions = []
    for versor in versors():
        a, b = action(versor, source), action(versor, target)
        eye_a, eye_b = torch.eye(len(a), dtype=a.dtype), torch.eye(len(b), dtype=b.dtype)
        conditions.append(torch.kron(b, eye_a) - torch.kron(eye_b, a.T.contiguous()))
    _, singular, basis = torch.linalg.svd(torch.cat(conditions), full_matrices=False)
    null = singular < 1e-10 * max(1.0, singular.max().item())
    assert null.all() or singular[~null].min() > 1e-3  # a clear gap: the dimension is no matter of tolerance
    return basis[null].reshape(-1, len(b), len(a))


def offered_maps() -> dict[tuple[str, str], torch.Tensor]:
    """Matrices (parameters, target, source) of the layer's parameters, one at a time, by kinds of channels."""
    source, target = Layout(1, 1, 1, ones=True), Layout(1, 1, 1)
    linear_map = LinearMap(source, target)
    layer = Linear(linear_map).double()

    def rows(layout: Layout) -> dict[str, list[int]]:
        return {
            "true": list(layout.multivector(0)), "pseudo": list(layout.multivector(1)), "scalar": [layout.scalar(0)]
        }  # fmt: skip

    matrices = []
    for parameter in layer.parameters():
        for i in range(parameter.numel()):
            with torch.no_grad():
                for other in layer.parameters():
                    other.zero_()
                parameter.view(-1)[i] = 1
                unit = torch.eye(source.rows, dtype=torch.float64)
                matrices.append(apply_linear(unit, Assembly([layer])()[0], linear_map))
    full = torch.stack(matrices)
    out = {}
    for a, b in itertools.product(KINDS, KINDS):
        part = full[:, rows(target)[b]][:, :, rows(source)[a]]
        out[a, b] = part[part.abs().amax((1, 2)) > 0]
    return out


@pytest.mark.parametrize(("source", "target"), EXISTING)
def test_offered_maps_are_independent_elements_of_the_space_of_equivariant_maps(source, target):
    basis, offered = equivariant_maps(source, target), offered_maps()[source, target]
    assert len(basis) == EXISTING[source, target]
    assert len(offered) == OFFERED[source, target]
    flat, space = offered.flatten(1), basis.flatten(1)
    outside = flat - flat @ space.T @ space
    assert not (outside.abs() > 1e-10).any()
    assert torch.linalg.matrix_rank(flat @ flat.T) == len(flat)


@pytest.mark.parametrize(("source", "target"), [("true", "pseudo"), ("pseudo", "true")])
def test_the_maps_between_parities_by_name(source, target):
    identity = torch.eye(16, dtype=torch.float64)
    times = ga.geometric_product(identity[INDEX["e0123"]], identity).T
    maps = [times @ ga.grade_projection(identity, k).T for k in range(4)]
    for a, b in (("e123", "1"), ("e0123", "1"), ("e0123", "e0")):
        maps.append(torch.outer(identity[INDEX[b]], identity[INDEX[a]]))
    flat, space = torch.stack(maps).flatten(1), equivariant_maps(source, target).flatten(1)
    assert torch.linalg.matrix_rank(flat) == len(space) == 7
    assert (flat - flat @ space.T @ space).abs().max() < 1e-10


def test_the_bias_is_an_invariant_multivector():
    source, target = Layout(1, 1, 1, ones=True), Layout(1, 1, 1)
    layer = Linear(LinearMap(source, target)).double()
    zero = torch.zeros(source.rows, 1, dtype=torch.float64)
    zero[source.ones_row] = 1
    out = apply_linear(zero, Assembly([layer])()[0], layer.map)[:, 0]
    for channel, parity in ((0, ga.TRUE), (1, ga.PSEUDO)):
        bias = out[list(target.multivector(channel))]
        assert bias.abs().max() > 0
        for versor in versors():
            torch.testing.assert_close(ga.transform(versor, bias, parity), bias, rtol=0, atol=1e-12)
