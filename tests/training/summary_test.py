"""The paragraph that a run prints first, and warnings: each where it is due, none for a recipe."""

import types

import numpy as np
import pytest

from se_flax.training.config import base_config, load_config
from se_flax.training.recipe import make_plan
from se_flax.training.summary import doubts, run_summary

pytestmark = pytest.mark.quick


class Images(types.SimpleNamespace):
    def __len__(self):
        return self.examples


def summary(
    kind='cpu',
    num_devices=1,
    parameters=281_234,
    optimizer=(1, 1),
    classes=10,
    evals=2000,
    **fields,
):
    config = base_config()
    config.update({'model': 'se_resnet_quick', 'data': 'fashion_mnist_mini', 'batch_size': 64})
    config.update(fields)
    plan = types.SimpleNamespace(
        config=config,
        num_steps=2184,
        steps_per_epoch=156.25,
        train_set=Images(examples=10_000, num_classes=classes),
        eval_set=Images(examples=evals),
    )
    whole, part = (types.SimpleNamespace(nbytes=n) for n in optimizer)
    whole.addressable_shards = [types.SimpleNamespace(data=part)]
    state = types.SimpleNamespace(params=np.empty(parameters, np.int8), opt_state=[whole])
    return run_summary(plan, state, num_devices * [types.SimpleNamespace(device_kind=kind)])


def test_summary_golden(golden):
    runs = [
        {},
        {'num_devices': 8, 'optimizer': (112_352_096, 14_044_040)},
        {'num_devices': 2},
        {'num_devices': 8},
        {'bn_group_size': 0, 'num_devices': 8, 'kind': 'TPU v5 lite', 'batch_size': 8192},
        {'parameters': 1, 'evals': 1, 'classes': 1, 'batch_size': 1, 'bn_group_size': 1},
    ]
    golden('training/summary.txt', '\n\n'.join(summary(**run) for run in runs) + '\n')


@pytest.mark.parametrize(
    ('batch_size', 'num_devices', 'group', 'spans'),
    [
        (64, 2, 32, False),
        (64, 4, 32, True),
        (96, 2, 32, True),
        (64, 2, 0, True),
        (64, 1, 0, False),
    ],
)
def test_a_group_that_spans_devices_is_announced(batch_size, num_devices, group, spans):
    """Against a count of the groups that have images on two devices."""
    share, size = batch_size // num_devices, group or batch_size
    crossing = any(
        start // share != (start + size - 1) // share for start in range(0, batch_size, size)
    )
    assert crossing == spans
    text = summary(num_devices=num_devices, batch_size=batch_size, bn_group_size=group)
    text = text.replace('\n', ' ')
    assert ('costs a collective per layer' in text) == spans
    assert ('within a device' in text) == (num_devices > 1 and not spans)


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
        ({'eval_resize': 256}, ('only the center, 28 pixels',)),
        ({'data': 'synthetic', 'batch_size': 4128}, ('only 4,096 to train on',)),
        ({'optimizer': 'adamw', 'learning_rate': 0.001}, ()),
        ({'optimizer': 'adamw', 'learning_rate': 0.1}, ('moves a weight by about that',)),
        ({'ema': 0.9999}, ('about 10,000 steps, and the run has 3,125',)),
        ({'ema': 0.999}, ()),
        ({'ema': 0.9999, 'ema_warmup': True}, ()),
    ],
)
def test_what_hardly_anybody_means_is_doubted(fields, told):
    config = load_config('quickstart')
    config.update({'cache': False, **fields})
    lines = doubts(make_plan(config, num_devices=1))
    assert len(lines) == len(told)
    for line, text in zip(lines, told, strict=True):
        assert text in line
