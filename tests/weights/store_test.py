"""Weights files of our own: exact, atomic, and nothing that is damaged gets through."""

import json
import os
import pickle
import struct

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import unflatten_dict

from se_flax.errors import MissingError, UserError
from se_flax.weights import Preprocessing, WeightsInfo, load_weights, read_info, save_weights
from se_flax.weights.store import KEY

pytestmark = pytest.mark.quick

VIEW = Preprocessing(32, 36, 'bicubic_antialias', (1.5, 2.0, 3.25), (50.0, 60.0, 70.5))


@pytest.fixture
def save(weights):
    """`save(path, ...)` writes the small network."""

    def save(path, variables=None, **info):
        variables = weights.variables if variables is None else variables
        info = {'fields': weights.fields} | info
        save_weights(path, 'resnet8_cifar', variables, VIEW, **info)

    return save


def test_what_is_saved_is_loaded_in_every_bit(weights, save, assert_equal, tmp_path):
    odd = np.float32(
        [0, -0.0, 1e-45, 3.4028235e38, np.nextafter(np.float32(1), 2), 1 / 3] + [1] * 4
    )
    flat = weights.flat | {'params/head/bias': odd}
    names = tuple(f'class {chr(0x3B1 + i)}' for i in range(10))
    save(tmp_path / 'w.safetensors', unflatten(flat), lineage='mine', class_names=names)
    name, variables = load_weights(tmp_path / 'w.safetensors')
    assert name == 'resnet8_cifar'
    assert_equal(variables, flat)
    want = WeightsInfo('resnet8_cifar', 10, 'mine', VIEW, weights.fields, names)
    assert read_info(tmp_path / 'w.safetensors') == want


def test_other_programs_can_read_it(weights, save, tmp_path):
    save(tmp_path / 'w.safetensors')
    tensors = safetensors.numpy.load_file(tmp_path / 'w.safetensors')
    assert tensors.keys() == weights.flat.keys()
    assert all((tensors[path] == value).all() for path, value in weights.flat.items())
    with safetensors.safe_open(tmp_path / 'w.safetensors', 'numpy') as file:
        entry = json.loads(file.metadata()[KEY])
    assert entry == {
        **{'version': 1, 'model': 'resnet8_cifar', 'num_classes': 10, 'lineage': 'se_flax'},
        'preprocessing': {
            **{'image_size': 32, 'resize': 36, 'interpolation': 'bicubic_antialias'},
            **{'mean': [1.5, 2.0, 3.25], 'std': [50.0, 60.0, 70.5], 'exif_orientation': False},
        },
        **{'fields': {'width': 4}, 'class_names': []},
    }


def test_fields_of_every_kind(weights, assert_equal, tmp_path):
    path, se = tmp_path / 'w.safetensors', {'se': {'reduction': 2}, 'placement': 'post'}
    fields = se | {'stage_sizes': (1, 2), 'se_stages': (3,)}
    flat = weights.flat_variables('resnet8_cifar', **fields)
    for given in (fields, se | {'stage_sizes': [1, 2], 'se_stages': [3]}):
        save_weights(path, 'resnet8_cifar', unflatten(flat), VIEW, fields=given)
        assert_equal(load_weights(path)[1], flat)
        assert read_info(path).fields == fields


def test_arrays_in_another_memory_order(weights, save, assert_equal, tmp_path):
    variables = unflatten({path: np.asfortranarray(v) for path, v in weights.flat.items()})
    save(tmp_path / 'w.safetensors', variables)
    assert_equal(load_weights(tmp_path / 'w.safetensors')[1], weights.flat)


def test_bfloat16_is_kept(weights, save, tmp_path):
    half = {path: value.astype(jnp.bfloat16) for path, value in weights.flat.items()}
    path = tmp_path / 'w.safetensors'
    save(tmp_path / 'full.safetensors')
    save(path, unflatten(half))
    assert path.stat().st_size < 0.7 * (tmp_path / 'full.safetensors').stat().st_size
    _, variables = load_weights(path)
    kernel = variables['params']['head']['kernel']
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, half['params/head/kernel'].astype(np.float32))


def unflatten(flat):
    return unflatten_dict(flat, sep='/')


def test_a_crash_keeps_the_old_file(weights, save, assert_equal, tmp_path, monkeypatch):
    path = tmp_path / 'w.safetensors'
    save(path)

    def crash(_):
        raise OSError('no space left')

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', crash)
        with pytest.raises(OSError, match='no space left'):
            save(path, unflatten({k: v + 1 for k, v in weights.flat.items()}))
    assert_equal(load_weights(path)[1], weights.flat)


@pytest.mark.parametrize(
    ('change', 'info', 'message'),
    [
        (
            {'params/head/bias': np.full(10, np.nan, np.float32)},
            {},
            'params/head/bias contains NaN',
        ),
        ({'params/head/bias': np.zeros(10)}, {}, 'unknown dtype of params/head/bias .float64'),
        ({'params/more': np.zeros(10, np.float32)}, {}, r'1 unexpected \(params/more\)'),
        (
            {'params/conv_stem/kernel': np.zeros((1, 1, 1, 1), np.float32)},
            {},
            '1 with the wrong shape',
        ),
        ({}, {'fields': {'width': jnp.float32}}, 'this cannot be stored in a weights file'),
        ({}, {'fields': {'widht': 4}}, 'unknown field of resnet8_cifar .widht'),
        (
            {},
            {'fields': {'width': 5}},
            'the weights do not fit resnet8_cifar: .* with the wrong shape',
        ),
        ({}, {'class_names': ['one', 'two']}, 'invalid class_names in the metadata'),
        ({}, {'lineage': 3}, 'invalid lineage in the metadata: 3'),
    ],
)
def test_what_cannot_be_read_is_not_written(weights, save, tmp_path, change, info, message):
    path = tmp_path / 'w.safetensors'
    with pytest.raises(UserError, match=message):
        save(path, unflatten(weights.flat | change), **info)
    assert list(tmp_path.iterdir()) == []


def write(path, entry, tensors):
    text = entry if isinstance(entry, str) else json.dumps(entry)
    path.write_bytes(safetensors.numpy.save(tensors, {KEY: text}))


GOOD = {
    **{'version': 1, 'model': 'resnet8_cifar', 'num_classes': 10, 'lineage': ''},
    **{'preprocessing': VIEW._asdict(), 'fields': {'width': 4}, 'class_names': []},
}


def view(**fields):
    return {'preprocessing': VIEW._asdict() | fields}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'version': 2}, 'unknown format version 2; this release supports 1'),
        ({'version': '1'}, "unknown format version '1'"),
        ({'model': 'resnet9_cifar'}, 'unknown model .* did you mean resnet8_cifar'),
        ({'model': 'resnet20_cifar'}, 'the weights do not fit resnet20_cifar: .* missing'),
        ({'model': ['resnet8_cifar']}, 'invalid model in the metadata'),
        ({'model': 'r' * 1000}, 'invalid model in the metadata: .rrr'),
        (
            {'num_classes': 11},
            r'the weights do not fit .* 2 with the wrong shape \(params/head/bias is \[10\], .*',
        ),
        ({'num_classes': -1}, 'invalid num_classes in the metadata: -1'),
        ({'num_classes': True}, 'invalid num_classes in the metadata: True'),
        ({'num_classes': 10**30}, 'invalid num_classes in the metadata: 1000'),
        ({'more': 1}, 'the metadata is damaged: .*more'),
        ({'preprocessing': None}, 'the metadata is damaged'),
        ({'preprocessing': {}}, 'the metadata is damaged'),
        ({'class_names': 3}, 'the metadata is damaged'),
        ({'class_names': [1] * 10}, 'invalid class_names in the metadata'),
        ({'fields': [3]}, 'invalid fields in the metadata'),
        ({'fields': {'stage_sizes': [10**9]}}, 'invalid fields in the metadata'),
        ({'fields': {'stage_sizes': [[1]]}}, 'invalid fields in the metadata'),
        ({'fields': {'width': 10**30}}, 'invalid fields in the metadata'),
        ({'fields': {'width': 'four'}}, 'resnet8_cifar cannot be built with fields'),
        ({'fields': {'width': 0}}, 'resnet8_cifar'),
        ({'fields': {'block': 'evil'}}, 'resnet8_cifar cannot be built with fields'),
        ({'fields': {'num_classes': 3}}, 'resnet8_cifar cannot be built with fields'),
        (view(image_size=0), 'invalid image_size in the metadata: 0'),
        (view(resize=1.5), 'invalid resize in the metadata: 1.5'),
        (view(interpolation=None), 'invalid interpolation in the metadata: None'),
        (view(mean=[1, 2]), r'invalid mean in the metadata: \(1, 2\)'),
        (view(std=[1, 2, 0]), r'invalid std in the metadata: \(1, 2, 0\)'),
        (view(std=[1, 2, 'x']), 'invalid std in the metadata'),
        (view(std=[1, 2, float('nan')]), 'invalid std in the metadata'),
        (view(mean=[], std=[]) | {'fields': {'in_channels': 0}}, 'invalid std in the metadata'),
    ],
)
def test_metadata_that_no_file_of_ours_has(weights, tmp_path, change, message):
    path = tmp_path / 'w.safetensors'
    write(path, GOOD | change, weights.flat)
    with pytest.raises(UserError, match=f'{path}: {message}'):
        load_weights(path)


def nested(depth):
    return {'se': nested(depth - 1)} if depth else {}


def test_json_that_is_none(weights, tmp_path):
    path = tmp_path / 'w.safetensors'
    for text, message in [
        ('', 'the metadata is not JSON'),
        ('{"fields":' * 100_000, 'the metadata is nested too deeply'),
        (
            json.dumps(GOOD | {'fields': nested(400)}),
            'invalid fields|cannot be built with fields|nested too deeply',
        ),
        ('3', 'unknown format version None'),
    ]:
        write(path, text, weights.flat)
        with pytest.raises(UserError, match=message):
            load_weights(path)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'params/head/bias': np.full(10, np.inf, np.float32)}, 'params/head/bias contains NaN or'),
        (
            {'params/head/bias': np.zeros(10, np.int64)},
            'params/head/bias has dtype int64, not a float',
        ),
        ({'params/head/bias': np.zeros(10, np.uint8)}, 'params/head/bias has dtype U8'),
        ({'params/head/bias': np.zeros((10, 1), np.float32)}, '1 with the wrong shape'),
        (
            {'params/head/bias': np.zeros(0, np.float32)},
            r'params/head/bias is \[0\], .* needs \[10\]',
        ),
        ({'../head': np.zeros(1, np.float32)}, r'1 unexpected \(../head\)'),
    ],
)
def test_tensors_that_do_not_fit(weights, tmp_path, change, message):
    path = tmp_path / 'w.safetensors'
    write(path, GOOD, weights.flat | change)
    with pytest.raises(UserError, match=message):
        load_weights(path)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_files_that_are_something_else(save, tmp_path):
    path = tmp_path / 'w.safetensors'
    save(path)
    good = path.read_bytes()
    size = int.from_bytes(good[:8], 'little')
    pickled = pickle.dumps(Payload(tmp_path / 'ran'))
    for data, message in [
        (b'', 'header too small'),
        (good[:5], 'header too small'),
        (good[: 8 + size // 2], 'invalid header length'),
        (good[:-1], 'file not fully covered'),
        (good + b'\0', 'file not fully covered'),
        (struct.pack('<Q', 1 << 62) + good[8:], 'header too large'),
        (struct.pack('<Q', 50_000_000) + good[8:], 'invalid header length'),
        (struct.pack('<Q', size - 9) + good[8:], 'invalid JSON in header'),
        (b'PK\x03\x04' + good, 'it looks like a PyTorch pickle, which can run code'),
        (pickled, 'it looks like a PyTorch pickle, which can run code'),
    ]:
        path.write_bytes(data)
        for read in (load_weights, read_info):
            with pytest.raises(UserError, match=f'{path} is not a safetensors file: .*{message}'):
                read(path)
    assert not (tmp_path / 'ran').exists()
    with pytest.raises(
        MissingError, match=r'no file .*x.safetensors; similar files there: w.safetensors'
    ):
        load_weights(tmp_path / 'x.safetensors')
    with pytest.raises(MissingError, match=r'no file'):
        load_weights(tmp_path)
