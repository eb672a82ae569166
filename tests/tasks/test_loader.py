import dataclasses
import threading

import numpy as np
import pytest
import torch

from eqscale.rigid.families import FAMILIES
from eqscale.rigid.loader import ahead, batches
from eqscale.rigid.object_tokens import by_object

S = FAMILIES["S"]


def test_batches_come_in_the_order_given(train):
    order = [np.array([5, 3]), np.array([100]), np.array([7, 7, 9])]
    for indices, batch in zip(order, batches(train, order), strict=True):
        torch.testing.assert_close(batch.target, train.batch(indices).target, rtol=0, atol=0)


@pytest.mark.parametrize("size", [1, 7, 16, 600])
def test_batches_assembled_together_have_the_bits_of_each_alone(train, size):
    rng = np.random.default_rng(size)
    order = [rng.integers(len(train), size=size) for _ in range(2 + 1200 // size)]
    built = list(batches(train, iter(order)))
    assert len(built) == len(order)
    for indices, batch in zip(order, built, strict=True):
        alone = train.batch(indices)
        for field in dataclasses.fields(alone):
            one, other = getattr(batch, field.name), getattr(alone, field.name)
            assert torch.equal(one, other)
            assert one.is_contiguous()


def test_making_ahead_keeps_order_and_bound():
    made = []
    bound = threading.Semaphore(0)

    def items():
        for k in range(20):
            made.append(k)
            bound.release()
            yield k

    stream = ahead(items(), 3)
    assert next(stream) == 0
    for _ in range(5):  # 0 handed over, 3 in the queue, 1 waiting for room
        bound.acquire()
    assert made == [0, 1, 2, 3, 4]
    assert list(stream) == list(range(1, 20))


def test_errors_of_the_maker_reach_the_trainer():
    def items():
        yield 1
        raise ValueError("no second batch")

    stream = ahead(items(), 2)
    assert next(stream) == 1
    with pytest.raises(ValueError, match="no second batch"):
        next(stream)


def test_closing_ends_the_thread():
    before = threading.active_count()
    stream = ahead(iter(range(10**9)), 2)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_a_device_gets_pinned_batches_made_ahead(train, monkeypatch):
    """On a stand-in for a GPU: pinning is a no-op and the copy goes to torch's meta device."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self.shape) or self)
    order = [np.array([5, 3]), np.array([100])]
    got = list(batches(train, order, device="meta"))
    assert [len(b.scene) for b in got] == [2, 1]
    assert all(b.target.device.type == "meta" for b in got)
    assert len(pinned) == 2 * len(vars(got[0]))


def test_object_tokens_hold_the_same_sample(train):
    batch = train.batch(np.arange(0, len(train), 41))
    view = by_object(batch, S.max_objects, S.max_vertices)
    assert view.position.shape == (len(batch.scene), 5, 12, 3)
    for name in ("position", "velocity", "target"):
        torch.testing.assert_close(view.to_vertex_tokens(getattr(view, name)), getattr(batch, name))
    torch.testing.assert_close(view.vertex_mask.sum((1, 2)), batch.mask.sum(1))
    torch.testing.assert_close(
        view.mask.sum(1).double(), 1 / (batch.weight[:, 0] * view.vertex_mask[:, 0].sum(1)).double()
    )
    for name in ("center", "center_velocity", "material"):
        spread = getattr(view, name)[:, :, None].expand(-1, -1, 12, -1)
        torch.testing.assert_close(view.to_vertex_tokens(spread), getattr(batch, name))
        assert not getattr(view, name)[~view.mask].any()
    contact = view.contact[:, :, None].expand(-1, -1, 12)
    torch.testing.assert_close(view.to_vertex_tokens(contact), batch.contact)
