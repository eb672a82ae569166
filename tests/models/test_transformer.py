"""The plain transformer: its function on CPU kernels and on ATen operations, its cost, masks and bad inputs."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

from eqscale import native
from eqscale.errors import InputError
from eqscale.models import kernels
from eqscale.models.transformer import InFrames, Transformer, TransformerConfig, transformer_training_flops
from eqscale.tasks.symmetry import random_orthogonal

needs_kernels = pytest.mark.skipif(not native.available(torch.zeros(1)), reason="no C++ compiler here")


def config(**changes):
    return TransformerConfig(**(dict(in_features=12, out_features=3, width=16, depth=2, heads=4) | changes))


FAR = {"in_features": 9, "distances": True}
"""Changes of a network that sees distances: the last three of 12 numbers are where a token is."""


FRAMED = {"in_features": 10, "frames": InFrames((1, 7), 1, turns_output=True)}
"""Of one that sees two of its inputs in frames, and one vector in each head."""


def network(shape, dtype=torch.float64):
    """A network whose biases and gains are not the ones it starts with."""
    torch.manual_seed(0)
    net = Transformer(shape).to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def batch(tokens=11, dtype=torch.float64, shape=None):
    torch.manual_seed(1)
    mask = torch.ones(5, tokens, dtype=torch.bool)
    mask[0, 1::2] = False
    mask[1, tokens // 2 + 1 :] = False
    mask[2, 1:] = False
    x = torch.randn(5, tokens, shape.given if shape else 12, dtype=dtype)
    if shape and shape.frames:
        x[..., -9:] = random_orthogonal(5 * tokens, dtype=dtype).view(5, tokens, 9)
    return x, mask


def output_and_gradients(net, x, mask, inputs=True):
    x = x.clone().requires_grad_(inputs)
    y = net(x, mask)
    y = y if mask is None else torch.where(mask[..., None], y, 0)
    return [y.detach(), *torch.autograd.grad(y.sin().sum(), [*([x] if inputs else []), *net.parameters()])]


def on_aten(function, *args):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "available", lambda x: False)
        return function(*args)


@needs_kernels
@pytest.mark.parametrize("tokens", [1, 11, 70])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"multi_query": False, "width": 20},
        {"norm": "rms"},
        {"activation": "swiglu", "mlp_ratio": 2},
        {"width": 3, "heads": 1, "out_features": 17, "depth": 1},
        {"width": 36, "norm": "rms", "activation": "swiglu", "multi_query": False},
        FAR,
        FAR | {"multi_query": False, "norm": "rms", "width": 20},
        FRAMED,
        FRAMED
        | {"distances": True, "multi_query": False, "width": 24, "out_features": 1}
        | {"frames": InFrames((0,), 2, turns_output=False)},
    ],
    ids=lambda changes: ", ".join(f"{name} {value}" for name, value in changes.items()) or "default",
)
def test_kernels_compute_the_same_function_and_gradients(changes, tokens):
    net, (x, mask) = network(config(**changes)), batch(tokens, shape=config(**changes))
    for real in (mask, None):
        got, want = output_and_gradients(net, x, real), on_aten(output_and_gradients, net, x, real)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@needs_kernels
@pytest.mark.parametrize(
    "changes", [{}, FAR, FRAMED, {"multi_query": False, "norm": "rms", "activation": "swiglu", "width": 20}]
)
def test_loss_and_gradient_in_one_call_are_those_of_two(changes):
    net, (x, mask) = network(config(**changes)), batch(31, shape=config(**changes))
    target, weight = torch.randn_like(net(x, mask)).detach(), torch.rand_like(x[..., 0]) * mask
    whole = copy.deepcopy(net)
    of_inputs = torch.zeros_like(x)
    losses = [whole.add_loss_gradient(x, mask, target, weight, 0.3)]
    losses += [whole.add_loss_gradient(x, mask, target, weight, 0.3, of_inputs)]  # gradients add up
    x.requires_grad_()
    want = 0.3 * (weight * (net(x, mask) - target).square().sum(-1)).sum()
    (2 * want).backward()
    assert losses == [pytest.approx(want.item(), rel=1e-12)] * 2
    for a, b in zip(whole.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(2 * of_inputs, x.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (InFrames((), 2, False), "2 vectors in a head of 4 channels: at most 1"),
        (InFrames((0, 10), 1, False), "from column 10 of 12 features on: 0 to 9 fit"),
        (InFrames((), 1, True), "predictions of 2 numbers can't be turned"),
    ],
)
def test_vectors_that_lie_nowhere_are_refused(frames, message):
    with pytest.raises(InputError, match=message):
        config(out_features=2, frames=frames)


@needs_kernels
@pytest.mark.parametrize("changes", [{}, FAR])
def test_a_diverged_batch_leaves_nothing_behind_in_the_memory_of_the_kernels(changes):
    net = network(config(multi_query=False, mlp_ratio=1, **changes))

    def gradients(x, mask):
        net.zero_grad()
        target = torch.zeros(*mask.shape, 3, dtype=torch.float64)
        net.add_loss_gradient(x, mask, target, mask.double(), 1.0)
        return [*output_and_gradients(net, x, mask), *(p.grad.clone() for p in net.parameters())]

    x, mask = batch(26)
    want = gradients(x, mask)
    diverged = torch.full((11, 8, 12), float("nan"), dtype=torch.float64)  # as many lanes, all of them real
    # all but the gradient of points, which have none
    assert all(value.isnan().any() for value in gradients(diverged, torch.ones(11, 8, dtype=torch.bool)))
    for a, b in zip(gradients(x, mask), want, strict=True):
        assert torch.equal(a, b)


@needs_kernels
def test_kernels_in_single_precision_are_no_worse_than_aten():
    net, (x, mask) = network(config(width=36)), batch(31)
    exact = on_aten(output_and_gradients, net, x, mask)
    single = copy.deepcopy(net).float(), x.float(), mask
    for a, b, want in zip(output_and_gradients(*single), on_aten(output_and_gradients, *single), exact, strict=True):
        assert (a - want).abs().max() < max(1e-6 * want.abs().max(), 2 * (b - want).abs().max())


@needs_kernels
def test_gradients_of_the_inputs_are_optional_and_change_no_others():
    net, (x, mask) = network(config()), batch()
    with_inputs, without = output_and_gradients(net, x, mask), output_and_gradients(net, x, mask, inputs=False)
    for a, b in zip([with_inputs[0], *with_inputs[2:]], without, strict=True):
        assert torch.equal(a, b)


@needs_kernels
def test_inference_gives_the_same_bits_and_keeps_nothing(monkeypatch):
    net, (x, mask) = network(config()), batch()
    want = net(x, mask)
    monkeypatch.setattr(kernels, "_Memory", None)
    with torch.no_grad():
        assert torch.equal(net(x, mask), want)
    with torch.inference_mode():
        assert torch.equal(net(x, mask), want)
    assert torch.equal(net.requires_grad_(False)(x, mask), want)


@needs_kernels
def test_inference_has_room_for_many_short_samples():
    net, x = network(config(heads=8, **FAR)), torch.randn(200, 33, 12, dtype=torch.float64)
    mask = torch.arange(33) < torch.arange(1, 201)[:, None] % 11 + 1
    with torch.no_grad():
        got, want = net(x, mask), on_aten(net, x, mask)
    torch.testing.assert_close(got[mask], want[mask], rtol=1e-10, atol=1e-10)


@needs_kernels
def test_memory_is_used_again_only_after_its_graph_is_gone():
    net, (x, mask) = network(config()), batch()
    alone = [torch.autograd.grad(net(z, mask).sum(), net.readout.weight)[0] for z in (x, -x)]
    first, second = net(x, mask).sum(), net(-x, mask).sum()
    for loss, want in ((second, alone[1]), (first, alone[0]), (first, alone[0])):
        (got,) = torch.autograd.grad(loss, net.readout.weight, retain_graph=True)
        assert torch.equal(got, want)


@needs_kernels
def test_kernels_on_several_threads_agree_and_repeat_bit_for_bit():
    net, (x, mask) = network(config()), batch(31)
    one, threads = output_and_gradients(net, x, mask), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        several, again = output_and_gradients(net, x, mask), output_and_gradients(net, x, mask)
    finally:
        torch.set_num_threads(threads)
    for a, b, c in zip(one, several, again, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        assert torch.equal(b, c)


@needs_kernels
def test_a_parameter_that_changed_since_the_forward_pass_is_noticed():
    net, (x, mask) = network(config()), batch()
    loss = net(x, mask).sum()
    with torch.no_grad():
        net.embed.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_half_precision_and_wide_networks_run_on_aten(monkeypatch):
    def refuse(*args):
        raise AssertionError("a kernel was called")

    monkeypatch.setattr(native, "call", refuse)
    x, mask = batch(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert Transformer(config())(x, mask).dtype == torch.bfloat16
    assert Transformer(config(width=260, depth=1))(x, mask).isfinite().all()


@needs_kernels
def test_a_copy_and_a_loaded_network_compute_with_their_own_parameters():
    net, (x, mask) = network(config()), batch()
    want, twin = net(x, mask), copy.deepcopy(net)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    assert torch.equal(twin(x, mask), want)
    assert not net(x, mask).any()
    net.load_state_dict(twin.state_dict(), assign=True)
    assert torch.equal(net(x, mask), want)


def test_a_gated_block_has_about_as_many_parameters():
    def count(**changes):
        return sum(p.numel() for p in Transformer(config(width=48, **changes)).parameters())

    assert count(activation="swiglu") == pytest.approx(count(), rel=0.02)
    assert count(norm="rms") == count() - 5 * 48


def test_heads_see_distances_and_nothing_else_of_where_tokens_are():
    net, (x, mask) = network(config(**FAR)), batch()
    want, moved, scaled = net(x, mask)[mask], x.clone(), x.clone()
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    moved[..., 9:] = x[..., 9:] @ turn + torch.tensor([3.0, -2.0, 5.0])
    scaled[..., 9:] *= 1.1
    torch.testing.assert_close(net(moved, mask)[mask], want, rtol=1e-12, atol=1e-12)
    assert (net(scaled, mask)[mask] - want).abs().max() > 1e-4


VARIANTS = pytest.mark.parametrize(
    "variant", [{}, FAR, {"norm": "rms", "activation": "swiglu"}], ids=["default", "distances", "gated"]
)


@VARIANTS
@pytest.mark.parametrize("multi_query", [True, False])
def test_executed_flops_agree_with_the_flop_counter(multi_query, variant):
    shape = config(multi_query=multi_query, **variant)
    B, T = 3, 10
    with torch.device("meta"):
        model, x = Transformer(shape), torch.empty(B, T, 12)
        with FlopCounterMode(display=False) as counter:
            model(x).sum().backward()
    closed_form = transformer_training_flops(shape).executed.total(B * T, B * T * T)
    # The counter also counts the backward pass of flash attention's recomputed scores: only with full multi-head.
    tolerance = 0.01 if multi_query else 0.06
    assert closed_form == pytest.approx(counter.get_total_flops(), rel=tolerance)


@VARIANTS
def test_nominal_flops_are_six_per_matrix_weight(variant):
    shape = config(**variant)
    weights = sum(p.numel() for p in Transformer(shape).parameters() if p.ndim == 2)
    assert transformer_training_flops(shape).nominal.per_token == 6 * weights


@pytest.mark.parametrize("multi_query", [True, False])
def test_padding_changes_nothing(multi_query):
    torch.manual_seed(0)
    model = Transformer(config(multi_query=multi_query))
    x = torch.randn(2, 7, 12)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    other = x.clone()
    other[1, 4:] = 1e3 * torch.randn(3, 12)
    a, b = model(x, mask), model(other, mask)
    assert torch.equal(a[mask], b[mask])
    alone = model(x[1:, :4])
    torch.testing.assert_close(a[1:, :4], alone)


def test_permuting_tokens_permutes_predictions():
    torch.manual_seed(0)
    model = Transformer(config()).double()
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    order = torch.randperm(7)
    torch.testing.assert_close(model(x[:, order]), model(x)[:, order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 4, 16])
def test_outputs_and_gradients_start_at_a_sensible_scale(depth):
    torch.manual_seed(0)
    model = Transformer(config(width=32, depth=depth))
    y = model(torch.randn(8, 20, 12))
    assert 0.01 < y.std() < 0.5
    (y - 1).square().mean().backward()
    for p in model.parameters():
        assert p.grad is None or p.grad.norm() < 10


def test_bad_shapes_are_named():
    with pytest.raises(InputError, match="not divisible by 4 heads"):
        config(width=18)
    with pytest.raises(InputError, match="norm must be one of layer, rms, not batch"):
        config(norm="batch")
    with pytest.raises(InputError, match="activation must be one of gelu, swiglu, not relu"):
        config(activation="relu")


def test_bad_inputs_are_named():
    net = Transformer(config())
    x, mask = torch.zeros(2, 5, 12), torch.ones(2, 5, dtype=torch.bool)
    net(x, mask)
    empty = mask.clone()
    empty[1] = False
    for features, real, message in (
        (x[..., :11], mask, r"features: expected \(B, T, 12\) with B, T >= 1, got \(2, 5, 11\)"),
        (x[0], None, r"features: expected \(B, T, 12\) with B, T >= 1, got \(5, 12\)"),
        (x[:0], mask[:0], r"features: .* got \(0, 5, 12\)"),
        (x.double(), mask, "features: torch.float64 on cpu, the network holds torch.float32"),
        (x, mask[:, :4], r"mask: expected bool \(2, 5\), got torch.bool \(2, 4\)"),
        (x, mask.float(), "mask: expected bool"),
        (x, mask.to("meta"), "mask: on meta, the network is on cpu"),
        (x, empty, "mask: sample 1 of the batch has no token"),
    ):
        with pytest.raises(InputError, match=message):
            net(features, real)


def test_compiles_into_one_graph_of_the_same_function():
    torch.compiler.reset()
    net = Transformer(config()).double()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    x, mask = torch.randn(3, 7, 12, dtype=torch.float64), torch.ones(3, 7, dtype=torch.bool)
    mask[1, 4:] = False
    results = []
    for forward in (net, compiled):
        y = forward(x, mask)
        gradients = torch.autograd.grad(y[mask].square().sum(), list(net.parameters()), allow_unused=True)
        results.append([y[mask], *gradients])
    for plain, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, plain, rtol=1e-10, atol=1e-12)
    assert counter.frame_count == 1
