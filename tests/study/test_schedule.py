import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqscale.errors import InputError
from eqscale.study.schedule import Allotment, Cluster, longest_first, plan, run_list, wall_seconds
from tests.study.test_ledger import make_spec


def make_runs(lengths):
    """Runs of the given lengths, in seconds on one device."""
    return [dataclasses.replace(make_spec(seed=k), budget=float(length)) for k, length in enumerate(lengths)]


def seconds(spec, devices=1.0):
    return spec.budget / max(1.0, devices)


def end(placements):
    return max(placement.end for placement in placements)


def inside(placements):
    return sum(p.devices * (p.end - p.start) for p in placements)


def check(placements, cluster):
    """No device is given away twice at any time."""
    for moment in {p.start for p in placements}:
        assert sum(p.devices for p in placements if p.start <= moment < p.end) <= cluster.devices


def test_longest_first_is_the_order_of_one_device_a_trial():
    specs = make_runs([3, 1, 7, 5])
    order = plan(specs, seconds, Cluster(2, 2))
    assert [a.spec.budget for a in order] == [7, 5, 3, 1]
    assert [a.spec for a in order] == longest_first(specs, seconds)
    placements = run_list(order, seconds, Cluster(2, 2))
    assert end(placements) == wall_seconds([7, 5, 3, 1], 2) == 8


def test_long_trials_get_several_devices_where_they_would_run_on_alone():
    cluster = Cluster(8, 8)
    specs = make_runs([80.0] * 2 + [1.0] * 16)
    alone = run_list(plan(specs, seconds, cluster), seconds, cluster)
    shared = run_list(plan(specs, seconds, cluster, largest=8), seconds, cluster)
    assert end(alone) == 80
    assert end(shared) == pytest.approx(176 / 8, rel=0.05)
    check(shared, cluster)


def test_a_trial_that_gains_nothing_stays_on_one_device():
    order = plan(make_runs([80.0, 1.0]), lambda spec, devices: spec.budget, Cluster(8, 8), largest=8)
    assert [a.devices for a in order] == [1, 1]


def test_shares_of_a_device_pack_and_whole_devices_stay_on_a_node():
    cluster = Cluster(4, 2)
    specs = make_runs([1.0] * 8 + [1.0])
    wanted = [Allotment(spec, 0.25) for spec in specs[:8]] + [Allotment(specs[8], 2)]
    placements = run_list(wanted, seconds, cluster)
    assert end(placements) == pytest.approx(1.0)  # eight quarters on one node, the pair on the other
    check(placements, cluster)


def test_a_trial_larger_than_a_node_is_an_error():
    with pytest.raises(InputError, match="needs 4 devices; a node has 2"):
        plan(make_runs([1.0]), seconds, Cluster(8, 2), smallest=lambda spec: 4)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.floats(0.1, 1e3), min_size=1, max_size=30),
    devices=st.integers(1, 20),
    per_node=st.integers(1, 8),
    share=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_every_plan_runs_every_trial_once_within_the_devices(lengths, devices, per_node, share):
    cluster = Cluster(devices, min(devices, per_node))
    specs = make_runs(lengths)
    allotments = plan(specs, seconds, cluster, smallest=lambda spec: share, largest=cluster.per_node)
    assert {a.spec for a in allotments} == set(specs)
    assert len(allotments) == len(specs)
    placements = run_list(allotments, seconds, cluster)
    assert [(p.spec, p.devices) for p in sorted(placements, key=lambda p: p.spec.seed)] == [
        (a.spec, a.devices) for a in sorted(allotments, key=lambda a: a.spec.seed)
    ]
    check(placements, cluster)
    lower = sum(seconds(p.spec, p.devices) * p.devices for p in placements) / devices
    assert end(placements) >= lower - 1e-6
    if all(math.isclose(p.devices, 1) for p in placements):  # Graham's bound of list scheduling
        assert end(placements) <= lower + max(lengths)
