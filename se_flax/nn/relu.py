"""The ReLU behind an addition."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


@jax.custom_jvp
def relu_of_sum(x: jax.Array) -> jax.Array:
    """Returns `max(x, 0)`, same shape and dtype, for an x that is a sum of maps.

    The derivative is Linen's, 0 at 0, but told from the result. That is kept for the next layer
    anyway, while XLA would read both maps again to know where their sum was positive.
    """
    return nn.relu(x)


@relu_of_sum.defjvp
def _relu_of_sum_jvp(primals, tangents):
    y = relu_of_sum(*primals)
    # Behind the barrier `y > 0` is not simplified to `x > 0`.
    return y, jnp.where(lax.optimization_barrier(y) > 0, *tangents, 0)
