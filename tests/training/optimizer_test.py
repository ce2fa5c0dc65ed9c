"""Learning rates against their formulas, and what weight decay acts on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from se_flax.errors import UserError
from se_flax.models import create_model
from se_flax.training.optimizer import SCHEDULES, decays, make_schedule


def formula(schedule, peak, num_steps, warmup, drops, factor, step):
    if step < warmup:
        return peak * step / warmup
    done = (step - warmup) / (num_steps - warmup)
    share = {
        'constant': 1.0,
        'step': factor ** sum(step >= drop for drop in drops),
        'cosine': (1 + np.cos(np.pi * done)) / 2,
        'linear': 1 - done,
    }
    return peak * share[schedule]


@st.composite
def lengths(draw):
    num_steps = draw(st.integers(1, 50))
    warmup = draw(st.integers(0, num_steps - 1))
    return num_steps, warmup, sorted(draw(st.sets(st.integers(1, 60), max_size=4)))


@pytest.mark.parametrize('schedule', SCHEDULES)
@given(
    lengths=lengths(), peak=st.floats(1e-3, 10), factor=st.sampled_from([0.1, 0.2, 0.5, 0.94, 1.0])
)
@example(lengths=(1, 0, []), peak=0.1, factor=0.1)
@example(lengths=(50, 10, [3, 10, 11, 60]), peak=0.6, factor=0.1)
@settings(max_examples=25, deadline=None)
def test_every_step_equals_the_formula(schedule, lengths, peak, factor):
    num_steps, warmup, drops = lengths
    rate = make_schedule(
        schedule, peak, num_steps, warmup_steps=warmup, drop_steps=drops, drop_factor=factor
    )
    steps = np.arange(num_steps + 1)
    want = [formula(schedule, peak, num_steps, warmup, drops, factor, step) for step in steps]
    got = jnp.broadcast_to(jax.vmap(rate)(steps), steps.shape)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6 * peak)


@pytest.mark.parametrize(
    ('warmup', 'num_steps', 'message'),
    [
        (10, 10, 'warm-up of 10 steps must be shorter than 10 steps'),
        (-1, 10, 'warm-up of -1 steps must be shorter than 10 steps'),
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
