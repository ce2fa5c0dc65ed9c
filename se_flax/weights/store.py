"""Weights in a file of our own: safetensors, with what belongs to them in the metadata."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from se_flax.errors import UserError, check_known
from se_flax.models import check_model, create_model
from se_flax.models.variables import Tensor, misfits, variable_shapes
from se_flax.weights.adapt import adapt
from se_flax.weights.fill import as_float32, fill
from se_flax.weights.info import (
    MAX_SIZE,
    Preprocessing,
    WeightsInfo,
    check_entry,
    is_size,
    parse_preprocessing,
    without_lists,
)
from se_flax.weights.safetensors_file import read_metadata, read_safetensors, write_safetensors

KEY = 'se_flax'  # of the metadata; its value is JSON
VERSION = 1
DTYPES = ('float32', 'bfloat16')
MAX_UNITS = 1024  # beyond any network here: a hostile file must not have us trace for hours


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

    A crash leaves the old file or the new one. The tensors are named by their paths, such as
    `params/head/kernel`, and keep every bit.

    Args:
        path: of the file.
        name: one of `list_models()`; the number of classes is the head's.
        variables: `params` and `batch_stats`, float32 or bfloat16.
        preprocessing: that the network expects.
        lineage, fields, class_names: see `WeightsInfo`; the fields must be plain JSON.

    Raises:
        UserError: for variables that are not this network's or not finite, before anything is
            written.
    """
    tensors = {k: np.asarray(v) for k, v in flatten_dict(variables, sep='/').items()}
    head = tensors.get('params/head/bias', np.zeros(0))
    info = WeightsInfo(
        name, head.size, lineage, preprocessing, dict(fields or {}), tuple(class_names)
    )
    for key, array in tensors.items():
        check_known(f'dtype of {key}', array.dtype.name, DTYPES)
        as_float32(key, array)
    try:
        text = json.dumps({'version': VERSION, **_plain(info)}, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f'this cannot be kept in a weights file: {error}') from None
    info = _parse(text)  # what cannot be read must not be written
    _check(info, tensors)
    write_safetensors(pathlib.Path(path), {KEY: text}, tensors)


def load_weights(
    path: str | pathlib.Path, *, head: str = 'keep', in_channels: int | None = None
) -> tuple[str, dict[str, Any]]:
    """Returns the registered name and the variables, float32 NumPy arrays, of a weights file.

    `read_info` says what else the file knows.

    Args:
        path: of the file.
        head: 'drop' leaves the head out: what remains is of the network with `num_classes=0`, and
            all but the head of one with other classes.
        in_channels: of the images; None is the file's own number. For one channel the first kernel
            is summed, for more it is repeated and scaled, as timm does.

    Raises:
        MissingError: where there is no file.
        UserError: for a file that is damaged, or not of this format; it names the cause.
    """
    info, variables = adapt(*read_weights(path), head, in_channels)
    return info.model, variables


def read_info(path: str | pathlib.Path) -> WeightsInfo:
    """Returns what belongs to the weights of a file, without reading them."""
    path = pathlib.Path(path)
    return _info(path, read_metadata(path))


def read_weights(path: str | pathlib.Path) -> tuple[WeightsInfo, dict[str, Any]]:
    """Returns both; raises as `load_weights` does."""
    path = pathlib.Path(path)
    metadata, tensors = read_safetensors(path)
    info = _info(path, metadata)
    try:
        return info, fill(_check(info, tensors))
    except UserError as error:
        raise UserError(f'{path}: {error}') from None


def _plain(info: WeightsInfo) -> dict[str, Any]:
    return info._asdict() | {'preprocessing': info.preprocessing._asdict()}


def _check(info: WeightsInfo, tensors: Mapping[str, np.ndarray]) -> list[Tensor]:
    try:
        shapes = variable_shapes(create_model(info.model, info.num_classes, **info.fields))
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        fields, reason = repr(dict(info.fields))[:100], str(error).partition('\n')[0][:200]
        raise UserError(f'{info.model} cannot have fields {fields}: {reason}') from None
    named = [Tensor(name, name, array) for name, array in tensors.items()]
    if wrong := misfits(shapes, named):
        raise UserError(f'the weights do not fit {info.model}: {wrong}')
    return named


def _info(path: pathlib.Path, metadata: Mapping[str, str]) -> WeightsInfo:
    if KEY not in metadata:
        raise UserError(
            f'{path} does not say which network its weights are of; if they come from a public '
            f'code base: se-flax convert {path} --model NAME --out FILE.safetensors'
        )
    try:
        return _parse(metadata[KEY])
    except RecursionError:
        raise UserError(f'{path}: the metadata are nested too deeply') from None
    except UserError as error:
        raise UserError(f'{path}: {error}') from None


def _parse(text: str) -> WeightsInfo:
    try:
        entry = json.loads(text)
    except ValueError as error:
        raise UserError(f'the metadata are no JSON: {error}') from None
    if not isinstance(entry, dict) or entry.get('version') != VERSION:
        version = entry.get('version') if isinstance(entry, dict) else None
        raise UserError(f'version {version!r} of the format is not known; this reads {VERSION}')
    entry = {key: value for key, value in entry.items() if key != 'version'}
    try:
        fields = entry['fields']
        channels = fields.get('in_channels', 3) if isinstance(fields, dict) else 3
        view = parse_preprocessing(entry['preprocessing'], channels)
        names = tuple(entry['class_names'])
        info = WeightsInfo(**entry | {'preprocessing': view, 'class_names': names})
    except (TypeError, KeyError) as error:
        raise UserError(f'the metadata are not as they were written: {error}') from None
    check_entry('model', info.model, isinstance(info.model, str) and len(info.model) < 100)
    check_model(info.model)
    headless = info.num_classes == 0
    check_entry('num_classes', info.num_classes, headless or is_size(info.num_classes))
    check_entry('lineage', info.lineage, isinstance(info.lineage, str))
    check_entry('fields', info.fields, isinstance(info.fields, dict) and _harmless(info.fields))
    named = all(isinstance(name, str) for name in info.class_names)
    fit = len(info.class_names) in (0, info.num_classes)
    check_entry('class_names', info.class_names[:5], named and fit)
    return info._replace(fields=without_lists(info.fields))


def _harmless(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_harmless, value.values()))
    if isinstance(value, list):
        return all(type(v) is int and v >= 0 for v in value) and sum(value) <= MAX_UNITS
    if type(value) in (int, float):
        return abs(value) <= MAX_SIZE  # not so for NaN
    return value is None or isinstance(value, (bool, str))
