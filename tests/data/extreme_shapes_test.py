"""Extreme aspect ratios: the memory of a transform is bounded by the image and its result."""

import subprocess
import sys

import numpy as np
import pytest

from se_flax.data.transforms import INTERPOLATIONS, fit

SHAPES = ((1, 16_000), (16_000, 1), (1, 60_000), (60_000, 1), (3, 1_000_000))
PEAK = """
import resource, sys
import numpy as np
from se_flax.data.transforms import EvalTransform, Squash, TrainTransform

sides = list(map(int, sys.argv[1:]))
out = np.zeros((224, 224, 3), np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for height, width in zip(sides[::2], sides[1::2]):
    image = np.full((height, width, 3), 7, np.uint8)
    for interpolation in ('bilinear', 'bicubic_antialias'):
        for view in (
            EvalTransform(224, 256, interpolation=interpolation),
            EvalTransform(224, 0, interpolation=interpolation),
            TrainTransform(224, interpolation=interpolation),
            TrainTransform(224, 'pad', pad=4, interpolation=interpolation),
            TrainTransform(224, 'none', interpolation=interpolation),
            Squash(224, interpolation=interpolation),
        ):
            view(image, np.random.default_rng(0), out)
            assert (out == 7).mean() > 0.9, view  # 'pad' brings in black
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_bounded():
    sides = (str(side) for shape in SHAPES for side in shape)
    done = subprocess.run([sys.executable, '-c', PEAK, *sides], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    peaks = dict(zip(SHAPES, map(int, done.stdout.split()), strict=True))  # of all shapes so far
    assert max(peaks.values()) < 60_000, peaks  # KiB; it was 3 GiB


@pytest.mark.parametrize('interpolation', INTERPOLATIONS)
def test_the_center_of_a_line_is_that_of_the_whole_line(interpolation):
    """Up to half a pixel of the line, the most that the first crop may move it."""
    line = np.linspace(0, 255, 400).round().astype(np.uint8)[None, :, None].repeat(3, 2)
    row = fit(line, 16, 16, interpolation)[0, :, 0].astype(int)
    assert np.abs(row - line[0, 200, 0]).max() <= 2  # neighbours differ by less than 1
    assert (fit(line.swapaxes(0, 1), 16, 16, interpolation)[:, 0, 0] == row).all()
