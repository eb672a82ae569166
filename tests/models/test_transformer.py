import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

from eqscale.errors import InputError
from eqscale.models.transformer import Transformer, TransformerConfig, transformer_training_flops


def config(**changes):
    return TransformerConfig(**(dict(in_features=12, out_features=3, width=16, depth=2, heads=4) | changes))


@pytest.mark.parametrize("multi_query", [True, False])
def test_executed_flops_agree_with_the_flop_counter(multi_query):
    shape = config(multi_query=multi_query)
    B, T = 3, 10
    with torch.device("meta"):
        model, x = Transformer(shape), torch.empty(B, T, 12)
        with FlopCounterMode(display=False) as counter:
            model(x).sum().backward()
    closed_form = transformer_training_flops(shape).executed.total(B * T, B * T * T)
    # The counter also counts the backward pass of flash attention's recomputed scores: only with full multi-head.
    tolerance = 0.01 if multi_query else 0.06
    assert closed_form == pytest.approx(counter.get_total_flops(), rel=tolerance)


def test_nominal_flops_are_six_per_matrix_weight():
    shape = config()
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
        results.append([y, *gradients])
    for plain, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, plain, rtol=1e-10, atol=1e-12)
    assert counter.frame_count == 1
