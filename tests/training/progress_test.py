"""Plain lines against reviewed text; the terminal through an emulator of the codes rich sends."""

import io
import logging
import re
import subprocess
import sys
import time
from types import SimpleNamespace as Plan

import absl.flags
import absl.logging
import pytest
from rich.console import Console

from se_flax.training.progress import Progress

pytestmark = pytest.mark.quick

RUN = Plan(num_steps=2184, steps_per_epoch=156, config=Plan(batch_size=64))
TRAIN = {
    'step': 400,
    'split': 'train',
    'loss': 0.43124,
    'top1': 0.84375,
    'top5': 1.0,
    'learning_rate': 0.1,
    'images_per_second': 912.3,
    'data_wait': 0.0123,
    'host_ms': 1.2,
}
EVAL = {
    'step': 468,
    'split': 'eval',
    'loss': 0.4,
    'top1': 0.8565,
    'top5': 0.991,
    'examples': 2000,
    'seconds': 1.92,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def screen(self):
        """The lines a terminal would show, far higher and wider than what is written."""
        lines, y, x = [''], 0, 0
        for code, char in re.findall(r'(\x1b\[[?\d;]*[A-Za-z])|([\s\S])', self.getvalue()):
            if char == '\n':
                y, x = y + 1, 0
                lines += [''] * (y + 1 - len(lines))
            elif char == '\r':
                x = 0
            elif char:
                lines[y] = lines[y][:x].ljust(x) + char + lines[y][x + 1 :]
                x += 1
            elif code == '\x1b[2K':
                lines[y] = ''
            elif up := re.fullmatch(r'\x1b\[(\d+)A', code):
                y -= int(up[1])
            else:  # colours, and the cursor shown or hidden
                assert code[-1] in 'mhl'
        return [line.rstrip() for line in lines if line.strip()]


def open_terminal(monkeypatch, columns=110):
    """Makes standard output and error one terminal; not a fixture, as pytest sets both anew."""
    terminal = Terminal()
    monkeypatch.setattr(sys, 'stdout', terminal)
    monkeypatch.setattr(sys, 'stderr', terminal)
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', str(columns))
    return terminal


def wait_for(terminal, screen):
    """Fails unless the terminal shows it within some seconds; rich draws four times a second."""
    for _ in range(200):
        if terminal.screen() == screen:
            return
        time.sleep(0.05)
    assert terminal.screen() == screen


def test_log_file_golden(golden):
    file = io.StringIO()
    with Progress(RUN, console=Console(file=file, width=20)) as progress:
        progress.print('a message [with] brackets, :smile: and 100 %')
        progress.show(TRAIN)
        progress.show(EVAL)
        progress.show(TRAIN | {'step': 2184, 'images_per_second': 12345.6})
    plan = Plan(num_steps=125_100, steps_per_epoch=1251.1, config=Plan(batch_size=1024))
    with Progress(plan, console=Console(file=file)) as progress:
        progress.show(TRAIN | {'images_per_second': 2.34, 'data_wait': 1.0})
        progress.show(EVAL | {'examples': 50_000})
    golden('training/progress.txt', file.getvalue())


def test_a_pipe_gets_no_control_codes_even_where_colour_is_forced(monkeypatch):
    code = (
        'from types import SimpleNamespace as namespace\n'
        'from se_flax.training.progress import Progress\n'
        f'with Progress({RUN}) as progress:\n'
        f'    progress.show({TRAIN})\n'
        f'    progress.show({EVAL})\n'
    )
    monkeypatch.setenv('FORCE_COLOR', '1')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert out.stderr == ''
    assert len(out.stdout.splitlines()) == 2
    assert '\x1b' not in out.stdout
    assert '\r' not in out.stdout


def test_a_terminal_shows_one_live_line_under_the_evaluations(monkeypatch, clock):
    terminal = open_terminal(monkeypatch)
    with Progress(RUN) as progress:
        clock[0] += 12
        progress.print('hello')
        wait_for(terminal, ['hello', 'waiting for the first logged step  0:12'])
        for step in (398, 399, 400):
            progress.show(TRAIN | {'step': step})
        progress.show(EVAL)
        screen = terminal.screen()
    evaluation = (
        'step 468/2184  evaluation: loss 0.4000  top-1 85.65 %  top-5 99.10 %  '
        '2,000 images in 1.9 s'
    )
    live = (
        'step 400/2184  epoch 2.6/14  loss 0.4312  top-1 84.4 %  912 images/s  data wait 1 %  '
        'ETA 2:05'
    )
    assert screen == ['hello', evaluation, live]
    assert terminal.screen() == screen  # the last line stays


def test_eta_counts_down_to_zero_between_rows(monkeypatch, clock):
    terminal = open_terminal(monkeypatch)
    with Progress(RUN) as progress:
        progress.show(TRAIN)
        (line,) = terminal.screen()
        assert line.endswith('ETA 2:05')
        clock[0] += 5
        wait_for(terminal, [line.replace('2:05', '2:00')])
        clock[0] += 500
        wait_for(terminal, [line.replace('2:05', '0:00')])


@pytest.mark.parametrize('width', [110, 92, 80, 65, 50, 20])
def test_a_narrow_terminal_keeps_one_line_and_the_parts_that_matter(monkeypatch, clock, width):
    terminal = open_terminal(monkeypatch, width)
    with Progress(RUN) as progress:
        progress.show(TRAIN)
        progress.show(TRAIN)
    (line,) = terminal.screen()
    assert len(line) <= width
    parts = ['step 400/2184', 'loss 0.4312', 'top-1 84.4 %', 'ETA 2:05']
    if width > 50:
        assert all(part in line for part in parts)
    assert ('data wait' in line) == (width > 92)
    assert ('epoch' in line) == (width >= 80)


@pytest.fixture
def parsed_flags():
    """As in a program run by absl, whose handler else takes another way out."""
    was = absl.flags.FLAGS.is_parsed()
    absl.flags.FLAGS.mark_as_parsed()
    yield
    if not was:
        absl.flags.FLAGS.unparse_flags()


@pytest.mark.usefixtures('parsed_flags')
def test_prints_warnings_and_logs_do_not_tear_the_live_line(monkeypatch):
    terminal = open_terminal(monkeypatch)
    root = logging.getLogger()
    plain = logging.StreamHandler(sys.stderr)
    absl_handler = absl.logging.ABSLHandler(absl.logging.PythonFormatter())
    absl_handler.python_handler.setStream(sys.stdout)
    monkeypatch.setattr(root, 'handlers', [plain, absl_handler])
    with Progress(RUN) as progress:
        progress.show(TRAIN)
        logging.warning('record %d skipped', 7)
        print('printed')
        print('to stderr', file=sys.stderr)
        progress.show(TRAIN | {'step': 401})
        by_plain, by_absl, *printed, live = terminal.screen()
        assert by_plain == 'record 7 skipped'
        assert by_absl.startswith('W')
        assert by_absl.endswith('] record 7 skipped')
        assert printed == ['printed', 'to stderr']
        assert live.startswith('step 401/2184  epoch 2.6')
    assert plain.stream is terminal
    assert absl_handler.python_handler.stream is terminal


def test_stderr_that_goes_to_a_file_stays_there(monkeypatch):
    terminal = open_terminal(monkeypatch)
    errors = io.StringIO()
    monkeypatch.setattr(sys, 'stderr', errors)
    monkeypatch.setattr(logging.getLogger(), 'handlers', [logging.StreamHandler(errors)])
    with Progress(RUN) as progress:
        progress.show(TRAIN)
        logging.warning('record skipped')
    assert errors.getvalue() == 'record skipped\n'
    assert len(terminal.screen()) == 1
