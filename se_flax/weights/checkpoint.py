"""Finds the state dict in what a trainer saved."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from se_flax.errors import UserError, check_known

MAX_DEPTH = 8  # of dicts and prefixes: a hostile file must not have us search for hours
SMALLEST = 4  # known modules of a network; a layer or two may look like those of another one
logger = logging.getLogger(__name__)


def find_state_dict(
    checkpoint: Mapping[str, Any], known: Callable[[set[str]], int], key: str | None = None
) -> dict[str, Any]:
    """Returns the tensors of the state dict in a checkpoint, by their names in it.

    A dict in a dict and a prefix of names are the same here: `{'model': {'module.fc.bias': ...}}`
    has the state dict `model.module`. What was taken and what was left out is logged. Names that
    are known as they are lose nothing. Where no state dict is found, everything is returned.

    Args:
        checkpoint: of tensors, and anything else beside them.
        known: returns how many of such modules a network here can have.
        key: of the state dict, or of what it is in, where there are several.

    Raises UserError where there are several and `key` does not choose one.
    """
    entries = _flatten(checkpoint)
    tensors = {name for name, value in entries.items() if hasattr(value, 'shape')}
    found = _state_dicts(tensors, known)
    prefix = _choose({prefix: len(names) for prefix, names in found.items()}, key)
    taken = found.get(prefix, tensors)
    rest = sorted(tensors - taken)
    if prefix or rest:
        more = ', ...' if len(rest) > 3 else ''
        other = f'; left out {len(rest)} others: {", ".join(rest[:3])}{more}' if rest else ''
        logger.warning('took the %d tensors under %r%s', len(taken), prefix, other)
    # A weight that is no tensor is a mistake, not something beside the state dict.
    taken = taken | {
        name
        for name in entries.keys() - tensors
        if name.startswith(prefix and f'{prefix}.') and known({_module(name, prefix)})
    }
    return {_without(prefix, name): entries[name] for name in entries if name in taken}


def _flatten(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    seen, dicts = {id(checkpoint)}, [('', checkpoint, 0)]
    for prefix, of, depth in dicts:  # which grows
        for key, value in of.items():
            if not isinstance(key, str):
                continue  # such as the numbers of an optimizer's parameters
            name = f'{prefix}{key}'
            if isinstance(value, Mapping):
                if id(value) not in seen and depth < MAX_DEPTH:
                    seen.add(id(value))
                    dicts.append((f'{name}.', value, depth + 1))
            elif name in flat:
                raise UserError(f'the checkpoint has {name} twice')
            else:
                flat[name] = value
    return flat


def _state_dicts(tensors: set[str], known: Callable[[set[str]], int]) -> dict[str, set[str]]:
    """Returns the tensors of each state dict by its prefix; none belongs to two."""
    under: dict[str, set[str]] = {}
    for name in tensors:
        parts = name.split('.')
        for depth in range(min(len(parts), MAX_DEPTH)):
            under.setdefault('.'.join(parts[:depth]), set()).add(name)

    def count(prefix: str) -> tuple[int, int]:
        modules = {_module(name, prefix) for name in under[prefix]}
        return known(modules), len(modules)

    # The largest first, and of equal ones the outermost: names that are known stay as they are.
    order = sorted(under, key=lambda prefix: (-count(prefix)[0], len(prefix), prefix))
    order = [prefix for prefix in order if count(prefix)[0] >= SMALLEST]

    def is_one(prefix: str) -> bool:
        right, modules = count(prefix)
        return right >= SMALLEST and right > modules / 2

    found: dict[str, set[str]] = {}
    while (prefix := next(filter(is_one, order), None)) is not None:
        found[prefix] = set(under[prefix])
        for names in under.values():
            names -= found[prefix]
    return found


def _choose(sizes: Mapping[str, int], key: str | None) -> str:
    if not sizes:
        return ''
    if key is not None and key in sizes:
        return key
    fitting = [prefix for prefix in sizes if key is None or prefix.startswith(f'{key}.')]
    if not fitting:
        check_known('state dict', key, sizes)
    if len(fitting) > 1:
        listed = ', '.join(f'{prefix!r} ({sizes[prefix]} tensors)' for prefix in sorted(fitting))
        raise UserError(
            f'the file holds {len(fitting)} state dicts: {listed}; choose one: --key NAME, in '
            'Python key=NAME'
        )
    return fitting[0]


def _without(prefix: str, name: str) -> str:
    return name.removeprefix(f'{prefix}.') if prefix else name


def _module(name: str, prefix: str) -> str:
    return _without(prefix, name).rpartition('.')[0]
