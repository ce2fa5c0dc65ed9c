import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from se_flax.nn import relu_of_sum, silu

pytestmark = pytest.mark.quick


def test_value_and_derivatives_are_linens():
    x = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0, jnp.inf])
    t = jnp.arange(1.0, 7)
    got, want = (jax.jvp(f, (x,), (t,)) for f in (relu_of_sum, nn.relu))
    np.testing.assert_array_equal(got, want)
    got, want = (jax.vjp(f, x)[1](t) for f in (relu_of_sum, nn.relu))
    np.testing.assert_array_equal(got, want)


def test_what_is_not_a_number_stays_so():
    y, dy = jax.value_and_grad(lambda x: relu_of_sum(x) * 2)(jnp.nan)
    assert np.isnan(y)
    assert not dy  # as Linen's; the loss is not finite in any case


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_derivative_of_silu(dtype):
    x = jnp.asarray([-200, -88.5, -20, -8, -1.278, -1e-3, -0.0, 0, 0.5, 3, 40, 200], dtype)
    y, dy = jax.jvp(silu, (x,), (jnp.ones_like(x),))
    assert y.dtype == dy.dtype == dtype
    np.testing.assert_array_equal(y, nn.silu(x))
    x = np.asarray(x, float)
    sigmoid = 1 / (1 + np.exp(-x))
    room = 8 * float(jnp.finfo(dtype).eps)  # half a dozen operations
    np.testing.assert_allclose(dy, sigmoid * (1 + x * (1 - sigmoid)), rtol=room, atol=room)
