"""Convolution with explicit padding, carried out by what is fast on the platform."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.custom_derivatives import SymbolicZero, linear_call

from se_flax.errors import check_multiple

he_normal = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')  # Caffe's "msra"


class Conv(nn.Module):
    """2-D convolution whose padding is a number of pixels on every side.

    Never `SAME`: for stride 2 on an even map that pads one side only, and the published networks
    pad both. Takes `[B, H, W, C]`, returns `[B, H', W', features]` of `dtype` with
    `H' = (H + 2 padding - kh) // strides + 1`. The kernel, `[kh, kw, C / groups, features]` and
    float32 or wider, starts from He's normal distribution (arXiv 1502.01852, fan in).

    Raises UserError where `groups` does not divide the channels in or out.

    Attributes:
        features: channels out.
        kernel_size: of a square kernel, or (height, width).
        strides: step in both directions.
        padding: pixels of zeros on each side; None means half the kernel, rounded down.
        groups: channel groups that do not see each other.
        use_bias: the networks here have none before a BatchNorm.
        dtype: of the computation and the result.

    >>> import jax, jax.numpy as jnp
    >>> conv = Conv(8, kernel_size=7, strides=2)
    >>> y, variables = conv.init_with_output(jax.random.key(0), jnp.ones((1, 224, 224, 3)))
    >>> y.shape, variables['params']['kernel'].shape
    ((1, 112, 112, 8), (7, 7, 3, 8))
    """

    features: int
    kernel_size: int | tuple[int, int] = 3
    strides: int = 1
    padding: int | None = None
    groups: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        channels, k = x.shape[-1], self.kernel_size
        k = (k, k) if isinstance(k, int) else tuple(k)
        check_multiple('channels in', channels, 'groups', self.groups)
        check_multiple('channels out', self.features, 'groups', self.groups)
        param_dtype = jnp.promote_types(self.dtype, jnp.float32)
        shape = (*k, channels // self.groups, self.features)
        kernel = self.param('kernel', he_normal, shape, param_dtype)
        pads = [n // 2 if self.padding is None else self.padding for n in k]
        y = convolve(
            x.astype(self.dtype), kernel.astype(self.dtype), self.strides, pads, self.groups
        )
        if self.use_bias:
            bias = self.param('bias', nn.initializers.zeros, (self.features,), param_dtype)
            y += bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y


def convolve(x, kernel, strides: int, pads: Sequence[int], groups: int):
    """Convolves `[B, H, W, C]` with `[kh, kw, C / groups, features]`, padding `pads` on each side.

    XLA's own operation, but on CPUs a form whose gradients are fast there (`benchmarks/conv.py`).
    Which it is follows from the platform that is compiled for, not from the one that compiles.
    """
    form = _cpu_form(kernel, groups)
    stock = partial(_stock, strides=strides, pads=pads, groups=groups)
    if form is _stock:
        return stock(x, kernel)
    cpu = partial(form, strides=strides, pads=pads, groups=groups)
    return lax.platform_dependent(x, kernel, cpu=cpu, default=stock)


def _cpu_form(kernel, groups):
    """Returns the fastest form for a training step on a CPU by `benchmarks/conv.py`."""
    kh, kw, width, features = kernel.shape
    if groups == 1:
        if kh == kw == 1:
            return _matmul
        return _dense if features >= 64 else _stock
    if width > 1:
        # 64 convolutions side by side take longer, and ten seconds a layer to compile.
        return _blocks if width <= 32 and groups * width >= 1024 else _pieces
    # The gradient of shifts sums over the map in its own dtype, where 8 bits are too few.
    return _shifts if jnp.finfo(kernel.dtype).bits >= 32 else _stock


def _stock(x, kernel, strides, pads, groups):
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(strides, strides),
        padding=[(pad, pad) for pad in pads],
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups,
    )


def _with_gradients(form, of_kernel, of_map=None):
    """Returns the form with gradients of its own.

    `of_kernel(x, dy, shape, strides, pads)` is that of a kernel of this shape, and
    `of_map(kernel, dy, shape, strides, pads)` that of the map, where it is not the form's.
    """

    @partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
    def conv(x, kernel, strides, pads, groups):
        return form(x, kernel, strides, pads, groups)

    @partial(conv.defjvp, symbolic_zeros=True)
    def conv_jvp(strides, pads, groups, primals, tangents):
        (x, kernel), (dx, dkernel) = primals, tangents
        rest = strides, pads, groups
        y = conv(x, kernel, *rest)
        dy = jnp.zeros_like(y)
        if not isinstance(dkernel, SymbolicZero):
            dy += linear_call(
                lambda x, dkernel: form(x, dkernel, *rest),
                lambda x, dy: of_kernel(x, dy, kernel.shape, strides, pads),
                *(x, dkernel),
            )
        if not isinstance(dx, SymbolicZero):
            dy += (
                linear_call(
                    lambda kernel, dx: form(dx, kernel, *rest),
                    lambda kernel, dy: of_map(kernel, dy, x.shape, strides, pads),
                    *(kernel, dx),
                )
                if of_map
                else form(dx, kernel, *rest)
            )
        return y, dy

    return conv


def _dense_gradient(x, dy, shape, strides, pads):
    """Sums the products of all pairs of pixels that a place of the kernel joins.

    A few rows at a time, so that their shifts stay in the cache.
    """
    x, height = _pad(x, pads), dy.shape[1]
    rows = max(n for n in range(1, 9) if height % n == 0)
    tall = strides * (rows - 1) + shape[0]

    def add_rows(total, h):
        part = lax.dynamic_slice_in_dim(x, strides * h, tall, axis=1)
        dy_part = lax.dynamic_slice_in_dim(dy, h, rows, axis=1)
        return total + _products_of_places(part, dy_part, shape, strides), None

    zero = jnp.zeros(shape, jnp.promote_types(dy.dtype, jnp.float32))
    total, _ = lax.scan(add_rows, zero, rows * jnp.arange(height // rows))
    return total.astype(dy.dtype)


def _products_of_places(x, dy, shape, strides):
    """A matrix product over all pixels for each row of the kernel.

    `dy` is in it `kw` times, shifted along the width, side by side: XLA's products are faster the
    wider they are. Strides would leave most of it unused, so there each place has a product.
    """
    kh, kw, width, features = shape
    bottom, right = _reach(dy, strides)
    rows = [x[:, i : i + bottom : strides] for i in range(kh)]
    if strides > 1:
        places = [[row[:, :, j : j + right : strides] for j in range(kw)] for row in rows]
        return jnp.stack([jnp.stack([_over_pixels(x, dy) for x in row]) for row in places])
    shifts = [((0, 0), (0, 0), (j, kw - 1 - j), (0, 0)) for j in range(kw)]
    dy = jnp.concatenate([jnp.pad(dy, shift) for shift in shifts], axis=-1)
    by_row = jnp.stack([_over_pixels(row, dy) for row in rows])
    return by_row.reshape(kh, width, kw, features).swapaxes(1, 2)


def _over_pixels(x, y):
    """`[B, H, W, C]`, `[B, H, W, D]` to `[C, D]`; an einsum would have XLA transpose a map."""
    return x.reshape(-1, x.shape[-1]).T @ y.reshape(-1, y.shape[-1])


def _reach(y, strides):
    """Returns the height and width from the first to the last place of a window that y met."""
    return (strides * (n - 1) + 1 for n in y.shape[1:3])


# Up to three times as fast as XLA's gradient.
_dense = _with_gradients(_stock, _dense_gradient)


def _matmul(x, kernel, strides, pads, groups):
    """A 1x1 convolution: a matrix product of the pixels that the strides meet."""
    x = _pad(x, pads)[:, ::strides, ::strides]
    y = x.reshape(-1, x.shape[-1]) @ kernel.reshape(kernel.shape[-2:])
    return y.reshape(*x.shape[:-1], -1)


def _sum_of_shifts(x, kernel, strides, pads, groups):
    """A depthwise convolution: the map's shifts, each times the kernel there."""
    kh, kw, _, features = kernel.shape
    x = jnp.repeat(_pad(x, pads), features // groups, axis=-1)
    bottom, right = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    return sum(
        x[:, i : i + bottom : strides, j : j + right : strides] * kernel[i, j, None, None]
        for i in range(kh)
        for j in range(kw)
    )


def _shifts_of_kernel(x, dy, shape, strides, pads):
    """Goes down the map, row by row: no product of whole maps comes to memory."""
    kh, kw, _, features = shape
    x = jnp.repeat(_pad(x, pads), features // x.shape[-1], axis=-1)
    _, right = _reach(dy, strides)

    def add_row(sums, h):
        rows = lax.dynamic_slice_in_dim(x, strides * h, kh, axis=1)
        dy_row = lax.dynamic_index_in_dim(dy, h, axis=1, keepdims=False)
        shifts = [[rows[:, i, j : j + right : strides] for j in range(kw)] for i in range(kh)]
        return jax.tree.map(lambda total, shift: total + shift * dy_row, sums, shifts), None

    zero = jnp.zeros_like(dy[:, 0])
    sums, _ = lax.scan(add_row, [[zero] * kw] * kh, jnp.arange(dy.shape[1]), unroll=4)
    return jnp.stack([jnp.stack([total.sum((0, 1)) for total in row]) for row in sums])[:, :, None]


def _shifts_of_map(kernel, dy, shape, strides, pads):
    """The same form backwards: of `dy`, strides apart, with the kernel turned around."""
    around = [(0, 0, 0)] * 4
    for axis, k, pad in zip((1, 2), kernel.shape[:2], pads, strict=True):
        last = strides * (dy.shape[axis] - 1) - pad  # the first row or column of the last window
        around[axis] = k - 1 - pad, shape[axis] - 1 - last, strides - 1
    dy = lax.optimization_barrier(lax.pad(dy, jnp.zeros((), dy.dtype), around))  # once, not 9 times
    dx = _sum_of_shifts(dy, kernel[::-1, ::-1], 1, (0, 0), dy.shape[-1])
    return dx.reshape(*shape, -1).sum(-1)


_shifts = _with_gradients(_sum_of_shifts, _shifts_of_kernel, _shifts_of_map)


def _pieces(x, kernel, strides, pads, groups):
    """A grouped convolution: dense ones side by side."""
    kernels = _joined(kernel, groups)
    dense = partial(_cpu_form(kernels[0], 1), strides=strides, pads=pads, groups=1)
    return jnp.concatenate(list(map(dense, jnp.split(x, len(kernels), axis=-1), kernels)), axis=-1)


def _blocks(x, kernel, strides, pads, groups):
    """A grouped convolution: one batched matrix product of the windows.

    They are made again for the gradient, else a step would keep each map `kh kw` times.
    """
    form = partial(_product_of_windows, strides=strides, pads=pads, groups=groups)
    return jax.checkpoint(form)(x, kernel)


def _product_of_windows(x, kernel, strides, pads, groups):
    features = kernel.shape[-1]
    kernels = _joined(kernel, groups)
    x = _pad(x, pads)
    (pieces, kh, kw), (batch, tall, wide) = kernels.shape[:3], x.shape[:3]
    x = jnp.moveaxis(x.reshape(batch, tall, wide, pieces, -1), 3, 0)
    bottom, right = tall - kh + 1, wide - kw + 1
    shifts = [
        x[:, :, i : i + bottom : strides, j : j + right : strides]
        for i in range(kh)
        for j in range(kw)
    ]
    windows = jnp.concatenate(shifts, axis=-1)
    sides = windows.shape[1:4]
    y = windows.reshape(pieces, math.prod(sides), -1) @ kernels.reshape(
        pieces, windows.shape[-1], -1
    )
    return jnp.moveaxis(y.reshape(pieces, *sides, -1), 0, 3).reshape(*sides, features)


def _joined(kernel, groups):
    """Returns `[pieces, kh, kw, channels, features / pieces]`, narrow groups joined to 16 channels.

    16 is a vector of the CPU; the products with zeros that joining adds cost less than a loop over
    less than a vector.
    """
    kh, kw, width, features = kernel.shape
    joined = math.gcd(groups, max(1, 16 // width))
    pieces = groups // joined
    own = jnp.eye(joined, dtype=bool).reshape(1, 1, joined, 1, 1, joined, 1)
    kernel = kernel.reshape(kh, kw, 1, width, pieces, joined, features // groups)
    kernel = jnp.where(own, kernel, 0).reshape(kh, kw, joined * width, pieces, -1)
    return jnp.moveaxis(kernel, 3, 0)


def _pad(x, pads):
    return jnp.pad(x, ((0, 0), *((pad, pad) for pad in pads), (0, 0)))
