import pytest
import torch

from eqscale import native
from eqscale.errors import InputError
from eqscale.training.device import hardware, replays_graphs
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


def test_a_record_says_that_a_processor_ran_without_kernels(monkeypatch):
    monkeypatch.setattr(native, "load", lambda: False)
    assert hardware(torch.device("cpu"), False, False).endswith(", without C++ kernels")
    monkeypatch.setattr(native, "load", lambda: True)
    assert "kernels" not in hardware(torch.device("cpu"), False, False)
