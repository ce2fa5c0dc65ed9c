"""benchmarks/gpu.py in its quick form, so that it works on the day there is a GPU."""

import pathlib
import re
import subprocess
import sys

import pytest

pytest.importorskip('timm')
SCRIPT = pathlib.Path(__file__).parents[2] / 'benchmarks' / 'gpu.py'


def test_the_quick_form_runs_and_says_what_it_would():
    done = subprocess.run([sys.executable, SCRIPT, '--quick'], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith('cpu; se_flax ')
    rows = [line.split(' | ') for line in lines if line.startswith('| mobilenet |')]
    assert [row[1] for row in rows] == ['training step', 'inference']
    for row in rows:
        # `median (least-most)`: each round's ratio lies between those of the extremes.
        (fast, slow), (least, most) = (re.findall(r'[\d.]+', cell)[1:] for cell in row[4:6])
        low, high = float(least) / float(slow), float(most) / float(fast)
        assert 0.99 * low - 0.01 < float(row[7]) < 1.01 * high + 0.01  # all are printed rounded


def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, SCRIPT], text=True, capture_output=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        'benchmarks/gpu.py needs a GPU that both jax and torch see; --quick needs none'
    )
