"""Says so where a run hangs."""

import contextlib
import logging
import threading
import time

log = logging.getLogger(__name__)


class Watchdog(contextlib.AbstractContextManager):
    """Warns, once for each time it happens, when nothing was done for a while.

    Args:
        seconds: without a call of `doing` after which a line is logged; 0 for never.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._what, self._since = 'starting', time.monotonic()
        self._ended = threading.Event()

    def __enter__(self):
        if self._seconds:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exc_info):
        self._ended.set()

    def doing(self, what: str) -> None:
        """Notes what the run is at now, in words."""
        self._what, self._since = what, time.monotonic()

    def _watch(self):
        warned = None
        while not self._ended.wait(self._seconds / 10):
            what, since = self._what, self._since
            if since != warned and time.monotonic() - since > self._seconds:
                warned = since
                log.warning('still at %s after %g s: is it stuck?', what, self._seconds)
