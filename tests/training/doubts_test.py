"""Warnings: each where it is due, and none for a recipe as it is."""

import pathlib

import pytest

from se_flax.training.config import load_config
from se_flax.training.doubts import doubts
from se_flax.training.recipe import make_plan

QUICKSTART = pathlib.Path(__file__).parents[2] / 'configs' / 'quickstart.py'
CAFFE = {'mean': (123.0, 117.0, 104.0), 'std': (1.0, 1.0, 1.0)}
STEP = {'schedule': 'step', 'drop_epochs': (30, 60)}


@pytest.mark.parametrize(
    ('fields', 'told'),
    [
        ({}, ()),
        (CAFFE, ()),
        ({'mean': (0.0,) * 3, 'std': (255.0,) * 3}, ()),
        ({'mean': (0.5,) * 3, 'std': (0.2,) * 3}, ('--config.mean=127.5,127.5,127.5',)),
        (CAFFE | {'std': (0.2,) * 3}, ('--config.std=51,51,51',)),
        ({'mean': (0.5,) * 3}, ('pixels are 0 to 255',)),
        (STEP | {'num_epochs': 90.0}, ()),
        (STEP | {'num_epochs': 40.0}, ('ends after 40 epochs, so the rate does not fall at 60',)),
        ({'drop_epochs': (30,)}, ()),  # of another schedule
        ({'eval_resize': 32}, ()),
        ({'eval_resize': 256}, ('only the centre, 28 pixels',)),
        ({'data': 'synthetic', 'batch_size': 4128}, ('all 4,096 training images',)),
        ({'ema': 0.9999}, ('some 10,000 steps, and the run has 3,125',)),
        ({'ema': 0.999}, ()),
    ],
)
def test_what_hardly_anybody_means_is_doubted(fields, told):
    config = load_config(str(QUICKSTART))
    config.update({'cache': False, **fields})
    lines = doubts(make_plan(config, num_devices=1))
    assert len(lines) == len(told)
    for line, text in zip(lines, told, strict=True):
        assert text in line
