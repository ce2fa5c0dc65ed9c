import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from se_flax.errors import UserError
from se_flax.nn import Conv


def numpy_conv(x, kernel, strides, padding, groups):
    """One output pixel and one group at a time."""
    kh, kw, width_in, features = kernel.shape
    x = np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
    height, width = (x.shape[1] - kh) // strides + 1, (x.shape[2] - kw) // strides + 1
    y = np.zeros((len(x), height, width, features))
    width_out = features // groups
    for i, j, g in np.ndindex(height, width, groups):
        top, left = i * strides, j * strides
        window = x[:, top : top + kh, left : left + kw]
        window = window[..., g * width_in : (g + 1) * width_in]
        part = slice(g * width_out, (g + 1) * width_out)
        y[:, i, j, part] = np.tensordot(window, kernel[..., part], 3)
    return y


@given(
    groups=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(3, 8), st.integers(3, 8)),
    kernel_size=st.integers(1, 3) | st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.integers(1, 3),
    padding=st.sampled_from([None, 0, 2]),
    use_bias=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_equals_numpy(groups, widths, size, kernel_size, strides, padding, use_bias):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, groups * widths[0]))
    with jax.enable_x64(True):
        conv = Conv(
            groups * widths[1], kernel_size, strides, padding, groups, use_bias, jnp.float64
        )
        params = conv.init(jax.random.key(0), x)['params']
        params = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
        got = conv.apply({'params': params}, x)
    pad = [n // 2 if padding is None else padding for n in params['kernel'].shape[:2]]
    want = numpy_conv(x, params['kernel'], strides, pad, groups) + params.get('bias', 0)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)


def test_kernel_starts_from_hes_distribution():
    conv = Conv(256, kernel_size=3)
    kernel = conv.init(jax.random.key(0), jnp.ones((1, 4, 4, 128)))['params']['kernel']
    assert abs(kernel.std() / np.sqrt(2 / (3 * 3 * 128)) - 1) < 0.01
    assert np.abs(kernel).max() > 3 * kernel.std()  # not truncated


def test_groups_must_divide_the_channels():
    with pytest.raises(UserError, match='channels in=6 is not a multiple of groups=4; take 4 or 8'):
        Conv(8, groups=4).init(jax.random.key(0), jnp.ones((1, 4, 4, 6)))
    with pytest.raises(UserError, match='channels out=6'):
        Conv(6, groups=4).init(jax.random.key(0), jnp.ones((1, 4, 4, 8)))
