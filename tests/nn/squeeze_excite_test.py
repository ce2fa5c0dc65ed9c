from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from se_flax import create_model
from se_flax.errors import UserError
from se_flax.nn import Affine, BatchNorm, Conv, SqueezeExcite
from se_flax.nn.squeeze_excite import hidden_width

NUMPY_SQUEEZE = {
    'mean': lambda x: x.reshape(len(x), -1, x.shape[-1]).sum(1) / (x.shape[1] * x.shape[2]),
    'max': lambda x: np.maximum.reduce(x.reshape(len(x), -1, x.shape[-1]), axis=1),
}
NUMPY_EXCITE = {
    'sigmoid': lambda v: 1 / (1 + np.exp(-v)),
    'tanh': lambda v: 1 - 2 / (np.exp(2 * v) + 1),
    'relu': lambda v: np.where(v > 0, v, 0),
    'hard_sigmoid': lambda v: np.clip(v / 6 + 0.5, 0, 1),
}


def init(block, x, seed=0):
    """Random values everywhere, biases too, so that no term of the formula can hide."""
    variables = block.init(jax.random.key(seed), x)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: rng.normal(size=p.shape).astype(p.dtype), variables['params'])


@pytest.mark.parametrize('squeeze', NUMPY_SQUEEZE)
@pytest.mark.parametrize('excite', NUMPY_EXCITE)
@pytest.mark.parametrize('use_bias', [True, False])
def test_equals_the_papers_equations_in_numpy(squeeze, excite, use_bias):
    x = np.random.default_rng(1).normal(size=(3, 5, 4, 16))
    with jax.enable_x64(True):
        block = SqueezeExcite(4, squeeze=squeeze, excite=excite, use_bias=use_bias)
        p = init(block, jnp.asarray(x))
        got = block.apply({'params': p}, jnp.asarray(x))
    b1, b2 = (p[n]['bias'] if use_bias else 0 for n in ('reduce', 'expand'))
    assert ('bias' in p['reduce']) == use_bias
    z = NUMPY_SQUEEZE[squeeze](x)
    hidden = np.maximum(z @ p['reduce']['kernel'] + b1, 0)
    gate = NUMPY_EXCITE[excite](hidden @ p['expand']['kernel'] + b2)
    np.testing.assert_allclose(got, x * gate[:, None, None, :], rtol=1e-12, atol=1e-12)


class OurSE(nn.Module):
    """What a user may write."""

    @nn.compact
    def __call__(self, x):
        return x * nn.sigmoid(nn.Dense(x.shape[-1])(x.mean((1, 2), keepdims=True)))


@pytest.mark.parametrize(
    ('se', 'hidden'),
    [
        (SqueezeExcite, 2),
        (partial(SqueezeExcite, reduction=8), 4),
        (partial(SqueezeExcite, hidden_multiple=8), 8),
        (OurSE, None),
        (lambda **fields: OurSE(**fields), None),
    ],
)
def test_a_block_hands_down_what_the_reduction_divides(se, hidden):
    """32 channels here, and a user's own module without the field still works."""

    layers = create_model('regnet_y_200mf', se=se).layers(False, stage=2, channels=32)

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layers.recalibrate(x)

    params = Block().init(jax.random.key(0), jnp.ones((1, 2, 2, 192)))['params']['se']
    assert hidden is None or params['reduce']['kernel'].shape == (192, hidden)


def test_the_gates_start_where_the_bias_says():
    block, x = SqueezeExcite(4, excite_bias=2.0), jnp.zeros((2, 3, 3, 16))
    y, variables = block.init_with_output(jax.random.key(0), x + 1e-6)
    np.testing.assert_allclose(y, 1e-6 / (1 + np.exp(-2)), rtol=1e-5)  # the map opens no gate
    assert (variables['params']['reduce']['bias'] == 0).all()
    with pytest.raises(UserError, match='excite_bias=2.0 needs use_bias=True'):
        block.clone(use_bias=False).init(jax.random.key(0), x)


def test_no_squeeze_gates_each_position_by_its_own_channels():
    x = np.random.default_rng(1).normal(size=(2, 3, 5, 8))
    block = SqueezeExcite(4, squeeze=None)
    with jax.enable_x64(True):
        p = init(block, x)
        got = block.apply({'params': p}, x)
        one = block.apply({'params': p}, x[1:, 2:3, 4:5])
    np.testing.assert_allclose(got[1:, 2:3, 4:5], one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('squeeze', ['mean', 'max'])
def test_no_squeeze_equals_se_on_1x1_and_on_constant_maps(squeeze):
    x = np.random.default_rng(1).normal(size=(2, 1, 1, 8))
    with jax.enable_x64(True):
        p = init(SqueezeExcite(4), x)
        for image in (x, np.broadcast_to(x, (2, 3, 4, 8))):
            a = SqueezeExcite(4, squeeze=squeeze).apply({'params': p}, image)
            b = SqueezeExcite(4, squeeze=None).apply({'params': p}, image)
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_large_b2_and_zero_w2_is_the_identity_and_zero_b2_halves():
    x = np.random.default_rng(1).normal(size=(2, 3, 3, 32)).astype('f')
    p = init(SqueezeExcite(), x)
    p['expand']['kernel'] = np.zeros_like(p['expand']['kernel'])
    for bias, factor in ((50.0, 1.0), (0.0, 0.5)):
        p['expand']['bias'] = np.full_like(p['expand']['bias'], bias)
        np.testing.assert_array_equal(SqueezeExcite().apply({'params': p}, x), factor * x)


def test_gate_is_sown_in_float32_and_bf16_stays_bf16():
    x = jnp.ones((2, 3, 3, 32), jnp.bfloat16)
    block = SqueezeExcite()
    p = init(block, x)
    y, sown = block.apply({'params': p}, x, mutable=['intermediates'])
    (gate,) = sown['intermediates']['gate']
    assert (y.dtype, y.shape) == (jnp.bfloat16, x.shape)
    assert (gate.dtype, gate.shape) == (jnp.float32, (2, 1, 1, 32))
    assert {leaf.dtype for leaf in jax.tree.leaves(p)} == {jnp.dtype('float32')}


@pytest.mark.parametrize('squeeze', ['mean', 'max', None])
@pytest.mark.parametrize('use_running_average', [False, True])
def test_behind_batch_norm_the_map_need_not_be_there(squeeze, use_running_average):
    """SE of the coefficients is SE of the map, with the same gradients."""
    rng = np.random.default_rng(2)

    class Both(nn.Module):
        lazy: bool

        @nn.compact
        def __call__(self, x):
            norm = BatchNorm(use_running_average, group_size=2, dtype=x.dtype, name='norm')
            se = SqueezeExcite(4, squeeze=squeeze, name='se')
            y = se(norm.affine(x) if self.lazy else norm(x))
            return y.map() if isinstance(y, Affine) else y

    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(1, 2, size=(4, 5, 3, 16)))
        variables = Both(True).init(jax.random.key(0), x)
        variables = jax.tree.map(lambda v: jnp.asarray(rng.uniform(0.5, 2, v.shape)), variables)

        def run(lazy, params, x):
            given = {**variables, 'params': params}
            y, _ = Both(lazy).apply(given, x, mutable=['batch_stats'])
            return jnp.cos(3 * y).sum(), y

        (lazy, plain) = (
            jax.grad(partial(run, lazy), (0, 1), has_aux=True)(variables['params'], x)
            for lazy in (True, False)
        )
    # The map of no squeeze is gated in its own dtype either way.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9), lazy, plain)


class Unit(nn.Module):
    @nn.compact
    def __call__(self, x):
        norm = BatchNorm(use_running_average=False, dtype=x.dtype)
        y = norm.affine(Conv(16, dtype=x.dtype)(x))
        return nn.relu(SqueezeExcite(4, squeeze='max')(y).map() + x)


def test_the_gradient_of_the_maximum_is_there_however_xla_rounds():
    """At this level XLA computes the map twice and rounds it differently."""
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(32, 28, 28, 16))
        variables = jax.eval_shape(Unit().init, jax.random.key(0), x)
        params = init(Unit(), x)

        @partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
        def gradients(params, x):
            def loss(params, x):
                rest = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), variables)
                y, _ = Unit().apply({**rest, 'params': params}, x, mutable=['batch_stats'])
                return (y**2).mean()

            return jax.grad(loss, (0, 1))(params, x)

        want = gradients(params, x)
        got = gradients(*jax.tree.map(lambda v: v.astype(jnp.float32), (params, x)))
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        assert np.isfinite(b).all()
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())  # float32 rounding


@given(st.integers(1, 2048), st.integers(1, 32), st.sampled_from([1, 2, 8]))
@settings(deadline=None)
def test_hidden_width_is_a_multiple_near_the_quotient(channels, reduction, multiple):
    width = hidden_width(channels, reduction, multiple)
    assert width % multiple == 0
    if multiple > 1:
        assert width >= max(multiple, 0.9 * channels / reduction)
        assert width <= max(multiple, channels / reduction + multiple)
    else:
        assert width == channels // reduction


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'squeeze': 'avg'}, "unknown squeeze 'avg'"),
        ({'excite': 'tan'}, 'did you mean tanh?'),
        (
            {'reduction': 17},
            'reduction=17 must be between 1 and the number of channels, 16; use 16',
        ),
        ({'reduction': 0}, 'reduction=0 must be at least 1'),
        ({'reduction': 8.0}, 'reduction=8.0 must be an integer'),
        ({'hidden_multiple': 0}, 'hidden_multiple=0 must be at least 1'),
        ({'reduction': 5, 'base_channels': 4}, 'number of channels, 4; use 4'),
        ({'activation': 'swish'}, "unknown activation 'swish'"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(UserError, match=message.replace('?', r'\?')):
        SqueezeExcite(**fields).init(jax.random.key(0), jnp.ones((1, 2, 2, 16)))
