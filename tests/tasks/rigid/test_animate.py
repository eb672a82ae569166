import dataclasses

import pytest
import torch
from PIL import Image

from eqscale.cli import main
from eqscale.errors import InputError
from eqscale.tasks.dataset import open_split
from eqscale.tasks.rigid import animate
from eqscale.tasks.rigid.animate import animate_prediction


def test_scenes_writes_an_animation(tmp_path, capsys):
    out = tmp_path / "scene.gif"
    assert main(["scenes", "--family", "S", "--seed", "3", "--seconds", "0.2", "--out", str(out)]) == 0
    assert "objects" in capsys.readouterr().out
    with Image.open(out) as image:
        assert image.n_frames > 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "XL"], "unknown family 'XL'; choose from S, M, L"),
        (["--seconds", "0"], "--seconds 0"),
        (["--index", "-1"], "--index -1"),
        (["--meshes", "nowhere"], "nowhere is not a folder with .obj meshes"),
        (["--out", "scene.mp4"], "must end in .gif"),
        (["--out", "no/such/folder/scene.gif"], "cannot write the animation"),
    ],
)
def test_bad_arguments_end_with_one_line(capsys, arguments, message):
    assert main(["scenes", "--seconds", "0.1", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_long_horizon_is_rolled_out_as_far_as_a_scene_reaches(spec, root, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(animate, "draw", lambda panels, path: drawn.extend(panels) or path)
    windows = open_split(spec, root, "test", horizon=8)
    animate_prediction(lambda batch: batch.target, windows, 0, tmp_path / "p.gif")
    assert len(drawn) == 3


def test_a_perfect_prediction_lies_on_the_truth(test_split, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(animate, "draw", lambda panels, path: drawn.extend(panels) or path)
    animate_prediction(lambda batch: batch.target, test_split, 2, tmp_path / "p.gif", "oracle")
    truth, ahead, held = drawn
    assert (truth.title, ahead.title) == ("truth", "oracle, 0.17 s ahead")
    for a, b in zip(truth.tracks, ahead.tracks, strict=True):
        assert a.shape == b.shape == (21, a.shape[1], 3)
        torch.testing.assert_close(torch.from_numpy(a), torch.from_numpy(b), atol=1e-5, rtol=0)
        assert a[..., 2].min() > -0.1  # upright, above the floor
    for a, c in zip(truth.tracks, held.tracks, strict=True):
        torch.testing.assert_close(torch.from_numpy(a[0]), torch.from_numpy(c[0]), atol=1e-4, rtol=0)
    assert dataclasses.is_dataclass(truth)
    with pytest.raises(InputError, match=r"scenes 0\.\.11"):
        animate_prediction(lambda batch: batch.target, test_split, 12, tmp_path / "p.gif")
