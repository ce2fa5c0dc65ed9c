import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from se_flax.errors import UserError
from se_flax.nn import Conv
from se_flax.nn.conv import _cpu_form, _stock, convolve
from se_flax.parallel import data_mesh, split

LAYERS = {  # kernel, channels in and out, groups
    'pointwise': ((1, 1), 16, 24, 1),
    'depthwise': ((3, 3), 16, 32, 16),
    'grouped': ((3, 3), 16, 24, 8),
    'dense': ((3, 3), 64, 96, 1),
    'many groups': ((1, 3), 1024, 1024, 128),
    'grouped pointwise': ((1, 1), 6, 12, 3),
}


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
        params = jax.eval_shape(conv.init, jax.random.key(0), x)['params']
        params = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
        got = jax.jit(conv.apply)({'params': params}, x)
    pad = [n // 2 if padding is None else padding for n in params['kernel'].shape[:2]]
    want = numpy_conv(x, params['kernel'], strides, pad, groups) + params.get('bias', 0)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(('size', 'kernel_size', 'strides'), [(6, 3, 2), (5, 5, 2), (1, 3, 2)])
def test_same_is_tensorflows_padding(size, kernel_size, strides):
    x = np.random.default_rng(0).normal(size=(1, size, size, 2)).astype('f')
    conv = Conv(3, kernel_size, strides, padding='same')
    y, variables = conv.init_with_output(jax.random.key(0), x)
    theirs = jax.lax.conv_general_dilated(
        *(x, variables['params']['kernel'], (strides, strides), 'SAME'),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    np.testing.assert_allclose(y, theirs, rtol=1e-5, atol=1e-5)  # float32, at most 50 terms
    with pytest.raises(UserError, match="unknown padding 'valid'"):
        conv.clone(padding='valid').init(jax.random.key(0), x)


def test_kernel_starts_from_hes_distribution():
    conv = Conv(256, kernel_size=3)
    kernel = conv.init(jax.random.key(0), jnp.ones((1, 4, 4, 128)))['params']['kernel']
    assert abs(kernel.std() / np.sqrt(2 / (3 * 3 * 128)) - 1) < 0.01
    assert np.abs(kernel).max() > 3 * kernel.std()  # not truncated


def test_groups_must_divide_the_channels():
    with pytest.raises(UserError, match='channels in=6 is not a multiple of groups=4; use 4 or 8'):
        Conv(8, groups=4).init(jax.random.key(0), jnp.ones((1, 4, 4, 6)))
    with pytest.raises(UserError, match='channels out=6'):
        Conv(6, groups=4).init(jax.random.key(0), jnp.ones((1, 4, 4, 8)))


@pytest.mark.rounding
@given(
    groups=st.integers(2, 4),
    widths=st.tuples(st.integers(1, 3), st.integers(1, 3)),  # channels of a group, in and out
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel_size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.integers(1, 3),
    pads=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
@example(32, (4, 4), (7, 7), (3, 3), 2, (1, 1))  # as in SE-ResNeXt: four groups are joined
@example(64, (16, 8), (5, 6), (3, 3), 2, (1, 1))  # as in SENet-154: a product for all groups
@example(12, (3, 2), (5, 4), (1, 3), 1, (0, 1))  # 5 groups fit in 16 channels, 4 divide 12
@example(1, (3, 2), (6, 5), (1, 1), 2, (0, 0))
@example(1, (64, 80), (5, 6), (3, 2), 1, (1, 2))
@example(1, (64, 65), (7, 6), (3, 5), 3, (1, 3))
@example(1, (3, 64), (23, 7), (7, 7), 2, (3, 3))  # a stem, six rows at a time
@example(6, (1, 2), (7, 7), (7, 1), 1, (3, 0))  # depthwise with a multiplier
@example(6, (1, 1), (7, 6), (3, 5), 2, (4, 1))  # the same, with more padding than the kernel needs
@settings(max_examples=4, deadline=None)  # each compiles, about a second
def test_form_on_cpu_equals_stock(groups, widths, size, kernel_size, strides, pads):
    """Values, forward and both reverse derivatives, of float64 (only a wrong formula differs) and
    of float32, both against the stock operation in float64."""
    # XLA's own simplifier aborts on the stock operation's gradient (jax 0.10: "Window dimensions
    # do not match RHS shape"), and with it Python; no published network has such a layer.
    assume(not (strides == 2 and 2 in kernel_size))
    pads = [(pad, pad) for pad in pads]
    rng = np.random.default_rng(0)
    x, dx = rng.normal(size=(2, 2, *size, groups * widths[0]))
    kernel, dkernel = rng.normal(size=(2, *kernel_size, widths[0], groups * widths[1]))

    @jax.jit
    def derivatives(*primals_and_tangents):
        primals, tangents = primals_and_tangents[:2], primals_and_tangents[2:]

        def of(conv, dtype):
            def f(x, kernel):
                return conv(x, kernel, strides, pads, groups)

            cast = partial(jax.tree.map, lambda a: a.astype(dtype))
            y, dy = jax.jvp(f, cast(primals), cast(tangents))
            return y, dy, *jax.vjp(f, *cast(primals))[1](jnp.cos(y))  # a cotangent without symmetry

        return of(_stock, x.dtype), of(convolve, x.dtype), of(convolve, jnp.float32)

    with jax.enable_x64(True):
        want, *got = derivatives(x, kernel, dx, dkernel)
    # Float32 adds up to 600 products: rounding of 1e-5.
    for result, tolerance in zip(got, (1e-11, 1e-4), strict=True):
        for name, a, b in zip(('y', 'dy', 'x', 'kernel'), result, want, strict=True):
            np.testing.assert_allclose(
                a, b, rtol=0, atol=tolerance * jnp.abs(b).max(), err_msg=name
            )


def make_layer(name, dtype=np.float32):
    """Returns x, the kernel, and the layer as a function of the two."""
    kernel_size, width, features, groups = LAYERS[name]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 7, 7, width)), dtype)
    kernel = jnp.asarray(rng.normal(size=(*kernel_size, width // groups, features)), dtype)
    pads = [(k // 2, k // 2) for k in kernel_size]
    return x, kernel, partial(convolve, strides=2, pads=pads, groups=groups)


def scalar(layer):
    return lambda x, kernel: jnp.sum(layer(x, kernel) ** 2)


@pytest.mark.parametrize('name', LAYERS)
def test_accelerators_get_the_stock_operation(name):
    x, kernel, layer = make_layer(name)
    groups = LAYERS[name][-1]
    for platform in ('tpu', 'cuda'):
        text = jax.jit(layer).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        assert re.findall(r'stablehlo\.(convolution|dot_general)', text) == ['convolution']
        assert f'feature_group_count = {groups} : i64' in text
    # On the CPU that runs this test, none has groups, forwards or backwards.
    gradient = jax.jit(jax.grad(scalar(layer), (0, 1))).lower(x, kernel).as_text()
    counts = re.findall(r'(?:feature|batch)_group_count = (\d+)', gradient)
    assert set(counts) <= {'1'}, counts


@pytest.mark.parametrize('name', LAYERS)
def test_choice_leaves_no_trace_in_compiled_step(name):
    """No branch, and no buffer for what the other form would have kept for its gradient."""
    x, kernel, layer = make_layer(name)
    chosen = _cpu_form(kernel, LAYERS[name][-1])
    compiled = [
        jax.jit(jax.grad(scalar(partial(f, **layer.keywords)), (0, 1))).lower(x, kernel).compile()
        for f in (convolve, chosen)
    ]
    got, want = (c.memory_analysis().temp_size_in_bytes for c in compiled)
    assert ' conditional(' not in compiled[0].as_text()
    assert got == want


@pytest.mark.parametrize('name', LAYERS)
def test_bfloat16_maps_stay_bfloat16(name):
    x, kernel, layer = make_layer(name, jnp.bfloat16)
    assert layer(x, kernel).dtype == jnp.bfloat16

    def gradients(x, kernel):
        y, vjp = jax.vjp(layer, x, kernel)
        return vjp(y)

    jaxpr = str(jax.make_jaxpr(gradients)(x, kernel))
    assert 'bf16[8,' in jaxpr
    assert not re.search(r'\bf(32|64)\[8,', jaxpr)


@pytest.mark.rounding
@pytest.mark.parametrize('name', LAYERS)
def test_bfloat16_gradient_is_summed_in_more_bits(name):
    """Over 32,768 pixels a sum in bfloat16 itself is off by several percent."""
    kernel_size, width, features, groups = LAYERS[name]
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(size=(8, 64, 64, width)), rng.normal(size=(8, 64, 64, features))
    kernel = rng.normal(size=(*kernel_size, width // groups, features))
    pads = [(k // 2, k // 2) for k in kernel_size]

    @jax.jit
    def kernel_gradient(x, kernel, cotangent):
        return jax.vjp(lambda k: convolve(x, k, 1, pads, groups), kernel)[1](cotangent)[0]

    halves = [jnp.asarray(a, jnp.bfloat16) for a in (x, kernel, cotangent)]
    got, want = (
        np.asarray(kernel_gradient(*(a.astype(dtype) for a in halves)), np.float32)
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    # The result is rounded to 8 bits, which is 0.1 to 0.2 %; sums of 8 bits are off by far more.
    assert np.abs(got - want).mean() < 0.005 * np.abs(want).mean()


@pytest.mark.rounding
@pytest.mark.parametrize('name', LAYERS)
def test_sharded_batches_agree(name):
    x, kernel, layer = make_layer(name)
    gradient = jax.jit(jax.grad(scalar(layer), (0, 1)))
    sharded = jax.device_put(x, split(data_mesh()))
    for a, b in zip(gradient(sharded, kernel), gradient(x, kernel), strict=True):
        # in float32, whose rounding is 1e-7 of the largest
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * jnp.abs(b).max())
    assert 'all-gather' not in gradient.lower(sharded, kernel).compile().as_text()
