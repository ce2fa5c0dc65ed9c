"""The variables of a network, and what is wrong with given ones."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from se_flax.errors import UserError
from se_flax.models.network import Network

SIZE = 96  # pixels; no network needs larger images, and no parameter's shape depends on them
SHOWN = 4


class Tensor(NamedTuple):
    """An array with its name in a file and its path in the variables, if it has one."""

    name: str
    path: str | None
    array: np.ndarray


@lru_cache(maxsize=128)
def variable_shapes(model: Network) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each variable by its path, without computing anything.

    >>> from se_flax.models import create_model
    >>> variable_shapes(create_model('resnet50'))['params/stage2_block1/conv1/kernel']
    (1, 1, 64, 64)
    """
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, model.in_channels), model.dtype)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return {path: leaf.shape for path, leaf in flatten_dict(variables, sep='/').items()}


def misfits(shapes: dict[str, tuple[int, ...]], tensors: Iterable[Tensor]) -> str:
    """Describes missing, unexpected, duplicate and mis-shaped variables; '' if none."""
    tensors = list(tensors)
    names: dict[str | None, list[str]] = {}
    for t in tensors:
        names.setdefault(t.path, []).append(t.name)
    shared = [n for path, n in names.items() if path in shapes and len(n) > 1]
    found = {
        'missing': [path for path in shapes if path not in names],
        'unexpected': [t.name for t in tensors if t.path not in shapes],
        'with the same path': [' and '.join(several) for several in shared],
        'with the wrong shape': [
            f'{t.name} is {list(t.array.shape)}, {t.path} needs {list(shapes[t.path])}'
            for t in tensors
            if t.path in shapes and t.array.shape != shapes[t.path]
        ],
    }
    return '; '.join(f'{len(v)} {what} ({_some(v)})' for what, v in found.items() if v)


def check_variables(model: Network, variables: Mapping[str, Any], name: str) -> None:
    """Raises UserError that has `name` unless the variables are all of the network's."""
    tensors = [Tensor(path, path, of) for path, of in flatten_dict(variables, sep='/').items()]
    if wrong := misfits(variable_shapes(model), tensors):
        raise UserError(f'the variables do not fit {name}: {wrong}')


def _some(items: Sequence[str]) -> str:
    more = f', and {len(items) - SHOWN} more' if len(items) > SHOWN else ''
    return ', '.join(item[:200] for item in items[:SHOWN]) + more
