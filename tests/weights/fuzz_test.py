"""Damaged files by the hundred: each is read, or refused by a UserError; nothing else, and at once.

The files are whole ones of a small network, cut, spliced and with bits turned, and headers and
metadata that are well-formed but say something else.
"""

import json
import struct
import warnings

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from se_flax.errors import UserError
from se_flax.weights import Preprocessing, from_torch, load_weights, read_info, save_weights
from se_flax.weights.caffe import net_parameter, read_caffemodel
from se_flax.weights.files import read_pth, read_safetensors
from se_flax.weights.store import KEY

VIEW = Preprocessing(32, 0, 'bilinear', (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
fuzz = settings(
    max_examples=300,
    derandomize=True,
    deadline=5000,
    database=None,
    suppress_health_check=list(HealthCheck),
)
# Mostly near the begin, where headers are.
place = st.one_of(st.integers(0, 16), st.integers(0, 4000), st.integers(0, 1 << 16))
change = st.one_of(
    st.tuples(st.just('cut'), place, st.just(b'')),
    st.tuples(st.just('cut from the end'), place, st.just(b'')),
    st.tuples(st.just('replace'), place, st.binary(min_size=1, max_size=12)),
    st.tuples(st.just('insert'), place, st.binary(min_size=1, max_size=12)),
    st.tuples(st.just('remove'), place, st.binary(min_size=1, max_size=12)),
    st.tuples(st.just('whole'), place, st.binary(max_size=64)),
)
changes = st.lists(change, min_size=1, max_size=4)


def damage(data, changes):
    for what, at, new in changes:
        at = at % (len(data) + 1)
        data = {
            'cut': data[:at],
            'cut from the end': data[: len(data) - at],
            'replace': data[:at] + new + data[at + len(new) :],
            'insert': data[:at] + new + data[at:],
            'remove': data[:at] + data[at + len(new) :],
            'whole': new,
        }[what]
    return data


def try_all(read, *strategies):
    """Calls a reader with examples; some are taken, and any other error than ours is a failure."""
    outcomes = []

    @fuzz
    @given(st.tuples(*strategies))
    def run(example):
        try:
            read(*example)
        except UserError:
            outcomes.append(False)
        else:
            outcomes.append(True)

    run()
    assert 0 < sum(outcomes) < len(outcomes)
    assert len(outcomes) >= 300


def try_damaged(path, read):
    good = path.read_bytes()

    def read_damaged(changes):
        path.write_bytes(damage(good, changes))
        read(path)

    try_all(read_damaged, changes)


@pytest.mark.parametrize('read', [load_weights, read_info])
def test_our_files(weights, tmp_path, read):
    path = tmp_path / 'w.safetensors'
    save_weights(path, 'resnet8_cifar', weights.variables, VIEW, fields=weights.fields)
    try_damaged(path, read)


numbers = st.one_of(
    *(st.integers(-(1 << 70), 1 << 70), st.floats(), st.booleans(), st.none(), st.text(max_size=5)),
    st.sampled_from([0, 1, 4, 10, 16, 'caffe', 'padded', 'resnet8_cifar', 'vgg16', 'standard']),
)
values = st.recursive(
    numbers,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
FIELDS = ('width', 'stage_sizes', 'block', 'se', 'pool', 'stem', 'placement', 'se_stages', 'dtype')


def test_our_metadata(weights, tmp_path):
    path = tmp_path / 'w.safetensors'
    entry = {
        **{'version': 1, 'model': 'resnet8_cifar', 'num_classes': 10, 'lineage': ''},
        **{'preprocessing': VIEW._asdict(), 'fields': weights.fields, 'class_names': []},
    }
    keys = st.one_of(st.sampled_from(list(entry)), st.text(max_size=4))
    fields = st.dictionaries(st.sampled_from(FIELDS), values, max_size=3)
    view = st.dictionaries(st.sampled_from(Preprocessing._fields), values, max_size=3)

    def read(change, fields, view):
        new = entry | {'fields': weights.fields | fields}
        new |= {'preprocessing': VIEW._asdict() | view}
        text = json.dumps(new | change)
        path.write_bytes(safetensors.numpy.save(weights.flat, {KEY: text}))
        load_weights(path)

    try_all(read, st.dictionaries(keys, values, max_size=2), fields, view)


def test_files_of_public_code_bases(weights, tmp_path):
    def read(path):
        from_torch('resnet8_cifar', read_safetensors(path)[1], **weights.fields)

    safetensors.numpy.save_file(weights.state, tmp_path / 'model.safetensors')
    try_damaged(tmp_path / 'model.safetensors', read)


def test_state_dicts_of_other_names_and_shapes(weights):
    """Keys are renamed and dropped, arrays reshaped: what a safetensors header can say."""
    keys = sorted(weights.state)
    module = st.sampled_from([key.rpartition('.')[0] for key in keys] + ['fc', 'layer1.0.conv1'])
    leaf = st.sampled_from(['weight', 'bias', 'running_mean', 'running_var', 'x', ''])
    shape = st.lists(st.integers(0, 5), max_size=5)
    new = st.dictionaries(st.tuples(module, leaf).map('.'.join), shape, max_size=2)

    def read(new, drop):
        state = {key: value for key, value in weights.state.items() if key not in drop}
        state |= {key: np.ones(shape, np.float32) for key, shape in new.items()}
        from_torch('resnet8_cifar', state, **weights.fields)

    try_all(read, new, st.lists(st.sampled_from(keys), max_size=2))


def test_caffemodels(tmp_path):
    net = net_parameter()()
    for i in range(20):
        layer = net.layer.add(name=f'conv{i}')
        blob = layer.blobs.add(data=[struct.pack('<8f', *range(8))])
        blob.shape.dim.extend([2, 4])
    (tmp_path / 'net.caffemodel').write_bytes(net.SerializeToString())
    try_damaged(tmp_path / 'net.caffemodel', read_caffemodel)


@pytest.mark.parametrize('zipped', [True, False])
def test_pth_files(weights, tmp_path, zipped):
    torch = pytest.importorskip('torch')
    path = tmp_path / 'w.pth'
    state = {key: torch.tensor(value) for key, value in weights.state.items()}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)

    def read(path):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            from_torch('resnet8_cifar', read_pth(path), **weights.fields)

    try_damaged(path, read)
