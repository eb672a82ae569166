from eqscale.study.watch import Watch, silence_limit
from tests.study.test_ledger import make_spec


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def watched(limit=10.0):
    clock, spec = Clock(), make_spec()
    watch = Watch(lambda _: limit, clock)
    watch.started(spec)
    return watch, clock, spec.run_id


def test_long_runs_may_be_silent_for_a_tenth_of_their_time():
    assert silence_limit(60.0) == 600.0
    assert silence_limit(36_000.0) == 3600.0
    assert silence_limit(60.0, at_least=5.0) == 6.0


def test_a_trial_that_falls_silent_is_named_once_per_limit():
    watch, clock, run_id = watched()
    clock.now += 10
    assert watch.hanging() == {}
    clock.now += 1
    assert watch.hanging() == {run_id: 11.0}
    assert watch.hanging() == {}
    clock.now += 11
    assert watch.hanging() == {run_id: 11.0}


def test_every_sign_sets_the_clock_back():
    watch, clock, run_id = watched()
    for step in (1, 2, 2):  # the last one from a second attempt that is no further yet
        clock.now += 9
        watch.sign(run_id, step)
        assert watch.hanging() == {}


def test_trials_that_have_ended_are_not_watched():
    watch, clock, run_id = watched()
    watch.ended(run_id)
    clock.now += 1000
    assert watch.hanging() == {}
    watch.sign(run_id, 5)  # a late report of a worker that is gone
    assert watch.hanging() == {}


def test_ground_is_gained_only_beyond_the_furthest_attempt():
    watch, _, run_id = watched()
    assert watch.sign(run_id, 10)
    watch.ended(run_id)
    watch.started(make_spec())
    assert not watch.sign(run_id, 4)
    assert not watch.sign(run_id, 10)
    assert watch.sign(run_id, 11)


def test_a_gap_in_the_watchers_own_clock_is_not_the_trials_silence():
    watch, clock, run_id = watched()
    clock.now += 5
    assert watch.hanging() == {}
    clock.now += 50  # a suspended laptop
    assert watch.hanging() == {}
    clock.now += 4
    assert watch.hanging() == {}
    clock.now += 2
    assert watch.hanging() == {run_id: 11.0}
