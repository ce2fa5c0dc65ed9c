import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from se_flax.nn import relu_of_sum

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
