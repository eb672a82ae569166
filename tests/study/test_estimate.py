import dataclasses

import pytest

from eqscale.arms import Size
from eqscale.study.estimate import CPU_GUESS, DDP_EFFICIENCY, Estimator, Throughput, device_guess
from tests.study.test_ledger import make_record, make_spec

TRUTH = Throughput(step=3e-4, block=4e-5, flop=6e-12)


def runs(arm="transformer"):
    for depth, steps, budget in ((1, 100, 1e9), (2, 1000, 1e10), (4, 300, 1e11), (8, 3000, 1e11), (2, 500, 1e12)):
        yield dataclasses.replace(make_spec(), arm=arm, size=Size(8, depth, 2), steps=steps, budget=budget)


def test_without_runs_the_guess_holds():
    assert all(Estimator()(spec) == pytest.approx(CPU_GUESS.seconds(spec)) for spec in runs())


def test_each_run_that_ends_brings_the_estimates_of_the_others_nearer():
    *first, last = runs()
    estimate = Estimator()
    errors = [abs(estimate(last) / TRUTH.seconds(last) - 1)]
    for spec in first:
        estimate.measure(spec, TRUTH.training(spec))
        errors.append(abs(estimate(last) / TRUTH.seconds(last) - 1))
    assert errors[0] > 1
    assert errors[-1] < 0.2
    assert errors[-1] == min(errors)


def test_an_arm_without_runs_goes_by_the_others_and_leaves_them_alone():
    estimate = Estimator()
    spec = make_spec()
    other = dataclasses.replace(spec, arm="gatr")
    estimate.measure(spec, 3 * CPU_GUESS.training(spec))
    assert estimate.throughput("gatr").training(other) == pytest.approx(3 * CPU_GUESS.training(other))
    estimate.measure(other, 9 * CPU_GUESS.training(other))
    assert estimate.throughput("gatr").training(other) == pytest.approx(9 * CPU_GUESS.training(other))
    assert estimate.throughput("transformer").training(spec) == pytest.approx(3 * CPU_GUESS.training(spec))


def test_a_diverged_run_says_nothing():
    record = make_record(make_spec(), status="diverged")
    assert Estimator(ended=[record])(record.spec) == Estimator()(record.spec)


def test_what_is_left_of_a_run_follows_its_own_pace():
    estimate, spec = Estimator(), make_spec()
    assert estimate.left(spec, 0, 0.0) == estimate(spec)
    evaluations = estimate(spec) - CPU_GUESS.training(spec)
    assert estimate.left(spec, 50, 40.0) == pytest.approx(40.0 + evaluations / 2)
    assert estimate.left(spec, spec.steps, 80.0) == 0


def test_more_devices_share_the_flops_and_not_the_overhead():
    spec = make_spec()
    assert Throughput(0, 0, 1e-9).training(spec, 4) == pytest.approx(spec.budget * 1e-9 / (4 * 0.95**2))
    assert Throughput(1, 1, 0).training(spec, 4) == Throughput(1, 1, 0).training(spec)


def test_the_slowest_gpu_that_is_named_sets_the_guess():
    assert device_guess([]) == CPU_GUESS
    assert device_guess(["NVIDIA A100-SXM4-80GB"]) == device_guess(["A100"])
    assert device_guess(["A100", "T4"]).flop == device_guess(["T4"]).flop > device_guess(["A100"]).flop
    assert device_guess(["Unheard-Of 9000"]).flop == device_guess(["T4"]).flop


def test_a_run_on_several_devices_teaches_its_seconds_on_one():
    one, several = Estimator(), Estimator()
    for spec in runs():
        one.measure(spec, TRUTH.training(spec))
        several.measure(spec, 4 * TRUTH.training(spec, 4), devices=4)
    for spec in runs():
        assert several(spec) == pytest.approx(one(spec), rel=0.05)
        assert several(spec, 4) == pytest.approx(one(spec, 4), rel=0.05)


def test_devices_beyond_the_windows_of_a_batch_gain_nothing():
    spec = dataclasses.replace(make_spec(), batch_size=6)
    seconds = {devices: Throughput(0.0, 0.0, 1e-10).training(spec, devices) for devices in (1, 2, 4, 8, 16)}
    assert seconds[2] == pytest.approx(seconds[1] / 2 / DDP_EFFICIENCY)
    assert seconds[4] == pytest.approx(seconds[1] / 3 / DDP_EFFICIENCY**2)  # the largest share is two windows
    assert seconds[16] > seconds[8]
