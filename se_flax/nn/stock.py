"""A switch between our forms of operations and the stock ones."""

import contextlib
import contextvars
from collections.abc import Iterator

_STOCK = contextvars.ContextVar('stock', default=False)


@contextlib.contextmanager
def stock_operations() -> Iterator[None]:
    """Traces layers as JAX's own operations and as the papers' equations.

    Outside of it, convolutions and pools may choose a form by platform, and SE may scale
    BatchNorm's coefficients instead of the map. Inside, a jaxpr has none of that, for converters
    and readers. Values are equal up to rounding. What `jax.jit` has traced before is unchanged.

    >>> import jax, jax.numpy as jnp
    >>> from se_flax import nn
    >>> with nn.stock_operations():
    ...     print(jax.make_jaxpr(nn.max_pool)(jnp.ones((1, 4, 4, 1))).eqns[0].primitive)
    reduce_window_max
    """
    token = _STOCK.set(True)
    try:
        yield
    finally:
        _STOCK.reset(token)


def is_stock() -> bool:
    return _STOCK.get()
