"""Frames of samples: orthonormal, equivariant, and honest about samples that are too symmetric for one."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eqscale import native
from eqscale.models.frames import Frames, FramesConfig, frames_training_flops, orthonormal
from eqscale.tasks.symmetry import random_orthogonal

B, T, K, INVARIANTS = 6, 5, 4, 2
kinds = pytest.mark.parametrize("own", [False, True], ids=["of samples", "of tokens"])


def inputs():
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(T) < torch.tensor([5, 3, 1, 2, 4, 5])[:, None]
    vectors = torch.randn(B, T, K, 3, generator=generator, dtype=torch.float64) * mask[..., None, None]
    return vectors, torch.randn(B, T, INVARIANTS, generator=generator, dtype=torch.float64), mask


def network(own):
    torch.manual_seed(0)
    return Frames(FramesConfig(K, INVARIANTS, 8, own)).double()


@kinds
def test_frames_are_orthonormal_and_turn_and_mirror_with_the_vectors(own):
    net, (vectors, invariants, mask) = network(own), inputs()
    matrix, degenerate = net(vectors, invariants, mask)
    assert not degenerate[mask].any()
    assert (matrix == matrix[:, :1]).all() != own
    torch.testing.assert_close(
        *((matrix @ matrix.mT)[mask], torch.eye(3, dtype=torch.float64).expand(mask.sum(), 3, 3)), rtol=0, atol=1e-13
    )
    moved = random_orthogonal(B, torch.Generator().manual_seed(1), torch.float64)[:, None]
    assert torch.linalg.det(moved).sign().unique().tolist() == [-1, 1]
    again, _ = net(vectors @ moved.mT, invariants, mask)
    torch.testing.assert_close(again[mask], (matrix @ moved.mT)[mask], rtol=0, atol=1e-12)


@pytest.mark.skipif(not native.available(torch.empty(0)), reason="no C++ compiler here")
@kinds
def test_kernels_write_the_same_frames_and_gradients(own):
    net, (vectors, invariants, mask) = network(own), inputs()
    wide, axes = torch.zeros(B, T, 11, dtype=torch.float64), net(vectors, invariants, mask)[0].flatten(2)
    net.write(vectors, invariants, mask, wide[..., -9:])
    torch.testing.assert_close(wide[..., -9:], torch.where(mask[..., None], axes, 0.0), rtol=1e-12, atol=1e-12)
    gradient = torch.randn(wide.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (axes * gradient[..., -9:])[mask].sum().backward()
    wanted = [parameter.grad.clone() for parameter in net.parameters()]
    net.add_gradient(vectors, invariants, mask, gradient[..., -9:])  # they add up
    for parameter, want in zip(net.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * want, rtol=1e-9, atol=1e-12)


def test_axes_are_those_of_gram_and_schmidt():
    rows = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (frame, _), lower = orthonormal(rows), torch.linalg.qr(rows.mT).R.mT
    signs = lower.diagonal(dim1=1, dim2=2).sign()
    torch.testing.assert_close(rows @ frame.mT, lower * signs[:, None], rtol=0, atol=1e-12)


@pytest.mark.parametrize("factor", [1.0, 1e-6, 1e6])
def test_a_flat_sample_lacks_the_third_axis_and_keeps_the_symmetry(factor):
    flat = [[1.0, 2.0, 0.0], [0.5, -1.0, 0.0], [3.0, 1.0, 0.0]]
    moved = random_orthogonal(8, torch.Generator().manual_seed(1), torch.float64)
    rows = factor * torch.tensor(flat, dtype=torch.float64).expand(8, 3, 3)
    frame, degenerate = orthonormal(rows)
    again, still = orthonormal(rows @ moved.mT)
    assert (degenerate & still).all()
    assert not again[:, 2].any()
    torch.testing.assert_close(again, frame @ moved.mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("rows", "axes"),
    [(torch.zeros(3, 3), 0), (torch.ones(3, 3), 1), (torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), 0)],
    ids=["nothing", "one line", "no first vector"],
)
def test_samples_without_directions_lack_axes_and_have_finite_gradients(rows, axes):
    rows = rows[None].double().requires_grad_()
    frame, degenerate = orthonormal(rows)
    assert degenerate.all()
    torch.testing.assert_close(frame @ frame.mT, torch.diag(torch.arange(3) < axes).double()[None], rtol=0, atol=1e-12)
    frame.sin().sum().backward()
    assert rows.grad.isfinite().all()


@torch.no_grad()
def test_two_like_tokens_whose_vectors_cancel_lack_all_axes_that_they_share_in_single_precision_too():
    n, generator = 200, torch.Generator().manual_seed(1)
    first = torch.randn(n, 1, K, 3, generator=generator)
    invariants = torch.randn(n, 1, INVARIANTS, generator=generator)
    # as measured from another place: what cancels is rounded
    vectors, place = torch.cat([first, -first], 1), 10 * torch.randn(n, 1, 1, 3, generator=generator)
    vectors, invariants = vectors + place - place, invariants.expand(n, 2, INVARIANTS).contiguous()
    vectors = vectors - vectors.mean(1, keepdim=True)
    mask = torch.ones(n, 2, dtype=torch.bool)
    frame, degenerate = network(False).float()(vectors, invariants, mask)
    assert degenerate.all()
    assert not frame.any()
    assert not network(True).float()(vectors, invariants, mask)[1].any()  # those of tokens have theirs
    if native.available(vectors):
        frame = torch.ones(n, 2, 9)
        network(False).float().write(vectors, invariants, mask, frame)
        assert not frame.any()


@torch.no_grad()
def test_an_axis_that_is_turned_by_rounding_is_not_trusted():
    moved = random_orthogonal(200, torch.Generator().manual_seed(1), torch.float64)
    # The first vector is what is left of terms a million times as long; the others lie along it but for a hundredth.
    rows = torch.tensor([[1e-5, 0, 0], [1.0, 1e-2, 0], [1.0, 0, 1e-2]], dtype=torch.float64)
    terms = torch.tensor([10.0, 1.0, 1.0]).view(3, 1)
    frame, degenerate = orthonormal((rows @ moved.mT).float(), terms.expand(200, 3, 1))
    assert degenerate.all()
    assert not frame[:, 1:].any()


@kinds
def test_closed_form_flops_are_those_of_the_matrix_products(own):
    net, (vectors, invariants, mask) = network(own), inputs()
    with FlopCounterMode(display=False) as counter:
        net(vectors, invariants, mask)[0].sin().sum().backward()
    terms = 2 * 3 * K * B * T * (2 if own else 1)  # sums of lengths, which set what is rounding
    assert frames_training_flops(net.config).executed.total(B * T, 0) == counter.get_total_flops() - terms
