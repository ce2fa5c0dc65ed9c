"""Being asked to stop: SIGTERM, as schedulers send it, and Ctrl-C."""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[int], bool]]:
    """Within it SIGTERM and Ctrl-C only ask; yields the function that tells at a step if they did.

    In a run of many processes a signal to one asks all, and all are told at the same step. A
    Ctrl-C after that interrupts at once. For the main thread: no other may handle signals.
    """
    received = []

    def note(number, frame):
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def pass_on(number, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGTERM)

    if jax.process_count() > 1:
        # SIGTERM stays with jax, which has the processes agree on a step.
        handlers, asked = {signal.SIGINT: pass_on}, multihost_utils.reached_preemption_sync_point
    else:
        handlers = {signal.SIGTERM: note, signal.SIGINT: note}
        asked = lambda step: bool(received)  # noqa: E731
    previous = {number: signal.signal(number, handlers[number]) for number in handlers}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
