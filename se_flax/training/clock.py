"""Where the time of a run goes: how fast it is, what it waits for, and a warning if it hangs."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from typing import Literal

log = logging.getLogger(__name__)


class Clock(contextlib.AbstractContextManager):
    """Measures time without pauses; warns if `doing` is not called for `hang_seconds`, unless 0."""

    def __init__(self, hang_seconds: float = 0):
        self._hang_seconds = hang_seconds
        self._closed = threading.Event()
        self.doing('starting')
        self._restart()

    def _restart(self):
        self._begin = time.perf_counter()
        self._spent = {'data': 0.0, 'device': 0.0, 'pause': 0.0}

    def __enter__(self):
        if self._hang_seconds:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exc_info):
        self._closed.set()

    def doing(self, what: str) -> None:
        """Sets what the run does now, in words for the warning."""
        self._now = what, time.monotonic()

    @contextlib.contextmanager
    def spending(self, kind: Literal['data', 'device', 'pause'], what: str) -> Iterator[None]:
        """Counts the time inside as a wait for data or the device, or not at all."""
        self.doing(what)
        begin = time.perf_counter()
        yield
        self._spent[kind] += time.perf_counter() - begin

    def read(self, steps: int, batch_size: int) -> dict[str, float]:
        """Returns the speed since the last reading, `steps` ago.

        `data_wait` is the share of time spent waiting for data, `host_ms` the milliseconds per step
        spent waiting neither for data nor for the device.
        """
        data, device, pause = self._spent.values()
        elapsed = time.perf_counter() - self._begin - pause
        self._restart()
        return {
            'images_per_second': steps * batch_size / elapsed,
            'data_wait': data / elapsed,
            'host_ms': 1e3 * (elapsed - data - device) / steps,
        }

    def _watch(self):
        warned = None
        while not self._closed.wait(self._hang_seconds / 10):
            what, since = now = self._now
            if now is not warned and time.monotonic() - since > self._hang_seconds:
                warned = now
                log.warning('still at %s after %g s: is it stuck?', what, self._hang_seconds)
