"""Learning rates against their formulas, and what weight decay acts on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from se_flax.errors import UserError
from se_flax.models import create_model
from se_flax.training.config import load_config
from se_flax.training.optimizer import OPTIMIZERS, SCHEDULES, decays, make_optimizer, make_schedule
from se_flax.training.recipe import make_training, total_steps


def formula(schedule, peak, num_steps, *, warmup=0, hold=0, drops=(), factor=0.1):
    """Returns the rates of steps 0 to `num_steps`."""
    step = np.arange(num_steps + 1)
    done = (step - warmup) / (num_steps - warmup)
    share = {
        'constant': np.ones(len(step)),
        'step': factor ** np.searchsorted(drops, step, side='right'),
        'cosine': (1 + np.cos(np.pi * done)) / 2,
        'linear': 1 - done,
        'plateau': np.ones(len(step)),
    }
    rise = hold or step / max(warmup, 1)
    return peak * np.where(step < warmup, rise, share[schedule])


# Schedules are float32: a few roundings of 1e-7, of the rate, or of the peak where 1 + cos cancels.
def close(peak):
    return {'rtol': 2e-5, 'atol': 1e-6 * peak}


def rates(schedule, num_steps):
    # Of one length for all short runs, as each length is compiled.
    return jax.vmap(schedule)(jnp.arange(max(num_steps, 50) + 1))[: num_steps + 1]


@st.composite
def lengths(draw):
    num_steps = draw(st.integers(1, 50))
    warmup = draw(st.integers(0, num_steps - 1))
    return num_steps, warmup, sorted(draw(st.lists(st.integers(1, 60), max_size=4)))


@pytest.mark.parametrize('schedule', SCHEDULES)
@given(
    lengths=lengths(),
    peak=st.floats(1e-3, 10),
    hold=st.sampled_from([0.0, 0.1, 2.0]),
    factor=st.sampled_from([0.1, 0.2, 0.5, 0.94, 1.0]),
)
@example(lengths=(1, 0, []), peak=0.1, hold=0.0, factor=0.1)
@example(lengths=(50, 10, [3, 10, 11, 60]), peak=0.6, hold=0.0, factor=0.1)
@example(lengths=(50, 10, [3, 10, 11, 60]), peak=0.6, hold=0.1, factor=0.1)
@example(lengths=(50, 0, [20, 20]), peak=0.6, hold=0.0, factor=0.1)
@settings(max_examples=25, deadline=None)
def test_every_step_equals_the_formula(schedule, lengths, peak, hold, factor):
    num_steps, warmup, drops = lengths
    rate = make_schedule(
        schedule,
        peak,
        num_steps,
        warmup_steps=warmup,
        warmup_factor=hold,
        drop_steps=drops,
        drop_factor=factor,
    )
    want = formula(schedule, peak, num_steps, warmup=warmup, hold=hold, drops=drops, factor=factor)
    np.testing.assert_allclose(rates(rate, num_steps), want, **close(peak))


@pytest.mark.parametrize(
    ('spec', 'examples', 'num_steps', 'want'),
    [
        # 1,281,167 / 1024 = 1251.14 steps an epoch, and four times as many at 256
        ('imagenet', 1_281_167, 125_114, ('step', 0.6, {'drops': (37_534, 75_068, 112_603)})),
        ('senet154', 1_281_167, 62_557, ('step', 1.0, {'drops': (18_767, 37_534, 56_301)})),
        (
            'released',
            1_281_167,
            1_351_231,
            ('step', 0.1, {'drops': (625_570, 1_000_912, 1_251_140)}),
        ),
        ('mobile', 1_281_167, 2_001_823, ('plateau', 0.1, {})),
        ('modern', 1_281_167, 500_456, ('cosine', 0.1, {'warmup': 25_022})),
        (
            'cifar:preact_resnet110',
            50_000,
            64_000,
            ('step', 0.1, {'drops': (32_000, 48_000), 'warmup': 400, 'hold': 0.1}),
        ),
        (
            'cifar:preact_resnet164',
            50_000,
            64_000,
            ('step', 0.1, {'drops': (32_000, 48_000), 'warmup': 400, 'hold': 0.1}),
        ),
        (
            'cifar:wrn16_8',
            50_000,
            78_125,
            ('step', 0.1, {'drops': (23_438, 46_875, 62_500), 'factor': 0.2}),
        ),
        ('cifar:shake_shake26_2x96d', 50_000, 703_125, ('cosine', 0.2, {})),
        ('cifar:shake_even29_2x4x64d', 50_000, 2_812_500, ('cosine', 0.025, {})),
    ],
)
def test_every_step_of_a_recipe_equals_the_formula(spec, examples, num_steps, want):
    config = load_config(spec)
    steps_per_epoch = examples / config.batch_size
    assert total_steps(config, steps_per_epoch) == num_steps
    rate, _ = make_training(config, num_steps, steps_per_epoch)
    schedule, peak, options = want
    want = formula(schedule, peak, num_steps, **options)
    np.testing.assert_allclose(rates(rate, num_steps), want, **close(peak))


@pytest.mark.parametrize(('batch_size', 'base', 'want'), [(512, 0, 0.6), (512, 1024, 0.3)])
def test_the_rate_scales_with_the_batch_only_where_the_config_says_so(batch_size, base, want):
    config = load_config('imagenet')
    config.batch_size, config.base_batch_size = batch_size, base
    schedule, _ = make_training(config, 100, 10.0)
    np.testing.assert_allclose(schedule(0), want, **close(want))


@pytest.mark.parametrize(
    ('warmup', 'num_steps', 'message'),
    [
        (10, 10, 'warmup of 10 steps must be shorter than 10 steps'),
        (-1, 10, 'warmup of -1 steps must be shorter than 10 steps'),
    ],
)
def test_a_warmup_without_a_run_after_it(warmup, num_steps, message):
    with pytest.raises(UserError, match=message):
        make_schedule('cosine', 0.1, num_steps, warmup_steps=warmup)


def test_an_unknown_schedule_names_the_nearest():
    with pytest.raises(UserError, match="unknown schedule 'cosin': did you mean cosine?"):
        make_schedule('cosin', 0.1, 10)


def test_weight_decay_of_se_resnet50(golden):
    image = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(create_model('se_resnet50').init, jax.random.key(0), image)
    lines = [
        f'{jax.tree_util.keystr(path, simple=True, separator="/")}: {"decay" if yes else "no"}\n'
        for path, yes in jax.tree_util.tree_leaves_with_path(decays(shapes['params']))
    ]
    golden('training/weight_decay.txt', ''.join(lines))


RATE, MOMENTUM, SQUARE, EPSILON, DECAY = 0.05, 0.8, 0.95, 1e-3, 0.1
ADAM = {'betas': (0.7, 0.9), 'epsilon': EPSILON}
NUMBERS = {
    'sgd': {'momentum': MOMENTUM},
    'adamw': ADAM,
    'lamb': ADAM,
    'rmsprop': {'momentum': MOMENTUM, 'square_decay': SQUARE, 'epsilon': EPSILON},
}


def paper(optimizer, w, gradients, decay):
    """Returns the weights after each step, by the formulas of the papers; `decay` 0 for a bias."""
    m, v, weights = np.zeros_like(w), np.zeros_like(w), []
    b1, b2 = ADAM['betas']
    v = np.ones_like(w) if optimizer == 'rmsprop' else v
    for t, g in enumerate(gradients, start=1):
        if optimizer == 'sgd':
            m = MOMENTUM * m + g + decay * w
            w = w - RATE * m
        elif optimizer == 'rmsprop':  # TensorFlow's
            g = g + decay * w
            v = SQUARE * v + (1 - SQUARE) * g**2
            m = MOMENTUM * m + RATE * g / np.sqrt(v + EPSILON)
            w = w - m
        else:
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            update = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + EPSILON) + decay * w
            adapts = optimizer == 'lamb' and decay
            trust = np.linalg.norm(w) / np.linalg.norm(update) if adapts else 1.0
            w = w - RATE * trust * update
        weights.append(w)
    return weights


def draws(steps=4):
    rng = np.random.default_rng(0)
    shapes = {'kernel': (3, 5), 'scale': (5,)}
    params, *gradients = (
        {name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(steps + 1)
    )
    return params, gradients


def trained(tx, params, gradients):
    states, state = [], tx.init(params)
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        states.append(params)
    return states


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_steps_of_an_optimizer_equal_the_papers_formula(optimizer):
    with jax.enable_x64(True):
        numbers = NUMBERS[optimizer] | {'weight_decay': DECAY}
        tx = make_optimizer(lambda step: RATE, optimizer=optimizer, **numbers)
        params, gradients = draws()
        got = trained(tx, jax.tree.map(jnp.asarray, params), gradients)
    for name, decay in (('kernel', DECAY), ('scale', 0.0)):
        want = paper(optimizer, params[name], [g[name] for g in gradients], decay)
        np.testing.assert_allclose([p[name] for p in got], want, rtol=1e-10)


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_the_whole_gradient_is_clipped_before_anything_else(optimizer):
    params, gradients = draws()
    norms = [np.sqrt(sum((g**2).sum() for g in gradient.values())) for gradient in gradients]
    limit = np.median(norms)  # of which some are above
    clipped = [
        {name: g * min(1, limit / norm) for name, g in gradient.items()}
        for gradient, norm in zip(gradients, norms, strict=True)
    ]
    with jax.enable_x64(True):
        make = functools.partial(make_optimizer, lambda step: RATE, optimizer=optimizer)
        got = trained(make(clip_norm=float(limit)), params, gradients)
        want = trained(make(), params, clipped)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), got, want)


def test_an_unknown_optimizer_names_the_nearest():
    with pytest.raises(UserError, match="unknown optimizer 'adam': did you mean adamw?"):
        make_optimizer(lambda step: 0.1, optimizer='adam')
