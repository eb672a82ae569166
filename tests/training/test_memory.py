import ctypes

import numpy as np
import pytest
import torch

from eqscale.arms import arm_names
from eqscale.training import loop
from eqscale.training.loop import accumulate_gradient, build_model, prepared, train, weighted_mse
from eqscale.training.memory import fitting, is_out_of_memory, parts, read_micro_batch, write_micro_batch
from tests.training.test_loop import make_spec


@pytest.mark.parametrize("arm", ["transformer", "transformer_aligned", "transformer_frames", "gatr_slim", "gatr"])
@pytest.mark.parametrize("micro_batch", [1, 3, 4, 7])
@pytest.mark.parametrize("ahead", [False, True])
def test_the_gradient_of_the_parts_is_that_of_the_batch(windows, arm, micro_batch, ahead):
    assert arm in arm_names()
    batch = windows[0].batch(np.arange(0, 70, 10), dtype=torch.float64)
    model = build_model(make_spec(arm=arm)).double()
    weighted_mse(model(batch), batch).backward()
    whole = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss = accumulate_gradient(model, prepared(model, batch) if ahead else batch, micro_batch)
    scale = max(g.abs().max() for g in whole)
    assert scale > 1e-3
    for parameter, expected in zip(model.parameters(), whole, strict=True):
        assert (parameter.grad - expected).abs().max() <= 1e-12 * scale
    assert loss.item() == pytest.approx(weighted_mse(model(batch), batch).item(), rel=1e-12)


def test_a_batch_that_fits_is_not_touched(windows):
    batch = windows[0].batch(np.arange(8))
    assert next(parts(batch, 8)) is batch
    pieces = list(parts(batch, 3))
    assert [len(piece) for piece in pieces] == [3, 3, 2]
    whole = tensors(batch)
    assert {"position", "floor", "contact", "mask", "target", "weight", "system"} <= whole.keys()
    for name, value in whole.items():
        assert torch.equal(torch.cat([tensors(piece)[name] for piece in pieces]), value), name


def tensors(batch):
    own = {name: getattr(batch, name) for name in ("mask", "target", "weight", "system")}
    return {**own, **batch.values, **batch.labels}


def out_of_memory_above(monkeypatch, windows_at_once):
    """Let the loss run out of memory for more windows than that; returns the sizes that were tried."""
    healthy, tried = loop.add_gradient, []

    def limited(model, batch, count):
        tried.append(len(batch))
        if len(batch) > windows_at_once:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return healthy(model, batch, count)

    monkeypatch.setattr(loop, "add_gradient", limited)
    return tried


def test_a_run_that_does_not_fit_goes_on_with_smaller_parts(windows, tmp_path, monkeypatch):
    spec = make_spec()
    straight = train(spec, *windows, checkpoints=tmp_path / "a")
    tried = out_of_memory_above(monkeypatch, 2)
    halved = train(spec, *windows, checkpoints=tmp_path / "b")
    assert tried[:6] == [8, 4, 2, 2, 2, 2]
    assert halved.micro_batch == 2
    assert halved.notes[0].startswith("out of memory at step 0: 4 samples at once (CUDA out of memory")
    assert halved.run_id == straight.run_id
    assert halved.tokens == straight.tokens
    assert halved.test["nmse"] == pytest.approx(straight.test["nmse"], rel=1e-4)
    assert read_micro_batch(tmp_path / "b", spec.batch_size) == 2  # for the next attempt


def test_a_run_of_which_not_even_one_window_fits_fails(windows, tmp_path, monkeypatch):
    out_of_memory_above(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError):
        train(make_spec(), *windows, checkpoints=tmp_path)


def test_other_errors_are_not_taken_for_memory():
    calls = []

    def compute(size):
        calls.append(size)
        raise RuntimeError("shapes don't match")

    with pytest.raises(RuntimeError, match="shapes"):
        fitting(compute, 8, lambda size, reason: None)
    assert calls == [8]


def test_what_the_allocator_says_is_understood():
    for allocate in (
        lambda: torch.empty(2**62 // 8, dtype=torch.float64),  # PyTorch's CPU allocator
        lambda: ctypes.create_string_buffer(2**62),  # Python's
    ):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("content", [b"0", b"-3", b"many", b""])
def test_a_damaged_note_of_the_micro_batch_is_ignored(tmp_path, content):
    (tmp_path / "micro_batch").write_bytes(content)
    assert read_micro_batch(tmp_path, 16) in (1, 16)
    write_micro_batch(tmp_path, 4)
    assert read_micro_batch(tmp_path, 16) == 4
