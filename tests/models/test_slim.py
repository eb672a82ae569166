"""Slim GATr: exact under O(3) and permutations by types, its cost, padding and bad inputs."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eqscale.errors import InputError
from eqscale.models.slim import Channels, Slim, SlimConfig, slim_training_flops
from eqscale.tasks.symmetry import random_orthogonal

B, T = 5, 6
CONFIG = SlimConfig(Channels(3, 2, 1), Channels(2, 1, 1), scalars=10, vectors=6, blocks=2, heads=4)


def network(config=CONFIG):
    """A network whose biases are not the ones it starts with."""
    torch.manual_seed(0)
    net = Slim(config).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def inputs():
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(T) < torch.tensor([6, 3, 1, 4, 5])[:, None]
    shapes = (B, T, 3), (B, T, 2, 3), (B, T, 1, 3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes], mask


@torch.no_grad()
def test_true_vectors_turn_as_such_pseudovectors_with_the_determinant_and_invariants_not_at_all():
    net, ((scalars, true, pseudo), mask) = network(), inputs()
    R = random_orthogonal(B, torch.Generator().manual_seed(2), torch.float64)
    sign = torch.linalg.det(R)[:, None, None, None]
    assert sorted(set(sign.flatten().round().tolist())) == [-1, 1]
    turn = R.mT[:, None]
    found = net(scalars, true @ turn, sign * pseudo @ turn, mask)
    invariant, vector, axial = net(scalars, true, pseudo, mask)
    for got, want in zip(found, (invariant, vector @ turn, sign * axial @ turn), strict=True):
        assert want[mask].abs().max() > 0.01
        torch.testing.assert_close(got[mask], want[mask], rtol=0, atol=1e-12)


@torch.no_grad()
def test_tokens_may_come_in_any_order_and_padding_leaks_nowhere():
    net, (parts, mask) = network(), inputs()
    order = torch.randperm(T, generator=torch.Generator().manual_seed(3))
    want = net(*parts, mask)
    for got, out in zip(net(*(part[:, order] for part in parts), mask[:, order]), want, strict=True):
        torch.testing.assert_close(got[mask[:, order]], out[:, order][mask[:, order]], rtol=0, atol=1e-12)
    noisy = [torch.where(mask.view(B, T, *(1,) * (part.ndim - 2)), part, 7.0) for part in parts]
    for got, out in zip(net(*noisy, mask), want, strict=True):
        assert torch.equal(got[mask], out[mask])
    for got, out in zip(net(*(part[1:2, :3] for part in parts)), want, strict=True):
        torch.testing.assert_close(got, out[1:2, :3], rtol=0, atol=1e-12)


def test_every_parameter_has_a_gradient():
    net, (parts, mask) = network(), inputs()
    sum(out[mask].sin().sum() for out in net(*parts, mask)).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("changes", "unneeded"),
    [
        ({}, 0),
        ({"heads": 2, "blocks": 3}, 0),
        # The last scalars, and gradients of the first pseudovectors, are left out.
        ({"inputs": Channels(1, 2, 0), "outputs": Channels(0, 1, 0)}, 0.05),
    ],
)
def test_closed_form_flops_are_those_of_the_matrix_products_and_of_products_of_vectors(changes, unneeded):
    config = dataclasses.replace(CONFIG, **changes)
    net = network(config)
    parts = [torch.randn(B, T, config.inputs[0]), *(torch.randn(B, T, n, 3) for n in config.inputs[1:])]
    with FlopCounterMode(display=False) as counter:
        sum(out.sum() for out in net(*(part.double() for part in parts))).backward()
    products = 6 * config.blocks * config.vectors * (2 * 3 + 4 * 6) * B * T
    counted = slim_training_flops(config).executed.total(B * T, B * T * T)
    done = counter.get_total_flops() + products
    assert (1 - unneeded) * counted <= done <= counted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"true": torch.zeros(B, T, 3, 3)}, r"true: expected \(B, T, 2, 3\)"),
        ({"scalars": torch.zeros(B, T + 1, 3)}, r"scalars: tokens \(5, 7\), true vectors have \(5, 6\)"),
        ({"pseudo": torch.zeros(B, T, 1, 3, dtype=torch.float64)}, "pseudo: torch.float64 on cpu, the network holds"),
        ({"mask": torch.zeros(B, T, dtype=torch.bool)}, "mask: sample 0 of the batch has no token"),
    ],
)
def test_bad_inputs_are_refused_in_one_line(changes, message):
    (scalars, true, pseudo), mask = inputs()
    given = {"scalars": scalars.float(), "true": true.float(), "pseudo": pseudo.float(), "mask": mask} | changes
    with pytest.raises(InputError, match=message) as caught:
        Slim(CONFIG)(**given)
    assert "\n" not in str(caught.value)


def test_shapes_that_make_no_network_are_refused():
    for change in ({"heads": 0}, {"vectors": 0}, {"inputs": Channels(0, 0, 0)}, {"outputs": Channels(-1, 1, 0)}):
        with pytest.raises(InputError, match="SlimConfig"):
            dataclasses.replace(CONFIG, **change)
