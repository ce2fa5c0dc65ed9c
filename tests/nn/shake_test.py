import jax
import jax.numpy as jnp
import numpy as np
import pytest

from se_flax.errors import UserError
from se_flax.nn import shake

pytestmark = pytest.mark.quick

A, B, COTANGENT = np.random.default_rng(0).normal(size=(3, 512, 2, 2, 3))


def shares(key, backward):
    """The forward and backward shares of each image, read off value and gradient."""
    with jax.enable_x64(True):
        value, vjp = jax.vjp(lambda a, b: shake(a, b, key, backward), A, B)
        grad_a, grad_b = vjp(jnp.asarray(COTANGENT))
    forward = (np.asarray(value) - B) / (A - B)
    to_a, to_b = np.asarray(grad_a) / COTANGENT, np.asarray(grad_b) / COTANGENT
    np.testing.assert_allclose(to_a + to_b, 1)
    for per_value in (forward, to_a):  # one share an image
        np.testing.assert_allclose(per_value, np.broadcast_to(per_value[:, :1, :1, :1], A.shape))
    return forward[:, 0, 0, 0], to_a[:, 0, 0, 0]


def assert_uniform(x):
    """The moments of 512 draws from [0, 1), within four standard errors."""
    assert 0 <= x.min() < 0.02
    assert 0.98 < x.max() < 1
    assert abs(x.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / 512)
    assert abs(x.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / 512)


def test_shake_draws_forward_and_backward_shares_apart():
    alpha, beta = shares(jax.random.key(0), 'shake')
    assert_uniform(alpha)
    assert_uniform(beta)
    assert abs(np.corrcoef(alpha, beta)[0, 1]) < 4 / np.sqrt(512)


def test_even_passes_half_of_the_gradient_to_each_branch():
    alpha, beta = shares(jax.random.key(0), 'even')
    assert_uniform(alpha)
    np.testing.assert_allclose(beta, 0.5)


def test_evaluation_takes_the_mean():
    a, b = A.astype('f'), B.astype('f')
    np.testing.assert_array_equal(shake(a, b, None), (a + b) / 2)


def test_bfloat16_stays_bfloat16():
    a, b = jnp.bfloat16(A), jnp.bfloat16(B)
    mixed = shake(a, b, jax.random.key(0))
    assert mixed.dtype == jnp.bfloat16
    low, high = jnp.minimum(a, b), jnp.maximum(a, b)
    assert jnp.all((low - 0.05 <= mixed) & (mixed <= high + 0.05))


def test_unknown_backward():
    with pytest.raises(UserError, match='did you mean even'):
        shake(A, B, jax.random.key(0), 'evenly')
