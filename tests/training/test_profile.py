"""``benchmarks/training.py`` still fits the training loop that it puts clocks around."""

import pathlib
import sys

import pytest

from eqscale.arms import Size, get_arm
from tests.training.test_loop import make_spec

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "training", raising=False)
    import training

    return training


def test_the_parts_of_a_run_are_all_timed_and_the_clocks_taken_away(script, windows):
    arm, size = get_arm("transformer_aug"), Size(8, 1, 1)
    before = {name: getattr(script.loop, name) for name in ("transform", "batches", "add_gradient")}
    spec = make_spec(arm=arm.name, size=size, steps=1000)
    profile = script.profile(arm, size, windows, spec, seconds=0.0)
    assert set(profile.parts) == set(script.PARTS)
    assert all(seconds > 0 for seconds in profile.parts.values())
    assert sum(profile.share.values()) == pytest.approx(1.0)
    assert profile.step["data: augmentation"] > 0
    assert {name: getattr(script.loop, name) for name in before} == before


def test_time_inside_a_part_of_another_is_counted_once(script, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(script.time, "perf_counter", lambda: next(clock))
    watch = script.Stopwatch()  # at 0; every reading is a second later
    inner = watch.timed("inner", lambda: None)
    watch.timed("outer", inner)()  # outer from 1, inner from 2 to 3, outer to 4
    assert watch.stop() == {"other": 2, "outer": 2, "inner": 1}
    assert list(watch.items("made", iter("ab"))) == ["a", "b"]
    assert watch.stop()["made"] == 3  # twice an item, once the end
