"""Stopping on request: SIGTERM or SIGUSR1, as schedulers send them, and Ctrl-C."""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 143  # 128 + SIGTERM; Kubernetes JobSets made by xpk restart 42 and 127 to 255


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[int], bool]]:
    """Yields `step -> whether SIGTERM, SIGUSR1 or Ctrl-C asked to stop`.

    A second Ctrl-C interrupts. A signal to one process stops all, at the same step. Only for the
    main thread.
    """
    received = []

    def note(number, frame):
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def pass_on(number, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGTERM)

    if jax.process_count() > 1:
        # jax keeps SIGTERM, and makes the processes agree on a step.
        handlers = {signal.SIGUSR1: pass_on, signal.SIGINT: pass_on}
        asked = multihost_utils.reached_preemption_sync_point
    else:
        handlers = dict.fromkeys((signal.SIGTERM, signal.SIGUSR1, signal.SIGINT), note)
        asked = lambda step: bool(received)  # noqa: E731
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
