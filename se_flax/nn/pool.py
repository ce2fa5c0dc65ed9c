"""Pooling with explicit padding."""

from flax import linen as nn


def max_pool(x, window: int = 3, strides: int = 2, padding: int = 0, *, ceil: bool = False):
    """Takes the maximum over square windows: `[B, H, W, C]` to `[B, H', W', C]`, same dtype.

    `H' = (H + 2 padding - window) // strides + 1`; with `ceil` the division rounds up, so the last
    window may hang over the lower and right edge, but never starts outside the padded map. Caffe
    pools so (`padding=0, ceil=True`: 112 to 56), and the released SENets need it
    (`padding=1` gives the same sizes from windows that lie one pixel to the upper left).

    >>> import jax.numpy as jnp
    >>> max_pool(jnp.ones((1, 112, 112, 8)), ceil=True).shape
    (1, 56, 56, 8)
    >>> max_pool(jnp.ones((1, 112, 112, 8))).shape
    (1, 55, 55, 8)
    """

    def sides(size):
        rest = (size + 2 * padding - window) % strides
        extra = strides - rest if ceil and rest else 0
        starts_outside = extra and size + 2 * padding + extra - window >= size + padding
        return padding, padding + (extra - strides if starts_outside else extra)

    pads = (sides(x.shape[1]), sides(x.shape[2]))
    return nn.max_pool(x, (window, window), (strides, strides), pads)
