"""From fields to objects: nothing that a config says is lost on the way."""

import fractions

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from se_flax.data import EvalTransform, TrainTransform
from se_flax.errors import MissingError, UserError
from se_flax.nn import SqueezeExcite
from se_flax.parallel import data_mesh
from se_flax.training import recipe
from se_flax.training.config import INTERVALS, assign, base_config, load_config
from se_flax.training.mixing import Mixing

pytestmark = pytest.mark.quick


def quickstart(**fields):
    config = load_config('quickstart')
    config.update({'cache': False} | fields)
    return config


def test_the_quick_start_is_the_run_it_promises():
    plan = recipe.make_plan(quickstart(cache=True), num_devices=1)
    assert (len(plan.train_set), len(plan.eval_set), plan.train_set.num_classes) == (
        10000,
        2000,
        10,
    )
    assert plan.steps_per_epoch == 10000 / 64
    assert plan.num_steps == round(20 * 10000 / 64)
    assert plan.every == {'log': 50, 'eval': 156, 'checkpoint': 156}
    assert (plan.model.width, plan.model.stem_strides, plan.model.bn_group_size) == (32, 2, 32)
    pixels = {'mean': (72.4,) * 3, 'std': (89.6,) * 3}
    assert plan.train_view == TrainTransform(28, crop='pad', pad=1, **pixels)
    assert plan.eval_view == EvalTransform(28)
    peak = int(0.2 * plan.num_steps)
    # Schedules are float32, with rounding of 1e-7 of the peak.
    np.testing.assert_allclose(plan.schedule(peak), 0.1, rtol=1e-5)
    np.testing.assert_allclose(plan.schedule(plan.num_steps), 0, atol=1e-6)


def test_some_examples_are_drawn_by_seed():
    whole = recipe.open_split(quickstart(), 'train')
    few, more, others = (
        recipe.open_split(quickstart(train_examples=count, seed=seed), 'train')
        for count, seed in ((50, 1), (80, 1), (50, 2))
    )
    keys, rest = ([of.key(i) for i in range(len(of))] for of in (few, more))
    assert len(set(keys)) == 50
    assert keys == rest[:50]
    assert keys != [others.key(i) for i in range(50)]
    positions = [int(key.rpartition('/')[2]) for key in keys]
    assert 2_000 < np.mean(positions) < 8_000  # not the first ones
    np.testing.assert_array_equal(few.labels(), whole.labels()[positions])
    assert few.read(7)[0] == whole.read(positions[7])[0]
    assert len({of.fingerprint() for of in (whole, few, more, others)}) == 4
    config = quickstart(train_examples=50)
    assert len(recipe.open_split(config, 'eval')) == 2_000
    assert recipe.make_plan(config, num_devices=1).steps_per_epoch == 50 / 64
    with pytest.raises(UserError, match='train_examples=10001, but fashion_mnist_mini has 10,000'):
        recipe.make_plan(quickstart(train_examples=10_001), num_devices=1)


def test_twenty_steps_at_a_constant_rate_are_reachable_by_fields():
    config = quickstart()
    for field, text in {'num_steps': '20', 'schedule': 'constant', 'warmup': '0'}.items():
        assign(config, field, text)
    schedule, _ = recipe.make_training(config, 20, 156.25)
    assert {float(schedule(step)) for step in range(20)} == {0.1}


@given(
    num_epochs=st.fractions(fractions.Fraction(1, 100), 50, max_denominator=100),
    examples=st.integers(1, 10_000),
    batch_size=st.integers(1, 512),
    num_steps=st.none() | st.integers(1, 100),
)
def test_the_length_of_a_run(num_epochs, examples, batch_size, num_steps):
    """In exact fractions: the nearest number of steps, at least one; num_steps wins."""
    config = base_config()
    config.num_epochs, config.num_steps = float(num_epochs), num_steps
    got = recipe.total_steps(config, examples / batch_size)
    if num_steps:
        assert got == num_steps
    else:
        exact = num_epochs * examples / batch_size
        assert got >= 1
        assert abs(got - exact) <= fractions.Fraction('0.500001') or (got == 1 and exact < 1)


@pytest.fixture(scope='module')
def plan():
    return recipe.make_plan(quickstart(num_steps=500), num_devices=1)


@pytest.mark.parametrize('what', INTERVALS)
@pytest.mark.parametrize(
    ('steps', 'epochs', 'every'),
    [(7, 2.0, 7), (7, None, 7), (None, 2.0, 200), (None, 0.001, 1), (None, None, None)],
)
def test_steps_win_over_epochs_and_neither_is_the_end_alone(plan, what, steps, epochs, every):
    config = quickstart()
    config[f'{what}_every_steps'], config[f'{what}_every_epochs'] = steps, epochs
    assert recipe.interval(config, what, steps_per_epoch=100) == every
    plan = plan._replace(every={what: every})
    got = [step for step in range(1, 501) if plan.due(what, step)]
    assert got == sorted({*range(every or 500, 501, every or 500), 500})


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('image_size', 20),
        ('crop', 'inception'),
        ('crop_area', (0.2, 0.9)),
        ('crop_aspect', (0.5, 2.0)),
        ('pad', 3),
        ('flip', False),
        ('ra_operations', 2),
        ('ra_magnitude', 7.0),
        ('ra_std', 0.0),
        ('ra_increasing', False),
        ('color_jitter', (0.4, 0.4, 0.0)),
        ('rotation', 10.0),
        ('jitter', 20.0),
        ('cutout', 5),
        ('erasing', 0.25),
        ('erasing_mode', 'pixel'),
        ('mean', (1.0, 2.0, 3.0)),
        ('std', (3.0, 2.0, 1.0)),
        ('fill', (1, 2, 3)),
        ('interpolation', 'bicubic'),
    ],
)
def test_transforms_have_the_fields_of_the_config(field, value):
    view = recipe.make_view(TrainTransform, quickstart(**{field: value}))
    assert getattr(view, field) == value
    assert view != recipe.make_view(TrainTransform, quickstart())


def test_mixing_has_the_fields_of_the_config():
    assert recipe.make_mixing(quickstart()) is None
    fields = {'mixup': 0.2, 'cutmix': 1.0, 'mixup_switch_prob': 0.3}
    assert recipe.make_mixing(quickstart(**fields)) == Mixing(0.2, 1.0, 0.3, group_size=32)
    whole = recipe.make_mixing(quickstart(cutmix=1.0, bn_group_size=0))
    assert whole == Mixing(cutmix=1.0, group_size=None)


def test_evaluation_has_the_fields_of_the_config():
    config = quickstart(image_size=20, eval_resize=24, interpolation='bicubic')
    assert recipe.make_view(EvalTransform, config) == EvalTransform(20, 24, interpolation='bicubic')


def test_a_network_has_the_fields_of_the_config():
    config = quickstart(bn_group_size=0, dtype='bfloat16')
    assign(config, 'model_fields.se.reduction', '4')
    model = recipe.make_model(config, num_classes=3)
    assert model.bn_group_size is None  # the global batch
    assert model.dtype == jnp.bfloat16
    assert model.num_classes == 3
    assert model.se.func is SqueezeExcite
    assert model.se.keywords == {'reduction': 4}


@pytest.mark.parametrize(
    ('epochs', 'steps_per_epoch', 'first'), [(0.0, 10.0, None), (2.0, 10.0, 80), (0.3, 1.25, None)]
)
def test_the_last_epochs_have_their_norms_frozen(epochs, steps_per_epoch, first):
    config = quickstart(freeze_bn_epochs=epochs)
    assert recipe.frozen_from(config, 100, steps_per_epoch) == first


@pytest.mark.parametrize('ema', [0.0, 0.9])
def test_a_state_has_an_average_where_the_config_has_one(ema):
    config = quickstart(ema=ema)
    model = recipe.make_model(config, num_classes=3)
    _, optimizer = recipe.make_training(config, 10, 10.0)
    start = recipe.make_start(config, model, optimizer, data_mesh())
    state = jax.eval_shape(start, jax.random.key(0))
    assert hasattr(state, 'average') == (ema > 0)


def test_only_the_plateau_schedule_is_a_part_of_the_state():
    _, optimizer = recipe.make_training(quickstart(), 10, 10.0)
    _, plateau = recipe.make_training(quickstart(schedule='plateau'), 10, 10.0)
    states = [tx.init({'kernel': jnp.zeros(3)}) for tx in (optimizer, plateau)]
    assert len(jax.tree.leaves(states[1])) == len(jax.tree.leaves(states[0])) + 4


@pytest.mark.parametrize('momentum', [0.0, 0.7])
@pytest.mark.parametrize('nesterov', [False, True])
def test_the_optimizer_has_the_fields_of_the_config(momentum, nesterov):
    """Two steps of a constant gradient, by hand."""
    config = quickstart(schedule='constant', warmup=0.0, learning_rate=0.5, weight_decay=0.2)
    config.momentum, config.nesterov = momentum, nesterov
    _, tx = recipe.make_training(config, 10, 10.0)
    params = {'kernel': jnp.array([2.0])}
    state = tx.init(params)
    weight, velocity = 2.0, 0.0
    for _ in range(2):
        updates, state = tx.update({'kernel': jnp.array([1.0])}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        gradient = 1.0 + 0.2 * weight
        velocity = momentum * velocity + gradient
        weight -= 0.5 * (gradient + momentum * velocity if nesterov else velocity)
        # A dozen operations in float32, on numbers of order 1 that may cancel to a tenth.
        np.testing.assert_allclose(params['kernel'], weight, rtol=1e-5)


@pytest.mark.parametrize(
    ('fields', 'error', 'message'),
    [
        ({'model': 'seresnet8_cifar'}, UserError, 'did you mean se_resnet8_cifar'),
        ({'model_fields': {'widht': 3}}, UserError, 'did you mean width'),
        ({'model_fields': {'placement': 'past'}}, UserError, 'did you mean post'),
        (
            {'model_fields': {'stage_sizes': 3}},
            UserError,
            'stage_sizes=3 must be a sequence of integers',
        ),
        ({'model_fields': {'bn_group_size': 8}}, UserError, 'fields of the config itself'),
        (
            {'model_fields': {'se': SqueezeExcite}},
            UserError,
            'SqueezeExcite.* cannot be kept in config.json .* such as',
        ),
        ({'data': 'fashion_mini'}, UserError, 'fashion_mnist_mini'),
        ({'data': 'folder:/nowhere'}, MissingError, '/nowhere'),
        ({'dtype': 'float64'}, UserError, 'JAX_ENABLE_X64=1'),
        ({'crop': 'pads'}, UserError, 'did you mean pad'),
        ({'batch_size': 72}, UserError, 'use 64 or 96'),
        ({'freeze_bn_epochs': 20.0}, UserError, 'is the whole run of 20 epochs'),
        ({'rotation': 200.0}, UserError, 'rotation=200.0'),
        (
            {'ra_operations': 2, 'in_channels': 1, 'mean': (9,), 'std': (9,), 'fill': (0,)},
            UserError,
            'ra_operations=2 is for in_channels=3, not 1',
        ),
        ({'warmup': 0.5, 'num_steps': -1}, UserError, 'num_steps=-1 must be at least 1'),
    ],
)
def test_what_is_wrong_in_a_config_is_found_in_the_plan(fields, error, message):
    with pytest.raises(error, match=message):
        recipe.make_plan(quickstart(**fields), num_devices=1)
