"""Every part of ``benchmarks/gpu.py`` runs, at tiny sizes on the CPU; no figure comes of it."""

import json
import pathlib
import sys

import pytest
import torch

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("gpu", "dense_gatr"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import gpu

    yield gpu
    torch.set_flush_denormal(False)


def test_every_part_runs_and_goes_on_where_it_stopped(gpu, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(gpu, "arm_names", lambda: ("transformer", "gatr"))
    # spawned processes read the script again, from a path that they know
    monkeypatch.setenv("PYTHONPATH", f"{FOLDER.parent}:{FOLDER}")
    words = ["--device", "cpu", "--tiny", "--data", str(tmp_path / "data"), "--json", str(tmp_path / "gpu.json")]
    assert gpu.main([*words, "--minutes", "0"]) == 3
    assert "the same command continues" in capfd.readouterr().out
    assert gpu.main(words) == 0, capfd.readouterr().out
    rows = json.loads((tmp_path / "gpu.json").read_text())
    parts = {name.partition(":")[0] for name in rows}
    assert parts == {"correctness", "steps", "repeat", "small", "startup"}
    checks = [row["verdict"] for name, row in rows.items() if name.startswith("correctness")]
    assert checks == ["green"] * 10
    before = rows
    assert gpu.main(words) == 0
    assert json.loads((tmp_path / "gpu.json").read_text()) == before


def test_a_wrong_network_is_red(gpu, tmp_path, monkeypatch):
    build = gpu.build_model

    def broken(spec):
        model = build(spec)
        model.register_forward_hook(lambda module, inputs, out: out * torch.tensor([1.1, 1.0, 1.0]))
        return model

    setting = gpu.Setting(torch.device("cpu"), True, tmp_path, (1e3,))
    assert gpu.symmetry(setting, "gatr")["verdict"] == "green"
    monkeypatch.setattr(gpu, "build_model", broken)
    assert gpu.symmetry(setting, "gatr")["verdict"] == "RED"


def test_without_a_cuda_device_it_says_so(gpu, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert gpu.main([]) == 2
    assert "finds no CUDA device" in capsys.readouterr().err
