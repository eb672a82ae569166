import dataclasses
import json
import re

import numpy as np
import pytest
import torch

from eqscale.arms import arm_names, get_arm
from eqscale.cli import main
from eqscale.errors import InputError
from eqscale.roles import Role
from eqscale.tasks.fields import Batch
from eqscale.tasks.forces.families import ELEMENTS
from eqscale.tasks.forces.frame import principal_axes
from eqscale.tasks.forces.samples import neighbour_means
from eqscale.tasks.loader import batches
from eqscale.tasks.symmetry import random_orthogonal, transform, translate
from eqscale.training.loop import train
from eqscale.training.spec import RunRecord, RunSpec

SYMBOLS = list(ELEMENTS)


def everything(samples) -> Batch:
    return samples.batch(np.arange(len(samples)), dtype=torch.float64)


# Samples.


def test_targets_have_unit_mean_square_and_atoms_equal_weight(data):
    _, train_samples, _ = data
    batch = everything(train_samples)
    assert float((batch.weight * batch.target.square().sum(-1)).sum()) / len(batch) == pytest.approx(1, abs=1e-5)
    real = batch.mask.double()
    torch.testing.assert_close(batch.weight, real / real.sum(1, keepdim=True), atol=1e-7, rtol=0)


def test_a_sample_says_what_the_molecule_is(data):
    _, samples, _ = data
    batch = everything(samples)
    for row in range(0, len(batch), 8):
        symbols = sorted(SYMBOLS[k] for k in batch["element"][row].argmax(-1)[batch.mask[row]])
        charge, unpaired = batch["electrons"][row].tolist()
        assert (symbols, charge, unpaired) in [
            (["H", "H", "O"], 0, 0), (["N", "O"], 0, 1), (["H", "H", "H", "O"], 1, 0)
        ]  # fmt: skip
    assert not batch["position"][~batch.mask].any()
    assert not batch["element"][~batch.mask].any()
    assert not batch.target[~batch.mask].any()
    assert batch["position"].sum(1).abs().max() < 1e-5


def test_the_middle_of_the_neighbours_is_a_weighted_mean_of_the_others_and_moves_with_them(data):
    _, samples, _ = data
    positions = np.array([[0.0, 0, 0], [1, 0, 0], [0, 2, 0]])
    near, far = np.exp(-1 / 0.5), np.exp(-4 / 0.5)
    assert np.allclose(neighbour_means(positions)[0], [near / (near + far), 2 * far / (near + far), 0])
    assert np.allclose(neighbour_means(positions[:2] * 100), positions[1::-1] * 100)
    batch = everything(samples).map(lambda t: t[:40])
    generator = torch.Generator().manual_seed(0)
    moved = transform(batch, random_orthogonal(len(batch), generator, torch.float64))
    moved = translate(moved, torch.randn(len(batch), 3, generator=generator, dtype=torch.float64))
    for row, mask in enumerate(moved.mask):
        again = neighbour_means(moved["position"][row][mask].numpy())
        np.testing.assert_allclose(moved["neighbours"][row][mask], again, atol=1e-6)


def test_forces_of_a_sample_sum_to_zero(data):
    _, samples, _ = data
    assert everything(samples).target.sum(1).abs().max() < 1e-5


def test_batches_are_the_same_in_any_company(data):
    _, samples, _ = data
    groups = np.array([[3, 9, 20], [127, 0, 1]])
    for indices, batch in zip(groups, batches(samples, groups.__getitem__, range(2)), strict=True):
        alone = samples.batch(indices)
        assert len(batch) == len(indices)
        for name in alone.values:
            assert torch.equal(batch[name], alone[name])
        assert torch.equal(batch.target, alone.target)
    assert len(samples.batch(np.array([], int))) == 0
    with pytest.raises(IndexError, match=r"0\.\.127"):
        samples.batch(np.array([128]))


# The canonical frame.


def shape_of(batch: Batch) -> torch.Tensor:
    """Positions without the signs of the axes."""
    return principal_axes(batch)[0]["position"].abs()


def test_the_frame_is_that_of_the_principal_axes_up_to_signs(data):
    _, samples, _ = data
    batch = everything(samples)
    aligned, matrix = principal_axes(batch)
    eye = torch.eye(3, dtype=torch.float64).expand_as(matrix)
    torch.testing.assert_close(matrix @ matrix.transpose(1, 2), eye)
    x = aligned["position"]
    moments = x.transpose(1, 2) @ x
    assert (moments - torch.diag_embed(moments.diagonal(dim1=1, dim2=2))).abs().max() < 1e-9
    assert (moments.diagonal(dim1=1, dim2=2).diff(dim=1) <= 1e-9).all()
    torch.testing.assert_close(aligned.target, batch.target @ matrix.transpose(1, 2))


def test_the_frame_is_the_same_for_moved_molecules_but_for_signs(data):
    _, samples, _ = data
    batch = everything(samples)
    batch = batch.map(lambda t: t[batch.mask.sum(1) == 3])  # in smaller ones the third axis is of rounding alone
    generator = torch.Generator().manual_seed(0)
    moved = transform(batch, random_orthogonal(len(batch), generator, torch.float64))
    moved = translate(moved, torch.randn(len(batch), 3, generator=generator, dtype=torch.float64))
    torch.testing.assert_close(shape_of(moved), shape_of(batch), atol=1e-7, rtol=0)


def test_all_eight_frames_are_equally_likely_in_uniform_orientations(data):
    _, samples, _ = data
    batch = everything(samples)
    row = int(batch.mask.sum(1).argmax())
    many = batch.map(lambda t: t[row : row + 1].expand(4000, *t.shape[1:]).contiguous())
    moved = transform(many, random_orthogonal(4000, torch.Generator().manual_seed(0), torch.float64))
    signs = (principal_axes(moved)[0]["position"][:, 1] > 0).long()  # of an atom that lies on no axis
    counts = torch.bincount(signs @ torch.tensor([4, 2, 1]), minlength=8)
    assert counts.min() > 400
    assert counts.max() < 600


def test_degenerate_molecules_have_a_frame_too(data):
    """A diatomic has two equal moments, and they are zero; four points of a tetrahedron have three equal ones."""
    _, samples, _ = data
    batch = everything(samples)
    chosen = batch.map(lambda t: t[:2])
    tetrahedron = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    line = torch.tensor([[0.0, 0, 1], [0, 0, -1], [0, 0, 0], [0, 0, 0]], dtype=torch.float64)
    T = chosen.mask.shape[1]
    position = torch.nn.functional.pad(torch.stack([tetrahedron, line]), (0, 0, 0, T - 4))
    mask = torch.arange(T) < torch.tensor([[4], [2]])
    odd = dataclasses.replace(chosen.replace(position=position), mask=mask)
    aligned, matrix = principal_axes(odd)
    assert torch.isfinite(matrix).all()
    torch.testing.assert_close(aligned["position"][1, :2].abs(), torch.tensor([[1.0, 0, 0]] * 2).double())


# Metrics.


def test_no_force_has_loss_one_and_the_truth_has_none(task, data):
    _, _, samples = data
    indices = np.arange(len(samples))
    found = task.evaluate(lambda batch: torch.zeros_like(batch.target), samples, indices)
    for name in ("", "_unseen", "_h", "_n", "_o", "_weak", "_strong", "_diatomic", "_polyatomic"):
        assert found[f"nmse{name}"] == pytest.approx(1.0)
    assert np.isnan([found["nmse_c"], found["nmse_other"]]).all()
    seen = everything(samples).target[torch.from_numpy(~samples.unseen[indices // 8])]
    weight = everything(samples).weight[torch.from_numpy(~samples.unseen[indices // 8])]
    mae = float((weight[..., None] * seen.abs()).sum()) / (3 * len(seen)) * samples.force_rms * 1e3
    assert found["force_mae_mev"] == pytest.approx(mae, rel=1e-5)
    exact = task.evaluate(lambda batch: batch.target, samples, indices)
    assert exact["nmse"] == exact["nmse_unseen"] == exact["force_mae_mev"] == 0
    assert exact["cosine"] == pytest.approx(1.0)
    assert exact["net_force_mev"] < 0.1
    assert exact["net_torque_mev"] < 0.1
    assert {metric.name for metric in task.metrics} == exact.keys() - {"nmse", "nmse_se"}


def test_diatomics_have_an_error_of_their_own(task, data):
    _, samples, _ = data

    def wrong_on_pairs(batch):
        return torch.where((batch.mask.sum(1) == 2)[:, None, None], 0.0, batch.target)

    found = task.evaluate(wrong_on_pairs, samples, np.arange(len(samples)))
    assert (found["nmse_diatomic"], found["nmse_polyatomic"]) == (1.0, 0.0)


def test_a_push_on_every_atom_is_a_net_force_and_a_turn_a_net_torque(task, data):
    _, _, samples = data
    indices = np.flatnonzero(~samples.unseen.repeat(8))
    push = task.evaluate(lambda batch: torch.ones_like(batch.target), samples, indices)
    atoms = samples.tokens[indices // 8]
    assert push["net_force_mev"] == pytest.approx(1e3 * samples.force_rms * np.sqrt(3 * (atoms**2).mean()), rel=1e-6)
    assert push["net_torque_mev"] < 1
    axis = torch.tensor([0.0, 0.0, 1.0])
    turn = task.evaluate(
        lambda batch: torch.linalg.cross(axis.expand_as(batch["position"]), batch["position"]), samples, indices
    )
    assert turn["net_force_mev"] < 1
    assert turn["net_torque_mev"] > 100


def test_the_nmse_is_of_molecules_that_are_trained_on(task, data):
    _, _, samples = data
    unseen = torch.from_numpy(samples.unseen)

    def wrong_on_unseen(batch):
        return torch.where(unseen[batch.system][:, None, None], -batch.target, batch.target)

    found = task.evaluate(wrong_on_unseen, samples, np.arange(len(samples)))
    assert (found["nmse"], found["nmse_unseen"]) == (0.0, 4.0)
    seen = task.evaluate(wrong_on_unseen, samples, np.arange(8))
    assert np.isnan(seen["nmse_unseen"])


# Training, and pictures.


@pytest.mark.parametrize("arm", arm_names())
def test_every_arm_trains_on_it(task, data, arm, tmp_path, forgetful):
    spec, train_samples, test_samples = data
    run = RunSpec(
        arm=arm, size=get_arm(arm).ladder[0], budget=1e8, steps=30, batch_size=16, learning_rate=1e-2, seed=0,
        data=spec.digest, train_systems=16, test_systems=12, test_samples_per_system=2, task=task.name,
    )  # fmt: skip
    record = train(run, train_samples, test_samples, checkpoints=tmp_path)
    assert record.status == "finished"
    assert 0 < record.test["nmse"] < 1.5
    assert (record.test["equivariance_rotation"] < 1e-4) == (get_arm(arm).role is Role.BUILD_IN)
    if arm == "gatr":
        assert max(record.test[f"equivariance_{g}"] for g in ("reflection", "translation", "permutation")) < 1e-4
    assert RunRecord.from_json(record.to_json()).test.keys() == record.test.keys()


def test_pictures_of_a_molecule_are_an_image_and_one_page(task, molecules, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["scenes", "--task", "forces", "--family", molecules, "--index", "1"]) == 0
    said = capsys.readouterr().out
    assert re.fullmatch(r"wrote forces-small-0-1\.png and forces-small-0-1\.html: small-\d, .*\n", said)
    assert (tmp_path / "forces-small-0-1.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "forces-small-0-1.html").read_text()
    assert "http" not in page
    content = json.loads(re.search(r"const molecule = (.*);", page)[1])
    assert len(content["positions"]) == len(content["symbols"]) == len(content["forces"][0]["vectors"])
    assert main(["scenes", "--task", "forces", "--family", molecules, "--out", "a.bmp"]) == 2
    assert "must end in .png, .gif, .html" in capsys.readouterr().err


def test_a_prediction_is_drawn_beside_the_truth(task, data, tmp_path):
    _, _, samples = data
    path = task.look_at_prediction(lambda batch: batch.target, samples, 1, tmp_path / "a.html", "a <model>")
    content = json.loads(re.search(r"const molecule = (.*);", path.read_text())[1])
    assert [force["name"] for force in content["forces"]] == ["GFN2-xTB", "a <model>"]
    assert content["forces"][0]["vectors"] == content["forces"][1]["vectors"]
    assert "<model>" not in path.read_text()
    with pytest.raises(InputError, match=r"system 12: the split has 0\.\.11"):
        task.look_at_prediction(lambda batch: batch.target, samples, 12, tmp_path / "a.html", "")
    with pytest.raises(InputError, match="cannot write the picture"):
        task.look_at_prediction(lambda batch: batch.target, samples, 1, tmp_path / "no" / "a.png", "")
