"""Networks as backbones: pooled features, the map of each stride, equality, checked fields."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from se_flax.errors import UserError
from se_flax.models import create_model, fold_batch_norm, list_models, model_info
from se_flax.models.variables import variable_shapes
from se_flax.nn import SqueezeExcite

from .network_test import DISTINCT, FAMILIES, SMALLEST, family, random_variables

COMPILED = partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def backbone(name, **fields):
    """A headless network and images for it, 64 pixels where the stride is 32."""
    model = family(name, **fields).clone(num_classes=0)
    size = 16 if model_info(name).input_size == 32 else max(64, SMALLEST.get(name, 1))
    shape = (4, size, size, model.in_channels)
    return model, np.random.default_rng(0).normal(size=shape).astype('f')


@pytest.mark.parametrize('name', DISTINCT)
def test_shapes_and_dtypes_are_those_that_are_listed(name):
    model, x = backbone(name, dtype=jnp.bfloat16)
    if 'width' in FAMILIES[name]:  # the one that is listed
        model = model.clone(width=create_model(name).width)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert 'head' not in variables['params']
    maps = jax.eval_shape(partial(model.apply, method='features'), variables, x)
    listed = model_info(name).features
    assert [(f.stage, f.channels) for f in listed] == [(k, v.shape[-1]) for k, v in maps.items()]
    for feature in listed:
        shape = maps[feature.stage].shape
        assert maps[feature.stage].dtype == jnp.bfloat16
        assert f'C{feature.stride.bit_length() - 1}' == feature.stage
        if name != 'se_inception_resnet_v2':  # whose convolutions have no padding
            assert shape[1] == shape[2] == x.shape[1] // feature.stride
    pooled = jax.eval_shape(model.apply, variables, x)
    assert pooled.dtype == jnp.float32
    hidden = {'se_vgg16': 64 * 64, 'mobilenet_v3_small': 1024}  # of layers before the head
    hidden |= {'efficientnet_b0': 1280, 'efficientnet_v2_s': 1280}
    assert pooled.shape == (4, hidden.get(name, listed[-1].channels))


def test_strides_end_where_the_paper_s_do():
    ends = {name: model_info(name).features[-1].stride for name in list_models()}
    cifar = {name for name, stride in ends.items() if stride == 4}
    assert cifar == {name for name in list_models() if model_info(name).input_size == 32}
    assert {ends[name] for name in ends.keys() - cifar} == {32}


@pytest.mark.parametrize('name', ['se_resnet20_cifar', 'se_vgg16', 'mobilenet_v3_small'])
def test_the_head_takes_the_features(name):
    """A classifier's logits are its head applied to the headless network's features."""
    model, x = backbone(name)
    classifier = model.clone(num_classes=5)
    variables = random_variables(classifier, 96, 'f')
    params = dict(variables['params'])
    head = params.pop('head')
    headless = {**variables, 'params': params}

    @COMPILED
    def all_of(variables, headless, x):
        return (
            classifier.apply(variables, x),
            model.apply(headless, x),
            model.apply(headless, x, method='features'),
            classifier.apply(variables, x, method='features'),
        )

    logits, pooled, maps, same = all_of(variables, headless, x)
    # Both are the same operations in one program; a sum of up to 4096 in another order is not.
    scale = np.abs(logits).max()
    want = pooled @ head['kernel'] + head['bias'].reshape(1, -1)
    np.testing.assert_allclose(logits, want, rtol=0, atol=1e-4 * scale)
    jax.tree.map(np.testing.assert_array_equal, maps, same)
    if name == 'se_resnet20_cifar':  # the others' pooled features come from more layers
        *_, last = maps.values()
        scale = np.abs(pooled).max()
        np.testing.assert_allclose(pooled, last.mean((1, 2)), rtol=0, atol=1e-4 * scale)


def test_training_through_features():
    """BatchNorm is updated as the classifier's is; under jit and checkpoint, and folded."""
    model, x = backbone('se_preact_resnet164')
    variables = random_variables(model, 96, 'f')

    def loss(params, method, remat=False):
        def forward(params):
            apply = partial(model.apply, train=True, mutable=['batch_stats'], method=method)
            y, new = apply({**variables, 'params': params}, x)
            y = list(y.values())[-1].mean((1, 2)) if method else y
            return (y**2).sum(), new['batch_stats']

        return (jax.checkpoint(forward) if remat else forward)(params)

    gradient = COMPILED(jax.grad(loss, has_aux=True), static_argnums=(1, 2))
    want, updated = gradient(variables['params'], None)
    for remat in (False, True):
        got, stats = gradient(variables['params'], 'features', remat)
        # Float32 sums of a few thousand terms, in another order where maps are made twice.
        for a, b in zip(*map(jax.tree.leaves, ((got, stats), (want, updated))), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * max(1e-2, np.abs(b).max()))
    changed = [
        np.abs(a - b).max()
        for a, b in zip(*map(jax.tree.leaves, (updated, variables['batch_stats'])), strict=True)
    ]
    assert min(changed) > 0

    folded, folded_variables = fold_batch_norm(model, variables)
    maps = COMPILED(partial(model.apply, method='features'))(variables, x)
    got = COMPILED(partial(folded.apply, method='features'))(folded_variables, x)
    for stage, want in maps.items():
        np.testing.assert_allclose(got[stage], want, rtol=0, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize('name', list_models())
def test_equal_fields_make_equal_networks(name):
    for fields in ({}, {'se': None}, {'se': {'reduction': 8}}, {'dtype': 'bfloat16'}):
        one, other = create_model(name, **fields), create_model(name, **fields)
        assert one == other
        assert hash(one) == hash(other)
    fields = {'se': {'reduction': 8, 'use_bias': False}}
    turned = {'se': {'use_bias': False, 'reduction': 8}}
    assert create_model(name, **fields) == create_model(name, **turned)
    assert create_model(name, **fields) != create_model(name, se={'reduction': 4})


def test_an_equal_network_is_not_traced_again():
    traces = []

    @partial(jax.jit, static_argnums=0)
    def shapes(model, x):
        traces.append(model)
        return x * model.num_classes

    for reduction in (8, 8, 4):
        block = partial(SqueezeExcite, reduction=reduction)
        shapes(create_model('se_resnet8_cifar', se={'reduction': reduction}), 1.0)
        shapes(create_model('se_resnet8_cifar', se=block, stage_sizes=[1, 1, 1]), 1.0)
    assert [model.se.keywords['reduction'] for model in traces] == [8, 4]


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'num_classes': -1}, 'num_classes=-1 must be at least 0'),
        ({'num_classes': 2.5}, 'num_classes=2.5 must be an integer'),
        ({'in_channels': 0}, 'in_channels=0 must be at least 1'),
        ({'groups': 0}, 'groups=0 must be at least 1'),
        ({'width': -64}, 'width=-64 must be at least 1'),
        ({'width': float('nan')}, 'width=nan must be finite'),
        ({'width': float('inf')}, 'width=inf must be finite'),
        ({'epsilon': '1e-5'}, "epsilon='1e-5' must be a number"),
        ({'group_width': 0}, 'group_width=0 must be at least 1'),
        ({'projection_size': 2}, 'unknown projection_size 2: one of 1, 3'),
        ({'bn_group_size': -1}, 'bn_group_size=-1 must be at least 1'),
        ({'bn_momentum': 1.5}, 'bn_momentum=1.5 must be between 0 and 1'),
        ({'dropout': 1.0}, 'dropout=1.0 must be at least 0 and below 1'),
        ({'drop_path': 1.0}, 'drop_path=1.0 must be at least 0 and below 1'),
        ({'drop_path': -0.1}, 'drop_path=-0.1 must be at least 0'),
        ({'dtype': 'int32'}, "dtype='int32' must be a float dtype"),
        ({'dtype': None}, 'dtype=None must be a float dtype'),
        ({'dtype': 'flaot32'}, "dtype='flaot32' must be a float dtype"),
        ({'se': 8}, 'se=8 must be None or a callable'),
        ({'se': {'reduction': [4]}}, r'^se=\{.*\} must have no lists'),
        ({'se': SqueezeExcite()}, r'^se is a module; give what makes one, such as partial\('),
        ({'stage_sizes': ()}, r'stage_sizes=\(\) must have 1 to 4 numbers'),
        ({'stage_sizes': (3, 4, 0, 3)}, 'size in stage_sizes=0 must be at least 1'),
        ({'stage_sizes': 3}, 'stage_sizes=3 must be a sequence'),
        ({'se_stages': (6,)}, 'unknown stage in se_stages 6: one of 2, 3, 4, 5'),
        ({'placement': 'prior'}, "unknown placement 'prior': did you mean pre"),
        ({'stem': 'tiny'}, "unknown stem 'tiny': one of imagenet, deep, cifar"),
        ({'stem_strides': 3}, 'unknown stem_strides 3: one of None, 1, 2, 4'),
        ({'pool': 'pad'}, "unknown pool 'pad': did you mean padded"),
        ({'stride_in': '7x7'}, "unknown stride_in '7x7': .*1x1"),
    ],
)
def test_fields_that_no_network_can_have_are_refused_at_once(fields, message):
    with pytest.raises(UserError, match=message):
        create_model('se_resnet50', **fields)


@pytest.mark.parametrize(
    ('name', 'fields'),
    [
        ('se_inception_resnet_v2', {'stage_sizes': (1, 1)}),
        ('se_shufflenet', {'stage_sizes': (1, 1, 1, 1)}),
        ('se_preact_resnet110', {'width': 0}),
        ('se_shake_shake26_2x96d', {'stem': 0}),
        ('timm_resnetrs50', {'stem_widths': (32, 64)}),
        ('timm_resnetrs50', {'stem_widths': (32, 0, 64)}),
        ('regnet_y_200mf', {'widths': (24, 56, 152)}),
        ('regnet_y_200mf', {'widths': (24, 60, 152, 368)}),
        ('se_vgg16', {'dropout': -0.1}),
        ('mobilenet_v3_small', {'stage_sizes': (1, 1)}),
        ('mobilenet_v3_small', {'width_multiplier': 0}),
        ('efficientnet_b0', {'activation': 'swish'}),
    ],
)
def test_so_are_those_of_the_other_families(name, fields):
    with pytest.raises(UserError, match=next(iter(fields))):
        create_model(name, **fields)


@pytest.mark.parametrize('channels', [1, 4])
@pytest.mark.parametrize('name', ['se_resnet50', 'se_bn_inception', 'se_shake_even29_2x4x64d'])
def test_any_number_of_channels(name, channels):
    """Only the first kernel has another shape, and other images are refused."""
    model, x = backbone(name, in_channels=channels)
    rgb, rgb_images = backbone(name)
    shapes, of_rgb = variable_shapes(model), variable_shapes(rgb)
    differ = [path for path in shapes if shapes[path] != of_rgb[path]]
    assert len(differ) == 1
    assert 'conv' in differ[0]
    assert shapes[differ[0]][2] == channels
    with pytest.raises(UserError, match=rf'this network takes \[B, H, W, {channels}\]'):
        jax.eval_shape(model.init, jax.random.key(0), rgb_images)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    folded = jax.eval_shape(lambda v: fold_batch_norm(model, v)[1], variables)
    assert 'batch_stats' not in folded
