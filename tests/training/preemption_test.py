"""Signals that a process sends to itself."""

import os
import signal

import pytest

from se_flax.training.preemption import stop_signals

SIGNALS = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT


@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_only_sets_the_flag(number):
    before = [signal.getsignal(n) for n in SIGNALS]
    with stop_signals() as stop_requested:
        assert not stop_requested(3)
        os.kill(os.getpid(), number)
        assert stop_requested(3)
        os.kill(os.getpid(), signal.SIGTERM)  # as often as a scheduler likes
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(n) for n in SIGNALS] == before
