import pytest
import torch

from eqscale.errors import InputError
from eqscale.training.device import replays_graphs
from eqscale.training.loop import train
from tests.training.test_loop import make_spec


@pytest.mark.parametrize("variable", ["EQSCALE_BF16", "EQSCALE_CUDA_GRAPHS"])
def test_a_switch_that_is_none_is_refused(windows, tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "yes")
    with pytest.raises(InputError, match=f"{variable}=yes: must be 0"):
        train(make_spec(), *windows, checkpoints=tmp_path)


def test_graphs_are_for_one_gpu_and_few_lengths(monkeypatch):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert replays_graphs(gpu, 1, 30)
    assert not replays_graphs(cpu, 1, 30)
    assert not replays_graphs(gpu, 2, 30)
    assert not replays_graphs(gpu, 1, 300)
    monkeypatch.setenv("EQSCALE_CUDA_GRAPHS", "0")
    assert not replays_graphs(gpu, 1, 30)
