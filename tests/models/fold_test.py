from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from se_flax import create_model, fold_batch_norm
from se_flax.errors import UserError

SMALL = {  # every way in which BatchNorm occurs
    'se_resnet50': (64, {'stage_sizes': (1, 1, 1, 1)}),
    'timm_resnetrs50': (32, {'stage_sizes': (1, 1)}),  # one of the stem's pool
    'regnet_y_200mf': (32, {'stage_sizes': (1, 2)}),
    'se_inception_resnet_v2': (75, {'stage_sizes': (1, 1, 2)}),  # another epsilon
    'se_shufflenet': (32, {'stage_sizes': (2, 1, 1)}),  # grouped and depthwise
    'se_preact_resnet164': (16, {'stage_sizes': (1, 1, 1)}),  # none behind its convolution
    'se_shake_shake26_2x96d': (16, {'stage_sizes': (1, 1, 1), 'width': 32}),  # one of a join
    'mobilenet_v3_small': (32, {'stage_sizes': (1, 1, 1, 1, 2)}),  # activations before SE
    'efficientnet_v2_s': (32, {'stage_sizes': (1, 1, 1, 1, 1, 2)}),  # one before the head
}


def images_of(size, number=2):
    return np.random.default_rng(0).normal(size=(number, size, size, 3))


@pytest.mark.parametrize(
    'name',
    [pytest.param(n, marks=pytest.mark.slow if 'inception' in n else ()) for n in SMALL],
)
def test_is_the_same_network_without_batch_norm(name):
    size, fields = SMALL[name]
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        kind = path[-1].key
        if kind in ('var', 'scale'):
            return rng.uniform(0.5, 2, leaf.shape)
        fan_in = np.prod(leaf.shape[:-1]) if kind == 'kernel' else 100
        return rng.normal(0, 2 * fan_in**-0.5, leaf.shape)

    with jax.enable_x64(True):
        model = create_model(name, 10, **fields, dtype=jnp.float64)
        images = jnp.asarray(images_of(size))
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)
        variables = jax.tree_util.tree_map_with_path(draw, shapes)
        folded, folded_variables = fold_batch_norm(model, variables)
        pairs = (model, variables), (folded, folded_variables)
        traced = [jax.jit(each.apply).trace(values, images) for each, values in pairs]
        programs = [each.lower().compile() for each in traced]
        want, got = (run(values, images) for run, (_, values) in zip(programs, pairs, strict=True))
        operations = [str(each.jaxpr) for each in traced]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9 * np.abs(want).max())
    assert np.ptp(want, axis=0).max() > 1e-3 * np.abs(want).max()  # the images do matter
    assert ['sqrt' in text for text in operations] == [True, False]


def test_float32_logits_are_equal_to_1e_5():
    model = create_model('se_resnet8_cifar', bn_momentum=0.0)
    images = images_of(32, 16).astype('f')
    variables = jax.jit(model.init)(jax.random.key(0), images)
    train = jax.jit(partial(model.apply, train=True, mutable=['batch_stats']))
    variables = {**variables, **train(variables, images)[1]}  # statistics of these images
    folded, folded_variables = fold_batch_norm(model, variables)
    want = jax.jit(model.apply)(variables, images)
    got = jax.jit(folded.apply)(folded_variables, images)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_a_folded_network_is_not_trained():
    model = create_model('se_resnet8_cifar', folded=True)
    with pytest.raises(UserError, match='no BatchNorm to train: use train=False'):
        model.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)), train=True)


def test_a_folded_network_stays_as_it_is():
    model = create_model('se_resnet8_cifar', folded=True)
    assert fold_batch_norm(model, {'params': {}}) == (model, {'params': {}})


def test_variables_of_another_network_are_named():
    model = create_model('se_resnet8_cifar')
    variables = jax.eval_shape(model.init, jax.random.key(0), images_of(32))
    with pytest.raises(UserError, match=r'do not fit ResNet: \d+ missing \(batch_stats/.*/mean'):
        fold_batch_norm(model, {'params': variables['params']})
    plain = model.clone(se=None)
    with pytest.raises(UserError, match=r'do not fit ResNet: \d+ unexpected \(params/.*/se/'):
        fold_batch_norm(plain, variables)
