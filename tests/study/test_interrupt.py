"""Ctrl-C while trials run."""

import signal

import pytest

from eqscale.study.backend import _interruptible


@pytest.fixture(autouse=True)
def handlers():
    """What handles the signals before and after."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background of a script ignores it
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_ctrl_c_is_acknowledged_and_passed_on_and_a_second_one_interrupts():
    events = []
    with _interruptible(lambda: events.append("said")):
        signal.signal(signal.SIGUSR1, lambda number, frame: events.append("stopping"))  # as Tune does
        signal.raise_signal(signal.SIGINT)
        assert events == ["said", "stopping"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert events == ["said", "stopping"]


def test_ctrl_c_before_tune_is_ready_interrupts():
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # to raise it would end the process
    said = []
    with pytest.raises(KeyboardInterrupt), _interruptible(lambda: said.append(1)):
        signal.raise_signal(signal.SIGINT)
    assert said == [1]


def test_what_handled_ctrl_c_before_does_so_again():
    before = signal.getsignal(signal.SIGINT)
    with _interruptible(lambda: None):
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
