import numpy as np
import pytest
import torch

from eqscale.errors import InputError
from eqscale.tasks.fields import Field, Kind, Schema

POINT = Field("x", Kind.POINT)
CHARGE = Field("q", Kind.INVARIANT)
FORCE = Field("force", Kind.DIRECTION, at="x")


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: Field("v", "vector"), r"field 'v': unknown kind 'vector'; choose from Kind\.POINT, .*INVARIANT"),
        (lambda: Field("v", Kind.POINT, per="system"), r"field 'v': per 'system'; choose from token, sample"),
        (lambda: Field("v", Kind.POINT, scale=0), r"field 'v': scale 0 and channels 1 must be positive"),
        (lambda: Field("v", Kind.POINT, scale=float("nan")), r"field 'v': scale nan"),
        (lambda: Field("z", Kind.INVARIANT, channels=0), r"field 'z': .*channels 0 must be positive"),
        (lambda: Field("v", Kind.DIRECTION, channels=2), r"field 'v': a direction has 1 channel, got 2"),
        (lambda: Schema((POINT, POINT), FORCE), r"two fields have one name: x, x"),
        (lambda: Schema((POINT, Field("weight", Kind.INVARIANT)), FORCE), r"field 'weight': that name is kept"),
        (lambda: Schema((Field("g", Kind.DIRECTION, "sample"),), FORCE), r"no field per token"),
        (
            lambda: Schema((POINT,), Field("w", Kind.PSEUDOVECTOR)),
            r"target 'w': must be a direction or an invariant, not a pseudovector",
        ),
        (lambda: Schema((POINT,), FORCE, length=0), r"length 0: must be positive"),
        (lambda: Schema((POINT,), FORCE, vector_length=-1), r"vector_length -1: must be positive"),
        (
            lambda: Schema((POINT,), Field("force", Kind.DIRECTION, at="y")),
            r"field 'force': at='y' must name a point: x",
        ),
        (
            lambda: Schema((POINT, Field("v", Kind.DIRECTION, relative_to="x")), FORCE),
            r"field 'v': relative_to='x' must name a direction: v",
        ),
        (
            lambda: Schema((POINT, Field("c", Kind.POINT, "sample", relative_to="x")), FORCE),
            r"field 'c': relative_to='x' must name a point per sample: c",
        ),
        (
            lambda: Schema((POINT, CHARGE, Field("z", Kind.INVARIANT, channels=3, relative_to="q")), FORCE),
            r"field 'z': relative_to='q' must have as many channels, and neither be a plane",
        ),
        (
            lambda: Schema((POINT,), Field("dipole", Kind.DIRECTION, "sample", at="x")),
            r"field 'dipole': at='x' must name a point per sample: there is none",
        ),
    ],
)
def test_impossible_declarations_name_the_field_and_what_is_allowed(declare, message):
    with pytest.raises(InputError, match=message) as caught:
        declare()
    assert "\n" not in str(caught.value)


def test_widths_follow_from_kinds():
    widths = {kind: Field("f", kind, channels=7 if kind is Kind.INVARIANT else 1).width for kind in Kind}
    assert list(widths.values()) == [3, 3, 3, 4, 7]


def test_replace_changes_what_it_names_and_nothing_else(toys):
    batch = toys.batch(np.arange(2))
    changed = batch.replace(torch.zeros_like(batch.target), charge=2 * batch["charge"])
    assert not changed.target.any()
    assert torch.equal(changed["charge"], 2 * batch["charge"])
    assert changed["position"] is batch["position"]
    assert not torch.equal(batch["charge"], changed["charge"])
    with pytest.raises(KeyError, match="chrage"):
        batch.replace(chrage=batch["charge"])


def test_map_reaches_every_tensor(toys):
    batch = toys.batch(np.arange(3))
    seen = []
    twin = batch.map(lambda tensor: seen.append(tensor) or tensor.clone())
    assert len(seen) == len(batch.schema.fields) + 4
    assert len(twin) == 3
    assert torch.equal(twin["wall"], batch["wall"])
    wide = batch.double()
    assert (wide.target.dtype, wide["spin"].dtype, wide.mask.dtype) == (torch.float64, torch.float64, torch.bool)
    assert {tensor.device.type for tensor in batch.to("meta").values.values()} == {"meta"}
