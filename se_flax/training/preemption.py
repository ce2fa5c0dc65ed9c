"""Being asked to stop: SIGTERM, as schedulers send it, and Ctrl-C."""

import contextlib
import signal
from collections.abc import Callable, Iterator

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Within it SIGTERM and Ctrl-C only set a flag; yields the function that tells it.

    A Ctrl-C after that interrupts at once. For the main thread: no other may handle signals.
    """
    received = []

    def note(number, frame):
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {n: signal.signal(n, note) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
