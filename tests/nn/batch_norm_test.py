from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from se_flax.errors import UserError
from se_flax.nn import BatchNorm

pytestmark = pytest.mark.quick


def run(norm, x, variables):
    """Output, gradient of a loss without symmetry, and new statistics."""

    def loss(x):
        y, new = norm.apply(variables, x, mutable=['batch_stats'])
        return jnp.sum(jnp.cos(3 * y)), (y, new['batch_stats'])

    (_, (y, stats)), grad = jax.value_and_grad(loss, has_aux=True)(x)
    return y, grad, stats


def random_variables(channels):
    rng = np.random.default_rng(5)
    return {
        'params': {k: rng.normal(size=channels) for k in ('scale', 'bias')},
        'batch_stats': {'mean': rng.normal(size=channels), 'var': rng.uniform(1, 2, channels)},
    }


@pytest.mark.parametrize('group_size', [None, 8])
def test_group_of_the_whole_batch_equals_linen(group_size):
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(2, 3, size=(8, 3, 5, 4))
        variables = random_variables(4)
        ours = BatchNorm(False, group_size, dtype=jnp.float64)
        linen = nn.BatchNorm(False, momentum=0.9, dtype=jnp.float64)
        # Linen's own float32 floor for statistics is lifted by float64 input.
        close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)
        for got, want in zip(run(ours, x, variables), run(linen, x, variables), strict=True):
            jax.tree.map(close, got, want)


def test_each_group_is_normalized_by_its_own_statistics():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(2, 3, size=(12, 3, 5, 4))
        x[4:8] *= 7  # groups that differ
        variables = random_variables(4)
        y, _, stats = run(BatchNorm(False, 4, momentum=0.7, dtype=jnp.float64), x, variables)
    means, variances = [], []
    for g in range(3):
        group = x[4 * g : 4 * g + 4]
        mean, var = group.mean((0, 1, 2)), group.var((0, 1, 2))
        means.append(mean)
        variances.append(var)
        p = variables['params']
        want = (group - mean) / np.sqrt(var + 1e-5) * p['scale'] + p['bias']
        np.testing.assert_allclose(y[4 * g : 4 * g + 4], want, rtol=1e-10, atol=1e-10)
    old = variables['batch_stats']
    for name, new in (('mean', means), ('var', variances)):
        want = 0.7 * old[name] + 0.3 * np.mean(new, 0)
        np.testing.assert_allclose(stats[name], want, rtol=1e-10)


def test_evaluation_uses_the_running_statistics_of_any_batch():
    x = np.random.default_rng(0).normal(size=(3, 2, 2, 4))
    variables = random_variables(4)
    with jax.enable_x64(True):
        y = BatchNorm(True, group_size=32, dtype=jnp.float64).apply(variables, x)
    p, s = variables['params'], variables['batch_stats']
    want = (x - s['mean']) / np.sqrt(s['var'] + 1e-5) * p['scale'] + p['bias']
    np.testing.assert_allclose(y, want, rtol=1e-10, atol=1e-10)


def test_constant_channel_stays_finite():
    x = jnp.full((4, 2, 2, 1), 1000.1)
    y, _ = BatchNorm(False).init_with_output(jax.random.key(0), x)
    assert np.abs(y).max() < 1e5
    assert np.isfinite(y).all()


def test_batch_that_groups_do_not_divide_is_refused():
    with pytest.raises(UserError, match='batch=40 is not a multiple of group_size=32; use 32 or'):
        BatchNorm(False, 32).init(jax.random.key(0), jnp.ones((40, 1, 1, 2)))
