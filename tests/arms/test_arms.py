import dataclasses

import numpy as np
import pytest
import torch

from eqscale import native
from eqscale.arms import Size, arm_names, get_arm, register
from eqscale.errors import InputError
from eqscale.tasks import get_task
from eqscale.tasks.symmetry import random_orthogonal, transform, translate

ARMS = (
    "transformer",
    "transformer_aug",
    "transformer_aligned",
    "transformer_frames",
    "transformer_local",
    "gatr_slim",
    "gatr",
)
RIGID = get_task("rigid")


def build(name, size=None):
    torch.manual_seed(0)
    arm = get_arm(name)
    return arm.build(size or arm.ladder[4], RIGID).double()


def relative_error(a, b, mask):
    return float((a - b)[mask].abs().max() / b[mask].abs().max())


def test_gatr_is_exactly_equivariant_under_all_of_e3(batch):
    model = build("gatr")
    generator = torch.Generator().manual_seed(1)
    R = random_orthogonal(len(batch), generator, torch.float64)
    assert (torch.linalg.det(R) < 0).any()  # reflections are among them
    assert (torch.linalg.det(R) > 0).any()
    t = 100 * torch.randn(len(batch), 3, generator=generator, dtype=torch.float64)
    moved = translate(transform(batch, R), t)
    expected = model(batch) @ R.transpose(1, 2)
    assert relative_error(model(moved), expected, batch.mask) < 1e-10


def test_alignment_makes_predictions_covariant_under_turns_that_it_undoes(batch):
    model = build("transformer_aligned")
    upright, R = RIGID.align(batch)
    expected = model(batch) @ R.transpose(1, 2)
    assert relative_error(model(upright), expected, batch.mask) < 1e-10


def test_the_plain_transformer_is_not_equivariant(batch):
    model = build("transformer")
    R = random_orthogonal(len(batch), torch.Generator().manual_seed(1), torch.float64)
    assert relative_error(model(transform(batch, R)), model(batch) @ R.transpose(1, 2), batch.mask) > 0.1


def parameters(arm, size):
    """What ``arm.parameters`` counts, from one and two blocks: to build the largest models takes seconds."""
    one, two = (arm.parameters(dataclasses.replace(size, depth=depth), RIGID) for depth in (1, 2))
    return one + (size.depth - 1) * (two - one)


@pytest.mark.skipif(not native.available(torch.empty(0)), reason="no C++ compiler here")
@pytest.mark.parametrize("name", [*ARMS, "gatr_published", "gatr_absolute"])
def test_loss_and_gradient_in_one_call_are_those_of_predictions(name, batch):
    check_loss_in_one_call(build(name), build(name), batch)


def check_loss_in_one_call(whole, apart, batch):
    """On two equal models."""
    losses = [whole.add_loss_gradient(whole.prepared(batch), 0.3).item() for _ in range(2)]  # gradients add up
    want = 0.3 * (batch.weight * (apart(batch) - batch.target).square().sum(-1)).sum()
    (2 * want).backward()
    assert losses == [pytest.approx(want.item(), rel=1e-12)] * 2
    for (own, a), b in zip(whole.named_parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12, msg=own)


@pytest.mark.parametrize("name", ARMS)
def test_ladders_rise_in_parameters_from_1e3_to_nearly_1e9(name):
    arm = get_arm(name)
    counts = [parameters(arm, size) for size in arm.ladder]
    for k in range(0, len(counts) // 2, 3):
        assert counts[k] == arm.parameters(arm.ladder[k], RIGID)
    assert counts == sorted(counts)
    assert counts[0] < 1.5e3
    assert counts[-1] > 5e8
    steps = np.exp(np.diff(np.log(counts)))
    assert steps[0] < 1.8  # whole channels and blocks are too coarse for the very first step
    assert max(steps[1:]) <= 1.6


@pytest.mark.parametrize("name", ARMS)
def test_predictions_start_small_at_every_rung(name, batch):
    for size in get_arm(name).ladder[:20:4]:
        model = build(name, size)
        spread = float(model(batch)[batch.mask].std())
        assert 1e-3 < spread < 2.0


@pytest.mark.parametrize("name", ARMS)
def test_what_padding_holds_changes_nothing(name, batch):
    model = build(name)
    padding = ~batch.mask[..., None]
    assert padding.any()
    damaged = batch.replace(
        position=batch["position"].masked_fill(padding, 7.0), velocity=batch["velocity"].masked_fill(padding, -3.0)
    )
    assert torch.equal(model(batch)[batch.mask], model(damaged)[batch.mask])


def test_every_arm_says_how_it_meets_the_symmetry():
    roles = {name: str(get_arm(name).role) for name in (*ARMS, "gatr_turned")}
    assert (roles["transformer"], roles["transformer_aug"]) == ("learn", "augment")
    assert (roles["transformer_aligned"], roles["gatr"]) == ("align", "build_in")
    assert (roles["gatr_turned"], get_arm("gatr_turned").control_of) == ("control", "gatr")
    with pytest.raises(InputError, match=r"arm 'gatr': role 'lead'; choose from learn, augment, align, build_in"):
        dataclasses.replace(get_arm("gatr"), role="lead")
    for wrong in ({"role": "control"}, {"control_of": "transformer"}):
        with pytest.raises(InputError, match="a control, and no other arm, names the arm"):
            dataclasses.replace(get_arm("gatr"), **wrong)


def test_names_are_unique_and_unknown_ones_listed():
    with pytest.raises(InputError, match="already registered"):
        register(get_arm("gatr"))
    with pytest.raises(InputError, match=r"unknown arm 'no'; choose from transformer, .*gatr"):
        get_arm("no")
    assert set(ARMS) <= set(arm_names())
    assert str(Size(8, 2, 2)) == "8x2"
