"""What a run shows while it trains: one live line on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from se_flax.progress import Display, clock, console_of
from se_flax.training.recipe import Plan

EXPENDABLE = ('data wait', 'epoch', 'speed')  # omitted in this order on a narrow terminal


class Progress(Display):
    """Shows the rows of a run as they come, by default on stdout.

    On a terminal the newest train row is one live line whose ETA counts down, below evaluations and
    all that is printed. Elsewhere each row is a line. The ETA does not include evaluations.
    """

    def __init__(self, plan: Plan, console: Console | None = None):
        self._plan = plan
        self._parts: dict[str, str] | None = None
        self._due = time.monotonic()  # when the clock of the live line is at zero
        console = console or console_of(sys.stdout)
        redirect = sys.stderr.isatty()  # `2>file` keeps its file
        live = Live(get_renderable=self._render, console=console, redirect_stderr=redirect)
        super().__init__(live)

    def show(self, row: Mapping[str, Any]) -> None:
        """Shows a row as `MetricsWriter.write` takes it."""
        num_steps, per_epoch = self._plan.num_steps, self._plan.steps_per_epoch
        step = f'step {row["step"]}/{num_steps}'
        if row['split'] == 'eval':
            self.print(
                f'{step}  evaluation: loss {row["loss"]:.4f}  top-1 {100 * row["top1"]:.2f} %  '
                f'top-5 {100 * row["top5"]:.2f} %  {row["examples"]:,} images in '
                f'{row["seconds"]:.1f} s'
            )
            return
        speed = row['images_per_second']
        epoch, num_epochs = (n / per_epoch for n in (row['step'], num_steps))
        self._parts = {
            'step': step,
            'epoch': f'epoch {epoch:.1f}/{num_epochs:.4g}',
            'loss': f'loss {row["loss"]:.4f}',
            'top-1': f'top-1 {100 * row["top1"]:.1f} %',
            'speed': f'{speed:,.{0 if speed >= 100 else 1}f} images/s',
            'data wait': f'data wait {100 * row["data_wait"]:.0f} %',
        }
        seconds = (num_steps - row['step']) * self._plan.config.batch_size / speed
        self._due = time.monotonic() + seconds
        if self._console.is_interactive:
            self._display.refresh()
        else:
            self.print('  '.join([*self._parts.values(), f'ETA {clock(seconds)}']))

    def _render(self):
        seconds = self._due - time.monotonic()
        if self._parts is None:
            line = f'waiting for the first logged step  {clock(-seconds)}'
        else:
            parts = self._parts | {'ETA': f'ETA {clock(max(0, seconds))}'}
            for name in EXPENDABLE:
                if len('  '.join(parts.values())) > self._console.width:
                    del parts[name]
            line = '  '.join(parts.values())
        return Text(line, no_wrap=True, overflow='ellipsis')
