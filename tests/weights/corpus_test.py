"""Every wrapping of a state dict in every kind of file, through `se-flax convert`.

What is accepted is, bit for bit, what the state dict alone gives, and says what was taken; what is
not is refused in one line. Files of PyTorch need PyTorch.
"""

import argparse
import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy

from se_flax import cli
from se_flax.errors import UserError
from se_flax.weights import from_caffe, load_weights, read_info, save_weights
from se_flax.weights.info import CIFAR

NAME = 'resnet8_cifar'
TORCH_FILES = {
    'pth': ('w.pth', True),
    'legacy pth': ('w.pth', False),
    'pth.tar': ('w.pth.tar', True),
    'ckpt': ('w.ckpt', True),
    'bin': ('w.bin', True),
    'named safetensors': ('w.safetensors', True),
    'no suffix': ('w', False),
}
KINDS = [*TORCH_FILES, 'torch shards', 'safetensors', 'safetensors named bin', 'shards']


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


OPTIMIZER = {'state': {0: {'momentum_buffer': np.zeros(3, 'f')}}, 'param_groups': [{'lr': 0.1}]}
PREFIXES = ('module', '_orig_mod', 'model', 'backbone', 'module._orig_mod', 'a.b.c')
KEYS = ('state_dict', 'model', 'model_state_dict', 'net', 'state_dict_ema', 'model_ema', 'params')
# A checkpoint of a state dict, and what it then is said to have been under.
SINGLE = {
    'plain': (lambda s: s, ''),
    'plain with epoch': (lambda s: s | {'epoch': 3, 'lr': [0.1], 'arch': 'resnet'}, ''),
    'AveragedModel': (lambda s: prefixed('module.', s) | {'n_averaged': np.array(7)}, 'module'),
    'Lightning': (
        lambda s: {
            'epoch': 3,
            'state_dict': prefixed('model.', s) | {'criterion.weight': np.ones(10, 'f')},
            'optimizer_states': [OPTIMIZER],
            'hyper_parameters': {'lr': 0.1},
        },
        'state_dict.model',
    ),
    'trainer': (
        lambda s: {
            'epoch': 3,
            'best_acc1': np.array(71.5, 'f'),
            'state_dict': prefixed('module.', s),
            'optimizer': OPTIMIZER,
            'args': argparse.Namespace(lr=0.1, tags=['a']),
        },
        'state_dict.module',
    ),
    'deep': (lambda s: {'a': {'b': {'c': prefixed('module.', s)}}}, 'a.b.c.module'),
    **{f'{p}.': (lambda s, p=p: prefixed(f'{p}.', s), p) for p in PREFIXES},
    **{k: (lambda s, k=k: {k: s, 'epoch': 3, 'optimizer': OPTIMIZER}, k) for k in KEYS},
}
# A checkpoint of two state dicts, and the key of each.
DOUBLE = {
    'model and EMA': (lambda a, b: {'model': a, 'model_ema': b}, ('model', 'model_ema')),
    'timm': (
        lambda a, b: {'state_dict': a, 'state_dict_ema': prefixed('module.', b), 'epoch': 3},
        ('state_dict', 'state_dict_ema'),
    ),
    'Lightning': (
        lambda a, b: {'state_dict': prefixed('net.', a) | prefixed('ema.module.', b)},
        ('state_dict.net', 'state_dict.ema'),
    ),
    'beside the names': (lambda a, b: {**a, 'ema': b}, ('', 'ema')),
}


def flatten(checkpoint):
    """What of a checkpoint a safetensors file can hold."""
    flat = {}
    for key, value in checkpoint.items():
        if isinstance(value, dict):
            flat |= {f'{key}.{name}': v for name, v in flatten(value).items() if name}
        elif isinstance(value, np.ndarray) and isinstance(key, str):
            flat[key] = value
    return flat


def tensors(value):
    import torch

    if isinstance(value, dict):
        return {key: tensors(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [tensors(inner) for inner in value]
    return torch.tensor(value) if isinstance(value, np.ndarray) else value


def in_shards(folder, flat, suffix, write):
    names = sorted(flat)
    weight_map = {name: f'w-{i % 3 + 1:05}-of-00003.{suffix}' for i, name in enumerate(names)}
    for shard in set(weight_map.values()):
        write({n: flat[n] for n in names if weight_map[n] == shard}, folder / shard)
    index = folder / f'w.{suffix}.index.json'
    index.write_text(json.dumps({'metadata': {'total_size': 1}, 'weight_map': weight_map}))
    return index


def write(folder, kind, checkpoint):
    """Writes a checkpoint and returns what to give to `convert`."""
    if kind.startswith('safetensors'):
        path = folder / ('w.bin' if kind.endswith('bin') else 'w.safetensors')
        safetensors.numpy.save_file(flatten(checkpoint), path)
        return path
    if kind == 'shards':
        return in_shards(folder, flatten(checkpoint), 'safetensors', safetensors.numpy.save_file)
    torch = pytest.importorskip('torch')
    if kind == 'torch shards':
        return in_shards(folder, tensors(flatten(checkpoint)), 'bin', torch.save)
    name, zipped = TORCH_FILES[kind]
    torch.save(tensors(checkpoint), folder / name, _use_new_zipfile_serialization=zipped)
    return folder / name


@pytest.fixture(scope='module')
def network(weights):
    """Two state dicts of the network as it is registered, and what each is here."""

    def one(factor):
        flat = {path: v * np.float32(factor) for path, v in weights.flat_variables(NAME).items()}
        return SimpleNamespace(flat=flat, state=weights.to_torch(weights.cifar_modules(), flat))

    return one(1), one(2)


@pytest.fixture
def convert(tmp_path, capsys, caplog):
    def convert(source, *arguments, model=NAME):
        """Returns the exit code, what was said and what was written."""
        caplog.clear()
        out = tmp_path / 'out.safetensors'
        model = ('--model', model) if model else ()
        code = cli.main(['convert', str(source), *model, '--out', str(out), *arguments])
        text = capsys.readouterr()
        assert 'Traceback' not in text.err
        if code:
            assert (code, text.out, out.exists()) == (2, '', False)
            assert text.err.count('\n') == 1
            return SimpleNamespace(code=code, said=text.err, variables=None)
        _, variables = load_weights(out)
        out.unlink()
        return SimpleNamespace(code=0, said='\n'.join(caplog.messages), variables=variables)

    return convert


@pytest.mark.parametrize('kind', KINDS)
def test_one_state_dict_is_taken_wherever_it_is(network, convert, assert_equal, tmp_path, kind):
    one, _ = network
    for wrapping, (wrap, prefix) in SINGLE.items():
        result = convert(write(tmp_path, kind, wrap(one.state)))
        assert result.code == 0, (wrapping, result.said)
        assert_equal(result.variables, one.flat)
        if prefix:
            assert result.said.startswith(f'using the {len(one.state)} tensors under {prefix!r}')
        else:
            assert result.said == ''
        left_out = {'AveragedModel': 'n_averaged', 'Lightning': 'state_dict.criterion.weight'}
        assert left_out.get(wrapping, '') in result.said


@pytest.mark.parametrize('kind', KINDS)
def test_of_several_state_dicts_one_must_be_chosen(network, convert, assert_equal, tmp_path, kind):
    for wrap, keys in DOUBLE.values():
        source = write(tmp_path, kind, wrap(*(n.state for n in network)))
        said = convert(source).said
        assert said.startswith('error: the file contains 2 state dicts: ')
        assert all(f"'{key}" in said for key in keys)
        assert convert(source, '--key', 'other').said.startswith("error: unknown state dict 'other")
        for key, one in zip(keys, network, strict=True):
            result = convert(source, '--key', key)
            assert_equal(result.variables, one.flat)
            assert 'ignoring' in result.said


def test_the_message_lists_what_is_there(network, convert, tmp_path):
    one, two = network
    source = write(tmp_path, 'shards', {'model': one.state, 'ema': prefixed('module.', two.state)})
    count = len(one.state)
    assert convert(source).said == (
        f"error: the file contains 2 state dicts: 'ema.module' ({count} tensors), 'model' ({count} "
        'tensors); choose one with --key NAME (in Python: key=NAME)\n'
    )
    said = convert(source, '--key', 'mode').said
    assert said == "error: unknown state dict 'mode': did you mean model or ema.module?\n"


def test_a_key_for_a_file_that_is_a_state_dict_itself_is_refused(network, convert, tmp_path):
    source = write(tmp_path, 'safetensors', network[0].state)
    said = convert(source, '--key', 'model').said
    assert said == "error: key='model' is not needed: the file is a state dict itself\n"


def test_one_object_under_two_names_is_one_state_dict(network, convert, assert_equal, tmp_path):
    one, _ = network
    torch = pytest.importorskip('torch')
    state = tensors(one.state)
    torch.save({'model': state, 'state_dict': state}, tmp_path / 'w.pth')
    assert_equal(convert(tmp_path / 'w.pth').variables, one.flat)


def test_the_command_shows_what_was_taken(network, tmp_path):
    source = write(tmp_path, 'safetensors', prefixed('module.', network[0].state))
    command = [sys.executable, '-m', 'se_flax.cli', 'convert', source, '--model', NAME]
    command += ['--out', tmp_path / 'out.safetensors']
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.stderr.startswith("WARNING: using the 57 tensors under 'module'\n")
    assert result.returncode == 0


def tar(data):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as archive:
        archive.addfile(tarfile.TarInfo('w.pth'), io.BytesIO(data))
    return file.getvalue()


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for name in names:
            archive.writestr(name, b'words')
    return file.getvalue()


def saved(function, *arguments):
    file = io.BytesIO()
    function(file, *arguments)
    return file.getvalue()


def header(text):
    return len(text).to_bytes(8, 'little') + text


OTHERS = {
    'empty': (b'', 'is empty'),
    'page': (b'\n<!DOCTYPE html>\n<html></html>', 'it is a web page'),
    'page without doctype': (b'<HTML><head>', 'it is a web page'),
    'pointer': (b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'git lfs pull'),
    'gzip': (gzip.compress(b'words'), 'it is a compressed file; unpack'),
    'bzip2': (bz2.compress(b'words'), 'it is a compressed file; unpack'),
    'xz': (lzma.compress(b'words'), 'it is a compressed file; unpack'),
    'tar': (tar(b''), 'it is a tar archive; unpack'),
    'zip': (zipped('a/w.pth', 'b'), 'it is a zip archive that contains a/w.pth, b; unpack'),
    'empty zip': (zipped(), 'it is a zip archive that contains nothing'),
    'Keras': (zipped('config.json', 'model.weights.h5'), 'it is a Keras model'),
    'TorchScript': (zipped('w/data.pkl', 'w/constants.pkl'), 'it is a TorchScript program'),
    'HDF5': (b'\x89HDF\r\n\x1a\n' + bytes(100), 'it is HDF5, as Keras'),
    'npy': (saved(np.save, np.zeros(3)), 'it is a NumPy array'),
    'npz': (saved(np.savez, np.zeros(3)), 'it is NumPy arrays'),
    'ONNX': (b'\x08\x07\x12\x07pytorch\x1a\x052.0.0', 'it is ONNX'),
    'SavedModel': (b'\x08\x01\x12\xd5\x02\n', 'it is a TensorFlow graph'),
    'GraphDef': (b'\n\x13\n\x05input\x12\x0bPlaceholder', 'it is a TensorFlow graph'),
    'TFLite': (b'\x1c\0\0\0TFL3' + bytes(20), 'it is TensorFlow Lite'),
    'pickle': (pickle.dumps({'a': np.zeros(3)}), 'is a pickle that torch.save did not write'),
    'JSON': (b'{"a": 1}', 'is JSON, but not an index of shards'),
    'damaged JSON': (b'{"weight_map"', 'is JSON, but not an index of shards'),
    'no shards': (b'{"weight_map": {}}', 'lists no shards'),
    'another folder': (
        b'{"weight_map": {"a": "../w"}}',
        "the shard '../w', which is not in the same",
    ),
    'the root': (b'{"weight_map": {"a": "/w"}}', "the shard '/w', which is not in the same"),
    'the folder above': (b'{"weight_map": {"a": ".."}}', 'which is not in the same'),
    'missing shards': (
        b'{"weight_map": {"a": "x", "b": "y"}}',
        'needs x, y in the same folder; download',
    ),
    'damaged safetensors': (header(b'{"a": '), 'is not a safetensors file: invalid JSON in header'),
    'damaged caffemodel': (b'\n\x05net', 'is not a caffemodel: its protobuf message is damaged'),
    'words': (b'words', "begins with b'words'; PyTorch, safetensors and caffemodel"),
    'image': (b'\x89PNG\r\n\x1a\n', 'unknown kind of weights file'),
}


@pytest.mark.parametrize('what', OTHERS)
def test_what_is_no_weights_is_called_what_it_is(convert, tmp_path, what):
    data, message = OTHERS[what]
    for suffix in ('.pth', '.safetensors', '.pth.tar', '.caffemodel', ''):
        path = tmp_path / f'w{suffix}'
        path.write_bytes(data)
        said = convert(path, model='se_resnet50').said
        assert str(path) in said
        assert message in said


@pytest.mark.parametrize('what', ['page', 'pointer', 'gzip', 'HDF5'])
def test_our_own_reader_and_caffes_say_it_too(tmp_path, what, capsys):
    data, message = OTHERS[what]
    path = tmp_path / 'w.safetensors'
    path.write_bytes(data)
    for read in (load_weights, read_info, lambda path: from_caffe('se_resnet50', path)):
        with pytest.raises(UserError, match=message):
            read(path)


def test_shards_that_are_not_as_the_index_says(network, convert, tmp_path):
    index = write(tmp_path, 'shards', network[0].state)
    shard = tmp_path / 'w-00002-of-00003.safetensors'
    data = shard.read_bytes()
    safetensors.numpy.save_file({'more': np.zeros(1)}, shard)
    assert f'{shard} and {index} disagree about the tensor' in convert(index).said
    shard.write_bytes(b'version https://git-lfs.github.com/spec/v1')
    assert f'{shard} is not a weights file: it is a Git LFS pointer' in convert(index).said
    shard.write_bytes(index.read_bytes())
    assert f"unknown kind of shard in {shard} 'index'" in convert(index).said
    shard.unlink()
    assert f'{index} needs {shard.name} in the same folder' in convert(index).said
    shard.write_bytes(data)
    assert convert(index).code == 0


def test_a_torch_shard_without_a_dict(network, convert, tmp_path):
    torch = pytest.importorskip('torch')
    index = write(tmp_path, 'torch shards', network[0].state)
    shard = tmp_path / 'w-00002-of-00003.bin'
    torch.save([torch.zeros(1)], shard)
    assert f'{shard} contains a list, not a dict of tensors' in convert(index).said


def spellings(path):
    link, hard = path.with_name('link.safetensors'), path.with_name('hard.safetensors')
    link.symlink_to(path)
    os.link(path, hard)
    return path, link, hard, path.parent / '..' / path.parent.name / path.name


def test_a_source_is_not_written_over(network, tmp_path, capsys):
    index = write(tmp_path, 'shards', network[0].state)
    shard = tmp_path / 'w-00002-of-00003.safetensors'
    before = shard.read_bytes()
    alone = write(tmp_path, 'safetensors', network[0].state)
    for source, read in ((alone, alone), (index, shard)):
        for out in spellings(read):
            arguments = ['convert', str(source), '--model', NAME, '--out', str(out)]
            assert cli.main(arguments) == 2
            said = capsys.readouterr().err
            assert (
                said
                == f'error: {out} would overwrite the input {read}; choose another output file\n'
            )
            if out.stem in ('link', 'hard'):
                out.unlink()
    assert shard.read_bytes() == before


def test_a_missing_file_is_told_first(convert, tmp_path):
    assert 'no file ' in convert(tmp_path / 'missing.pth', model=None).said


def test_our_own_files_name_their_network(weights, convert, assert_equal, tmp_path):
    source, names = tmp_path / 'ours.safetensors', tuple('abcdefghij')
    save_weights(
        *(source, NAME, weights.variables, CIFAR),
        fields=weights.fields,
        class_names=names,
        lineage='mine',
    )
    assert_equal(convert(source, model=None).variables, weights.flat)
    gray = convert(source, '--head', 'drop', '--in-channels', '1', model=None).variables['params']
    assert gray['conv_stem']['kernel'].shape == (3, 3, 1, 4)
    assert 'head' not in gray
    assert f'{source} contains resnet8_cifar, not vgg16' in convert(source, model='vgg16').said
    assert 'it does not accept key' in convert(source, '--key', 'model').said
    out = tmp_path / 'again.safetensors'
    assert cli.main(['convert', str(source), '--out', str(out)]) == 0
    assert out.read_bytes() == source.read_bytes()
