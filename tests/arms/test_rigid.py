"""What the arms see of the rigid task, written out: its runs keep their numbers only if this stays."""

import numpy as np
import pytest
import torch

from eqscale.algebra import embed_direction, embed_plane, embed_point
from eqscale.arms.inputs import (
    invariants,
    multivectors,
    multivectors_width,
    numbers,
    plane_invariants,
    published_multivectors,
)
from eqscale.tasks import get_task

RIGID = get_task("rigid")


@pytest.fixture
def batch(windows):
    """Single precision, as in training."""
    return windows[0].batch(np.arange(0, 480, 30))


def floor(batch):
    """Normal n (B, 1, 3) and offset d (B, 1) of the floor, the plane n.x = d."""
    return batch["floor"][:, None, :3], batch["floor"][:, None, 3]


def everywhere(value, batch):
    return value[:, None].expand(-1, batch.mask.shape[1], -1)


def heights_and_speeds(batch):
    normal, offset = floor(batch)
    return torch.stack(
        [
            (batch["position"] * normal).sum(-1) - offset,
            (batch["center"] * normal).sum(-1) - offset,
            (batch["velocity"] / 2 * normal).sum(-1),
            (batch["center_velocity"] / 2 * normal).sum(-1),
        ],
        -1,
    )


def test_plain_transformers_see_these_numbers(batch):
    expected = torch.cat(
        [
            batch["position"] - batch["center"],
            batch["center"],
            (batch["velocity"] - batch["center_velocity"]) / 2,
            batch["center_velocity"] / 2,
            batch["material"],
            everywhere(batch["floor"], batch),
            everywhere(batch["gravity"] / 9.81, batch),
            everywhere(batch["floor_material"], batch),
        ],
        -1,
    )
    assert expected.shape[-1] == 24
    assert torch.equal(numbers(batch), expected)


def test_heights_and_speeds_are_those_of_vertex_and_centre(batch):
    (found,) = plane_invariants(batch)
    torch.testing.assert_close(found, heights_and_speeds(batch), rtol=0, atol=1e-5)  # sums in another order


def test_gatr_sees_materials_heights_and_speeds_as_scalars(batch):
    materials = [batch["material"], everywhere(batch["floor_material"], batch)]
    want = torch.cat([*materials, heights_and_speeds(batch)], -1)
    torch.testing.assert_close(invariants(batch), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("unit", [0.1, 1.0])
def test_gatr_sees_three_true_and_five_pseudo_channels(batch, unit):
    n, d = floor(batch)
    normal = everywhere(n[:, 0], batch)
    vertex, center = batch["position"] / unit, batch["center"] / unit
    velocity, center_velocity = batch["velocity"] / 2, batch["center_velocity"] / 2
    expected = [
        embed_plane(normal, normal * (d / unit)[..., None]),
        embed_plane(velocity, vertex),
        embed_plane(vertex - center, vertex),
        embed_point(vertex),
        embed_point(center),
        embed_direction(velocity),
        embed_direction(center_velocity),
        embed_direction(everywhere(batch["gravity"] / 9.81, batch)),
    ]
    assert multivectors_width(RIGID.schema) == (3, 5)
    assert torch.equal(multivectors(batch, unit), torch.stack(expected, 2))


def test_published_gatr_sees_six_channels(batch):
    n, d = floor(batch)
    normal, unit = everywhere(n[:, 0], batch), 0.1
    origin = torch.zeros_like(normal)
    expected = [
        embed_plane(normal, normal * (d / unit)[..., None]),
        embed_plane(batch["velocity"] / 2, origin),
        embed_plane(batch["center_velocity"] / 2, origin),
        embed_plane(everywhere(batch["gravity"] / 9.81, batch), origin),
        embed_point(batch["position"] / unit),
        embed_point(batch["center"] / unit),
    ]
    assert torch.equal(published_multivectors(batch, unit), torch.stack(expected, 2))
