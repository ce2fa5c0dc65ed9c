"""Stochastic depth: which units it drops, for which images, and what is left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from se_flax.errors import UserError
from se_flax.models import create_model

from .network_test import random_variables

# A member a family with two units, the second beside its plain input; its name, whether a ReLU
# follows the sum, and its share of the rate.
FAMILIES = {
    'se_resnet50': ({'stage_sizes': (2,), 'width': 8}, 'stage2_block{}', True, 1),
    'se_resnet20_cifar': ({'stage_sizes': (2,)}, 'stage2_block{}', True, 1),
    'se_preact_resnet110': ({'stage_sizes': (2,)}, 'stage2_block{}', False, 1),
    'se_shufflenet': ({'stage_sizes': (2,)}, 'stage2_block{}', True, 1),
    'se_shake_shake26_2x96d': ({'stage_sizes': (2,), 'width': 16}, 'stage2_block{}', False, 1),
    'se_inception_resnet_v2': ({'stage_sizes': (2, 1, 1)}, 'block35_{}', True, 1 / 3),
}
RATE, KEPT = 0.4, jnp.array([True, False, True])
RNGS = {'dropout': jax.random.key(1), 'shake': jax.random.key(2)}


def small(name, **fields):
    # In frozen BatchNorm no image depends on another.
    return create_model(name, 10, bn_frozen=True, **FAMILIES[name][0], **fields)


def image(name):
    size = 75 if 'inception' in name else 32
    return jax.random.normal(jax.random.key(0), (len(KEPT), size, size, 3))


@pytest.mark.parametrize('name', FAMILIES)
def test_a_dropped_branch_leaves_the_shortcut_and_a_kept_one_is_scaled(name, monkeypatch):
    monkeypatch.setattr(jax.random, 'bernoulli', lambda key, p, shape: KEPT.reshape(shape))
    _, unit, relu, share = FAMILIES[name]
    x, units = image(name), [unit.format(1), unit.format(2)]
    variables = random_variables(small(name), x.shape[1])
    options = {'train': True, 'rngs': RNGS, 'mutable': ['batch_stats', 'intermediates']}
    options['capture_intermediates'] = lambda module, _: module.name in units

    @jax.jit  # one program, in which XLA computes once what the two have in common
    def maps(variables, x):
        networks = small(name), small(name, drop_path=RATE)
        seen = [network.apply(variables, x, **options)[1] for network in networks]
        return [[each['intermediates'][unit]['__call__'][0] for unit in units] for each in seen]

    (first, plain), (same, got) = maps(variables, x)
    np.testing.assert_array_equal(same, first)  # the first unit is always kept
    scale = KEPT.reshape(-1, 1, 1, 1) / (1 - share * RATE)
    want = first + scale * (plain - first)  # below 0 where the ReLU has hidden a sum
    scale = np.abs(want).max()
    np.testing.assert_allclose(got, nn.relu(want) if relu else want, rtol=1e-4, atol=1e-5 * scale)
    np.testing.assert_array_equal(got[1], first[1])


@pytest.mark.parametrize(
    ('name', 'units'),
    [('se_resnet50', 8), ('se_preact_resnet110', 6), ('se_inception_resnet_v2', 7)],
)
def test_the_rate_is_linear_in_depth(name, units, monkeypatch):
    kept = []

    def bernoulli(key, p, shape):
        kept.append(p)
        return jnp.ones(shape, bool)

    monkeypatch.setattr(jax.random, 'bernoulli', bernoulli)
    sizes = {8: (1, 2, 4, 1), 6: (2, 3, 1), 7: (2, 3, 2)}[units]
    model = create_model(name, 10, stage_sizes=sizes, drop_path=RATE)
    x = image(name)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    apply = lambda v, x: model.apply(v, x, train=True, rngs=RNGS, mutable=['batch_stats'])  # noqa: E731
    jax.eval_shape(apply, variables, x)
    np.testing.assert_allclose(kept, 1 - np.linspace(0, RATE, units)[1:], rtol=1e-6)


def test_each_image_draws_with_the_rate():
    layers = create_model('resnet50').layers(True, stage=2)._replace(drop_rate=RATE)

    class Drop(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layers.drop_path(x)

    count = 10_000
    y = np.asarray(Drop().apply({}, jnp.ones((count, 2, 2, 3)), rngs=RNGS))
    assert (y == y[:, :1, :1, :1]).all()
    drawn = y[:, 0, 0, 0]
    np.testing.assert_allclose(np.unique(drawn), [0, 1 / (1 - RATE)], rtol=1e-6)
    deviation = np.sqrt(RATE * (1 - RATE) / count)
    assert abs((drawn == 0).mean() - RATE) < 5 * deviation


@pytest.mark.parametrize('name', ['se_resnet20_cifar', 'se_shufflenet'])
def test_evaluation_drops_nothing(name):
    x = image(name)
    variables = jax.eval_shape(small(name).init, jax.random.key(3), x)
    plain, dropping = (
        str(jax.make_jaxpr(small(name, drop_path=rate).apply)(variables, x)) for rate in (0.0, 0.9)
    )
    assert dropping == plain


def test_a_network_without_residual_units_has_no_such_field():
    with pytest.raises(UserError, match="unknown field of vgg16 'drop_path'"):
        create_model('vgg16', drop_path=0.1)
