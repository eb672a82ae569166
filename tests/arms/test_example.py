"""The arm of docs/your_own_arm.md, as a reader would check it."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eqscale.arms import base, get_arm, load_arm_files
from eqscale.tasks import get_task

EXAMPLE = Path(__file__).parents[2] / "docs/examples/deep_sets.py"


@pytest.fixture
def arm():
    if "deep_sets" not in base.arm_names():
        load_arm_files([str(EXAMPLE)])
    return get_arm("deep_sets")


def test_the_example_predicts_targets_whatever_padding_holds(arm, batch):
    task = get_task("rigid")
    model = arm.build(arm.ladder[0], task).double()
    out = model(batch)
    assert out.shape == batch.target.shape
    padding = ~batch.mask[..., None]
    damaged = batch.replace(position=batch["position"].masked_fill(padding, 7.0))
    assert torch.equal(model(damaged)[batch.mask], out[batch.mask])


def test_the_example_counts_its_flops_right(arm, batch):
    task = get_task("rigid")
    for size in arm.ladder:
        with FlopCounterMode(display=False) as counter:
            arm.build(size, task).double()(batch).sum().backward()
        tokens = batch.mask.numel()
        assert arm.flops(size, task).executed.total(tokens, 0) == pytest.approx(counter.get_total_flops(), rel=0.01)
