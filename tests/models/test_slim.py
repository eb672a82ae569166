"""Slim GATr: exact under O(3) and permutations by types, its cost, padding and bad inputs."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eqscale import native
from eqscale.errors import InputError
from eqscale.models.slim import Channels, Slim, SlimConfig, slim_training_flops
from eqscale.tasks.symmetry import random_orthogonal

B, T = 5, 6
CONFIG = SlimConfig(Channels(3, 2, 1), Channels(2, 1, 1), scalars=10, vectors=6, blocks=2, heads=4)
FAR = dataclasses.replace(CONFIG, distances=True)
BOTH = pytest.mark.parametrize("config", [CONFIG, FAR], ids=["no distances", "distances"])


def network(config=CONFIG):
    """A network whose biases are not the ones it starts with."""
    torch.manual_seed(0)
    net = Slim(config).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


needs_kernels = pytest.mark.skipif(not native.available(torch.zeros(1)), reason="no C++ compiler here")


@pytest.fixture(params=[pytest.param("kernels", marks=needs_kernels), "aten"])
def path(request, monkeypatch):
    """Both ways to compute the network."""
    if request.param == "aten":
        monkeypatch.setattr(native, "available", lambda x: False)


def parts_of(config, samples, tokens):
    """Scalars, true vectors, pseudovectors and, if it sees distances, points."""
    generator = torch.Generator().manual_seed(1)
    tails = [(config.inputs[0],), *((n, 3) for n in config.inputs[1:]), *([(3,)] if config.distances else [])]
    return [torch.randn(samples, tokens, *tail, generator=generator, dtype=torch.float64) for tail in tails]


def inputs(config=CONFIG):
    return parts_of(config, B, T), torch.arange(T) < torch.tensor([6, 3, 1, 4, 5])[:, None]


def predict(net, parts, mask=None):
    return net(*parts[:3], mask, *parts[3:])


@BOTH
@torch.no_grad()
def test_true_vectors_turn_as_such_pseudovectors_with_the_determinant_and_invariants_not_at_all(path, config):
    net, ((scalars, true, pseudo, *points), mask) = network(config), inputs(config)
    R = random_orthogonal(B, torch.Generator().manual_seed(2), torch.float64)
    sign = torch.linalg.det(R)[:, None, None, None]
    assert sorted(set(sign.flatten().round().tolist())) == [-1, 1]
    turn = R.mT[:, None]
    found = net(scalars, true @ turn, sign * pseudo @ turn, mask, *(x @ turn[:, 0] + 3.0 for x in points))
    invariant, vector, axial = net(scalars, true, pseudo, mask, *points)
    for got, want in zip(found, (invariant, vector @ turn, sign * axial @ turn), strict=True):
        assert want[mask].abs().max() > 0.01
        torch.testing.assert_close(got[mask], want[mask], rtol=0, atol=1e-12)


def test_heads_see_how_far_apart_tokens_are(path):
    net, (parts, mask) = network(FAR), inputs(FAR)
    further = [*parts[:3], 1.1 * parts[3]]
    assert (predict(net, further, mask)[1] - predict(net, parts, mask)[1])[mask].abs().max() > 1e-4


@BOTH
@needs_kernels
def test_many_small_samples_of_a_tile_are_predicted_as_with_what_gradients_need(config):
    net, given = network(config), parts_of(config, 80, 3)
    mask = torch.arange(3) < torch.arange(80)[:, None] % 2 + 1  # a tile's vectors are far more than its tokens fill
    with torch.no_grad():
        kept_nothing = predict(net, given, mask)
    for a, b in zip(kept_nothing, predict(net, given, mask), strict=True):
        torch.testing.assert_close(a[mask], b[mask], rtol=0, atol=0)


@BOTH
@needs_kernels
def test_loss_and_gradient_in_one_call_are_those_of_two(config):
    whole, net, (given, mask) = network(config), network(config), inputs(config)
    generator = torch.Generator().manual_seed(3)
    target = torch.randn(B, T, CONFIG.outputs.numbers, generator=generator, dtype=torch.float64)
    weight = torch.rand(B, T, generator=generator, dtype=torch.float64)
    x = whole.joined(*given[:3], mask, *(given[3:] or [None]))
    loss = whole.add_loss_gradient(x, mask, target, weight, 0.3)
    predicted = torch.cat([part.flatten(2) for part in predict(net, given, mask)], -1)
    want = 0.3 * (weight * (predicted - target).square().sum(-1))[mask].sum()
    want.backward()
    assert loss.item() == pytest.approx(want.item(), rel=1e-12)
    for a, b in zip(whole.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)


@BOTH
@torch.no_grad()
def test_tokens_may_come_in_any_order_and_padding_leaks_nowhere(path, config):
    net, (parts, mask) = network(config), inputs(config)
    order = torch.randperm(T, generator=torch.Generator().manual_seed(3))
    want = predict(net, parts, mask)
    for got, out in zip(predict(net, [part[:, order] for part in parts], mask[:, order]), want, strict=True):
        torch.testing.assert_close(got[mask[:, order]], out[:, order][mask[:, order]], rtol=0, atol=1e-12)
    noisy = [torch.where(mask.view(B, T, *(1,) * (part.ndim - 2)), part, 7.0) for part in parts]
    for got, out in zip(predict(net, noisy, mask), want, strict=True):
        assert torch.equal(got[mask], out[mask])
    for got, out in zip(predict(net, [part[1:2, :3] for part in parts]), want, strict=True):
        torch.testing.assert_close(got, out[1:2, :3], rtol=0, atol=1e-12)


@BOTH
def test_every_parameter_has_a_gradient(path, config):
    net, (parts, mask) = network(config), inputs(config)
    sum(out[mask].sin().sum() for out in predict(net, parts, mask)).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def outputs_and_gradients(net, parts, mask):
    parts = [part.clone().requires_grad_() for part in parts]
    outputs = predict(net, parts, mask)
    seen = [out if mask is None else out[mask] for out in outputs]
    loss = sum(out.sin().sum() for out in seen)
    gradients = torch.autograd.grad(loss, [*parts, *net.parameters()], allow_unused=True)
    # None and zeros are one: of inputs without numbers, and of maps that nothing reads.
    return [*(out.detach() for out in seen), *(torch.zeros(1) if g is None or not g.any() else g for g in gradients)]


@needs_kernels
@pytest.mark.parametrize("tokens", [1, 6, 37])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"heads": 3, "vectors": 1, "scalars": 1, "blocks": 1},
        {"inputs": Channels(0, 2, 0), "outputs": Channels(0, 1, 0), "heads": 1},
        {"inputs": Channels(9, 7, 0), "scalars": 24, "vectors": 17},
        {"distances": True},
        {"distances": True, "heads": 3, "vectors": 1, "scalars": 1, "blocks": 1},
    ],
    ids=["all types", "few channels", "true vectors alone", "many channels", "distances", "distances, few channels"],
)
def test_kernels_compute_the_same_function_and_gradients(changes, tokens):
    config = dataclasses.replace(CONFIG, **changes)
    net = network(config)
    mask = torch.arange(tokens) < torch.tensor([tokens, tokens // 2 + 1, 1, max(1, tokens - 1)])[:, None]
    parts = parts_of(config, 4, tokens)
    for real in (mask, None):
        got = outputs_and_gradients(net, parts, real)
        with native.switched_off():
            want = outputs_and_gradients(net, parts, real)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, check_dtype=False)


@BOTH
@needs_kernels
def test_kernels_on_several_threads_agree_and_inference_gives_the_same_bits(config):
    net, (parts, mask) = network(config), inputs(config)
    one, threads = outputs_and_gradients(net, parts, mask), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        several = outputs_and_gradients(net, parts, mask)
        with torch.no_grad():
            outputs = predict(net, parts, mask)
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(one, several, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    for a, b in zip(several[:3], outputs, strict=True):
        assert torch.equal(a, b[mask])


@needs_kernels
def test_half_precision_runs_on_aten(monkeypatch):
    (parts, mask), net = inputs(), Slim(CONFIG)

    def refuse(*args):
        raise AssertionError("a kernel was called")

    monkeypatch.setattr(native, "call", refuse)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(*(part.float() for part in parts), mask)[1].isfinite().all()


@pytest.mark.parametrize(
    ("changes", "unneeded"),
    [
        ({}, 0),
        ({"heads": 2, "blocks": 3}, 0),
        ({"distances": True}, 0),
        # The last scalars, and gradients of the first pseudovectors, are left out.
        ({"inputs": Channels(1, 2, 0), "outputs": Channels(0, 1, 0)}, 0.05),
    ],
)
def test_closed_form_flops_are_those_of_the_matrix_products_and_of_products_of_vectors(changes, unneeded):
    config = dataclasses.replace(CONFIG, **changes)
    net = network(config)
    with native.switched_off(), FlopCounterMode(display=False) as counter:
        sum(out.sum() for out in predict(net, parts_of(config, B, T))).backward()
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
        ({"points": torch.zeros(B, T, 3)}, "points: needed if, and only if, the network sees distances"),
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
