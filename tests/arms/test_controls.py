"""Controls: the symmetry is measurably gone, and nothing else has changed."""

import pytest
import torch

from eqscale.arms import get_arm
from eqscale.arms.controls import turned_field
from eqscale.errors import InputError
from eqscale.roles import Role
from eqscale.tasks import Field, Kind, Schema, get_task
from eqscale.tasks.symmetry import random_orthogonal, transform, translate

RIGID = get_task("rigid")
CONTROLS = ("transformer_misaligned", "gatr_absolute", "gatr_turned")


def model_of(name):
    torch.manual_seed(0)
    return get_arm(name).build(get_arm(name).ladder[4], RIGID).double()


@torch.no_grad()
def gap(model, batch, moved, matrix):
    """Relative difference of predictions for a moved sample and moved predictions."""
    expected = model(batch) @ matrix.mT
    return float((model(moved) - expected)[batch.mask].abs().max() / expected[batch.mask].abs().max())


def turned(batch):
    matrix = random_orthogonal(len(batch), torch.Generator().manual_seed(1), torch.float64)
    return transform(batch, matrix), matrix


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_are_measurably_not_equivariant(name, batch):
    assert gap(model_of(name), batch, *turned(batch)) > 0.02


def test_alignment_to_an_irrelevant_direction_loses_the_covariance_that_gravity_gives(batch):
    upright, matrix = RIGID.align(batch)
    assert gap(model_of("transformer_aligned"), batch, upright, matrix) < 1e-10
    assert gap(model_of("transformer_misaligned"), batch, upright, matrix) > 0.02


def test_absolute_coordinates_tell_gatr_where_a_sample_is(batch):
    eye = torch.eye(3, dtype=torch.float64).expand(len(batch), 3, 3)
    moved = translate(batch, torch.full((len(batch), 3), 0.5, dtype=torch.float64))
    assert gap(model_of("gatr"), batch, moved, eye) < 1e-10
    assert gap(model_of("gatr_absolute"), batch, moved, eye) > 1e-3


def test_a_system_keeps_its_irrelevant_direction_and_others_have_theirs(batch):
    frame = model_of("transformer_misaligned").frame
    seen, matrix = frame(batch)
    assert torch.equal(frame(batch)[1], matrix)
    torch.testing.assert_close(seen["velocity"], batch["velocity"] @ matrix.mT)
    assert len(matrix.unique(dim=0)) == len(batch.system.unique()) > 1


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_cost_what_their_arm_costs_and_train_by_its_recipe(name):
    arm = get_arm(name)
    other = get_arm(arm.control_of)
    assert arm.role is Role.CONTROL
    assert (arm.recipe, arm.ladder) == (other.recipe, other.ladder)
    for size in arm.ladder[3:12:4]:
        for count in (
            lambda a, size=size: a.parameters(size, RIGID),
            lambda a, size=size: a.flops(size, RIGID).executed.per_token,
        ):
            assert count(other) <= count(arm) < 1.06 * count(other)


@pytest.mark.parametrize("name", CONTROLS)
@torch.no_grad()
def test_what_padding_holds_changes_nothing(name, batch):
    model, padding = model_of(name), ~batch.mask[..., None]
    damaged = batch.replace(**{name: batch[name].masked_fill(padding, 7.0) for name in ("position", "velocity")})
    assert torch.equal(model(batch)[batch.mask], model(damaged)[batch.mask])


def test_the_turned_field_is_a_direction_of_the_tokens_if_there_is_one():
    target = Field("y", Kind.INVARIANT)
    fields = [
        Field("place", Kind.POINT), Field("wind", Kind.DIRECTION, "sample"), Field("v", Kind.DIRECTION),
    ]  # fmt: skip
    assert [turned_field(Schema(tuple(fields[:n]), target)).name for n in (1, 2, 3)] == ["place", "wind", "v"]
    with pytest.raises(InputError, match="no direction, pseudovector or point"):
        turned_field(Schema((Field("heat", Kind.INVARIANT),), target))
