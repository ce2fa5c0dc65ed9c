import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from se_flax.nn import max_pool


def caffe_max_pool(x, window, strides, padding, ceil):
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
            y[:, i, j] = x[:, top:bottom, left:right].max((1, 2))
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
    np.testing.assert_array_equal(got, caffe_max_pool(x, window, strides, padding, ceil))
