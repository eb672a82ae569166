"""One backbone in five frames: with the first three it is the arms that learn, augment and align."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eqscale import native
from eqscale.arms import get_arm
from eqscale.arms.plain import PlainModel
from eqscale.models.transformer import InFrames, Transformer
from eqscale.tasks import get_task
from eqscale.tasks.symmetry import random_orthogonal, transform, translate
from tests.arms.test_arms import check_loss_in_one_call

RIGID = get_task("rigid")
VECTORS = ("position", "center", "velocity", "center_velocity", "gravity")
LEARNT = ("transformer_frames", "transformer_local")
learnt = pytest.mark.parametrize("name", LEARNT)
NAMES = {"identity": "transformer", "random": "transformer_aug", "canonical": "transformer_aligned"}


def model_of(name, rung=4):
    torch.manual_seed(0)
    return get_arm(name).build(get_arm(name).ladder[rung], RIGID).double()


def frame_of(kind, matrix):
    """A frame for ``PlainModel`` that is no network of an arm."""
    if kind == "canonical":
        return RIGID.align
    matrix = matrix if kind == "random" else torch.eye(3, dtype=matrix.dtype).expand_as(matrix)
    return lambda batch: (transform(batch, matrix), matrix)


def flattened(batch, axes):
    """The batch in a line, a plane or a point."""
    kept = (torch.arange(3) < axes).double()
    return batch.replace(
        floor=batch["floor"] * torch.cat([kept, kept.new_ones(1)]), **{name: batch[name] * kept for name in VECTORS}
    )


@pytest.mark.parametrize("kind", NAMES)
def test_the_backbone_in_a_given_frame_is_the_arm_of_that_frame(kind, batch):
    twin = model_of(NAMES[kind])
    matrix = random_orthogonal(len(batch), torch.Generator().manual_seed(1), torch.float64)
    ours = PlainModel(twin.net.config, frame_of(kind, matrix), planes=kind != "canonical").double()
    ours.net.load_state_dict(twin.net.state_dict())
    # What training computes: augmented arms see, and predict, the transformed sample.
    seen, turned = (transform(batch, matrix), matrix) if kind == "random" else (batch, None)
    expected = twin(seen) if turned is None else twin(seen) @ turned
    torch.testing.assert_close(ours(batch)[batch.mask], expected[batch.mask], rtol=1e-12, atol=1e-12)

    def loss(model, on):
        return (on.weight * (model(on) - on.target).square().sum(-1)).sum()

    gradients = [
        torch.autograd.grad(loss(model, on), [*model.net.parameters()]) for model, on in ((ours, batch), (twin, seen))
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("turned", [False, True])
def test_tokens_that_all_have_the_same_frame_attend_as_the_plain_network_does_in_it(turned, batch):
    twin = model_of("transformer").net
    config = dataclasses.replace(twin.config, frames=InFrames((0, 3), 1, turns_output=True))
    local = Transformer(config).double()
    local.load_state_dict(twin.state_dict())
    x = torch.randn(*batch.mask.shape, twin.config.given, dtype=torch.float64)
    matrix = torch.eye(3, dtype=torch.float64).expand(len(batch), 3, 3)
    if turned:
        matrix = random_orthogonal(len(batch), torch.Generator().manual_seed(1), torch.float64)
    seen = x.clone()
    for column in config.frames.columns:
        seen[..., column : column + 3] = x[..., column : column + 3] @ matrix.mT
    axes = matrix.reshape(-1, 1, 9).expand(-1, x.shape[1], 9)
    want = twin(seen, batch.mask) @ matrix
    for aten in (False, True):
        with native.switched_off() if aten else contextlib.nullcontext():
            got = local(torch.cat([x, axes], -1), batch.mask)
        torch.testing.assert_close(got[batch.mask], want[batch.mask], rtol=1e-10, atol=1e-12)


@torch.no_grad()
@learnt
def test_learnt_frames_make_the_backbone_exactly_equivariant(name, batch):
    model = model_of(name)
    generator = torch.Generator().manual_seed(1)
    R = random_orthogonal(len(batch), generator, torch.float64)
    t = 100 * torch.randn(len(batch), 3, generator=generator, dtype=torch.float64)
    moved, expected = model(translate(transform(batch, R), t)), model(batch) @ R.mT
    assert float((moved - expected)[batch.mask].abs().max() / expected[batch.mask].abs().max()) < 1e-10


@learnt
def test_the_network_of_frames_learns_with_the_backbone(name, batch):
    model = model_of(name)
    (batch.weight * (model(batch) - batch.target).square().sum(-1)).sum().backward()
    for parameter in model.frames.parameters():
        assert parameter.grad.abs().max() > 1e-6


@pytest.mark.skipif(not native.available(torch.empty(0)), reason="no C++ compiler here")
@pytest.mark.parametrize("axes", [0, 1, 2])
@learnt
def test_the_kernels_loss_is_that_of_predictions_turned_back_where_frames_lack_axes_too(name, axes, batch):
    whole, apart = model_of(name), model_of(name)
    by_turns = [batch, flattened(batch, axes)]
    fields = (*VECTORS, "floor")
    mixed = batch.replace(**{n: torch.stack([by_turns[i % 2][n][i] for i in range(len(batch))]) for n in fields})
    lacking = whole.degenerate(mixed)
    assert lacking.any()
    assert not lacking[batch.mask].all()
    check_loss_in_one_call(whole, apart, mixed)


@learnt
def test_windows_of_the_rigid_task_that_are_too_symmetric_for_frames_are_rare(name, windows):
    batch = windows[0].batch(np.arange(480))
    lacking = model_of(name).float().degenerate(batch)[batch.mask]
    assert lacking.float().mean() < 3e-3


@torch.no_grad()
@pytest.mark.parametrize("axes", [0, 1, 2])
@learnt
def test_flat_straight_and_empty_samples_are_predicted_exactly_equivariantly_too(name, axes, batch):
    model = model_of(name)
    flat = flattened(batch, axes)
    R = random_orthogonal(len(batch), torch.Generator().manual_seed(1), torch.float64)
    expected = model(flat) @ R.mT
    assert torch.equal(model.degenerate(flat), batch.mask)
    assert float((model(transform(flat, R)) - expected)[batch.mask].abs().max()) < 1e-10 * max(
        1e-6, float(expected.abs().max())
    )


@learnt
def test_closed_form_flops_are_those_of_the_matrix_products(name, batch):
    arm = get_arm(name)
    for size in arm.ladder[6:16:3]:
        model = arm.build(size, RIGID).double()
        with native.switched_off(), FlopCounterMode(display=False) as counter:
            (model(batch) * batch.target).sum().backward()
        tokens = batch.mask.numel()
        counted = arm.flops(size, RIGID).executed.total(tokens, tokens * batch.mask.shape[1])
        assert counted == pytest.approx(counter.get_total_flops(), rel=0.01)
