"""Caffe models written here byte by byte: names, blobs, colours and the order of classes."""

import struct

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from se_flax.errors import MissingError, UserError
from se_flax.models import bn_inception, create_model
from se_flax.models.variables import variable_shapes
from se_flax.weights import from_caffe
from se_flax.weights.caffe import MODELS, class_order, read_caffemodel
from se_flax.weights.names import CAFFE_NAMINGS

SIZES = {'50': (3, 4, 6, 3), '101': (3, 4, 23, 3), '152': (3, 8, 36, 3)}
DEEP = ('conv1_1/3x3_s2', 'conv1_2/3x3', 'conv1_3/3x3')


def varint(n):
    data = b''
    while n > 127:
        data, n = data + bytes([n & 127 | 128]), n >> 7
    return data + bytes([n])


def field(number, data):
    """A field of bytes, text or a message."""
    data = data.encode() if isinstance(data, str) else data
    return varint(number << 3 | 2) + varint(len(data)) + data


def blob(array, legacy=False):
    array = np.asarray(array)
    double = array.dtype == np.float64
    numbers = field(8 if double else 5, array.tobytes())
    if legacy:
        sides = (1,) * (4 - array.ndim) + array.shape
        return b''.join(varint(k << 3) + varint(n) for k, n in enumerate(sides, 1)) + numbers
    return field(7, field(1, b''.join(map(varint, array.shape)))) + numbers


def caffemodel(layers, legacy=False):
    """A NetParameter of `(name, blobs)`, with a layer that has none and fields we do not know."""
    data = field(1, 'a net') + field(100, field(1, 'data') + field(2, 'Input'))
    for name, blobs in layers:
        inside = field(1, name) + field(2, 'Convolution') + field(3, 'bottom')
        inside += b''.join(field(7, blob(array, legacy)) for array in blobs)
        data += field(100, inside + varint(10 << 3) + varint(1))
    return data


def convolutions(name):
    """Names of a released model's convolutions and dense layers in its prototxt, and ours."""
    if name == 'se_bn_inception':
        yield from (('conv1/7x7_s2', 'conv1'), ('conv2/3x3_reduce', 'conv2_reduce'))
        yield 'conv2/3x3', 'conv2'
        for module in bn_inception.MODULES:
            theirs, ours = f'inception_{module}', f'inception_{module}'
            layers = ['3x3_reduce', '3x3', 'double3x3_reduce']
            if module not in ('3c', '4e'):
                layers += ['1x1', 'pool_proj']
            yield from ((f'{theirs}/{layer}', f'{ours}/conv_{layer}') for layer in layers)
            yield f'{theirs}/double3x3a', f'{ours}/conv_double3x3_1'
            yield f'{theirs}/double3x3b', f'{ours}/conv_double3x3_2'
            yield f'{theirs}_1x1_down', f'{ours}/se/reduce'
            yield f'{theirs}_1x1_up', f'{ours}/se/expand'
    else:
        if name == 'senet154':
            yield from ((layer, f'conv_stem{k}') for k, layer in enumerate(DEEP, start=1))
        else:
            yield 'conv1/7x7_s2', 'conv_stem'
        sizes = next((v for k, v in SIZES.items() if f'net{k}' in name or f'xt{k}' in name), None)
        for stage, size in enumerate(sizes or SIZES['152'], start=2):
            for i in range(1, size + 1):
                theirs, ours = f'conv{stage}_{i}', f'stage{stage}_block{i}'
                yield f'{theirs}_1x1_reduce', f'{ours}/conv1'
                yield f'{theirs}_3x3', f'{ours}/conv2'
                yield f'{theirs}_1x1_increase', f'{ours}/conv3'
                yield f'{theirs}_1x1_down', f'{ours}/se/reduce'
                yield f'{theirs}_1x1_up', f'{ours}/se/expand'
                if i == 1:
                    yield f'{theirs}_1x1_proj', f'{ours}/conv_proj'
    yield 'classifier', 'head'


@pytest.mark.parametrize('name', MODELS)
def test_layers_of_every_released_model(name):
    model = create_model(name)
    naming = next(naming for naming in CAFFE_NAMINGS if naming.network is type(model))
    ours = [next(naming.paths(layer)) for layer, _ in convolutions(name)]
    assert ours == [path for _, path in convolutions(name)]
    kernels = [path for path in variable_shapes(model) if path.endswith('/kernel')]
    assert sorted(kernels) == sorted(f'params/{path}/kernel' for path in ours)


def layers_of(name, flat, factor=999.0):
    """A released model's layers from flat variables that are already in Caffe's order."""
    for layer, path in convolutions(name):
        kernel = flat[f'params/{path}/kernel']
        if kernel.ndim == 2 and '/se/' in path:
            kernel = kernel[None, None]
        weight = np.einsum('hwio->oihw', kernel) if kernel.ndim == 4 else kernel.T
        bias = flat.get(f'params/{path}/bias')
        yield layer, [np.ascontiguousarray(weight)] + ([] if bias is None else [bias])
        if bias is None:
            parent, slash, conv = path.rpartition('/')
            norm = parent + slash + conv.replace('conv', 'norm', 1)
            mean, var = (flat[f'batch_stats/{norm}/{leaf}'] for leaf in ('mean', 'var'))
            yield f'{layer}/bn', [mean * factor, var * factor, np.array([factor], np.float32)]
            yield f'{layer}/bn/scale', [flat[f'params/{norm}/{leaf}'] for leaf in ('scale', 'bias')]


FACTOR = 1024.0  # a power of two, so that dividing gives back every bit


@pytest.fixture
def shallow(monkeypatch):
    """BN-Inception has three of its ten modules, one of each kind."""

    def forget():
        variable_shapes.cache_clear()
        jax.clear_caches()

    modules = {name: bn_inception.MODULES[name] for name in ('3a', '3c', '5b')}
    monkeypatch.setattr(bn_inception, 'MODULES', modules)
    forget()
    yield
    forget()


@pytest.fixture
def inception(weights, shallow):
    flat = weights.flat_variables('se_bn_inception')
    return flat, list(layers_of('se_bn_inception', flat, FACTOR))


def test_a_whole_model(inception, tmp_path):
    flat, layers = inception
    (tmp_path / 'net.caffemodel').write_bytes(caffemodel(layers))
    got = flatten_dict(from_caffe('se_bn_inception', tmp_path / 'net.caffemodel'), sep='/')
    assert got.keys() == flat.keys()
    for path, value in flat.items():
        if path == 'params/conv1/kernel':
            value = value[:, :, ::-1]  # BGR to RGB
        if path.startswith('params/head'):
            value = value[..., class_order()]
        np.testing.assert_array_equal(got[path], value, err_msg=path)


def test_colours_and_classes_by_the_network_itself(inception, tmp_path):
    """The same arrays, without any change of order, take BGR images and give Caffe's classes."""
    flat, layers = inception
    (tmp_path / 'net.caffemodel').write_bytes(caffemodel(layers))
    model = create_model('se_bn_inception')
    variables = from_caffe('se_bn_inception', tmp_path / 'net.caffemodel')
    rgb = np.random.default_rng(0).uniform(-120, 120, (2, 64, 64, 3)).astype(np.float32)
    apply = jax.jit(model.apply)
    got = np.asarray(apply(variables, rgb))
    theirs = np.asarray(apply(unflatten_dict(flat, sep='/'), rgb[..., ::-1]))
    # Section 2.10 of the fact sheet: Caffe's 489 is the usual 65, 360 is 970 and 170 is 230.
    scale = np.abs(got).max()
    for caffe_index, usual in ((489, 65), (360, 970), (170, 230)):
        # Float32 adds the colours in another order, and a dozen layers follow.
        close = {'rtol': 0, 'atol': 1e-4 * scale}
        np.testing.assert_allclose(got[:, usual], theirs[:, caffe_index], **close)
    assert np.abs(got - theirs).max() > 0.1 * scale


def test_other_classes_keep_their_order(weights, shallow, tmp_path):
    flat = weights.flat_variables('se_bn_inception', 7)
    layers = layers_of('se_bn_inception', flat)
    (tmp_path / 'net.caffemodel').write_bytes(caffemodel(layers))
    got = from_caffe('se_bn_inception', tmp_path / 'net.caffemodel')
    np.testing.assert_array_equal(got['params']['head']['kernel'], flat['params/head/kernel'])


def test_the_order_is_a_permutation():
    order = class_order()
    assert sorted(order) == list(range(1000))
    assert (order[65], order[970], order[230]) == (489, 360, 170)


def test_blobs_of_old_and_double_files(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {'conv': [rng.standard_normal((4, 2, 3, 3)), rng.standard_normal(4)]}
    arrays['dense'] = [rng.standard_normal((5, 4)).astype(np.float32)]
    for legacy in (False, True):
        (tmp_path / 'net.caffemodel').write_bytes(caffemodel(arrays.items(), legacy))
        got = read_caffemodel(tmp_path / 'net.caffemodel')
        assert got.keys() == arrays.keys()
        for name, blobs in arrays.items():
            for value, want in zip(got[name], blobs, strict=True):
                assert value.dtype == want.dtype
                np.testing.assert_array_equal(value, want)


@pytest.mark.parametrize(('factor', 'want'), [(0.0, 0.0), (0.5, 6.0)])
def test_the_factor_of_batch_norm(inception, tmp_path, factor, want):
    """Zero is that of a network that saw no image; Caffe takes its sums as zero."""
    layers = dict(inception[1])
    three = np.full(64, 3, np.float32)
    layers['conv1/7x7_s2/bn'] = [three, three, np.array([factor], np.float32)]
    (tmp_path / 'net.caffemodel').write_bytes(caffemodel(layers.items()))
    stats = from_caffe('se_bn_inception', tmp_path / 'net.caffemodel')['batch_stats']['norm1']
    assert (stats['mean'] == want).all()
    assert (stats['var'] == want).all()


def refuse(tmp_path, data, message, name='se_bn_inception'):
    path = tmp_path / 'net.caffemodel'
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        from_caffe(name, path)


def test_layers_that_do_not_fit(inception, tmp_path):
    layers = dict(inception[1])
    del layers['conv2/3x3/bn/scale']
    layers['conv1/7x7_s2/bn'] = layers['conv1/7x7_s2/bn'][:2]
    refuse(tmp_path, caffemodel(layers.items()), 'conv1/7x7_s2/bn needs mean, variance and factor')
    layers['conv1/7x7_s2/bn'] = [np.full(64, np.nan, np.float32)] * 2 + [np.ones(1, np.float32)]
    layers['inception_3a/5x5'] = [np.zeros((1, 1, 5, 5), np.float32)]
    layers['conv1/7x7_s2'] = [np.zeros((64, 3, 5, 5), np.float32)]
    message = (
        r'2 missing \(params/norm2/bias, params/norm2/scale\); '
        r'1 unexpected \(inception_3a/5x5.weight\); '
        r'1 with the wrong shape \(conv1/7x7_s2.weight is \[5, 5, 3, 64\], params/conv1/kernel '
    )
    refuse(tmp_path, caffemodel(layers.items()), message)
    layers['conv1/7x7_s2'] = [np.zeros((64, 4, 7, 7), np.float32)]
    refuse(tmp_path, caffemodel(layers.items()), 'conv1/7x7_s2 takes images with 4 channels')


def test_numbers_that_are_not_finite(inception, tmp_path):
    layers = dict(inception[1])
    layers['conv1/7x7_s2/bn'] = [np.full(64, np.nan, np.float32)] * 2 + [np.ones(1, np.float32)]
    refuse(
        tmp_path,
        caffemodel(layers.items()),
        'conv1/7x7_s2/bn.running_mean contains NaN or infinity',
    )


def test_damaged_and_other_files(tmp_path):
    head = [np.zeros((3, 4), np.float32), np.zeros(3, np.float32)]
    good = caffemodel([('classifier', head)])
    refuse(tmp_path, good[:-30], 'its protobuf message is damaged')
    refuse(tmp_path, b'', 'it has no layer with weights')
    refuse(tmp_path, caffemodel([('fc', head)]), 'the state dict has no head')
    refuse(tmp_path, caffemodel([('classifier', head[1:])]), 'the state dict has no head')
    refuse(tmp_path, caffemodel([('classifier', head)] * 2), 'two layers named classifier')
    refuse(tmp_path, good + field(2, field(4, 'old')), 'in the format of Caffe before 2015')
    wrong = good.replace(field(1, varint(3) + varint(4)), field(1, varint(3) + varint(5)))
    refuse(tmp_path, wrong, r'classifier has a blob of shape \[3, 5\] but 48 bytes')
    huge = varint(1 << 62)
    data = field(7, field(1, huge + huge)) + field(5, struct.pack('<f', 0))
    refuse(tmp_path, field(100, field(1, 'classifier') + field(7, data)), 'a blob of shape')
    empty = field(7, field(1, varint(0) + huge))
    refuse(tmp_path, field(100, field(1, 'classifier') + field(7, empty)), 'a blob of shape')
    refuse(tmp_path, good, 'did you mean se_resnet50', name='resnet50')
    with pytest.raises(
        MissingError, match=r'no file .*none.caffemodel; similar files there: net.caffemodel'
    ):
        from_caffe('se_resnet50', tmp_path / 'none.caffemodel')
