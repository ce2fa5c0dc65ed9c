"""Convolution with explicit padding, computed by what is fast on the platform."""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.custom_derivatives import SymbolicZero

from se_flax.errors import check_known, check_multiple
from se_flax.nn.stock import is_stock

he_normal = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')  # Caffe's "msra"


class Conv(nn.Module):
    """2-D convolution whose padding is a number of pixels on every side.

    Not `SAME`, unless asked for: with stride 2 that pads an even map at the bottom and right only;
    of the published networks, only TensorFlow's are padded so. Takes `[B, H, W, C]`, returns
    `[B, H', W', features]` of `dtype` with `H' = (H + 2 padding - kh) // strides + 1`. The kernel,
    `[kh, kw, C / groups, features]` in float32 or wider, starts from He's normal distribution
    (arXiv 1502.01852, fan in). Raises UserError if `groups` does not divide the channels in or out.

    Attributes:
        features: channels out.
        kernel_size: of a square kernel, or (height, width).
        strides: in both directions.
        padding: pixels of zeros on each side; None is half the kernel, rounded down, and 'same'
            TensorFlow's, for `H' = ceil(H / strides)`.
        groups, use_bias, dtype: as in `flax.linen.Conv`.

    >>> import jax, jax.numpy as jnp
    >>> conv = Conv(8, kernel_size=7, strides=2)
    >>> y, variables = conv.init_with_output(jax.random.key(0), jnp.ones((1, 224, 224, 3)))
    >>> y.shape, variables['params']['kernel'].shape
    ((1, 112, 112, 8), (7, 7, 3, 8))
    """

    features: int
    kernel_size: int | tuple[int, int] = 3
    strides: int = 1
    padding: int | str | None = None
    groups: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels, k = x.shape[-1], self.kernel_size
        k = (k, k) if isinstance(k, int) else tuple(k)
        check_multiple('channels in', channels, 'groups', self.groups)
        check_multiple('channels out', self.features, 'groups', self.groups)
        param_dtype = jnp.promote_types(self.dtype, jnp.float32)
        shape = (*k, channels // self.groups, self.features)
        kernel = self.param('kernel', he_normal, shape, param_dtype)
        if isinstance(self.padding, str):
            check_known('padding', self.padding, ('same',))
            pads = lax.padtype_to_pads(x.shape[1:3], k, (self.strides,) * 2, 'SAME')
        else:
            pads = [(n // 2 if self.padding is None else self.padding,) * 2 for n in k]
        y = convolve(
            x.astype(self.dtype), kernel.astype(self.dtype), self.strides, pads, self.groups
        )
        if self.use_bias:
            bias = self.param('bias', nn.initializers.zeros, (self.features,), param_dtype)
            y += bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: int,
    pads: Sequence[tuple[int, int]],
    groups: int,
) -> jax.Array:
    """Convolves `[B, H, W, C]` with `[kh, kw, C / groups, features]`.

    `pads` has the padding of both dimensions, (before, after).

    This is XLA's own operation, except when compiled for CPUs, where some forms are faster.
    """
    forms = _stock, _cpu_form(kernel, groups)
    stock, cpu = (partial(form, strides=strides, pads=pads, groups=groups) for form in forms)
    if cpu.func is _stock or is_stock():
        return stock(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=cpu, default=stock)


def _cpu_form(kernel, groups):
    """Returns the form with the fastest training step on a CPU, by `benchmarks/conv.py`."""
    kh, kw, width, features = kernel.shape
    if groups == 1:
        if kh == kw == 1:
            return _matmul
        return _dense if features >= 64 else _stock
    if width > 1:
        # 64 convolutions side by side take ten seconds a layer to compile.
        return _blocks if width <= 32 and groups * width >= 1024 else _pieces
    # The gradient of shifts sums over the map in its own dtype, where 8 bits are too few.
    return _shifts if jnp.finfo(kernel.dtype).bits >= 32 else _stock


def _stock(x, kernel, strides, pads, groups):
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(strides, strides),
        padding=pads,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups,
    )


def _matmul(x, kernel, strides, pads, groups):
    """A 1x1 convolution: a matrix product of the pixels that the strides meet."""
    return _product(_pad(x, pads)[:, ::strides, ::strides], kernel.reshape(kernel.shape[-2:]))


def _pieces(x, kernel, strides, pads, groups):
    """A grouped convolution: dense ones side by side."""
    kernels = _joined(kernel, groups)
    dense = partial(_cpu_form(kernels[0], 1), strides=strides, pads=pads, groups=1)
    return jnp.concatenate(list(map(dense, jnp.split(x, len(kernels), axis=-1), kernels)), axis=-1)


def _blocks(x, kernel, strides, pads, groups):
    """A grouped convolution: a batched matrix product of the windows, one for each piece."""
    kh, kw = kernel.shape[:2]

    def dense(x, kernel):
        windows = jnp.concatenate(_places(x, kh, kw, strides), axis=-1)
        return _product(windows, kernel.reshape(windows.shape[-1], -1))

    @jax.checkpoint  # else the gradient would keep each map `kh kw` times
    def conv(x, kernel):
        x, kernels = _pad(x, pads), _joined(kernel, groups)
        x = jnp.moveaxis(x.reshape(*x.shape[:3], len(kernels), -1), 3, 0)
        y = jnp.moveaxis(jax.vmap(dense)(x, kernels), 0, 3)
        return y.reshape(*y.shape[:3], -1)

    return conv(x, kernel)


def _joined(kernel, groups):
    """Returns `[pieces, kh, kw, channels, features / pieces]`, narrow groups joined to 16 channels.

    A CPU's vector is as wide: products with zeros cost less than a loop over narrower groups.
    """
    kh, kw, width, features = kernel.shape
    joined = math.gcd(groups, max(1, 16 // width))
    pieces = groups // joined
    own = jnp.eye(joined, dtype=bool).reshape(1, 1, joined, 1, 1, joined, 1)
    kernel = kernel.reshape(kh, kw, 1, width, pieces, joined, features // groups)
    kernel = jnp.where(own, kernel, 0).reshape(kh, kw, joined * width, pieces, -1)
    return jnp.moveaxis(kernel, 3, 0)


def _sum_of_shifts(x, kernel, strides, pads, groups):
    """A depthwise convolution: the map's shifts, each times the kernel there."""
    kh, kw, _, features = kernel.shape
    x = jnp.repeat(_pad(x, pads), features // groups, axis=-1)
    kernels = kernel.reshape(-1, 1, 1, 1, features)
    return sum(map(jnp.multiply, _places(x, kh, kw, strides), kernels))


def _sum_of_pads(x, kernel, strides, pads, groups):
    """The same, so that the transpose, the map's gradient, is a sum of shifts and not of pads.

    XLA computes each value of a pad by itself, with a branch.
    """
    kh, kw, _, features = kernel.shape
    x = jnp.repeat(x, features // groups, axis=-1)
    kernels = kernel.reshape(kh, kw, 1, 1, 1, features)
    y = sum(
        _pad(x * kernels[i, j], ((kh - 1 - i, i), (kw - 1 - j, j)))
        for i, j in itertools.product(range(kh), range(kw))
    )
    sides = zip((kh, kw), pads, strict=True)
    rows, columns = ((low - k + 1, high - k + 1, 0) for k, (low, high) in sides)
    y = lax.pad(y, jnp.zeros((), y.dtype), ((0, 0, 0), rows, columns, (0, 0, 0)))
    return y[:, ::strides, ::strides]


def _shifts_tangent(x, dkernel, strides, pads):
    """Computes rows with each kernel value as wide as the row, which the transpose sums up last."""
    kh, kw, _, features = dkernel.shape
    x = jnp.repeat(_pad(x, pads), features // x.shape[-1], axis=-1)
    width = (x.shape[2] - kw) // strides + 1
    shape = len(x), 1, width, features
    places = [jnp.broadcast_to(k, shape) for k in dkernel.reshape(-1, 1, 1, features)]

    def row_of(part, places):
        return sum(map(jnp.multiply, _places(part, kh, kw, strides), places))

    return _by_rows(row_of, x, places, strides, kh, most=1, unroll=2)


def _dense_tangent(x, dkernel, strides, pads):
    """A matrix product for each row of the kernel, with the places of the row side by side.

    XLA's products are faster the wider they are. With strides most of the row would be unused, so
    there each place has its own product.
    """
    kh, kw, width, features = dkernel.shape
    x, dtype = _pad(x, pads), x.dtype
    dkernel = dkernel.astype(jnp.promote_types(dtype, jnp.float32))  # the sum's dtype

    def rows_of(part, kernel):
        kernel = kernel.astype(dtype)
        if strides > 1:
            return sum(map(_product, _places(part, kh, kw, strides), kernel))
        row = sum(map(_product, _places(part, kh, 1), kernel))
        right = row.shape[2] - kw + 1
        places = jnp.split(row, kw, axis=-1)
        return sum(place[:, :, j : j + right] for j, place in enumerate(places))

    if strides > 1:
        dkernel = dkernel.reshape(kh * kw, width, features)
    else:
        dkernel = dkernel.swapaxes(1, 2).reshape(kh, width, kw * features)
    return _by_rows(rows_of, x, dkernel, strides, kh, most=8)


def _by_rows(rows_of, x, kernel, strides, tall, most, unroll=1):
    """Computes a map up to `most` rows at a time, so that the transpose finds x in the cache."""
    height = (x.shape[1] - tall) // strides + 1
    rows = max(n for n in range(1, most + 1) if height % n == 0)
    tall += strides * (rows - 1)
    part = jax.eval_shape(rows_of, x[:, :tall], kernel)
    # Made like a part, so that they vary over the same axes of a shard_map.
    zeros = lax.full_like(part, 0, shape=(part.shape[0], height, *part.shape[2:]))

    @partial(jax.checkpoint, prevent_cse=False)  # else every part of x would be kept
    def among_zeros(x, kernel, h):
        part = lax.dynamic_slice_in_dim(x, strides * h, tall, axis=1)
        return lax.dynamic_update_slice_in_dim(zeros, rows_of(part, kernel), h, axis=1)

    def add_rows(y, h):
        return y + among_zeros(x, kernel, h), None

    return lax.scan(add_rows, zeros, rows * jnp.arange(height // rows), unroll=unroll)[0]


def _with_tangent(form, of_map, of_kernel):
    """Returns the form with tangents of its own, whose transposes are the gradients."""
    conv = jax.custom_jvp(form, nondiff_argnums=(2, 3, 4))

    @partial(conv.defjvp, symbolic_zeros=True)
    def conv_jvp(strides, pads, groups, primals, tangents):
        (x, kernel), (dx, dkernel) = primals, tangents
        y = conv(x, kernel, strides, pads, groups)
        dy = jnp.zeros_like(y)
        if not isinstance(dkernel, SymbolicZero):
            dy += of_kernel(x, dkernel, strides, pads)
        if not isinstance(dx, SymbolicZero):
            dy += of_map(dx, kernel, strides, pads, groups)
        return y, dy

    return conv


# Both are up to three times as fast as XLA's gradients.
_dense = _with_tangent(_stock, _stock, _dense_tangent)
_shifts = _with_tangent(_sum_of_shifts, _sum_of_pads, _shifts_tangent)


def _places(x, kh, kw, strides=1):
    """Returns what each place of a kernel sees of a padded map, row by row."""
    bottom, right = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    return [
        x[:, i : i + bottom : strides, j : j + right : strides]
        for i in range(kh)
        for j in range(kw)
    ]


def _product(x, kernel):
    """`[B, H, W, C]` times `[C, D]`; an einsum would have XLA transpose a map."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


def _pad(x, pads):
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))
