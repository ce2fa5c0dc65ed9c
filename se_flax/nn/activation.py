"""Activations whose derivative needs fewer maps than JAX's."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


@jax.custom_jvp
def relu_of_sum(x: jax.Array) -> jax.Array:
    """Returns `nn.relu(x)` for a sum of maps, with the derivative computed from the result.

    The result is kept anyway; XLA would read both maps again to find where the sum was positive.
    """
    return nn.relu(x)


@relu_of_sum.defjvp
def _relu_of_sum_jvp(primals, tangents):
    y = relu_of_sum(*primals)
    # The barrier keeps XLA from simplifying `y > 0` to `x > 0`.
    return y, jnp.where(lax.optimization_barrier(y) > 0, *tangents, 0)


@jax.custom_jvp
def silu(x: jax.Array) -> jax.Array:
    """Returns `nn.silu(x)`, with the sigmoid computed again for the derivative.

    XLA for CPUs would keep it in a map of its own.
    """
    return nn.silu(x)


@silu.defjvp
def _silu_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    # Another formula than the forward pass's, which XLA would merge with it. It does not overflow.
    e = jnp.exp(-jnp.abs(x))
    large = 1 / (1 + e)
    sigmoid = jnp.where(x >= 0, large, e * large)
    return silu(x), dx * (sigmoid * (1 + x * (1 - sigmoid)))
