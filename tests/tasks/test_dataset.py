import errno
import hashlib
import json
import os

import numpy as np
import pytest
import torch

from eqscale.errors import InputError
from eqscale.tasks import Option, Wording, dataset
from eqscale.tasks.dataset import DataSpec, generate, open_split, open_stored, prepare
from eqscale.tasks.symmetry import SE3, Group


def small(**changes) -> DataSpec:
    return DataSpec(**{"task": "toy", "train_systems": 4, "test_systems": 3, **changes})


@pytest.fixture(autouse=True)
def few(monkeypatch, toy):
    monkeypatch.setattr(dataset, "MEASURED_SYSTEMS", 4)
    monkeypatch.setattr(dataset, "_CHUNK", 2)


@pytest.fixture
def calls(monkeypatch):
    """Record which systems are generated."""
    made = []

    def spy(spec, files, split, start, stop):
        made.extend((split, i) for i in range(start, stop))
        return generate(spec, files, split, start, stop)

    monkeypatch.setattr(dataset, "generate", spy)
    return made


def contents(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.npy"))}


# From a declaration to batches.


def test_batches_hold_what_generate_made(toy, tmp_path):
    spec = small()
    prepare(spec, tmp_path, workers=1)
    samples = open_split(spec, tmp_path, "train")
    made = toy.generate(spec.options, 0, "train", 0, 4)
    chosen = [2, 0, 1, 2]
    batch = samples.batch(np.array(chosen), dtype=torch.float64)
    tokens = made["tokens"][chosen]
    assert batch.mask.shape == (4, tokens.max())
    assert not batch.mask.all()
    np.testing.assert_array_equal(batch.mask.sum(1), tokens)
    np.testing.assert_array_equal(batch.system, chosen)
    np.testing.assert_allclose(batch["wall"], made["wall"][chosen], rtol=1e-6)
    for row, system in enumerate(chosen):
        for name, value in (*batch.values.items(), ("target", batch.target * samples.target_rms)):
            if value.ndim == 3:
                mask = batch.mask[row]
                np.testing.assert_allclose(value[row][mask], made[name][system][: tokens[row]], rtol=2e-6)
                assert not value[row][~mask].any()
    real = batch.mask.double()
    torch.testing.assert_close(batch.weight, real / real.sum(1, keepdim=True), atol=1e-7, rtol=0)
    assert (samples.unique_tokens, len(samples), samples.n_systems) == (made["tokens"].sum(), 4, 4)
    with pytest.raises(IndexError, match=r"0\.\.3"):
        samples.batch(np.array([4]))


def test_targets_have_unit_mean_square_on_the_systems_that_define_their_unit(tmp_path):
    spec = small(train_systems=6)
    prepare(spec, tmp_path, workers=1)
    train = open_split(spec, tmp_path, "train")
    batch = train.batch(np.arange(4), dtype=torch.float64)
    assert float((batch.weight * batch.target.square().sum(-1)).sum()) / 4 == pytest.approx(1, abs=1e-6)
    assert open_split(spec, tmp_path, "test").target_rms == train.target_rms


def test_the_digest_is_of_what_decides_the_numbers(toy, known):
    spec = small()
    same = [small(train_systems=7), small(test_systems=9), small(given=(("look", "close"), ("strength", 0.5)))]
    assert small(given=(("strength", 2),)).digest == small(given=(("strength", 2.0),)).digest
    assert {spec.digest} == {other.digest for other in same}

    class Newer(type(toy)):
        version = 2

    known(Newer)
    others = [small(seed=1), small(given=(("strength", 2.0),)), small(given=(("walls", "level"),))]
    digests = {spec.digest, *(other.digest for other in others)}
    assert len(digests) == 4
    assert known(Newer).definition(spec.options, 0) != toy.definition(spec.options, 0)


def test_given_weights_become_those_of_a_sample(toy, known, tmp_path):
    class Weighted(type(toy)):
        words = Wording("weighted", "")

        def generate(self, *args):
            made = super().generate(*args)
            return made | {"weight": np.arange(1, 6) * np.ones_like(made["charge"][..., 0])}

    known(Weighted)
    spec = small(task="weighted")
    prepare(spec, tmp_path, workers=1)
    batch = open_split(spec, tmp_path, "train").batch(np.arange(4))
    torch.testing.assert_close(batch.weight.sum(1), torch.ones(4))
    torch.testing.assert_close(batch.weight[:, 1], 2 * batch.weight[:, 0])
    assert not batch.weight[~batch.mask].any()


@pytest.mark.parametrize(
    ("option", "given", "value"),
    [
        (Option("k", 4, "", (1, 4)), 4.0, 4),
        (Option("k", 4, "", (1, 4)), True, 1),
        (Option("k", 4.0, ""), 4, 4.0),
        (Option("k", 4, ""), 4, 4),
        (Option("k", True, ""), False, False),
    ],
)
def test_equal_values_of_an_option_are_one_setting(option, given, value):
    found = option.check(given)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (Option("k", 4, ""), 4.0, "k 4.0: must be of type int"),
        (Option("k", 4, ""), True, "k True: must be of type int"),
        (Option("k", "a", "", ("a", "b")), "c\nd", r"unknown k 'c\\nd'; choose from a, b"),
        (Option("k", "c", "", ("a", "b")), "c", "unknown k 'c'; choose from a, b"),
    ],
)
def test_values_that_an_option_does_not_take_are_named_in_one_line(option, value, message):
    with pytest.raises(InputError, match=message) as caught:
        option.check(value)
    assert "\n" not in str(caught.value)


# What doesn't fit its declaration is found before anything is written.


def without(name):
    return lambda made: {key: value for key, value in made.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"spin": m["spin"][..., 0]}, r"field 'spin': wanted shape \(32, 5, 3\), got \(32, 5\)"),
        (lambda m: m | {"wall": m["wall"][:, :3]}, r"field 'wall': wanted shape \(32, 4\), got \(32, 3\)"),
        (lambda m: m | {"target": m["target"][1:]}, r"field 'target': wanted shape \(32, 5, 3\), got \(31, 5, 3\)"),
        (lambda m: m | {"weight": np.ones(32)}, r"field 'weight': wanted shape \(32, 5\), got \(32,\)"),
        (lambda m: m | {"weight": -np.ones((32, 5))}, r"field 'weight': negative, or 0 for a whole sample"),
        (without("spin"), r"generate returned no spin"),
        (lambda m: m | {"spins": m["spin"]}, r"generate returned 'spins', which it doesn't declare; choose from pos"),
        (lambda m: m | {"charge": m["charge"] / 0}, r"field 'charge': not finite"),
        (lambda m: m | {"charge": m["charge"] * np.nan}, r"field 'charge': not finite"),
        (lambda m: m | {"charge": m["charge"] * 1e39}, r"field 'charge': not finite in single precision"),
        (lambda m: m | {"weight": np.full((32, 5), np.nan)}, r"field 'weight': not finite"),
        (lambda m: m | {"wall": 2 * m["wall"]}, r"field 'wall': a plane's normal must have length 1"),
        (lambda m: m | {"tokens": np.arange(1, 33) % 7 + 1}, r"field 'tokens': must lie in 1\.\.5"),
        (lambda m: m | {"tokens": np.zeros(32)}, r"field 'tokens': must lie in 1\.\.5"),
        (lambda m: m | {"target": 0 * m["target"]}, r"the targets of the first 32 systems are all zero"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_systems_that_do_not_fit_are_named_before_anything_is_written(toy, known, tmp_path, change, message):
    class Broken(type(toy)):
        words = Wording("broken", "")

        def generate(self, *args):
            return change(super().generate(*args))

    known(Broken)
    with pytest.raises(InputError, match=message) as caught:
        prepare(small(task="broken"), tmp_path, workers=1)
    assert str(caught.value).startswith("task 'broken'")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_tokens_that_are_not_real_hold_counts_for_nothing(toy, known):
    class Padded(type(toy)):
        words = Wording("padded", "")

        def generate(self, *args):
            made = super().generate(*args)
            beyond = np.arange(5) >= made["tokens"][:, None]
            return made | {"spin": np.where(beyond[..., None], np.nan, made["spin"])}

    padded, clean = (task.records(task.check_options({}), 0, "train", 0, 8) for task in (known(Padded), toy))
    np.testing.assert_array_equal(padded["spin"], clean["spin"])


LAWS = {
    "chiral": (lambda at, mask: np.cross(at["velocity"], at["field"][:, None]), "rotation or reflection"),
    "absolute": (lambda at, mask: np.array([0, 0, 1.0]), "rotation or reflection"),
    "ordered": (lambda at, mask: at["velocity"] * np.arange(mask.shape[1])[:, None], "permutation"),
    "centred": (lambda at, mask: at["position"], "shift"),
}


def with_law(toy, law, **attributes):
    class Other(type(toy)):
        words = Wording("other", "")

        def force(self, at, mask, strength):
            return super().force(at, mask, strength) + LAWS[law][0](at, mask)

    for name, value in attributes.items():
        setattr(Other, name, value)
    return Other


@pytest.mark.parametrize("law", LAWS)
def test_labels_that_break_the_declared_group_are_named_before_anything_is_written(toy, known, tmp_path, law):
    known(with_law(toy, law))
    message = rf"'other': its labels break the declared symmetry E\(3\) under a random {LAWS[law][1]}: relative error"
    with pytest.raises(InputError, match=message) as caught:
        prepare(small(task="other"), tmp_path, workers=1)
    assert "stated tolerance 1e-06" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("law", "attributes"),
    [
        ("chiral", {"group": SE3}),
        ("ordered", {"group": Group(permutations=False)}),
        ("centred", {"group": Group(translations=False)}),
        ("absolute", {"symmetry_tolerance": 10.0}),
        ("absolute", {"relabel": lambda self, options, batch: None}),
    ],
)
def test_a_group_that_fits_is_accepted(toy, known, tmp_path, law, attributes):
    known(with_law(toy, law, **attributes))
    prepare(small(task="other"), tmp_path, workers=1)


def test_recomputed_labels_must_be_those_stored(toy, known, tmp_path):
    class Forgetful(type(toy)):
        words = Wording("forgetful", "")

        def relabel(self, options, batch):
            return 7 * super().relabel(options, batch.replace(spin=0 * batch["spin"]))

    known(Forgetful)
    with pytest.raises(InputError, match=r"relabel gives other labels than generate: their cosine is 0\.\d"):
        prepare(small(task="forgetful"), tmp_path, workers=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "nothing"}, r"unknown task 'nothing'; choose from rigid, .*toy.*--task-file"),
        ({"given": (("walls", "steep"),)}, r"unknown walls 'steep'; choose from free, level"),
        ({"given": (("strength", "high"),)}, r"strength 'high': must be of type float"),
        ({"given": (("strength", True),)}, r"strength True: must be of type float"),
        ({"given": (("colour", 1),)}, r"no option 'colour'; its options: strength, walls, look"),
        ({"train_systems": 0}, r"train_systems 0: must be at least 1"),
        ({"seed": -1}, r"data seed -1"),
    ],
)
def test_bad_specs_are_named(change, message):
    with pytest.raises(InputError, match=message):
        small(**change)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"look": "far"}, r"unknown look 'far'; choose from plain, close"),
        ({"systems": 5}, r"5 train systems: must lie in 1\.\.4"),
        ({"split": "validation"}, r"unknown split 'validation': choose from train, test"),
        ({}, r"does not hold 4 train systems yet: prepare the data set first"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        open_split(small(), tmp_path, **{"split": "train", **arguments})


# Storage.


def test_growing_reuses_what_is_there(tmp_path, calls):
    prepare(small(), tmp_path, workers=1)
    assert len(calls) == 7
    calls.clear()
    folder = prepare(small(train_systems=6), tmp_path, workers=1)
    assert calls == [("train", 4), ("train", 5)]
    fresh = prepare(small(train_systems=6), tmp_path / "other", workers=1)
    assert contents(folder) == contents(fresh)
    calls.clear()
    prepare(small(), tmp_path, workers=1)
    assert calls == []
    assert open_split(small(), tmp_path, "train").n_systems == 4


def test_several_shards_read_as_one(tmp_path, monkeypatch):
    spec = small(train_systems=10)
    prepare(spec, tmp_path / "one", workers=1)
    whole = open_split(spec, tmp_path / "one", "train")
    monkeypatch.setattr(dataset, "SHARD", 4)
    folder = prepare(spec, tmp_path / "many", workers=1)
    assert len(list(folder.glob("train-*.npy"))) == 3
    split = open_split(spec, tmp_path / "many", "train")
    indices = np.random.default_rng(0).permutation(len(whole))
    one, other = whole.batch(indices), split.batch(indices)
    assert all(torch.equal(value, other[name]) for name, value in one.values.items())
    assert torch.equal(one.target, other.target)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damaged_shards_are_never_read_and_are_rebuilt(tmp_path, calls, damage):
    folder = prepare(small(), tmp_path, workers=1)
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
        open_split(small(), tmp_path, "train")
    calls.clear()
    prepare(small(), tmp_path, workers=1)
    assert calls == [("train", i) for i in range(4)]
    assert contents(folder) == before
    assert len(open_split(small(), tmp_path, "train")) == 4


def test_a_kill_loses_at_most_the_shard_in_work(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "SHARD", 4)
    spec = small(train_systems=10)
    generated = []

    def interrupted(spec, files, split, start, stop):
        if len(generated) == 3:  # one shard and a half
            raise KeyboardInterrupt
        generated.append(start)
        return generate(spec, files, split, start, stop)

    monkeypatch.setattr(dataset, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(spec, tmp_path, workers=1)
    folder = spec.folder(tmp_path)
    assert list(contents(folder)) == ["train-00000.npy"]
    with pytest.raises(InputError, match="does not hold 10 train systems yet"):
        open_split(spec, tmp_path, "train")
    monkeypatch.setattr(dataset, "generate", generate)
    prepare(spec, tmp_path, workers=1)
    assert contents(folder) == contents(prepare(spec, tmp_path / "fresh", workers=1))


def test_a_full_disk_leaves_no_partial_shard(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"disk full while writing .*train-00000\.npy.*free some space"):
        prepare(small(), tmp_path, workers=1)
    assert [path.name for path in small().folder(tmp_path).iterdir()] == [".lock"]


def test_a_folder_with_other_data_is_refused_and_named(tmp_path):
    folder = prepare(small(), tmp_path, workers=1)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["definition"]["version"] = 17
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for attempt in (lambda: prepare(small(), tmp_path), lambda: open_split(small(), tmp_path, "train")):
        with pytest.raises(InputError, match=r"version 17 \(wanted 1\).*delete it, or choose another"):
            attempt()
    (folder / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="not a dataset manifest"):
        prepare(small(), tmp_path)


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write data under"):
        prepare(small(), tmp_path / "file")


def test_progress_counts_systems(tmp_path):
    seen = []
    prepare(small(), tmp_path, workers=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 7), (2, 7), (4, 7), (6, 7), (7, 7)]


def test_data_are_found_by_the_digest_of_their_definition(tmp_path):
    spec = small(given=(("strength", 2.0),))
    prepare(spec, tmp_path, workers=1)
    stored = open_stored("toy", spec.digest, tmp_path, "train", systems=3, look="close")
    whole = open_split(spec, tmp_path, "train")
    assert stored.options == {"strength": 2.0, "walls": "free", "look": "close"}
    assert (len(stored), whole.options["look"]) == (3, "plain")
    assert torch.equal(stored.batch(np.arange(3)).target, whole.batch(np.arange(3)).target)
    with pytest.raises(InputError, match=r"data 0000 are not under .*, which holds toy-[0-9a-f]{12}"):
        open_stored("toy", "0000", tmp_path, "train", systems=3)


def test_processes_load_the_task_file_and_give_the_bits_of_a_serial_run(tmp_path):
    serial = prepare(small(), tmp_path / "serial", workers=1)
    assert contents(prepare(small(), tmp_path / "parallel", workers=2)) == contents(serial)


def test_ray_tasks_give_the_bits_of_a_serial_run(tmp_path, shared_ray, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("ray.is_initialized", lambda: False)
        with pytest.raises(InputError, match=r"ray\.init"):
            prepare(small(), tmp_path / "ray", backend="ray")
    with shared_ray.session():
        folder = prepare(small(), tmp_path / "ray", backend="ray")
    assert contents(folder) == contents(prepare(small(), tmp_path / "serial", workers=1))
