"""The benchmark script compares like with like, and its options work."""

import pathlib
import sys

import pytest
import torch

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def models(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("models", "dense_gatr"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import models

    return models


def test_dense_formulation_computes_the_same_function_and_gradients(models):
    from dense_gatr import DenseGATr

    from eqscale.models.gatr import GATr

    torch.manual_seed(0)
    net = GATr(models.untyped(4, 8, 2, 4)).double()
    dense = DenseGATr(net)
    x = torch.randn(2, 9, 1, 16, dtype=torch.float64)
    s = torch.randn(2, 9, 1, dtype=torch.float64)
    results = []
    for function in (net, dense):
        out, scalars = function(x, s)
        loss = out.square().sum() + scalars.square().sum()
        results.append([out, scalars, *torch.autograd.grad(loss, list(net.parameters()))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_writes_its_figures(models, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(models, "NETWORKS", ((2, 4, 1),))
    monkeypatch.setattr(models, "TOKENS", ((2, 31),))
    monkeypatch.setattr(models, "PLAIN_STEPS", ((8, 1, 2, 3),))
    monkeypatch.setattr(models, "ARMS", {"transformer": (8, 1, 1)})
    file = tmp_path / "figures.json"
    parts = ["--only", "steps,arms,networks,memory", "--channels", "2"]
    options = ["--threads", "1", "--rounds", "1", "--least", "0", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["models.py", *parts, *options])
    threads = torch.get_num_threads()
    try:
        models.main()
    finally:
        torch.set_num_threads(threads)
    assert '"contestant": "ours, typed"' in file.read_text()
    assert '"network": "plain 8 x 1"' in file.read_text()
    out = capsys.readouterr().out
    assert "| ours |" in out
    assert "| plain 8 x 1 | 3 |" in out
    assert "| transformer 8x1 | 64 |" in out


def test_unknown_part_is_named(models, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["models.py", "--only", "speed"])
    with pytest.raises(SystemExit):
        models.main()
    assert "--only: speed; allowed are steps, arms, networks, memory" in capsys.readouterr().err
