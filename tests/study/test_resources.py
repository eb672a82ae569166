import dataclasses

import pytest
import torch

from eqscale.arms import arm_names, get_arm
from eqscale.errors import InputError
from eqscale.study import resources
from eqscale.study.backend import reservation
from eqscale.study.resources import activation_bytes_per_token, gpu_share, memory_need
from eqscale.tasks import get_task
from tests.study.test_ledger import make_spec

GB = 1e9
TOKENS = 600


def run(arm="transformer", rung=8, batch_size=64, step_flops=1e9):
    size = get_arm(arm).ladder[rung]
    return dataclasses.replace(
        make_spec(), arm=arm, size=size, batch_size=batch_size, budget=100 * step_flops, steps=100
    )


@pytest.mark.parametrize("arm", ["transformer", "gatr"])
def test_the_law_of_activations_holds_at_sizes_that_were_not_probed(arm, monkeypatch):
    ladder = get_arm(arm).ladder
    monkeypatch.setattr(resources, "_PROBE_COST", get_arm(arm).flops(ladder[2], get_task("rigid")).executed.per_token)
    activation_bytes_per_token.cache_clear()
    for size in ladder[3:10]:
        law = activation_bytes_per_token(arm, size, "rigid")
        assert law == pytest.approx(resources._kept_bytes(arm, size, get_task("rigid")), rel=0.5)
    activation_bytes_per_token.cache_clear()


def test_kept_bytes_are_those_that_the_backward_pass_needs(monkeypatch):
    class Cube(torch.nn.Module):
        def forward(self, batch):
            x = batch["position"].detach().requires_grad_()
            return x**3  # keeps x, twelve bytes for each token

    monkeypatch.setattr(resources, "get_arm", lambda name: dataclasses.replace(
        get_arm("transformer"), build=lambda size, task: Cube()))  # fmt: skip
    assert resources._kept_bytes("any", get_arm("transformer").ladder[0], get_task("rigid")) == 12


def test_small_runs_share_a_gpu_and_large_ones_do_not():
    assert gpu_share(run(), TOKENS, 24 * GB) == 0.25
    assert gpu_share(run(step_flops=1e13), TOKENS, 24 * GB) == 1.0
    shares = [gpu_share(run(rung=rung), TOKENS, 24 * GB) for rung in range(0, 30, 3)]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    more_memory = [gpu_share(run(rung=15), TOKENS, n * GB) for n in (8, 16, 24, 80)]
    assert more_memory == sorted(more_memory, reverse=True)


@pytest.mark.parametrize("arm", arm_names())
@pytest.mark.parametrize("rung", [0, 6, 12])
def test_shares_fit_into_the_memory(arm, rung):
    spec = run(arm, rung, batch_size=256)
    for gigabytes in (8, 24, 80):
        share = gpu_share(spec, TOKENS, gigabytes * GB)
        assert share == 1.0 or memory_need(spec, TOKENS).total <= share * gigabytes * GB


def test_a_model_that_no_gpu_holds_is_refused_by_name():
    spec = run(rung=-1)
    with pytest.raises(InputError, match=r"needs \d+\.\d GB for weights.*the GPUs have 8\.0 GB"):
        gpu_share(spec, TOKENS, 8 * GB)
    assert gpu_share(spec, TOKENS, 80 * GB) == 1.0


def test_ray_reserves_a_core_for_every_device_and_the_share_of_a_gpu():
    assert reservation(1.0, gpu=False).required_resources == {"CPU": 1.0}
    assert reservation(0.25, gpu=True).required_resources == {"CPU": 1.0, "GPU": 0.25}
    several = reservation(4, gpu=True)
    assert several.bundles == [{"CPU": 1.0, "GPU": 1.0}] * 4
    assert several.strategy == "STRICT_PACK"
