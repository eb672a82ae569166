import dataclasses
import errno
import hashlib
import json

import numpy as np
import pytest

from eqscale.errors import InputError
from eqscale.rigid import dataset
from eqscale.rigid.dataset import DatasetSpec, generate, open_split, prepare
from eqscale.rigid.engine import simulate
from eqscale.rigid.families import FAMILIES
from eqscale.rigid.scene import sample_scene

# Scenes of this family cost a few milliseconds: storage is what these tests are about.
TINY = dataclasses.replace(FAMILIES["S"], name="tiny", objects=(1, 2))


def tiny(**sizes) -> DatasetSpec:
    return DatasetSpec(TINY, **{"train_scenes": 4, "test_scenes": 3, **sizes})


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(dataset, "SIGMA_SCENES", 4)
    monkeypatch.setattr(dataset, "_CHUNK", 2)


@pytest.fixture
def calls(monkeypatch):
    """Record which scenes are generated."""
    made = []

    def spy(spec, split, start, stop):
        made.extend((split, i) for i in range(start, stop))
        return generate(spec, split, start, stop)

    monkeypatch.setattr(dataset, "generate", spy)
    return made


def contents(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.npy"))}


def test_the_digest_is_of_the_definition_not_of_the_sizes():
    spec = DatasetSpec("S")
    assert spec.digest == DatasetSpec("S", train_scenes=7, test_scenes=9).digest
    others = [
        DatasetSpec("M"),
        DatasetSpec("S", seed=1),
        DatasetSpec("S", engine="soft"),
        DatasetSpec(dataclasses.replace(FAMILIES["S"], spin=2.5)),
    ]
    assert len({spec.digest, *(o.digest for o in others)}) == 5


def test_scenes_depend_on_their_index_alone():
    a = generate(tiny(), "train", 0, 5)
    b = generate(tiny(), "train", 3, 5)
    assert a[3:].tobytes() == b.tobytes()
    assert generate(tiny(), "test", 0, 1).tobytes() != a[:1].tobytes()


def test_growing_reuses_what_is_there(tmp_path, calls):
    prepare(tiny(), tmp_path, workers=1)
    assert len(calls) == 7
    calls.clear()
    folder = prepare(tiny(train_scenes=6), tmp_path, workers=1)
    assert calls == [("train", 4), ("train", 5)]
    fresh = prepare(tiny(train_scenes=6), tmp_path / "other", workers=1)
    assert contents(folder) == contents(fresh)
    calls.clear()
    prepare(tiny(), tmp_path, workers=1)
    assert calls == []
    assert open_split(tiny(), tmp_path, "train").n_scenes == 4


def test_several_shards_read_as_one(tmp_path, monkeypatch):
    spec = tiny(train_scenes=10)
    prepare(spec, tmp_path / "one", workers=1)
    whole = open_split(spec, tmp_path / "one", "train")
    monkeypatch.setattr(dataset, "SHARD", 4)
    folder = prepare(spec, tmp_path / "many", workers=1)
    assert len(list(folder.glob("train-*.npy"))) == 3
    split = open_split(spec, tmp_path / "many", "train")
    indices = np.random.default_rng(0).permutation(len(whole))
    for name, value in vars(whole.batch(indices)).items():
        assert value.equal(getattr(split.batch(indices), name)), name


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damaged_shards_are_never_read_and_are_rebuilt(tmp_path, calls, damage):
    spec = tiny()
    folder = prepare(spec, tmp_path, workers=1)
    before = contents(folder)
    shard = folder / "train-00000.npy"
    data = bytearray(shard.read_bytes())
    if damage == "truncate":
        shard.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    else:
        shard.unlink()
    with pytest.raises(InputError, match=r"train-00000\.npy is missing or damaged"):
        open_split(spec, tmp_path, "train")
    calls.clear()
    prepare(spec, tmp_path, workers=1)
    assert calls == [("train", i) for i in range(4)]
    assert contents(folder) == before
    assert len(open_split(spec, tmp_path, "train")) == 96


def test_a_kill_loses_at_most_the_shard_in_work(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "SHARD", 4)
    spec = tiny(train_scenes=10)
    generated = []

    def interrupted(spec, split, start, stop):
        if len(generated) == 3:  # one shard and a half
            raise KeyboardInterrupt
        generated.append(start)
        return generate(spec, split, start, stop)

    monkeypatch.setattr(dataset, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(spec, tmp_path, workers=1)
    folder = spec.folder(tmp_path)
    assert list(contents(folder)) == ["train-00000.npy"]
    with pytest.raises(InputError, match="does not hold 10 train scenes yet"):
        open_split(spec, tmp_path, "train")
    monkeypatch.setattr(dataset, "generate", generate)
    prepare(spec, tmp_path, workers=1)
    assert contents(folder) == contents(prepare(spec, tmp_path / "fresh", workers=1))


def test_a_full_disk_leaves_no_partial_shard(tmp_path, monkeypatch):
    def full(file, array, **_):
        file.write(b"half a shard")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match=r"disk full while writing .*train-00000\.npy.*free some space"):
        prepare(tiny(), tmp_path, workers=1)
    assert not list(tiny().folder(tmp_path).glob("*.npy*"))


def test_a_folder_with_other_data_is_refused_and_named(tmp_path):
    folder = prepare(tiny(), tmp_path, workers=1)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["definition"]["engine"]["version"] = "3.9.9"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for attempt in (lambda: prepare(tiny(), tmp_path), lambda: open_split(tiny(), tmp_path, "train")):
        with pytest.raises(InputError, match=r"3\.9\.9.*wanted.*4\.0\.1.*delete it, or choose another"):
            attempt()
    (folder / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="not a dataset manifest"):
        prepare(tiny(), tmp_path)


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write data under"):
        prepare(tiny(), tmp_path / "file")


def test_progress_counts_scenes(tmp_path):
    seen = []
    prepare(tiny(), tmp_path, workers=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 7), (2, 7), (4, 7), (6, 7), (7, 7)]


def test_processes_give_the_bits_of_a_serial_run(tmp_path):
    serial = prepare(tiny(), tmp_path / "serial", workers=1)
    assert contents(prepare(tiny(), tmp_path / "parallel", workers=2)) == contents(serial)


def test_ray_tasks_give_the_bits_of_a_serial_run(tmp_path):
    ray = pytest.importorskip("ray")
    with pytest.raises(InputError, match=r"ray\.init"):
        prepare(tiny(), tmp_path / "ray", backend="ray")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        folder = prepare(tiny(), tmp_path / "ray", backend="ray")
    finally:
        ray.shutdown()
    assert contents(folder) == contents(prepare(tiny(), tmp_path / "serial", workers=1))


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
            for array in (
                *scene.vertices,
                scene.mass,
                scene.inertia,
                scene.friction,
                scene.restitution,
                state,
            ):
                digest.update((np.round(array, 6) + 0.0).tobytes())
    assert digest.hexdigest() == "6b662db40bdff7259ecaefdcff50b85e2814a7258bd6a41b30f0318a20e0ec3b"
