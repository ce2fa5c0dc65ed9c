"""Each recipe as text: its fields, its rate at every boundary, what decays and what does not."""

import collections
import functools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from se_flax.models import create_model
from se_flax.training.config import ADDED, MACHINE_FIELDS, check_config, parse_args
from se_flax.training.optimizer import decays, observe, plateau_scale
from se_flax.training.recipe import frozen_from, make_training, total_steps

pytestmark = pytest.mark.quick

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
# Other fields that were added later are left out while they have the value that changes nothing.
SHOWN = {'eval_split', 'exif_orientation', 'keep_head', 'max_pixels', 'train_examples'}
EXAMPLES = {'imagenet2012': (1_281_167, 1000), 'cifar10': (50_000, 10), 'cifar100': (50_000, 100)}
RECIPES = {
    'imagenet': ['imagenet.py:se_resnet50'],
    'imagenet_bn_inception': ['imagenet.py:se_bn_inception'],
    'imagenet_inception_resnet_v2': ['imagenet.py:se_inception_resnet_v2'],
    'imagenet_class_aware': ['imagenet.py:se_resnet50', '--config.sampling=class_aware'],
    'released': ['released.py:se_resnet50'],
    'ablation': ['ablation.py:se_resnet50'],
    'ablation_fixed': [
        *('ablation.py:se_resnet50', '--config.schedule=step', '--config.num_epochs=270'),
    ],
    'mobile': ['mobile.py:se_mobilenet'],
    'senet154': ['senet154.py'],
    'senet154_320': ['senet154.py:320'],
    'cifar_preact_resnet110': ['cifar.py:se_preact_resnet110'],
    'cifar_preact_resnet164': ['cifar.py:se_preact_resnet164'],
    'cifar_wrn16_8': ['cifar.py:se_wrn16_8'],
    'cifar_shake_shake26': ['cifar.py:se_shake_shake26_2x96d'],
    'cifar_shake_even29': ['cifar.py:se_shake_even29_2x4x64d'],
    'modern': ['modern.py:se_resnet50'],
    'rsb_a1': ['rsb.py:a1'],
    'rsb_a2': ['rsb.py:a2'],
    'rsb_a3': ['rsb.py:a3'],
    'resnet_rs': ['resnet_rs.py'],
    'efficientnet': ['efficientnet.py'],
    'mobilenet_v3': ['mobilenet_v3.py'],
    'regnet_y_800mf': ['regnet.py:regnet_y_800mf'],
    'regnet_y_32gf': ['regnet.py:regnet_y_32gf'],
}


@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe(name, golden):
    file, *fields = RECIPES[name]
    config, *_ = parse_args([f'--config={CONFIGS / file}', *fields])
    check_config(config, num_devices=8)
    examples, classes = EXAMPLES[config.data]
    steps_per_epoch = examples / config.batch_size
    num_steps = total_steps(config, steps_per_epoch)
    lines = [
        f'configs/{" ".join(RECIPES[name])}',
        '',
        *(f'{field}: {shown(config[field])}' for field in config if tells(field, config[field])),
        '',
        f'{num_steps:,} steps, {steps_per_epoch:.2f} an epoch',
        *rates(config, num_steps, steps_per_epoch),
    ]
    if first := frozen_from(config, num_steps, steps_per_epoch):
        lines += [f'BatchNorm is frozen from step {first:,} on']
    lines += ['', *members(config.model, json.dumps(config.model_fields.to_dict()), classes)]
    golden(f'recipes/{name}.txt', '\n'.join(lines) + '\n')


def test_every_recipe_is_here():
    files = {path.name for path in CONFIGS.glob('*.py')}
    assert files - {file.partition(':')[0] for file, *_ in RECIPES.values()} == {
        'fine_tune.py',  # it depends on the data
        'quickstart.py',  # recipe_test has its plan
    }


def tells(field, value):
    if field in ADDED and field not in SHOWN and value == ADDED[field]:
        return False
    return field not in MACHINE_FIELDS


def shown(value):
    if hasattr(value, 'to_json'):
        return value.to_json()
    return f'{value:.6g}' if isinstance(value, float) else repr(value)


def rates(config, num_steps, steps_per_epoch):
    """The rate on both sides of each boundary; without one, at the quarters of the run."""
    schedule, optimizer = make_training(config, num_steps, steps_per_epoch)
    warmup = int(config.warmup * num_steps)
    bounds = [warmup] if warmup else []
    if config.schedule == 'step':
        drops = [round(epoch * steps_per_epoch) for epoch in config.drop_epochs]
        bounds += drops if len(drops) < 10 else [*drops[:3], drops[-1]]
    if config.schedule == 'cosine':
        bounds += [num_steps * quarter // 4 for quarter in (1, 2, 3)]
    steps = sorted({0, num_steps - 1, *bounds, *(bound - 1 for bound in bounds)})
    yield from (f'step {step:>9,}: rate {float(schedule(step)):.6f}' for step in steps)
    if config.schedule == 'plateau':
        state, seen = optimizer.init({'kernel': jnp.zeros(1)}), 1.0
        for evaluation in range(1, 100):
            state = observe(
                state,
                1.0,
                patience=config.drop_patience,
                factor=config.drop_factor,
                max_drops=config.max_drops,
            )
            if (scale := float(plateau_scale(state))) != seen:
                seen = scale
                yield f'evaluation {evaluation}, if the first stays the best: rate times {scale:g}'


@functools.cache
def members(model, fields, classes):
    """Arrays and numbers of each kind of parameter, those that decay first."""
    model = create_model(model, num_classes=classes, **json.loads(fields))
    image = jnp.zeros((1, 96, 96, 3))  # parameters do not depend on its size
    params = jax.eval_shape(model.init, jax.random.key(0), image)['params']
    arrays, numbers = collections.Counter(), collections.Counter()
    decaying = jax.tree.leaves(decays(params))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), decay in zip(leaves, decaying, strict=True):
        module, *_ = re.split(r'\d|_', path[-2].key)  # conv, norm, head; reduce and expand of SE
        kind = 'decays' if decay else 'does not', f'{module}/{path[-1].key}'
        arrays[kind] += 1
        numbers[kind] += leaf.size
    return [
        f'{decay}: {name}, {arrays[decay, name]} arrays of {numbers[decay, name]:,} numbers in all'
        for decay, name in sorted(arrays)
    ]
