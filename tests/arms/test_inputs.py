"""Arms represent kinds of fields: a toy task with every kind, and every kind of target."""

import pytest
import torch

from eqscale import native
from eqscale.arms import arm_names, get_arm
from eqscale.arms.inputs import invariants, multivectors, numbers, numbers_width
from eqscale.errors import InputError
from eqscale.tasks import Batch, Field, Kind, Schema, Task, Wording
from eqscale.tasks.symmetry import permute, random_orthogonal, transform, translate
from tests.arms.test_arms import check_loss_in_one_call

B, T, LENGTH = 6, 5, 2.0
EXACT = ("gatr", "gatr_slim", "transformer_frames", "transformer_local")

FIELDS = (
    Field("place", Kind.POINT),
    Field("corner", Kind.POINT, relative_to="middle"),
    Field("tip", Kind.POINT, relative_to="place"),
    Field("push", Kind.DIRECTION, scale=3.0),
    Field("pull", Kind.DIRECTION, at="corner"),
    Field("pull_from_middle", Kind.DIRECTION, at="middle", relative_to="wind"),
    Field("spin", Kind.PSEUDOVECTOR, scale=0.5),
    Field("facet", Kind.PLANE),
    Field("material", Kind.INVARIANT, channels=2),
    Field("middle", Kind.POINT, per="sample"),
    Field("corner_of_all", Kind.POINT, per="sample", relative_to="middle"),
    Field("wind", Kind.DIRECTION, per="sample"),
    Field("jet", Kind.DIRECTION, per="sample", at="middle"),
    Field("magnet", Kind.PSEUDOVECTOR, per="sample"),
    Field("wall", Kind.PLANE, per="sample"),
    Field("heat", Kind.INVARIANT, per="sample", channels=3),
)

TARGETS = {
    "direction at its token": Field("y", Kind.DIRECTION, at="place"),
    "direction at a point of the sample": Field("y", Kind.DIRECTION, at="middle"),
    "free direction": Field("y", Kind.DIRECTION),
    "direction of the sample": Field("y", Kind.DIRECTION, per="sample"),
    "direction of the sample at a point": Field("y", Kind.DIRECTION, per="sample", at="middle"),
    "invariant of tokens": Field("y", Kind.INVARIANT, channels=2),
    "invariant of the sample": Field("y", Kind.INVARIANT, per="sample"),
}


class Toy(Task):
    words = Wording("toy of every kind", "")

    def __init__(self, target, fields=FIELDS):
        self.schema = Schema(fields, target, LENGTH)


def draw(task, seed=0):
    """A batch of random samples, some with padding."""
    generator = torch.Generator().manual_seed(seed)
    schema = task.schema
    mask = torch.arange(T) < torch.tensor([5, 3, 5, 1, 4, 2])[:, None]

    def random(field):
        lead = (B, T) if field.per == "token" else (B,)
        value = torch.randn(*lead, field.width, generator=generator, dtype=torch.float64)
        if field.kind is Kind.PLANE:
            value[..., :3] /= value[..., :3].norm(dim=-1, keepdim=True)
        return value * mask[..., None] if field.per == "token" else value

    target = random(schema.target)
    weight = torch.ones(target.shape[:-1], dtype=torch.float64)
    return Batch(schema, {f.name: random(f) for f in schema.fields}, mask, target, weight, torch.arange(B))


def build(arm, task):
    torch.manual_seed(0)
    return get_arm(arm).build(get_arm(arm).ladder[4], task).double()


@torch.no_grad()
def relative_gap(model, batch, act):
    """Largest difference between f(g x) and g f(x), as ``act`` turns the target of a batch too."""
    wanted = act(batch.replace(model(batch)))
    seen = wanted.mask if wanted.target.ndim == 3 else ...
    return float((model(wanted) - wanted.target)[seen].abs().max() / wanted.target[seen].abs().max())


@pytest.fixture(params=TARGETS.values(), ids=TARGETS.keys())
def task(request):
    return Toy(request.param)


def motions(seed=1):
    generator = torch.Generator().manual_seed(seed)
    matrix = random_orthogonal(B, generator, torch.float64)
    assert (torch.linalg.det(matrix) < 0).any()  # reflections are among them
    assert (torch.linalg.det(matrix) > 0).any()
    shift = 100 * LENGTH * torch.randn(B, 3, generator=generator, dtype=torch.float64)
    order = torch.stack([torch.randperm(T, generator=generator) for _ in range(B)])
    return {
        "rotation or reflection": lambda batch: transform(batch, matrix),
        "translation": lambda batch: translate(batch, shift),
        "permutation": lambda batch: permute(batch, order),
        "all of them": lambda batch: permute(translate(transform(batch, matrix), shift), order),
    }


@pytest.mark.parametrize("motion", motions())
@pytest.mark.parametrize("arm", EXACT)
def test_arms_that_build_the_symmetry_in_are_exact_for_every_kind_of_field_and_target(task, arm, motion):
    batch = draw(task)
    assert relative_gap(build(arm, task), batch, motions()[motion]) < 1e-10


@pytest.mark.skipif(not native.available(torch.empty(0)), reason="no C++ compiler here")
@pytest.mark.parametrize("arm", ["transformer_frames", "transformer_local"])
@pytest.mark.parametrize("target", ["direction at its token", "invariant of tokens"])
def test_the_kernels_loss_in_learnt_frames_is_that_of_predictions_for_every_kind_of_field(arm, target):
    task = Toy(TARGETS[target])
    check_loss_in_one_call(build(arm, task), build(arm, task), draw(task))


def test_an_arm_without_the_symmetry_is_not_equivariant():
    task = Toy(TARGETS["direction at its token"])
    assert relative_gap(build("transformer", task), draw(task), motions()["rotation or reflection"]) > 0.1


def test_gatr_as_published_is_exact_for_rotations_about_the_origin():
    task = Toy(TARGETS["free direction"], tuple(f for f in FIELDS if f.kind is not Kind.PLANE))
    model, batch = build("gatr_published", task), draw(task)
    matrix = random_orthogonal(B, torch.Generator().manual_seed(1), torch.float64)
    matrix = matrix * torch.linalg.det(matrix)[:, None, None]
    assert relative_gap(model, batch, lambda b: transform(b, matrix)) < 1e-10


@pytest.mark.parametrize("field", [f.name for f in FIELDS])
@pytest.mark.parametrize("arm", ["transformer", "gatr_published", *EXACT])
def test_every_field_reaches_the_prediction(arm, field):
    task = Toy(TARGETS["direction at its token"])
    model, batch = build(arm, task), draw(task)
    other = model(batch.replace(**{field: draw(task, seed=1)[field]}))
    assert (other - model(batch))[batch.mask].abs().max() > 1e-6


def test_plain_inputs_hold_every_field_once_in_the_order_of_declaration():
    task = Toy(TARGETS["free direction"])
    batch = draw(task)
    row = numbers(batch)
    assert row.shape == (B, T, numbers_width(task.schema))
    assert numbers_width(task.schema) == sum(field.width for field in FIELDS)

    def seen(field):
        value = batch[field.name]
        if field.kind is Kind.PLANE:
            return torch.cat([value[..., :3], value[..., 3:] / LENGTH], -1)
        if field.relative_to:
            other = batch[field.relative_to]
            value = value - (other[:, None] if value.ndim > other.ndim else other)
        return value / (LENGTH if field.kind is Kind.POINT else field.scale)

    ordered = sorted(FIELDS, key=lambda field: field.per == "sample")
    assert [field.per for field in ordered[:9]] == ["token"] * 9
    start = 0
    for field in ordered:
        own, wanted = row[..., start : start + field.width], seen(field)
        assert torch.equal(own, wanted if wanted.ndim == 3 else wanted[:, None].expand(B, T, -1))
        start += field.width


def test_heights_above_planes_and_components_along_their_normals_are_invariants_of_every_arm():
    task = Toy(TARGETS["free direction"])
    batch = draw(task)
    found = invariants(batch)[..., 5:]  # after the two of material and the three of heat
    normal, offset = batch["wall"][:, None, :3], batch["wall"][:, None, 3]
    heights = [((batch[name] * normal).sum(-1) - offset) / LENGTH for name in ("place", "corner", "tip")]
    along = [
        (batch[name] * normal).sum(-1) / scale for name, scale in (("push", 3), ("pull", 1), ("pull_from_middle", 1))
    ]
    assert torch.allclose(found, torch.stack(heights + along, -1), atol=1e-12)


@pytest.mark.parametrize("target", ["direction at its token", "invariant of the sample"])
def test_points_alone_are_enough(target):
    task = Toy(TARGETS[target], FIELDS[:1])
    batch = draw(task)
    assert multivectors(batch, 1.0).shape == (B, T, 1, 16)
    assert invariants(batch).shape == (B, T, 0)
    assert build("transformer", task)(batch).shape == batch.target.shape
    model = build("gatr", task)
    model(batch).square().mean().backward()
    assert relative_gap(model, batch, motions()["all of them"]) < 1e-9  # predictions are small here


@pytest.mark.parametrize("arm", ["transformer", *EXACT])
def test_what_padding_holds_changes_nothing(arm, task):
    model, batch = build(arm, task), draw(task)
    names = [field.name for field in FIELDS if field.per == "token"]
    noisy = batch.replace(**{name: torch.where(batch.mask[..., None], batch[name], 7.0) for name in names})
    seen = batch.mask if batch.target.ndim == 3 else ...
    assert torch.equal(model(batch)[seen], model(noisy)[seen])


@pytest.mark.parametrize("arm", ["transformer", *EXACT])
def test_a_sample_is_predicted_as_if_it_were_alone(arm, task):
    model, batch = build(arm, task), draw(task)

    def cut(tensor):  # the second sample, which has three tokens
        return tensor[1:2, :3] if tensor.shape[1:2] == (T,) else tensor[1:2]

    assert torch.allclose(model(batch.map(cut)), cut(model(batch)), rtol=1e-12, atol=1e-12)


def test_flops_and_parameters_are_counted_for_every_target(task):
    for arm in ("transformer", "gatr_published", *EXACT):
        size = get_arm(arm).ladder[4]
        assert get_arm(arm).parameters(size, task) == sum(p.numel() for p in build(arm, task).parameters())
        assert get_arm(arm).flops(size, task).executed.total(T, T * T) > 0


def test_aligned_arms_refuse_a_task_without_canonical_frame_in_one_line():
    task = Toy(TARGETS["free direction"])
    size = get_arm("transformer_aligned").ladder[0]
    for use in (get_arm("transformer_aligned").build, get_arm("transformer_aligned").flops):
        with pytest.raises(InputError, match="'toy of every kind' has no canonical frame") as caught:
            use(size, task)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arm", "kind", "message"),
    [
        ("gatr", Kind.DIRECTION, "field 'a': a direction, but the task has no point. .*: train gatr_slim"),
        ("gatr_absolute", Kind.PSEUDOVECTOR, "field 'a': a pseudovector, but the task has no point"),
        ("transformer_local", Kind.PSEUDOVECTOR, "made of true vectors; the task has no point, direction or plane"),
    ],
)
def test_arms_that_would_see_nothing_of_a_task_refuse_it(arm, kind, message):
    task = Toy(TARGETS["free direction"], (Field("a", kind), Field("q", Kind.INVARIANT)))
    for use in (get_arm(arm).build, get_arm(arm).flops):
        with pytest.raises(InputError, match=message):
            use(get_arm(arm).ladder[0], task)
    assert build("gatr_slim", task)(draw(task)).shape == (B, T, 3)


def test_all_other_arms_take_any_task(task):
    batch = draw(task)
    for arm in set(arm_names()) - {"transformer_aligned"}:
        assert build(arm, task)(batch).shape == batch.target.shape
