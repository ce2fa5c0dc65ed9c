"""Fills the variables of a network from named arrays, of floats alone."""

import math
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from se_flax.errors import UserError
from se_flax.models.variables import Tensor


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
