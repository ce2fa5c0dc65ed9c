"""How far an evaluation is: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import logging
import sys
import time

from rich import progress
from rich.console import Console

EVERY = 30.0  # seconds between two lines


class Progress(contextlib.AbstractContextManager):
    """Shows how many images are done, on the standard error; the bar goes when it ends.

    Args:
        console: where to instead.
    """

    def __init__(self, console: Console | None = None):
        # rich takes FORCE_COLOR for a terminal; a log file must stay plain all the same.
        self._console = console or Console(stderr=True, force_terminal=sys.stderr.isatty())
        self._bar: progress.Progress | None = None
        self._start: tuple[int, float] | None = None  # of the first batch: images and time
        self._due = 0.0  # time of the next line
        self._exit = contextlib.ExitStack()

    def __enter__(self):
        if self._console.is_interactive:
            columns = (
                progress.TextColumn('{task.description}'),
                progress.BarColumn(),
                progress.TimeRemainingColumn(compact=True),
            )
            # A handler keeps the stream it was made with, which would tear the bar.
            handlers = [
                h for h in logging.getLogger().handlers if getattr(h, 'stream', None) is sys.stderr
            ]
            bar = progress.Progress(*columns, console=self._console, transient=True)
            self._bar = self._exit.enter_context(bar)
            self._task = bar.add_task('loading, compiling', total=None)
            for handler in handlers:
                self._exit.callback(handler.setStream, handler.stream)
                handler.setStream(sys.stderr)
        return self

    def __exit__(self, *exc_info):
        return self._exit.__exit__(*exc_info)

    def show(self, done: int, total: int) -> None:
        """Tells that `done` of `total` images are done."""
        now = time.monotonic()
        if self._start is None:  # what came before was compiling
            self._start, self._due = (done, now), now + EVERY
        text = f'{done:,} of {total:,} images'
        if seconds := now - self._start[1]:
            speed = (done - self._start[0]) / seconds
            text += f', {speed:,.{0 if speed >= 100 else 1}f} images/s'
        if self._bar:
            self._bar.update(self._task, description=text, completed=done, total=total)
        elif now >= self._due:
            self._due = now + EVERY
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
