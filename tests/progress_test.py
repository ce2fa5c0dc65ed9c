"""What long work shows while it runs."""

import io
import logging
import sys

from rich.console import Console

from se_flax.progress import Progress


def test_lines_now_and_then_where_there_is_no_terminal(clock):
    file = io.StringIO()
    with Progress(console=Console(file=file, width=20)) as progress:
        clock[0] += 100  # it compiles
        for batch in range(1, 8):
            progress.show(1000 * batch, 50_000)
            clock[0] += 12
    assert file.getvalue() == (
        '4,000 of 50,000 images, 83.3 images/s, ETA 9:12\n'
        '7,000 of 50,000 images, 83.3 images/s, ETA 8:36\n'
    )


def test_a_terminal_has_a_bar_that_goes_and_warnings_above_it(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(sys, 'stderr', file)
    handler = logging.StreamHandler()
    monkeypatch.setattr(logging.getLogger(), 'handlers', [handler])
    console = Console(file=file, width=80, force_terminal=True, _environ={})
    with Progress(console=console) as progress:
        progress.show(100, 50_000)
        logging.getLogger().warning('a record is left out')
        progress.show(200, 50_000)
        progress._display.refresh()
    text = file.getvalue()
    assert '200 of 50,000 images' in text
    assert '\r\x1b[2Ka record is left out\n' in text
    assert text.endswith('\r\x1b[1A\x1b[2K')  # the bar is wiped
    assert handler.stream is file
