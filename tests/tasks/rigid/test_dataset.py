import dataclasses
import hashlib

import numpy as np

from eqscale.tasks import dataset
from eqscale.tasks.dataset import DataSpec, generate, prepare
from eqscale.tasks.rigid.engine import simulate
from eqscale.tasks.rigid.families import FAMILIES
from eqscale.tasks.rigid.scene import sample_scene
from eqscale.tasks.rigid.task import data_spec

# Scenes of this family cost a few milliseconds.
TINY = dataclasses.replace(FAMILIES["S"], name="tiny", objects=(1, 2))


def tiny() -> DataSpec:
    return data_spec(TINY, train_systems=4, test_systems=3)


def contents(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.npy"))}


def test_the_digest_is_of_the_definition_not_of_the_sizes():
    spec = data_spec("S")
    assert spec.digest == data_spec("S", train_systems=7, test_systems=9).digest
    others = [
        data_spec("M"),
        data_spec("S", seed=1),
        data_spec("S", engine="soft"),
        data_spec(dataclasses.replace(FAMILIES["S"], spin=2.5)),
    ]
    assert len({spec.digest, *(o.digest for o in others)}) == 5
    # That of all published runs.
    assert spec.digest == "05ebb933beca39809173f1ea4559c4387689d7be4ae606de58ebb48cdffa73b8"


def test_scenes_depend_on_their_index_alone():
    a = generate(tiny(), [], "train", 0, 5)
    b = generate(tiny(), [], "train", 3, 5)
    assert a[3:].tobytes() == b.tobytes()
    assert generate(tiny(), [], "test", 0, 1).tobytes() != a[:1].tobytes()


def test_processes_give_the_bits_of_a_serial_run(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "MEASURED_SYSTEMS", 4)
    monkeypatch.setattr(dataset, "_CHUNK", 2)
    serial = prepare(tiny(), tmp_path / "serial", workers=1)
    assert contents(prepare(tiny(), tmp_path / "parallel", workers=2)) == contents(serial)


def test_golden_scenes():
    """The data are those of this version of the package, on any x86-64 CPU with the pinned engine.

    Rounded to 1e-6 and over the first third of a second: C libraries and vector units differ in the last bit
    of a sine, and contacts amplify that bit, but not by ten orders of magnitude within eight frames.
    """
    digest = hashlib.sha256()
    for name in ("S", "M", "L"):
        for index in range(3):
            scene = sample_scene(FAMILIES[name], 0, "test", index)
            state = simulate(scene, 8).state
            for array in (*scene.vertices, scene.mass, scene.inertia, scene.friction, scene.restitution, state):
                digest.update((np.round(array, 6) + 0.0).tobytes())
    assert digest.hexdigest() == "6b662db40bdff7259ecaefdcff50b85e2814a7258bd6a41b30f0318a20e0ec3b"
