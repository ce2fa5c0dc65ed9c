"""Reads the tensors of a file, whatever its kind; its content decides the kind, not its name."""

import argparse
import json
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors

from se_flax.errors import MissingError, UserError, check_known, extra_needed

TAKE = 'which is not supported; use the PyTorch or safetensors file of the same weights'
# How other files begin, in the order they are tried, and what they are.
FOREIGN = {
    rb'(?:\xef\xbb\xbf)?\s*<(?i:!doctype|html|head|\?xml)': (
        'a web page, such as a login or error page; download the file itself'
    ),
    rb'version https://git-lfs': 'a Git LFS pointer instead of the file; run: git lfs pull',
    rb'\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc|Rar!': 'a compressed file; unpack it first',
    rb'.{257}ustar': 'a tar archive; unpack it first',
    rb'\x89HDF': f'HDF5, as Keras writes it, {TAKE}',
    rb'\x93NUMPY': f'a NumPy array, {TAKE}',
    rb'\x08\x01\x12|\n[\x02-\x7f]\n': f'a TensorFlow graph, {TAKE}',
    rb'.{4}TFL3': f'TensorFlow Lite, {TAKE}',
    rb'\x08[\x02-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]': f'ONNX, {TAKE}',
}
FOREIGN_ZIPS = {  # by the name of a file in them
    r'.*/constants\.pkl': 'a TorchScript program; save only the state_dict() of the model',
    r'.*\.npy': f'NumPy arrays, {TAKE}',
    r'model\.weights\.h5': f'a Keras model, {TAKE}',
}
LEGACY_PTH = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # torch.save's before 2020
MAX_HEADER = 100_000_000  # bytes, of safetensors
DTYPES = ('F16', 'BF16', 'F32', 'F64', 'I64', 'I32')  # integers: PyTorch's counters


def kind_of(path: pathlib.Path) -> str:
    """Returns 'pth', 'safetensors', 'caffemodel', or 'index' (of shards); UserError for others."""
    begin = read_bytes(path, 512)
    if not begin:
        raise UserError(f'{path} is empty; download it again')
    if _has_header(begin):
        return 'safetensors'
    if what := foreign(begin) or _foreign_zip(path, begin):
        raise UserError(f'{path} is not a weights file: {what}')
    if begin.startswith((b'PK\x03\x04', LEGACY_PTH)):
        return 'pth'
    if begin.startswith(b'\x80'):
        raise UserError(f'{path} is a pickle that torch.save did not write; pickles can run code')
    if begin.lstrip().startswith(b'{'):
        return 'index'
    if begin.startswith((b'\n', b'\x12', b'\x1a', b'\xa2\x06')):  # fields of its message
        return 'caffemodel'
    raise UserError(
        f'unknown kind of weights file: {path} begins with {begin[:8]!r}; PyTorch, safetensors and '
        'caffemodel files are supported'
    )


def foreign(begin: bytes) -> str:
    """Says what a file that begins so is; '' if it may hold weights."""
    if _has_header(begin):  # its size may look like anything
        return ''
    known = (what for pattern, what in FOREIGN.items() if re.match(pattern, begin, re.DOTALL))
    return next((f'it is {what}' for what in known), '')


def _has_header(begin: bytes) -> bool:
    """Returns whether a file begins with the size of a JSON header and `{`, as safetensors do."""
    return begin[8:9] == b'{' and int.from_bytes(begin[:8], 'little') <= MAX_HEADER


def _foreign_zip(path: pathlib.Path, begin: bytes) -> str:
    if not begin.startswith(b'PK'):
        return ''
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except Exception:  # a damaged archive can raise any; PyTorch then says what is wrong
        return ''
    for pattern, what in FOREIGN_ZIPS.items():
        if any(re.fullmatch(pattern, name) for name in names):
            return f'it is {what}'
    if any(name.endswith('/data.pkl') for name in names):
        return ''
    return f'it is a zip archive that contains {", ".join(names[:3]) or "nothing"}; unpack it first'


def check_file(path: pathlib.Path) -> None:
    """Raises MissingError, which names files of the same kind there, unless `path` is a file."""
    if not path.is_file():
        near = [p.name for p in sorted(path.parent.glob(f'*{path.suffix}')) if p.is_file()][:5]
        raise MissingError(f'no file {path}; similar files there: {", ".join(near) or "none"}')


def read_bytes(path: pathlib.Path, size: int = -1) -> bytes:
    """Returns the first bytes of a file, or all; MissingError if there is none."""
    check_file(path)
    try:
        with path.open('rb') as file:
            return file.read(size)
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}') from None


def read_tensors(path: pathlib.Path, kind: str) -> Mapping[str, Any]:
    check_known(f'kind of shard in {path}', kind, ('safetensors', 'pth'))
    return read_safetensors(path)[1] if kind == 'safetensors' else read_pth(path)


def read_safetensors(
    path: pathlib.Path, with_tensors: bool = True
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Returns the metadata and the tensors, by name in order; UserError says what is wrong."""
    check_file(path)
    tensors = {}
    try:
        with safetensors.safe_open(path, 'numpy') as file:
            for name in sorted(file.keys()) if with_tensors else ():
                if (dtype := file.get_slice(name).get_dtype()) not in DTYPES:
                    known = ', '.join(DTYPES)
                    raise UserError(f'{path}: {name} has dtype {dtype}; supported are {known}')
                tensors[name] = file.get_tensor(name)
            return file.metadata() or {}, tensors
    except (safetensors.SafetensorError, OSError) as error:
        begin = read_bytes(path, 512)
        cause = foreign(begin) or str(error).removeprefix('Error while deserializing header: ')
        # The header's size can begin like a zip file or a pickle, too.
        if begin.startswith((b'PK\x03\x04', b'\x80')) and 'too large' in cause:
            cause = 'it looks like a PyTorch pickle, which can run code'
        raise UserError(f'{path} is not a safetensors file: {cause}') from None


def read_pth(path: pathlib.Path) -> Mapping[str, Any]:
    """Returns what a file of torch.save holds, tensors on the CPU; code in it is not run."""
    check_file(path)
    with extra_needed():
        import torch  # nothing else here needs it

    try:
        # A trainer's arguments are often saved beside the weights; the class only holds them.
        allowed = torch.serialization.safe_globals([argparse.Namespace])
        with allowed, path.open('rb') as file:  # PyTorch would look at a path's suffix
            return torch.load(file, map_location='cpu', weights_only=True)
    except Exception as error:  # a damaged pickle can raise any
        cause = str(error).partition('\n')[0] or type(error).__name__
        if 'Unsupported global' in str(error) or 'weights_only' in str(error):
            cause = (
                'it contains more than tensors, which could run code; '
                'save only the state_dict() of the model'
            )
        raise UserError(f'{path} cannot be read: {cause}') from None


def read_index(path: pathlib.Path) -> dict[pathlib.Path, list[str]]:
    """Returns the names of the tensors in each shard of Hugging Face's JSON index."""
    text = read_bytes(path)
    try:
        weight_map = json.loads(text)['weight_map']
        elsewhere = [s for s in weight_map.values() if re.search(r'^\.{0,2}$|[/\\]', s)]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f'{path} is JSON, but not an index of shards with a weight_map') from None
    if elsewhere:
        raise UserError(f'{path} lists the shard {elsewhere[0]!r}, which is not in the same folder')
    shards: dict[pathlib.Path, list[str]] = {}
    for name, shard in weight_map.items():
        shards.setdefault(path.with_name(shard), []).append(name)
    if missing := sorted(shard.name for shard in shards if not shard.is_file()):
        raise MissingError(
            f'{path} needs {", ".join(missing)} in the same folder; download what is missing'
        )
    if not shards:
        raise UserError(f'{path} lists no shards')
    return shards


def read_shards(index: pathlib.Path, shards: Mapping[pathlib.Path, list[str]]) -> dict[str, Any]:
    """Returns the tensors of all shards; UserError unless each holds what the index says."""
    tensors: dict[str, Any] = {}
    for shard, names in shards.items():
        found = read_tensors(shard, kind_of(shard))
        if not isinstance(found, Mapping):
            raise UserError(f'{shard} contains a {type(found).__name__}, not a dict of tensors')
        if strange := sorted(map(str, found.keys() ^ set(names))):
            raise UserError(f'{shard} and {index} disagree about the tensor {strange[0]}')
        tensors |= found
    return tensors
