"""The progress of long work: a bar on a terminal, otherwise a line every 30 seconds."""

import contextlib
import logging
import sys
import time
from typing import Any, TextIO

from rich import progress
from rich.console import Console

EVERY = 30.0  # seconds between two lines


def console_of(stream: TextIO) -> Console:
    """Returns a console that writes plain text to anything but a terminal."""
    # With FORCE_COLOR rich takes a log file for a terminal.
    return Console(file=stream, force_terminal=stream.isatty())


class Display(contextlib.AbstractContextManager):
    """Shows a `Live` or a `Progress` of rich on a terminal, below all prints and logs."""

    def __init__(self, display: Any):
        self._display, self._console = display, display.console
        self._exit = contextlib.ExitStack()

    def __enter__(self):
        if self._console.is_interactive:
            names = {sys.stdout: 'stdout', sys.stderr: 'stderr'}
            # absl wraps the handler that has the stream.
            handlers = [getattr(h, 'python_handler', h) for h in logging.getLogger().handlers]
            kept = [(h, h.stream) for h in handlers if getattr(h, 'stream', None) in names]
            self._exit.enter_context(self._display)
            # A handler keeps the stream it was made with, which would tear the display.
            for handler, stream in kept:
                self._exit.callback(handler.setStream, stream)
                handler.setStream(getattr(sys, names[stream]))
        return self

    def __exit__(self, *exc_info):
        return self._exit.__exit__(*exc_info)

    def print(self, text: str) -> None:
        """Prints text unchanged, above the display if it is shown."""
        self._console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


class Progress(Display):
    """Shows how many of the `things` are done, on standard error; the bar disappears on exit."""

    def __init__(
        self,
        things: str = 'images',
        before: str = 'loading, compiling',  # shown until the first call of `show`
        console: Console | None = None,
    ):
        columns = '{task.description}', progress.BarColumn()
        console = console or console_of(sys.stderr)
        super().__init__(progress.Progress(*columns, console=console, transient=True))
        self._task = self._display.add_task(before, total=None)
        self._things = things
        self._start: tuple[int, float] | None = None  # what was done at the first call, its time
        self._due = 0.0  # time of the next line

    def show(self, done: int, total: int) -> None:
        """Shows that `done` of `total` are done."""
        now = time.monotonic()
        if self._start is None:  # the time before this was compilation
            self._start, self._due = (done, now), now + EVERY
        text = f'{done:,} of {total:,} {self._things}'
        first, began = self._start
        if done > first and now > began:
            speed = (done - first) / (now - began)
            text += f', {speed:,.{0 if speed >= 100 else 1}f} {self._things}/s'
            text += f', ETA {clock((total - done) / speed)}'
        if self._console.is_interactive:
            self._display.update(self._task, description=text, completed=done, total=total)
        elif now >= self._due:
            self._due = now + EVERY
            self.print(text)


def clock(seconds: float) -> str:
    """Returns `minutes:seconds`, with the hours if there are any."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
