import dataclasses
import hashlib

import numpy as np
import pytest

from eqscale.errors import InputError
from eqscale.tasks import dataset
from eqscale.tasks.dataset import DataSpec, generate, left_out, prepare
from eqscale.tasks.forces import geometries
from eqscale.tasks.forces.families import find_family
from eqscale.tasks.forces.geometries import FRAMES, SOURCES, make_system
from eqscale.tasks.forces.xtb import ScfError, Surface, one_thread


@pytest.fixture(autouse=True, scope="module")
def single():
    with one_thread():
        yield


def test_systems_depend_on_their_index_alone(molecules):
    spec = DataSpec("forces", (("family", molecules),))
    together = generate(spec, [], "train", 0, 5)
    assert generate(spec, [], "train", 3, 5).tobytes() == together[3:].tobytes()
    assert generate(spec, [], "test", 0, 1)["position"].tobytes() != together[:1]["position"].tobytes()


def test_systems_are_made_on_one_thread_whatever_the_process_has(task, molecules, monkeypatch):
    from threadpoolctl import threadpool_info, threadpool_limits

    seen = []

    def spy(*args):
        seen.append(max(library["num_threads"] for library in threadpool_info() if library["user_api"] == "openmp"))
        return make_system(*args)

    monkeypatch.setattr("eqscale.tasks.forces.task.make_system", spy)
    with threadpool_limits(2):
        task.records(task.check_options({"family": molecules}), 0, "train", 0, 1)
    assert seen == [1]


def test_labels_are_the_forces_of_the_stored_positions_and_minus_the_gradient_of_the_energy(task, data):
    _, samples, _ = data
    batch = samples.batch(np.arange(0, len(samples), 16))
    again = task.relabel(samples.options, batch) / samples.force_rms
    assert (again - batch.target).abs().max() < 1e-6
    surface, h = Surface(np.array([8, 1, 1]), 0, 0), 1e-4
    x = np.array([[0, 0, 0], [0.8, 0, 0.6], [-0.7, 0.1, 0.6]])
    energies = []
    for sign in (1, -1):
        moved = x.copy()
        moved[1, 0] += sign * h
        surface.forces(moved)
        energies.append(27.211386 * surface._last.get("energy"))
    assert surface.forces(x)[1, 0] == pytest.approx((energies[1] - energies[0]) / (2 * h), rel=1e-4)


def test_labels_obey_the_declared_group(task, molecules):
    task.check_labels(task.check_options({"family": molecules}), 0)


def test_every_fourth_test_system_is_of_an_unseen_molecule_and_no_training_system_is(data):
    _, train, test = data
    assert not train.unseen.any()
    assert test.unseen.tolist() == [k % 4 == 3 for k in range(12)]


def test_sources_and_molecules_are_mixed():
    """With the shares that are said, over molecules as they come."""
    family = find_family("g2")
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        still = lambda self, x: np.zeros_like(x)  # noqa: E731
        patch.setattr(Surface, "forces", still)
        patch.setattr(Surface, "next_forces", still)
        drawn = [make_system(family, 0, "train", k) for k in range(600)]
    share = np.bincount([system.source for system in drawn], minlength=len(SOURCES)) / len(drawn)
    assert np.allclose(share[:3], 1 / 9, atol=0.04)
    assert np.allclose(share[3:], 2 / 9, atol=0.055)
    assert len({system.molecule for system in drawn}) > 110


def test_dynamics_have_the_temperature_that_is_said(monkeypatch):
    """In a harmonic well the mean square of a coordinate is kT over the stiffness."""
    molecule, stiffness = find_family("g2").molecules[-1], 30.0  # eV/Å^2
    monkeypatch.setattr(geometries, "_start", lambda molecule, rng: np.zeros((len(molecule), 3)))
    monkeypatch.setattr(Surface, "next_forces", lambda self, x: -stiffness * x)
    walk = geometries._dynamics(molecule, 600.0, np.random.default_rng(0))
    square = np.mean([np.square(next(walk)).mean() for _ in range(400)])
    assert square == pytest.approx(8.617333e-5 * 600 / stiffness, rel=0.05)


def test_orientations_are_those_of_all_rotations_and_reflections():
    molecule, rng = find_family("g2").molecules[-1], np.random.default_rng(0)
    rest = np.array(molecule.positions) - np.mean(molecule.positions, axis=0)
    turns = [np.linalg.lstsq(rest, geometries._start(molecule, rng), rcond=None)[0].T for _ in range(400)]
    assert np.allclose(turns @ np.swapaxes(turns, 1, 2), np.eye(3), atol=1e-9)
    assert abs(np.linalg.det(turns).mean()) < 0.15
    assert np.abs(np.mean(turns, axis=0)).max() < 0.12


def failing(times):
    """Forces that fail that many times first."""
    left = [times]

    def forces(self, x):
        left[0] -= 1
        if left[0] >= 0:
            raise ScfError("SCF not converged")
        return np.zeros_like(x)

    return forces


def test_failed_scfs_are_counted_and_another_attempt_is_made(molecules, monkeypatch, tmp_path):
    monkeypatch.setattr(Surface, "forces", failing(2))
    monkeypatch.setattr(Surface, "next_forces", lambda self, x: np.zeros_like(x))
    system = make_system(find_family(molecules), 0, "train", 0)
    assert (system.scf_failures, system.large_forces, len(system.forces)) == (2, 0, FRAMES)
    monkeypatch.setattr(dataset, "MEASURED_SYSTEMS", 2)
    monkeypatch.setattr(Surface, "forces", failing(3))
    monkeypatch.setattr("eqscale.tasks.forces.task.ForcesTask.check_labels", lambda *_: None)
    monkeypatch.setattr("eqscale.tasks.forces.task.force_rms", lambda records: 1.0)
    folder = prepare(DataSpec("forces", (("family", molecules),), 0, 2, 1), tmp_path, workers=1)
    assert left_out(folder) == {"an SCF that doesn't converge": 3, "a force above 20 eV/Å": 0}


def test_large_forces_are_left_out_and_counted(molecules, monkeypatch):
    monkeypatch.setattr(geometries, "LARGEST_FORCE", 9.0)
    family = find_family(molecules)
    made = [make_system(family, 0, "train", k) for k in range(8)]
    assert sum(system.large_forces for system in made) > 0
    assert max(np.linalg.norm(system.forces, axis=-1).max() for system in made) <= 9.0


def test_a_molecule_without_usable_forces_is_an_error_that_names_it(molecules, monkeypatch, tmp_path):
    monkeypatch.setattr(Surface, "forces", failing(10**9))
    monkeypatch.setattr(Surface, "next_forces", lambda self, x: np.zeros_like(x))
    with pytest.raises(InputError, match=r"small\.xyz, line \d+: none of 20 attempts .* the SCF failed in 20"):
        make_system(find_family(molecules), 0, "train", 0)
    with pytest.raises(InputError, match=r"small\.xyz, line \d+: the SCF doesn't converge: SCF not converged"):
        prepare(DataSpec("forces", (("family", molecules),), 0, 2, 1), tmp_path, workers=1)
    assert not list(tmp_path.rglob("*.npy"))


def test_a_real_scf_that_does_not_converge_is_noticed():
    surface = Surface(np.array([8, 8]), 0, 2)
    surface._calculator.set("max-iter", 2)
    with pytest.raises(ScfError):
        surface.forces(np.array([[0.0, 0, 0], [0, 0, 1.3]]))


def test_a_cluster_of_water_has_forces():
    water = find_family("water")
    pair = dataclasses.replace(water, molecules=water.molecules[:1])
    system = make_system(pair, 0, "train", 0)
    assert system.positions.shape == (FRAMES, 6, 3)
    assert SOURCES[system.source].endswith("K")
    assert 0.1 < np.sqrt(np.square(system.forces).sum(-1).mean()) < 10


def test_golden_forces():
    """The data are those of this version of the package with the pinned tblite.

    Rounded: C libraries differ in the last bit of an exponential.
    """
    digest = hashlib.sha256()
    for name in ("g2", "water"):
        family = find_family(name)
        if name == "water":
            family = dataclasses.replace(family, molecules=family.molecules[:1])
        for split in ("train", "test"):
            system = make_system(family, 0, split, 3)
            for array in (system.positions, system.forces):
                digest.update((np.round(array.astype(float), 3) + 0.0).tobytes())
            digest.update(family.molecules[system.molecule].name.encode())
    assert digest.hexdigest() == "bde86a245c694dfaac7fa945be6ffeb04da8f797b1be49b3e319d1868f7d9638"
