"""Fills the variables of a network from named arrays: each exactly once, of the right shape."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from se_flax.errors import UserError
from se_flax.models.network import Network

SIZE = 96  # pixels; the parameters of no network depend on it, and none finds it too small
SHOWN = 4


class Tensor(NamedTuple):
    """An array by its name in the file, and its place in the variables, if it has one."""

    name: str
    path: str | None
    array: np.ndarray


@lru_cache(maxsize=128)
def variable_shapes(model: Network) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each variable by its path; computes nothing.

    >>> from se_flax.models import create_model
    >>> variable_shapes(create_model('resnet50'))['params/stage2_block1/conv1/kernel']
    (1, 1, 64, 64)
    """
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, model.in_channels), model.dtype)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return {path: leaf.shape for path, leaf in flatten_dict(variables, sep='/').items()}


def misfits(shapes: Mapping[str, tuple[int, ...]], tensors: Iterable[Tensor]) -> str:
    """Says what is missing, unexpected, doubled or mis-shaped; '' where each has its place."""
    names: dict[str, list[str]] = {}
    unexpected, misshaped = [], []
    for tensor in tensors:
        if tensor.path not in shapes:
            unexpected.append(tensor.name)
            continue
        names.setdefault(tensor.path, []).append(tensor.name)
        if tensor.array.shape != shapes[tensor.path]:
            shape, wanted = list(tensor.array.shape), list(shapes[tensor.path])
            misshaped.append(f'{tensor.name} is {shape}, {tensor.path} needs {wanted}')
    found = {
        'missing': [path for path in shapes if path not in names],
        'unexpected': unexpected,
        'for one place': [' and '.join(several) for several in names.values() if len(several) > 1],
        'mis-shaped': misshaped,
    }
    return '; '.join(f'{len(v)} {what} ({_some(v)})' for what, v in found.items() if v)


def _some(items: Sequence[str]) -> str:
    more = f', and {len(items) - SHOWN} more' if len(items) > SHOWN else ''
    return ', '.join(item[:200] for item in items[:SHOWN]) + more


def fill(tensors: Iterable[Tensor]) -> dict[str, Any]:
    """Returns the variables, float32, of tensors without `misfits`.

    Raises UserError for numbers that are no floats, NaN or infinite.
    """
    flat = {t.path: as_float32(t.name, t.array) for t in tensors}
    return unflatten_dict(flat, sep='/')


def as_float32(name: str, array: np.ndarray) -> np.ndarray:
    """Raises UserError for an array of no floats, or of floats that are not finite."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f'{name} holds {array.dtype}, not floats')
    with np.errstate(over='ignore'):
        array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise UserError(f'{name} holds NaN or infinity')
    return array


def to_kernel(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Brings `[O, I, H, W]` or `[O, I]` into the layout of a kernel of that shape.

    A convolution becomes `[H, W, I, O]`; where the kernel is a dense one, it is flattened in that
    order to `[H W I, O]`. What has neither form is returned as it is.

    >>> to_kernel(np.zeros((8, 4, 7, 7)), (196, 8)).shape
    (196, 8)
    """
    if array.ndim == 2:
        return array.T
    if array.ndim != 4:
        return array
    array = array.transpose(2, 3, 1, 0)
    return array.reshape(math.prod(array.shape[:3]), array.shape[3]) if len(shape) == 2 else array
