"""Losses of short runs, as stored: a change of what arms see, of the data, the order or the steps shows here.

A change that is meant raises RESULTS_VERSION and stores new numbers.
"""

import pytest

from eqscale.arms import Size
from eqscale.training.loop import train
from tests.training.conftest import DATA
from tests.training.test_loop import make_spec

# NMSE after 40 steps. Double precision and ATen's operations instead of the kernels give these digits, too, but for
# gatr_off, whose training amplifies rounding: there they differ by 0.1 %, by 0.6 % without vector instructions.
NMSE = {
    "transformer": 0.83953,
    "transformer_aug": 0.69442,
    "transformer_aligned": 0.57623,
    "gatr": 0.80544,
    "gatr_published": 0.59368,
    "gatr_off": 0.77867,
}


@pytest.mark.parametrize("arm", NMSE)
def test_a_short_run_ends_at_its_stored_loss(windows, tmp_path, arm):
    control = arm == "gatr_off"
    spec = make_spec(
        arm=arm,
        size=Size(20, 2, 2) if arm.startswith("transformer") else Size(4, 2, 2),
        steps=40,
        batch_size=16,
        learning_rate=2e-3 if control else 1e-2,
        seed=1,
        data=DATA.digest,
        test_samples_per_system=3,
    )
    loss = train(spec, *windows, checkpoints=tmp_path).test["nmse"]
    assert loss == pytest.approx(NMSE[arm], rel=3e-2 if control else 2e-3)
