"""Where the time of a run goes: its speed, its goodput over all restarts, a warning if it hangs."""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from se_flax.progress import clock as minutes
from se_flax.storage import AnyPath, GrowingFile, json_line

log = logging.getLogger(__name__)

# 'device' is a wait for the steps on it, 'other' all that has no name, such as restoring.
KINDS = ('steps', 'device', 'compiling', 'data', 'evaluation', 'saving', 'lost', 'other')


class Clock:
    """Counts each second of this process as one of KINDS, at first as 'other'."""

    def __init__(self) -> None:
        self._kind, self._begin = 'other', time.perf_counter()
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._laps: dict[str, dict[str, float]] = {}
        self._earlier = dict.fromkeys(KINDS, 0.0)  # of the processes before this one
        self._file: GrowingFile | None = None
        self.doing('starting')

    def doing(self, what: str) -> None:
        """Sets what the run does now, in words for the warning."""
        self._now = what, time.monotonic()

    @contextlib.contextmanager
    def spending(self, kind: str, what: str) -> Iterator[None]:
        """Counts the time inside as one kind, except where an inner call counts it as another."""
        self.doing(what)
        outer = self._switch(kind)
        try:
            yield
        finally:
            self._switch(outer)

    def read(self, steps: int, batch_size: int) -> dict[str, float]:
        """Returns the speed since the last reading, `steps` ago, without pauses.

        `data_wait` is the share of time spent waiting for data, `host_ms` the milliseconds per step
        spent waiting neither for data nor for the device.
        """
        spent = self._lap('read')
        elapsed = spent['steps'] + spent['device'] + spent['data']
        return {
            'images_per_second': steps * batch_size / elapsed,
            'data_wait': spent['data'] / elapsed,
            'host_ms': 1e3 * spent['steps'] / steps,
        }

    @contextlib.contextmanager
    def watching(self, hang_seconds: float) -> Iterator[None]:
        """Warns if `doing` is not called for `hang_seconds`, unless 0."""
        ended = threading.Event()
        if hang_seconds:
            threading.Thread(target=self._watch, args=(hang_seconds, ended), daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    @contextlib.contextmanager
    def keeping(self, path: AnyPath, resume_step: int) -> Iterator[None]:
        """Appends to the file what `note` counts; of its rows, those of later steps become lost."""
        rows = _rows(path)
        lost = sum(sum(row['seconds'].values()) for row in rows if row['step'] > resume_step)
        rows = [row for row in rows if row['step'] <= resume_step]
        if lost:
            rows.append({'step': 0, 'seconds': {'lost': round(lost, 3)}})
        for row in rows:
            for kind, seconds in row['seconds'].items():
                self._earlier[kind] += seconds
        with GrowingFile(path, b''.join(map(json_line, rows))) as self._file:
            self.note(resume_step)
            yield

    def note(self, step: int, durably: bool = False) -> None:
        """Writes the seconds since the last note; lost if the run resumes before `step`."""
        if self._file:
            seconds = {k: round(s, 3) for k, s in self._lap('note').items() if s}
            self._file.write(json_line({'step': step, 'seconds': seconds}))
            if durably:
                self._file.sync()

    def goodput(self) -> dict[str, float]:
        """Returns the seconds of all processes so far, and the share of each kind."""
        self._switch(self._kind)
        total = {kind: self._earlier[kind] + self._seconds[kind] for kind in KINDS}
        total['steps'] += total.pop('device')
        seconds = sum(total.values())
        shares = {kind: round(spent / seconds, 4) for kind, spent in total.items()}
        return {'seconds': round(seconds, 1)} | shares

    def _switch(self, kind: str) -> str:
        now = time.perf_counter()
        self._seconds[self._kind] += now - self._begin
        before, self._kind, self._begin = self._kind, kind, now
        return before

    def _lap(self, name: str) -> dict[str, float]:
        self._switch(self._kind)
        before = self._laps.get(name, {})
        self._laps[name] = dict(self._seconds)
        return {kind: spent - before.get(kind, 0) for kind, spent in self._seconds.items()}

    def _watch(self, hang_seconds: float, ended: threading.Event) -> None:
        warned = None
        while not ended.wait(hang_seconds / 10):
            what, since = now = self._now
            if now is not warned and time.monotonic() - since > hang_seconds:
                warned = now
                log.warning('still at %s after %g s: is it stuck?', what, hang_seconds)


def describe(goodput: Mapping[str, float]) -> str:
    """Returns a goodput as a line.

    >>> describe({'seconds': 90.0, 'steps': 0.9, 'lost': 0.1})
    'time 1:30: steps 90.0 %, lost 10.0 %'
    """
    shares = (f'{kind} {100 * goodput[kind]:.1f} %' for kind in KINDS if kind in goodput)
    return f'time {minutes(goodput["seconds"])}: {", ".join(shares)}'


def _rows(path: AnyPath) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):  # torn by a power cut
            rows.append(json.loads(line))
    return rows
