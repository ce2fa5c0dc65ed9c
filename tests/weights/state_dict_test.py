"""State dicts of public code bases: where each tensor lands, and what is refused."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from se_flax.errors import UserError
from se_flax.weights import from_torch
from se_flax.weights.fill import to_kernel

BASIC, BOTTLENECK = (2, 2, 2, 2), (3, 4, 6, 3)


@pytest.mark.parametrize(
    ('name', 'sizes', 'convs', 'kind'),
    [
        ('timm_resnet18', BASIC, 2, {'style': 'timm'}),
        ('timm_seresnet18', BASIC, 2, {'style': 'timm', 'se': True}),
        ('timm_seresnet50', BOTTLENECK, 3, {'style': 'timm', 'se': True}),
        ('timm_legacy_seresnet18', BASIC, 2, {'style': 'cadene', 'se': True}),
        ('timm_legacy_seresnext26_32x4d', BASIC, 3, {'style': 'cadene', 'se': True}),
        ('se_resnext50_32x4d', BOTTLENECK, 3, {'style': 'cadene', 'se': True}),
    ],
)
def test_every_tensor_of_a_resnet_lands_once(weights, assert_equal, name, sizes, convs, kind):
    flat = weights.flat_variables(name, width=16)
    state = weights.to_torch(weights.resnet_modules(sizes, convs, **kind), flat)
    assert_equal(from_torch(name, state, width=16), flat)


@pytest.mark.parametrize(('name', 'style'), [('senet154', 'cadene'), ('timm_senet154', 'timm')])
def test_deep_stems(weights, assert_equal, name, style):
    """SENet-154's stem and first units; its 50 units are alike."""
    fields = {'stage_sizes': (1, 1), 'width': 32, 'se': None}
    flat = weights.flat_variables(name, **fields)
    modules = weights.resnet_modules((1, 1), 3, style=style, deep=True)
    assert_equal(from_torch(name, weights.to_torch(modules, flat), **fields), flat)


def test_cifar_networks(weights, assert_equal):
    assert_equal(from_torch('resnet8_cifar', weights.state, **weights.fields), weights.flat)
    flat = weights.flat_variables('se_resnet20_cifar')
    state = weights.to_torch(weights.cifar_modules((3, 3, 3), se=True), flat)
    assert_equal(from_torch('se_resnet20_cifar', state), flat)


def test_a_kernel_computes_the_same_convolution(weights):
    """By hand: output channel o at a pixel is the sum over i, h, w of the OIHW weight."""
    state = weights.state
    variables = from_torch('resnet8_cifar', state, **weights.fields)
    kernel = variables['params']['conv_stem']['kernel']
    image = np.random.default_rng(1).standard_normal((5, 5, 3))
    with jax.enable_x64(True):
        got = jax.lax.conv_general_dilated(
            image[None],
            kernel.astype(float),
            (1, 1),
            'VALID',
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )[0]
    weight = state['features.init_block.conv.weight'].astype(float)
    for y, x in [(0, 0), (2, 1), (1, 2)]:
        want = np.einsum('oihw,hwi->o', weight, image[y : y + 3, x : x + 3])
        np.testing.assert_allclose(got[y, x], want, rtol=1e-12, atol=1e-12)


def test_another_head(weights, assert_equal):
    flat = weights.flat_variables('resnet8_cifar', 3, **weights.fields)
    state = weights.to_torch(weights.cifar_modules(), flat)
    assert_equal(from_torch('resnet8_cifar', state, **weights.fields), flat)


def test_fields_may_be_lists(weights, assert_equal):
    flat = weights.flat_variables('resnet8_cifar', stage_sizes=(1, 1))
    state = weights.to_torch(weights.cifar_modules((1, 1)), flat)
    assert_equal(from_torch('resnet8_cifar', state, stage_sizes=[1, 1]), flat)


def test_half_and_double_become_float32(weights):
    for dtype in (np.float16, np.float64, jax.numpy.bfloat16):
        state = {key: value.astype(dtype) for key, value in weights.state.items()}
        head = from_torch('resnet8_cifar', state, **weights.fields)['params']['head']['kernel']
        assert head.dtype == np.float32
        np.testing.assert_array_equal(head, state['output.weight'].astype(np.float32).T)


def test_biases_of_convolutions_go_into_the_means(weights):
    """pytorchcv's BN-Inception has them; the network with them computes the same."""
    plain = 'features.stage1.unit1.body.conv1'
    state = dict(weights.state)
    bias = np.arange(4, dtype=np.float32)
    state[f'{plain}.conv.bias'] = bias
    got = flatten_dict(from_torch('resnet8_cifar', state, **weights.fields), sep='/')
    want = weights.flat['batch_stats/stage2_block1/norm1/mean'] - bias
    np.testing.assert_array_equal(got.pop('batch_stats/stage2_block1/norm1/mean'), want)
    assert all((value == weights.flat[path]).all() for path, value in got.items())


def test_vgg_flattens_its_map_in_another_order():
    linear = np.random.default_rng(0).standard_normal((2, 512 * 7 * 7)).astype(np.float32)
    path, shape = 'params/fc6/kernel', (7 * 7 * 512, 2)
    kernel = to_kernel(path, linear, shape)
    image = np.random.default_rng(1).standard_normal((7, 7, 512))
    want = linear @ image.transpose(2, 0, 1).ravel()
    np.testing.assert_allclose(image.ravel() @ kernel, want, rtol=1e-10)
    conv = linear.reshape(2, 512, 7, 7)  # timm's form of the same layer
    again = to_kernel(path, conv, shape)
    np.testing.assert_array_equal(again, kernel)


def test_faults_are_listed_together(weights):
    state = dict(weights.state)
    del state['features.stage1.unit1.body.conv1.conv.weight']
    del state['features.stage2.unit1.body.conv1.bn.running_var']
    state['features.stage1.unit1.se.conv1.weight'] = np.zeros((2, 4, 1, 1), np.float32)
    state['features.init_block.conv.weight'] = np.zeros((4, 3, 7, 7), np.float32)
    for i in range(6):
        state[f'features.stage1.unit{i + 2}.body.conv1.conv.weight'] = np.zeros((4, 4, 3, 3))
    with pytest.raises(UserError) as caught:
        from_torch('resnet8_cifar', state, **weights.fields)
    assert str(caught.value) == (
        "pytorchcv's weights do not fit resnet8_cifar: "
        '2 missing (batch_stats/stage3_block1/norm1/var, params/stage2_block1/conv1/kernel); '
        '7 unexpected (features.stage1.unit1.se.conv1.weight, '
        'features.stage1.unit2.body.conv1.conv.weight, '
        'features.stage1.unit3.body.conv1.conv.weight, '
        'features.stage1.unit4.body.conv1.conv.weight, and 3 more); '
        '1 with the wrong shape (features.init_block.conv.weight is [7, 7, 3, 4], '
        'params/conv_stem/kernel needs [3, 3, 3, 4])'
    )


def test_two_names_for_one_place(weights):
    state = dict(weights.state)
    state['output.fc.bias'] = state['output.bias']
    with pytest.raises(UserError, match=r'1 with the same path \(output.bias and output.fc.bias\)'):
        from_torch('resnet8_cifar', state, **weights.fields)


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        (np.full((10,), np.nan), 'output.bias contains NaN or infinity'),
        (np.array([np.inf] + [0.0] * 9), 'output.bias contains NaN or infinity'),
        (np.full((10,), 1e300), 'output.bias contains NaN or infinity'),  # too large for float32
        (np.zeros(10, np.int32), 'output.bias has dtype int32, not a float'),
        (np.zeros(10, np.complex64), 'output.bias has dtype complex64, not a float'),
        (np.zeros(10, object), 'output.bias has dtype object, not a float'),
        ([0.0] * 10, 'output.bias is not a tensor but a list'),
    ],
)
def test_numbers_that_are_none(weights, value, message):
    with pytest.raises(UserError, match=message):
        from_torch('resnet8_cifar', {**weights.state, 'output.bias': value}, **weights.fields)


@pytest.mark.parametrize(
    ('asked', 'network', 'sizes', 'kind', 'message'),
    [
        (
            *('timm_seresnet50', 'se_resnet50', BOTTLENECK, {'style': 'cadene', 'se': True}),
            "cadene's weights do not fit timm_seresnet50: their network has pool='caffe', "
            "stride_in='1x1', this one has pool='padded', stride_in='3x3'; they fit se_resnet50",
        ),
        (
            *('se_resnet50', 'timm_seresnet50', BOTTLENECK, {'style': 'timm', 'se': True}),
            "timm's weights do not fit se_resnet50: their network has pool='padded', "
            "stride_in='3x3', this one has pool='caffe', stride_in='1x1'; they fit timm_seresnet50",
        ),
    ],
)
def test_weights_of_another_lineage_are_refused(weights, asked, network, sizes, kind, message):
    state = weights.to_torch(
        weights.resnet_modules(sizes, 3, **kind), weights.flat_variables(network)
    )
    with pytest.raises(UserError) as caught:
        from_torch(asked, state)
    assert str(caught.value) == message


def test_the_lineage_of_plain_and_small_networks(weights):
    flat = weights.flat_variables('timm_resnet18')
    state = weights.to_torch(weights.resnet_modules(BASIC, 2, style='timm'), flat)
    with pytest.raises(UserError, match=r"pool='caffe'; they fit timm_resnet18$"):
        from_torch('resnet18', state)
    with pytest.raises(UserError, match=r'timm_resnet34.* 80 missing .*; they fit timm_resnet18$'):
        from_torch('timm_resnet34', state)
    from_torch('resnet18', state, pool='padded')  # the same network by another name

    flat = weights.flat_variables('se_resnet18')
    state = weights.to_torch(weights.resnet_modules(BASIC, 2, style='cadene', se=True), flat)
    with pytest.raises(UserError, match=r'extra_relu=True.*fit timm_legacy_seresnet18$'):
        from_torch('se_resnet18', state)


def test_the_stride_of_torchvisions_bottlenecks_must_be_said(weights):
    """Nothing in the parameters shows it, so a field that is wrong must not pass."""
    fields = {'stage_sizes': (1, 1), 'width': 4, 'pool': 'padded'}
    flat = weights.flat_variables('resnet50', **fields)
    state = weights.to_torch(weights.resnet_modules((1, 1), 3, style='timm'), flat)
    with pytest.raises(UserError, match="has stride_in='3x3', this one has stride_in='1x1'"):
        from_torch('resnet50', state, **fields)
    from_torch('resnet50', state, stride_in='3x3', **fields)


@pytest.mark.parametrize(
    ('state', 'message'),
    [
        ({}, 'no supported network of cadene, pytorchcv, timm, torchvision has names such as none'),
        ({'a.b': np.zeros(1)}, 'torchvision has names such as a'),
        (3, 'a state dict must be a mapping of names to tensors, not int'),
        ({3: np.zeros(1)}, 'must be strings, not 3'),
        (
            {'features.7.weight': np.zeros(1)},
            r"torchvision's names for a VGG.* resnet50 is a ResNet",
        ),
        ({'conv1.weight': np.zeros((64, 3, 7, 7))}, 'has no head'),
    ],
)
def test_what_is_no_state_dict_of_such_a_network(state, message):
    with pytest.raises(UserError, match=message):
        from_torch('resnet50', state)


def test_pytorchcvs_bottleneck_before_activation(weights):
    modules = {'features.init_block': 'conv_stem', 'output': 'head'}
    fields = {'stage_sizes': (1, 1, 1)}
    state = weights.to_torch(modules, weights.flat_variables('preact_resnet164', **fields))
    with pytest.raises(UserError, match=r"has stride_in='3x3', this one has stride_in='1x1'$"):
        from_torch('preact_resnet164', state, **fields)


def test_unknown_names(weights):
    with pytest.raises(UserError, match='unknown model .* did you mean resnet8_cifar'):
        from_torch('resnet8_cifa', weights.state)
    with pytest.raises(UserError, match='unknown field of resnet8_cifar'):
        from_torch('resnet8_cifar', weights.state, widht=4)
