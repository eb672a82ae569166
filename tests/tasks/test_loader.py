import threading

import numpy as np
import pytest
import torch

from eqscale.tasks.loader import ahead, batches


def test_batches_come_in_the_order_given(toys):
    order = np.array([[5, 3], [100, 7], [7, 7], [9, 0]])
    for indices, batch in zip(order[1:], batches(toys, order.__getitem__, range(1, 4)), strict=True):
        torch.testing.assert_close(batch.target, toys.batch(indices).target, rtol=0, atol=0)


def test_steps_are_prepared_in_the_same_company_wherever_a_run_resumes(toys):
    draws, together = np.arange(400).reshape(4, 100) % len(toys), []

    def prepare(batch, steps):
        together.append(steps)
        assert len(batch) == 100 * len(steps)
        return batch

    for start in range(4):
        got = list(batches(toys, draws.__getitem__, range(start, 4), prepare=prepare))
        for step, batch in zip(range(start, 4), got, strict=True):
            assert torch.equal(batch.target, toys.batch(draws[step]).target)
    assert together == [range(4)] * 4
    assert list(batches(toys, draws.__getitem__, range(4, 4))) == []


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


def test_a_device_gets_pinned_batches_made_ahead(toys, monkeypatch):
    """On a stand-in for a GPU: pinning is a no-op and the copy goes to torch's meta device."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self.shape) or self)
    order = np.array([[5, 3], [100, 7]])
    got = list(batches(toys, order.__getitem__, range(2), device="meta"))
    assert [len(b) for b in got] == [2, 2]
    assert all(b.target.device.type == "meta" for b in got)
    assert len(pinned) == 2 * (len(got[0].values) + 4)
