"""How far an evaluation is: a bar on a terminal, otherwise a line every 30 seconds."""

import contextlib
import logging
import sys
import time

from rich import progress
from rich.console import Console

EVERY = 30.0  # seconds between two lines


class Progress(contextlib.AbstractContextManager):
    """Shows how many images are done, on standard error by default; the bar disappears on exit."""

    def __init__(self, console: Console | None = None):
        # rich takes FORCE_COLOR for a terminal; a log file must stay plain all the same.
        self._console = console or Console(stderr=True, force_terminal=sys.stderr.isatty())
        columns = '{task.description}', progress.BarColumn(), progress.TimeRemainingColumn(True)
        self._bar = progress.Progress(*columns, console=self._console, transient=True)
        self._start: tuple[int, float] | None = None  # images and time at the first batch
        self._due = 0.0  # time of the next line
        self._exit = contextlib.ExitStack()

    def __enter__(self):
        if self._console.is_interactive:
            # A handler keeps the stream it was made with, which would tear the bar.
            handlers = [
                h for h in logging.getLogger().handlers if getattr(h, 'stream', None) is sys.stderr
            ]
            self._exit.enter_context(self._bar)
            self._bar.add_task('loading, compiling', total=None)
            for handler in handlers:
                self._exit.callback(handler.setStream, handler.stream)
                handler.setStream(sys.stderr)
        return self

    def __exit__(self, *exc_info):
        return self._exit.__exit__(*exc_info)

    def show(self, done: int, total: int) -> None:
        """Reports that `done` of `total` images are done."""
        now = time.monotonic()
        if self._start is None:  # the time before this was compilation
            self._start, self._due = (done, now), now + EVERY
        text = f'{done:,} of {total:,} images'
        if seconds := now - self._start[1]:
            speed = (done - self._start[0]) / seconds
            text += f', {speed:,.{0 if speed >= 100 else 1}f} images/s'
        for task in self._bar.task_ids:
            self._bar.update(task, description=text, completed=done, total=total)
        if now >= self._due and not self._console.is_interactive:
            self._due = now + EVERY
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
