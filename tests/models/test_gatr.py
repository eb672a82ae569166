"""GATr against a literal reference, its symmetries, masks, gradients, ways to run, and bad inputs."""

import copy
import math

import pytest
import reference
import torch
from torch.utils.flop_counter import FlopCounterMode

from eqscale import algebra as ga
from eqscale import native
from eqscale.errors import InputError
from eqscale.models.gatr import GATr, GATrConfig, gatr_training_flops
from eqscale.models.gatr.attention import Attention, AttentionShape, Tokens
from eqscale.models.gatr.bilinear import Bilinear, Products
from eqscale.models.gatr.layout import Layout
from eqscale.models.gatr.linear import Assembly, Linear, LinearMap, apply_linear
from eqscale.models.gatr.pointwise import Gate, Norm

PARITIES_IN = [1, 1, -1, -1, -1]


def config(symmetry="parity", **changes) -> GATrConfig:
    channels = {"true_in": 2, "pseudo_in": 3, "true_out": 1, "pseudo_out": 2, "true": 2, "pseudo": 4}
    if symmetry == "published":
        channels = {"true_in": 5, "pseudo_in": 0, "true_out": 3, "pseudo_out": 0, "true": 4, "pseudo": 0}
    values = {**channels, "scalars_in": 3, "scalars_out": 2, "scalars": 6, "blocks": 2, "heads": 4, **changes}
    return GATrConfig(symmetry=symmetry, **values)


def network(symmetry="parity", dtype=torch.float64, **changes) -> GATr:
    torch.manual_seed(0)
    net = GATr(config(symmetry, **changes)).to(dtype)
    with torch.no_grad():  # attention that matters, and all distances weighted differently
        for block in net.blocks:
            for parameter in block.from_heads.parameters():
                parameter.mul_(10)
            block.attention.log_weights.uniform_(-1, 1)
    return net


def inputs(dtype=torch.float64, batch=3, tokens=7, channels=5, scalars=3):
    generator = torch.Generator().manual_seed(1)
    mv = torch.randn(batch, tokens, channels, 16, generator=generator, dtype=dtype)
    s = torch.randn(batch, tokens, scalars, generator=generator, dtype=dtype)
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    mask[0, 4:] = False
    mask[-1, 1:] = False
    return mv, s, mask


@pytest.fixture(params=["kernels", "aten"])
def way(request, monkeypatch):
    """Both ways to run on a CPU: the C++ kernels and ATen operations."""
    if request.param == "aten":
        monkeypatch.setattr(native, "available", lambda x: False)
    elif not native.available(torch.zeros(1)):
        pytest.skip("no C++ compiler here: the kernels are off")
    return request.param


def outputs_and_gradients(function, net, mv, s):
    mv, s = mv.clone().requires_grad_(), s.clone().requires_grad_()
    out, scalars = function(mv, s)
    loss = out.sin().sum() + scalars.cos().sum()
    gradients = torch.autograd.grad(loss, [mv, s, *net.parameters()])
    return [out.detach(), scalars.detach(), *gradients]


def worst(got, want) -> float:
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-8)).item() for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("symmetry", ["parity", "published"])
def test_equals_the_reference_in_outputs_and_gradients(symmetry, way):
    net = network(symmetry)
    mv, s, mask = inputs()
    got = outputs_and_gradients(lambda x, y: net(x, y, mask), net, mv, s)
    want = outputs_and_gradients(lambda x, y: reference.network(net, x, y, mask), net, mv, s)
    assert worst(got, want) < 1e-10


@pytest.mark.parametrize("symmetry", ["parity", "published"])
def test_scalars_may_be_all_that_it_puts_out(symmetry, way):
    net = network(symmetry, true_out=0, pseudo_out=0)
    mv, s, mask = inputs()
    out, scalars = net(mv, s, mask)
    assert (out.shape, scalars.shape) == ((3, 7, 0, 16), (3, 7, 2))
    _, want = reference.network(net, mv, s, mask)
    assert worst([scalars], [want]) < 1e-10


def test_equals_the_reference_beyond_one_attention_block(way):
    net = network(blocks=1, heads=2)
    mv, s, _ = inputs(batch=1, tokens=300)
    mask = torch.ones(1, 300, dtype=torch.bool)
    got = outputs_and_gradients(lambda x, y: net(x, y), net, mv, s)
    want = outputs_and_gradients(lambda x, y: reference.network(net, x, y, mask), net, mv, s)
    assert worst(got, want) < 1e-10


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("true", [2, 4])
def test_equivariant_under_all_of_e3(dtype, tolerance, true, way):
    net = network(dtype=dtype, true=true)
    _, s, mask = inputs(dtype)
    mv = scene(dtype)
    ga.assert_equivariant(
        lambda x, y: net(x, y, mask), [mv, s], [PARITIES_IN, None], [[1, -1, -1], None], tolerance=tolerance
    )


def scene(dtype=torch.float64, batch=3, tokens=7):
    """Points, directions and planes of a scene, embedded: (batch, tokens, 5, 16)."""
    generator = torch.Generator().manual_seed(2)
    x, v, n, p, c = torch.randn(5, batch, tokens, 3, generator=generator, dtype=dtype)
    true = [ga.embed_plane(v, x), ga.embed_plane(n, p)]
    return torch.stack([*true, ga.embed_point(x), ga.embed_direction(v), ga.embed_point(c)], -2)


@pytest.mark.parametrize("odd", [False, True])
def test_displacements_of_an_uncentred_scene_move_with_it(odd, way):
    """End to end in coordinates: raw vectors -> embedding -> network -> read-out."""
    net = network(dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    x, v, n, p = torch.randn(4, 3, 7, 3, generator=generator, dtype=torch.float64)
    _, s, mask = inputs()
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    rotation = rotation * (torch.linalg.det(rotation) * (-1 if odd else 1))
    shift = torch.tensor([60.0, -50.0, 60.0], dtype=torch.float64)

    def predict(x, v, n, p):
        true = [ga.embed_plane(v, x), ga.embed_plane(n, p)]
        mv = torch.stack([*true, ga.embed_point(x), ga.embed_direction(v), ga.embed_point(p)], -2)
        out, _ = net(mv, s, mask)
        return ga.extract_displacement(out[:, :, 0], out[:, :, 1], x) * mask[..., None]

    moved = predict(x @ rotation.T + shift, v @ rotation.T, n @ rotation.T, p @ rotation.T + shift)
    want = predict(x, v, n, p) @ rotation.T
    assert (moved - want).abs().max() / want.abs().max() < 1e-10


def test_published_formulation_sees_proper_motions_only():
    net = network("published")
    _, s, mask = inputs()
    function, mv = lambda x, y: net(x, y, mask), scene()
    ga.assert_equivariant(function, [mv, s], [1, None], [1, None], reflections=False, tolerance=1e-9)
    # Pin acts without extra signs on its channels, the reference included ...
    ga.assert_equivariant(function, [mv, s], [1, None], [1, None], tolerance=1e-9)
    # ... but a mirrored scene embeds its points with e123 = +1 again, and that it does not know.
    with pytest.raises(AssertionError, match="reflection"):
        ga.assert_equivariant(function, [mv, s], [PARITIES_IN, None], [1, None], tolerance=1e-3)


def test_equivariant_under_permutations_of_tokens(way):
    net = network()
    mv, s, _ = inputs()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    out, scalars = net(mv, s)
    permuted, permuted_scalars = net(mv[:, order], s[:, order])
    assert worst([permuted, permuted_scalars], [out[:, order], scalars[:, order]]) < 1e-10


def planar(layout: Layout, mv, s):
    """(N, C, 16), (N, S) -> (rows, N) of a layout."""
    x = mv.new_ones(layout.rows, mv.shape[0])
    for c in range(layout.channels):
        x[torch.tensor(layout.multivector(c))] = mv[:, c].T
    for i in range(layout.scalars):
        x[layout.scalar(i)] = s[:, i]
    return x


def dense(layout: Layout, x):
    rows = torch.tensor([layout.multivector(c) for c in range(layout.channels)])
    scalars = [layout.scalar(i) for i in range(layout.scalars)]
    return x[rows].permute(2, 0, 1), x[scalars].T


def parities(layout: Layout) -> list[int]:
    return [1] * layout.true + [-1] * layout.pseudo


def layer_function(source: Layout, target: Layout, function):
    return lambda mv, s: dense(target, function(planar(source, mv, s)))


def layers():
    torch.manual_seed(0)
    stream, normed = Layout(2, 3, 4), Layout(2, 3, 4, ones=True)
    linear_map = LinearMap(normed, Layout(3, 1, 2))
    linear = Linear(linear_map).double()
    attention = Attention(AttentionShape(2, 1, 2, 3, distance_on_true=False)).double()
    plan = Bilinear(4, 4, typed=True)
    products = Products(plan, normed)
    passed = torch.randn(normed.rows, 5, dtype=torch.float64)
    tokens = Tokens(1, 5)
    gate = Gate(stream)
    return {
        "linear": (normed, linear_map.target, lambda x: apply_linear(x, Assembly([linear])()[0], linear_map)),
        "norm": (stream, normed, Norm(stream)),
        "gate": (stream, gate.out, gate),
        "attention": (attention.shape.source, attention.shape.out, lambda x: attention(x, tokens)),
        "products": (plan.inputs, plan.outputs, lambda x: products(x, passed)),
    }


@pytest.mark.parametrize("name", ["linear", "norm", "gate", "attention", "products"])
def test_each_layer_is_equivariant(name):
    source, target, function = layers()[name]
    generator = torch.Generator().manual_seed(4)
    mv = torch.randn(5, source.channels, 16, generator=generator, dtype=torch.float64)
    s = torch.randn(5, source.scalars, generator=generator, dtype=torch.float64)
    ga.assert_equivariant(
        layer_function(source, target, function), [mv, s], [parities(source), None], [parities(target), None]
    )


@pytest.mark.parametrize("name", ["linear", "norm", "gate", "attention", "products"])
def test_gradients_of_each_layer(name):
    source, _, function = layers()[name]
    x = torch.randn(source.rows, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert torch.autograd.gradcheck(function, x.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padding_never_leaks(dtype, way):
    net = network(dtype=dtype)
    mv, s, mask = inputs(dtype)
    clean = net(mv, s, mask)
    mv[~mask], s[~mask] = math.nan, 1e30
    dirty = net(mv, s, mask)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)
        assert not b[~mask].any()


def test_packed_equals_padded_and_alone(way):
    net = network()
    mv, s, mask = inputs()
    together, _ = net(mv, s, mask)
    alone, _ = net(mv[:1, :4], s[:1, :4])
    torch.testing.assert_close(together[:1, :4], alone, rtol=1e-12, atol=1e-12)


@pytest.fixture
def kernels():
    if not native.available(torch.zeros(1)):
        pytest.skip("no C++ compiler here: the kernels are off")


@pytest.mark.parametrize("symmetry", ["parity", "published"])
def test_kernels_equal_aten_operations_over_many_tiles(symmetry, kernels, monkeypatch):
    mv, s, mask = inputs(batch=11, tokens=40)
    mask[1:-1] = torch.arange(40) < torch.arange(23, 41, 2)[:, None]
    net = network(symmetry)
    single = copy.deepcopy(net).float()

    def run(model, dtype):
        return outputs_and_gradients(lambda x, y: model(x, y, mask), model, mv.to(dtype), s.to(dtype))

    double_kernels, single_kernels = run(net, torch.float64), run(single, torch.float32)
    monkeypatch.setattr(native, "available", lambda x: False)
    double_aten, single_aten = run(net, torch.float64), run(single, torch.float32)
    assert worst(double_kernels, double_aten) < 1e-10
    assert worst(single_kernels, double_aten) < 2 * worst(single_aten, double_aten)


def test_kernels_without_gradients_put_out_the_same(kernels):
    net = network()
    mv, s, mask = inputs()
    with torch.inference_mode():
        without = net(mv, s, mask)
    assert all(torch.equal(a, b) for a, b in zip(without, net(mv, s, mask), strict=True))


def test_kernels_give_the_same_bits_again(kernels):
    net = network(dtype=torch.float32)
    mv, s, mask = inputs(torch.float32, batch=9, tokens=40)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first, second = (outputs_and_gradients(lambda x, y: net(x, y, mask), net, mv, s) for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_kernels_on_several_threads(kernels):
    net = network()
    mv, s, mask = inputs(batch=5, tokens=90)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = outputs_and_gradients(lambda x, y: net(x, y, mask), net, mv, s)
        torch.set_num_threads(2)
        two = outputs_and_gradients(lambda x, y: net(x, y, mask), net, mv, s)
    finally:
        torch.set_num_threads(threads)
    assert worst(two, one) < 1e-10


@pytest.mark.parametrize("blocks", [1, 4, 12])
def test_scales_at_the_start(blocks):
    torch.manual_seed(0)
    net = GATr(config(true=8, pseudo=8, scalars=16, blocks=blocks))
    mv, (_, s, mask) = scene(torch.float32), inputs(torch.float32)
    out, _ = net(mv, s, mask)
    scale = out[mask].square().mean().sqrt().item()
    assert 0.03 < scale < 5
    out[mask].square().mean().backward()
    norms = torch.tensor([b.to_qkv.true.grad.norm() for b in net.blocks])
    assert norms.isfinite().all()
    assert norms.max() / norms.min() < 30
    assert norms.min() > 1e-5
    assert norms.max() < 10


def test_distances_stay_in_single_precision_under_autocast(monkeypatch):
    monkeypatch.setattr(native, "available", lambda x: False)
    net = network(dtype=torch.float32, blocks=1)
    shift = ga.embed_translation(torch.tensor([100.0, 0, 0]))
    mv, (_, s, mask) = scene(torch.float32), inputs(torch.float32)
    moved = ga.transform(shift, mv)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near, _ = net(mv, s, mask)
        far, _ = net(moved, s, mask)
    want = ga.transform(shift, near.float())
    assert (far.float() - want).abs().max() / want.abs().max() < 1e-4


@pytest.mark.parametrize("symmetry", ["parity", "published"])
def test_flops_match_the_counter(symmetry):
    """torch's counter sees matrix products only: the closed form minus geometric products and joins."""
    shape = config(symmetry, true=4, pseudo=0 if symmetry == "published" else 4)
    with torch.device("meta"):
        net = GATr(shape)
        mv, s = torch.randn(2, 31, 5, 16), torch.randn(2, 31, 3)
    with FlopCounterMode(display=False) as counter:
        out, scalars = net(mv, s)
        (out.sum() + scalars.sum()).backward()
    channels = shape.true + shape.pseudo
    products = 6 * 31 * shape.blocks * channels * (192 + 81)
    closed = gatr_training_flops(shape).executed.total(31, 31**2) - products
    assert counter.get_total_flops() / 2 == pytest.approx(closed, rel=0.01)


def test_flops_count_padding_where_it_is_computed(monkeypatch):
    monkeypatch.setattr(native, "available", lambda x: False)
    net = network(dtype=torch.float32)
    mv, s, mask = inputs(torch.float32, batch=4, tokens=30)
    assert not net.packs(mv.device)
    with FlopCounterMode(display=False) as counter:
        out, scalars = net(mv, s, mask)
        (out.sum() + scalars.sum()).backward()
    executed = gatr_training_flops(net.config).executed.total(4 * 30, 4 * 30**2)
    products = 6 * 4 * 30 * net.config.blocks * 6 * (192 + 81)
    assert counter.get_total_flops() == pytest.approx(executed - products, rel=0.01)


def test_nominal_flops_count_dense_blocks():
    shape = config("published", true=8, scalars=0, blocks=1, true_in=8, true_out=8, scalars_in=0, scalars_out=0)
    # q: 16, k and v: 2 each -> 4 heads of 4 channels; out 16 -> 8; factors 8 -> 32; products 16 -> 16; 16 ->
    # 8
    pairs = 64 + 8 * (16 + 4 + 4) + 16 * 8 + 8 * 32 + 16 * 16 + 16 * 8 + 64
    assert gatr_training_flops(shape).nominal.per_token == 6 * 256 * pairs


def test_parameters_count_nine_a_pair():
    layer = Linear(LinearMap(Layout(3, 2, 4, ones=True), Layout(5, 1, 2)))
    index = layer.map.index
    assert sum(p.numel() for p in layer.parameters()) == 9 * (15 + 2) + 8 * 4 + 2 * (3 + 4) + 8
    assert set(index[index > 0].tolist()) == set(range(1, 1 + sum(p.numel() for p in layer.parameters())))


def test_runs_on_aten_where_there_is_no_compiler(monkeypatch):
    monkeypatch.setattr(native, "_library", lambda: None)
    net = network(dtype=torch.float32)
    mv, s, mask = inputs(torch.float32)
    assert not native.available(mv)
    out, _ = net(mv, s, mask)
    assert out.isfinite().all()


def test_compiles_into_one_graph_of_the_same_function():
    """One graph without breaks for all shapes, forward and backward, without Inductor's code generation."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    net = network(blocks=1)
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=counter)
    for batch, tokens in ((4, 9), (8, 11)):  # sizes that equal no number of channels
        mv, s, mask = inputs(batch=batch, tokens=tokens)
        got, want = (
            outputs_and_gradients(lambda x, y, f=f, mask=mask: f(x, y, mask), net, mv, s) for f in (compiled, net)
        )
        assert worst(got, want) < 1e-10
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"symmetry": "so3"}, "symmetry: 'so3', allowed are parity, published"),
        ({"true": 3}, "true: 2 x 3 channels do not divide by heads 4"),
        ({"pseudo": 0}, "needs true >= 1 and pseudo >= 1"),
        ({"blocks": 0}, "blocks: 0 is below 1"),
        ({"true_out": 0, "pseudo_out": 0, "scalars_out": 0}, "true_out . pseudo_out . scalars_out"),
    ],
)
def test_bad_shapes_are_named(change, message):
    with pytest.raises(InputError, match=message):
        config(**change)


def test_bad_inputs_are_named():
    net = network()
    mv, s, mask = inputs()
    with pytest.raises(InputError, match=r"multivectors: expected \(B, T, 5, 16\) with B, T >= 1, got \(3, 7, 5, 8\)"):
        net(mv[..., :8], s, mask)
    with pytest.raises(InputError, match=r"multivectors: .* got \(0, 7, 5, 16\)"):
        net(mv[:0], s[:0], mask[:0])
    with pytest.raises(InputError, match="scalars: expected"):
        net(mv, s[..., :2], mask)
    with pytest.raises(InputError, match="mask: on meta, the network is on cpu"):
        net(mv, s, mask.to("meta"))
    with pytest.raises(InputError, match="mask: expected bool"):
        net(mv, s, mask[:, :5])
    with pytest.raises(InputError, match=r"multivectors: torch.float32 on cpu, the network holds torch.float64"):
        net(mv.float(), s, mask)
    with pytest.raises(InputError, match="mask: sample 1 of the batch has no token"):
        net(mv, s, mask & torch.tensor([True, False, True])[:, None])


def test_copies_and_state_dicts():
    net = network()
    mv, s, mask = inputs()
    want, _ = net(mv, s, mask)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(mv, s, mask)[0], want, rtol=0, atol=0)
    net.load_state_dict(twin.state_dict())
    torch.testing.assert_close(net(mv, s, mask)[0], want, rtol=0, atol=0)
    assert sum(p.numel() for p in net.parameters()) == sum(x.numel() for x in net.state_dict().values())
