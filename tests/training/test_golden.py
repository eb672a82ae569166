"""Losses of short runs, as stored: a change of what arms see, of the data, the order or the steps shows here.

A change that is meant raises RESULTS_VERSION and stores new numbers.
"""

import pytest

from eqscale.arms import Size
from eqscale.training.loop import train
from tests.training.conftest import DATA
from tests.training.test_loop import make_spec

# NMSE after 40 steps. ATen's operations instead of the kernels give these digits, too.
NMSE = {
    "transformer": 0.71331,
    "transformer_aug": 0.65580,
    "transformer_aligned": 0.58466,
    "transformer_frames": 0.51963,
    "transformer_local": 0.50432,
    "transformer_misaligned": 0.76243,
    "gatr": 0.67407,
    "gatr_published": 0.56068,
    "gatr_slim": 0.82249,
    "gatr_absolute": 0.70809,
    "gatr_turned": 0.99359,
}


@pytest.mark.parametrize("arm", NMSE)
def test_a_short_run_ends_at_its_stored_loss(windows, tmp_path, arm):
    spec = make_spec(
        arm=arm,
        size=Size(20, 2, 2) if arm.startswith("transformer") else Size(4, 2, 2),
        steps=40,
        batch_size=16,
        learning_rate=1e-2,
        seed=2,
        data=DATA.digest,
        test_samples_per_system=3,
    )
    loss = train(spec, *windows, checkpoints=tmp_path).test["nmse"]
    assert loss == pytest.approx(NMSE[arm], rel=2e-3)
