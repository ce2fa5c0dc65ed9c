"""Fills variables from named arrays; adapts them to another head or other channels."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from se_flax.errors import UserError, check_at_least, check_known
from se_flax.models.variables import Tensor
from se_flax.weights.info import WeightsInfo, for_channels

# Names of the first convolution in each family.
FIRST = ('conv_stem', 'conv_stem1', 'conv1', 'conv1_1', 'conv_1a')


def fill(tensors: Iterable[Tensor]) -> dict[str, Any]:
    """Returns float32 variables of tensors that have no `misfits`; raises as `as_float32` does."""
    return unflatten_dict({t.path: as_float32(t.name, t.array) for t in tensors}, sep='/')


def as_float32(name: str, array: np.ndarray) -> np.ndarray:
    """Raises UserError for numbers that are not floats, and for NaN and infinity."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f'{name} has dtype {array.dtype}, not a float dtype')
    with np.errstate(over='ignore'):
        array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise UserError(f'{name} contains NaN or infinity')
    return array


def to_kernel(path: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Transposes `[O, I, H, W]` to `[H, W, I, O]`, or `[H W I, O]` for a dense kernel.

    >>> to_kernel('params/head/kernel', np.zeros((8, 4, 7, 7)), (196, 8)).shape
    (196, 8)
    """
    if path == 'params/fc6/kernel' and array.ndim == 2 and array.shape[1:] == shape[:1]:
        array = array.reshape(-1, shape[0] // 49, 7, 7)  # VGG's takes a flat map, [7, 7, C] here
    if array.ndim == 2:
        return array.T
    if array.ndim != 4:
        return array  # one of the misfits
    array = array.transpose(2, 3, 1, 0)
    return array.reshape(math.prod(array.shape[:3]), array.shape[3]) if len(shape) == 2 else array


def adapt(
    info: WeightsInfo, variables: Mapping[str, Any], head: str, in_channels: int | None
) -> tuple[WeightsInfo, dict[str, Any]]:
    """Returns new weights with another head or other channels, see `load_weights`."""
    check_known('head', head, ('keep', 'drop'))
    params = dict(variables['params'])
    if head == 'drop':
        params.pop('head', None)
        info = info._replace(num_classes=0, class_names=())
    if in_channels is not None:
        check_at_least('in_channels', in_channels, 1)
        name = next((name for name in FIRST if name in params), None)
        if name is None:
            raise UserError(f'{info.model} has no first convolution named {", ".join(FIRST)}')
        kernel = params[name]['kernel']
        given = kernel.shape[2]
        if in_channels == 1 < given:  # a gray image has the logits that it has as RGB
            kernel = kernel.sum(2, keepdims=True)
        elif in_channels != given:  # the scale keeps the size of the response
            scale = np.float32(given / in_channels)
            kernel = kernel[:, :, np.arange(in_channels) % given] * scale
        params[name] = {**params[name], 'kernel': kernel}
        info = info._replace(
            preprocessing=for_channels(info.preprocessing, in_channels),
            fields={**info.fields, 'in_channels': in_channels},
        )
    return info, {**variables, 'params': params}
