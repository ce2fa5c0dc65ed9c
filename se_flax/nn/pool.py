"""Pooling with explicit padding."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from se_flax.nn.stock import is_stock


def max_pool(
    x: jax.Array, window: int = 3, strides: int = 2, padding: int = 0, *, ceil: bool = False
) -> jax.Array:
    """Takes the maximum over square windows of `[B, H, W, C]`.

    `H' = (H + 2 padding - window) // strides + 1`. With `ceil` the division rounds up: the last
    window may extend past the lower and right edge, but never starts outside the map. That is how
    Caffe and the released SENets pool.

    >>> import jax.numpy as jnp
    >>> x = jnp.ones((1, 112, 112, 8))
    >>> max_pool(x).shape, max_pool(x, ceil=True).shape
    ((1, 55, 55, 8), (1, 56, 56, 8))
    """
    pads = _sides(x, window, strides, padding, ceil)
    fields = {'window': window, 'strides': strides, 'pads': pads}
    stock, ours = (partial(f, **fields) for f in (_stock, _max_pool))
    if is_stock():
        return _stock(x, **fields)
    return lax.platform_dependent(x, cpu=ours, cuda=ours, default=stock)


def _sides(x, window, strides, padding, ceil):
    """Returns the pixels to add (low, high) along both axes."""

    def sides(size):
        rest = (size + 2 * padding - window) % strides
        extra = strides - rest if ceil and rest else 0
        starts_outside = extra and size + 2 * padding + extra - window >= size + padding
        return padding, padding + (extra - strides if starts_outside else extra)

    return sides(x.shape[1]), sides(x.shape[2])


def _stock(x, window, strides, pads):
    return nn.max_pool(x, (window, window), (strides, strides), pads)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, window, strides, pads):
    # XLA's own gradient is a scatter, which takes 4 times as long on CPUs and moves four indices
    # per value on GPUs (`benchmarks/aot_gpu.py`). TPUs have an instruction for it.
    return _stock(x, window, strides, pads)


@_max_pool.defjvp
def _max_pool_jvp(window, strides, pads, primals, tangents):
    # Keeps one number per window, a byte up to 16x16: the first place that holds its maximum.
    (x,), (dx,) = primals, tangents
    y = _stock(x, window, strides, pads)
    low = jnp.array(-jnp.inf, x.dtype)
    places = list(itertools.product(range(window), repeat=2))

    def at(x, i, j, outside):  # the value at place (i, j) of each window
        x = lax.pad(x, outside, ((0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)))
        height, width = (strides * (n - 1) + 1 for n in y.shape[1:3])
        return x[:, i : i + height : strides, j : j + width : strides]

    dtype = np.min_scalar_type(len(places) - 1)
    first = jnp.zeros(y.shape, dtype)
    for k, place in reversed(list(enumerate(places))):
        first = jnp.where(at(x, *place, low) == y, jnp.array(k, dtype), first)
    zero = jnp.zeros((), x.dtype)
    dy = sum(jnp.where(first == k, at(dx, *place, zero), 0) for k, place in enumerate(places))
    return y, dy


def avg_pool(
    x: jax.Array,
    window: int = 3,
    strides: int = 1,
    padding: int = 0,
    *,
    count_pad: bool = True,
    ceil: bool = False,
) -> jax.Array:
    """Takes the mean over square windows of `[B, H, W, C]`; sizes as `max_pool`'s.

    Padding counts as pixels, as in Caffe and by PyTorch's default. Without `count_pad`, and always
    with `ceil`, the mean is of the map's own pixels.
    """
    shape, step = (window, window), (strides, strides)
    pads = _sides(x, window, strides, padding, ceil)
    pool = partial(nn.avg_pool, window_shape=shape, strides=step, padding=pads)
    if (count_pad and not ceil) or pads == ((0, 0), (0, 0)):
        return pool(x)
    # Not Flax's count_include_pad=False, whose float32 counts turn bfloat16 maps into float32.
    return pool(x) / pool(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


def adaptive_avg_pool(x: jax.Array, size: int) -> jax.Array:
    """Averages `[B, H, W, C]` into `[B, size, size, C]`, as PyTorch's AdaptiveAvgPool2d does.

    Cell i is the mean of rows `floor(i H / size)` to `ceil((i + 1) H / size) - 1`.
    """

    def cells(n):  # [size, n], each row a mean
        i = np.arange(size)[:, None]
        inside = (i * n // size <= np.arange(n)) & (np.arange(n) < -(-(i + 1) * n // size))
        return jnp.asarray(inside / inside.sum(1, keepdims=True), x.dtype)

    if x.shape[1:3] == (size, size):
        return x
    return jnp.einsum('ih,jw,bhwc->bijc', cells(x.shape[1]), cells(x.shape[2]), x)
