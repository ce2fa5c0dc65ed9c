"""How fast a run is, and what it waits for."""

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Measures since its last reading, without the pauses."""

    def __init__(self):
        self._restart()

    def _restart(self):
        self._began, self._waited = time.perf_counter(), {'data': 0.0, 'device': 0.0}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what is done within it."""
        begin = time.perf_counter()
        yield
        self._began += time.perf_counter() - begin

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Counts what is done within it as waiting for 'data' or a 'device'."""
        begin = time.perf_counter()
        yield
        self._waited[what] += time.perf_counter() - begin

    def read(self, steps: int, batch_size: int) -> dict[str, float]:
        """Returns what a row of metrics says of the time of so many steps.

        `images_per_second`; `data_wait`, the share of the time spent waiting for data, 0 to 1; and
        `host_ms`, milliseconds a step that went neither there nor into waiting for a device.
        """
        elapsed = time.perf_counter() - self._began
        data, device = self._waited.values()
        self._restart()
        return {
            'images_per_second': steps * batch_size / elapsed,
            'data_wait': data / elapsed,
            'host_ms': 1e3 * (elapsed - data - device) / steps,
        }
