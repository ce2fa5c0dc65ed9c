"""Safetensors files: a JSON header and raw numbers, so that nothing in one can run."""

import json
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from se_flax.errors import UserError
from se_flax.storage import atomic_write
from se_flax.weights.files import check_file, foreign, read_bytes

DTYPES = {
    **{'F16': np.float16, 'BF16': ml_dtypes.bfloat16, 'F32': np.float32, 'F64': np.float64},
    **{'I64': np.int64, 'I32': np.int32},  # counters of PyTorch's
}
PYTORCH = (b'PK\x03\x04', b'\x80')  # its zip files, its pickles


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Returns the metadata and the tensors.

    Raises MissingError where there is no file, and UserError, with the cause, for anything that is
    no safetensors file of numbers.
    """
    data = read_bytes(path)
    try:
        views = dict(safetensors.deserialize(data))
    except safetensors.SafetensorError as error:
        raise _refusal(path, error) from None
    # Sorted, as they come in any order, and messages are to be the same each time.
    tensors = {name: _array(path, name, views[name]) for name in sorted(views)}
    size = int.from_bytes(data[:8], 'little')  # of the header, which `deserialize` has checked
    return json.loads(data[8 : 8 + size]).get('__metadata__') or {}, tensors


def read_metadata(path: pathlib.Path) -> dict[str, str]:
    """Returns the metadata alone; raises as `read_safetensors` does for a bad header."""
    check_file(path)
    try:
        with safetensors.safe_open(path, 'numpy') as file:
            return file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise _refusal(path, error) from None


def write_safetensors(
    path: pathlib.Path, metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]
) -> None:
    """Replaces `path` at once, or not at all."""
    # The writer takes an array's memory as it lies.
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    atomic_write(path, safetensors.numpy.save(tensors, dict(metadata)))


def _array(path: pathlib.Path, name: str, view: Mapping) -> np.ndarray:
    if view['dtype'] not in DTYPES:
        raise UserError(f'{path}: {name} has dtype {view["dtype"]}, not one of {", ".join(DTYPES)}')
    if 0 in view['shape']:
        raise UserError(f'{path}: {name} is empty, {view["shape"]}')
    return np.frombuffer(view['data'], DTYPES[view['dtype']]).reshape(view['shape'])


def _refusal(path: pathlib.Path, error: Exception) -> UserError:
    with path.open('rb') as file:
        begin = file.read(512)
    cause = foreign(begin) or str(error).removeprefix('Error while deserializing header: ')
    if begin.startswith(PYTORCH) and 'too large' in cause:  # the header's size can begin so too
        cause = 'it begins like a pickle of PyTorch, which is not run'
    return UserError(f'{path} is no safetensors file: {cause}')
