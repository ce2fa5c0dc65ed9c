"""Learning rates against their formulas; which parameters decay, as reviewed text."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from se_flax.errors import UserError
from se_flax.models import create_model
from se_flax.training.optimizer import SCHEDULES, decays, make_schedule


def rates(schedule, num_steps):
    return np.array([schedule(step) for step in jnp.arange(num_steps)])


@st.composite
def runs(draw):
    num_steps = draw(st.integers(1, 40))
    warmup_steps = draw(st.integers(0, num_steps - 1))
    peak = draw(st.floats(1e-3, 10))
    return num_steps, warmup_steps, peak


FORMULAS = {
    'constant': lambda progress: 1.0,
    'cosine': lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    'linear': lambda progress: 1 - progress,
}


@pytest.mark.parametrize('name', FORMULAS)
@settings(max_examples=12, deadline=None)
@given(run=runs())
def test_schedule_equals_its_formula_at_every_step(name, run):
    num_steps, warmup_steps, peak = run
    rest = num_steps - warmup_steps
    want = [
        peak * (k / warmup_steps if k < warmup_steps else FORMULAS[name]((k - warmup_steps) / rest))
        for k in range(num_steps)
    ]
    got = rates(make_schedule(name, peak, num_steps, warmup_steps=warmup_steps), num_steps)
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6 * peak)


@settings(max_examples=25, deadline=None)
@given(run=runs(), drops=st.sets(st.integers(0, 40), max_size=4), factor=st.floats(0.01, 0.9))
def test_step_schedule_counts_its_drops_from_the_start_of_the_run(run, drops, factor):
    num_steps, warmup_steps, peak = run
    schedule = make_schedule(
        'step', peak, num_steps, warmup_steps=warmup_steps, drop_steps=drops, drop_factor=factor
    )
    want = [
        peak * (k / warmup_steps if k < warmup_steps else factor ** sum(k >= d for d in drops))
        for k in range(num_steps)
    ]
    np.testing.assert_allclose(rates(schedule, num_steps), want, rtol=2e-6, atol=1e-6 * peak)


def test_every_schedule_has_a_formula_here():
    assert sorted(SCHEDULES) == sorted([*FORMULAS, 'step'])


def test_the_warmup_ends_at_the_peak_and_the_decay_at_0():
    schedule = make_schedule('cosine', 0.4, 10, warmup_steps=4)
    assert [float(schedule(k)) for k in (0, 2, 4)] == pytest.approx([0, 0.2, 0.4])
    assert float(schedule(10)) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(
    ('arguments', 'options', 'message'),
    [
        (('cosin', 0.1, 10), {}, "unknown schedule 'cosin': did you mean cosine?"),
        (('linear', 0.1, 10), {'warmup_steps': 10}, 'warm-up of 10 steps must be shorter than 10'),
        (('linear', 0.1, 10), {'warmup_steps': -1}, 'warm-up of -1 steps'),
    ],
)
def test_refuses(arguments, options, message):
    with pytest.raises(UserError, match=message.replace('?', r'\?')):
        make_schedule(*arguments, **options)


def test_golden_weight_decay(golden):
    model = create_model('se_resnet50')
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 64, 64, 3)))['params']
    lines = [
        f'{jax.tree_util.keystr(path, simple=True, separator="/")} {"yes" if decay else "no"}\n'
        for path, decay in jax.tree_util.tree_leaves_with_path(decays(shapes))
    ]
    golden('training/weight_decay.txt', ''.join(lines))
