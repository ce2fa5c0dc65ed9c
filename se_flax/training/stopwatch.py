"""How fast a run is, and how much of it waits for data."""

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Measures since its last reading, without the pauses."""

    def __init__(self):
        self._restart()

    def _restart(self):
        self._began, self._waited = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what is done within it."""
        begin = time.perf_counter()
        yield
        self._began += time.perf_counter() - begin

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts what is done within it as waiting."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    def read(self, images: int) -> tuple[float, float]:
        """Returns images a second and the share of the time spent waiting, 0 to 1."""
        elapsed = time.perf_counter() - self._began
        reading = images / elapsed, self._waited / elapsed
        self._restart()
        return reading
