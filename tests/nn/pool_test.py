import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from hypothesis import example, given, settings
from hypothesis import strategies as st

from se_flax.nn import adaptive_avg_pool, avg_pool, max_pool


def caffe_pool(x, window, strides, padding, ceil, of=np.max):
    """Written from Caffe's rule: the output size first, then windows clipped to the map."""

    def out(size):
        rounding = math.ceil if ceil else math.floor
        n = rounding((size + 2 * padding - window) / strides) + 1
        return n - 1 if ceil and (n - 1) * strides >= size + padding else n

    batch, height, width, channels = x.shape
    y = np.full((batch, out(height), out(width), channels), -np.inf, x.dtype)
    for i in range(y.shape[1]):
        for j in range(y.shape[2]):
            top, left = (max(k * strides - padding, 0) for k in (i, j))
            bottom, right = i * strides - padding + window, j * strides - padding + window
            y[:, i, j] = of(x[:, top:bottom, left:right], (1, 2))
    return y


@given(
    size=st.tuples(st.integers(4, 12), st.integers(4, 12)),
    window=st.integers(2, 4),
    strides=st.integers(1, 4),
    padding=st.integers(0, 1),
    ceil=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_equals_caffes_rule(size, window, strides, padding, ceil):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype('f')
    got = max_pool(x, window, strides, padding, ceil=ceil)
    np.testing.assert_array_equal(got, caffe_pool(x, window, strides, padding, ceil))


@given(size=st.tuples(st.integers(4, 9), st.integers(4, 9)), window=st.integers(2, 3))
@settings(max_examples=10, deadline=None)
def test_an_average_that_rounds_up_is_of_the_pixels_inside(size, window):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype('f')
    got = avg_pool(x, window, 2, ceil=True)
    np.testing.assert_allclose(got, caffe_pool(x, window, 2, 0, True, np.mean), rtol=0, atol=1e-6)


@given(
    size=st.tuples(st.integers(4, 12), st.integers(4, 12)),
    window=st.integers(2, 4),
    strides=st.integers(1, 3),
    padding=st.integers(0, 1),
)
@settings(max_examples=10, deadline=None)
def test_maximum_hands_its_gradient_to_the_first_place_as_xla_does(size, window, strides, padding):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 4, size=(2, *size, 3)).astype('f')  # many ties
    pads = ((padding, padding),) * 2

    def stock(x):
        return nn.max_pool(x, (window, window), (strides, strides), pads)

    ours = partial(max_pool, window=window, strides=strides, padding=padding)
    y = jax.eval_shape(stock, x)
    dy = rng.integers(-9, 10, size=y.shape).astype('f')  # whole, so that no sum is rounded

    @jax.jit
    def gradients(x, dy):
        return [jax.vjp(f, x)[1](dy)[0] for f in (ours, stock)]

    np.testing.assert_array_equal(*gradients(x, dy))
    assert jax.eval_shape(partial(jax.jvp, ours), (x,), (x,))[1].shape == y.shape


def test_a_window_of_more_than_256_places_has_a_gradient():
    x = jnp.arange(400.0).reshape(1, 20, 20, 1)
    grad = jax.grad(lambda x: max_pool(x, 17, 1).sum())(x)
    assert (np.flatnonzero(grad) // 20).tolist() == [y for y in (16, 17, 18, 19) for _ in range(4)]


def test_windows_that_hang_over_have_a_gradient():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    grad = jax.grad(lambda x: max_pool(x, ceil=True).sum())(x)
    np.testing.assert_array_equal(np.flatnonzero(grad), [10, 11, 14, 15])


@given(
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    window=st.integers(1, 3),
    strides=st.integers(1, 3),
    padding=st.integers(0, 1),
    count_pad=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_mean_counts_the_padding_or_not(size, window, strides, padding, count_pad):
    padding = min(padding, window - 1)  # a window of padding alone has no mean
    x = np.random.default_rng(0).normal(size=(2, *size, 3))
    with jax.enable_x64(True):
        got = avg_pool(x, window, strides, padding, count_pad=count_pad)
    for i in range(got.shape[1]):
        for j in range(got.shape[2]):
            top, left = i * strides - padding, j * strides - padding
            inside = x[:, max(top, 0) : top + window, max(left, 0) : left + window]
            count = window**2 if count_pad else inside.shape[1] * inside.shape[2]
            np.testing.assert_allclose(got[:, i, j], inside.sum((1, 2)) / count, atol=1e-12)
    assert got.shape[1:3] == tuple((n + 2 * padding - window) // strides + 1 for n in size)


@given(st.tuples(st.integers(1, 20), st.integers(1, 20)), st.integers(1, 8))
@example((7, 7), 7)  # VGG's own map
@settings(max_examples=40, deadline=None)
def test_adaptive_cells(size, cells):
    x = np.random.default_rng(0).normal(size=(2, *size, 3))
    with jax.enable_x64(True):
        got = adaptive_avg_pool(x, cells)
    assert got.shape == (2, cells, cells, 3)

    def edges(i, n):
        return math.floor(i * n / cells), math.ceil((i + 1) * n / cells)

    for i in range(cells):
        for j in range(cells):
            (top, bottom), (left, right) = edges(i, size[0]), edges(j, size[1])
            want = x[:, top:bottom, left:right].mean((1, 2))
            np.testing.assert_allclose(got[:, i, j], want, atol=1e-12)


def test_pools_keep_bfloat16():
    x = jnp.ones((1, 8, 8, 3), jnp.bfloat16)
    for y in (max_pool(x), avg_pool(x), avg_pool(x, padding=1, count_pad=False)):
        assert y.dtype == jnp.bfloat16
    assert adaptive_avg_pool(x, 3).dtype == jnp.bfloat16
