"""Weights files of our own: safetensors, with a WeightsInfo as JSON in the metadata."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict

from se_flax.errors import UserError, check_known
from se_flax.models import create_model
from se_flax.models.variables import Tensor, misfits, variable_shapes
from se_flax.storage import atomic_write, check_writable
from se_flax.weights.files import read_safetensors
from se_flax.weights.fill import adapt, as_float32, fill
from se_flax.weights.info import Preprocessing, WeightsInfo, from_json, to_json

KEY = 'se_flax'  # of the metadata


def save_weights(
    path: str | pathlib.Path,
    name: str,
    variables: Mapping[str, Any],
    preprocessing: Preprocessing,
    *,
    lineage: str = 'se_flax',
    fields: Mapping[str, Any] | None = None,
    class_names: Sequence[str] = (),
) -> None:
    """Writes the variables of a registered network to a `.safetensors` file.

    The tensors, float32 or bfloat16, are named by their paths, such as `params/head/kernel`, and
    keep every bit; `lineage`, `fields` (plain JSON) and `class_names` are those of `WeightsInfo`.
    A crash leaves the old file or the new one. Raises UserError, before anything is written, for
    variables that do not fit the network or are not finite.
    """
    classes = np.size(flatten_dict(variables, sep='/').get('params/head/bias', ()))
    fields, names = dict(fields or {}), tuple(class_names)
    info = WeightsInfo(name, classes, lineage, preprocessing, fields, names)
    write_weights(path, info, variables)


def check_out(path: pathlib.Path) -> None:
    """Raises as `check_writable` does, and UserError unless `path` ends in `.safetensors`."""
    check_known('kind of weights file', path.suffix, ('.safetensors',))
    check_writable(path)


def write_weights(
    path: str | pathlib.Path, info: WeightsInfo, variables: Mapping[str, Any]
) -> None:
    # In C order, as the writer takes an array's memory as it is.
    tensors = {k: np.ascontiguousarray(v) for k, v in flatten_dict(variables, sep='/').items()}
    for key, array in tensors.items():
        check_known(f'dtype of {key}', array.dtype.name, ('float32', 'bfloat16'))
        as_float32(key, array)
    text = to_json(info)
    _check(from_json(text), tensors)  # what cannot be read must not be written
    atomic_write(pathlib.Path(path), safetensors.numpy.save(tensors, {KEY: text}))


def load_weights(
    path: str | pathlib.Path, *, head: str = 'keep', in_channels: int | None = None
) -> tuple[str, dict[str, Any]]:
    """Returns the registered name and the variables, float32 NumPy arrays, of a weights file.

    Args:
        head: 'drop' leaves the head out, for the network with `num_classes=0` or a new head.
        in_channels: of the images; None keeps the file's number. For one channel the first kernel
            is summed, for more it is repeated and scaled, as timm does.

    Raises MissingError if there is no file, UserError if it is damaged or not of this format.
    """
    info, variables = adapt(*read_weights(path), head, in_channels)
    return info.model, variables


def read_info(path: str | pathlib.Path) -> WeightsInfo:
    """Returns what a weights file says besides its tensors, which are not read."""
    return _read(path, with_tensors=False)[0]


def read_weights(path: str | pathlib.Path) -> tuple[WeightsInfo, dict[str, Any]]:
    """Returns `read_info` and the variables; raises as `load_weights` does."""
    return _read(path, with_tensors=True)


def _read(path: str | pathlib.Path, with_tensors: bool) -> tuple[WeightsInfo, dict[str, Any]]:
    metadata, tensors = read_safetensors(pathlib.Path(path), with_tensors)
    if KEY not in metadata:
        raise UserError(
            f'{path} does not name its network; if it comes from a public code base, convert it: '
            f'se-flax convert {path} --model NAME --out FILE.safetensors'
        )
    try:
        info = from_json(metadata[KEY])
        return info, fill(_check(info, tensors)) if with_tensors else {}
    except RecursionError:
        raise UserError(f'{path}: the metadata is nested too deeply') from None
    except UserError as error:
        raise UserError(f'{path}: {error}') from None


def _check(info: WeightsInfo, tensors: Mapping[str, np.ndarray]) -> list[Tensor]:
    try:
        shapes = variable_shapes(create_model(info.model, info.num_classes, **info.fields))
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        fields, reason = repr(dict(info.fields))[:100], str(error).partition('\n')[0][:200]
        raise UserError(f'{info.model} cannot be built with fields {fields}: {reason}') from None
    named = [Tensor(name, name, array) for name, array in tensors.items()]
    if wrong := misfits(shapes, named):
        raise UserError(f'the weights do not fit {info.model}: {wrong}')
    return named
