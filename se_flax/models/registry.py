"""Names of networks: register one, list them, make one, ask what is known of it."""

import csv
import dataclasses
import fnmatch
import importlib.resources
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

from flax import linen as nn

from se_flax.errors import check_known
from se_flax.models.complexity import Counts, count
from se_flax.nn import SqueezeExcite


class PaperResult(NamedTuple):
    """What arXiv 1709.01507v4 prints: errors in percent, one centre crop, and multiply-adds."""

    top1_error: float
    top5_error: float | None
    table: str
    macs: float | None = None


class ModelInfo(NamedTuple):
    """What is known of a network before it is built.

    `params` are trainable ones, `macs` the multiply-adds of one image in evaluation;
    `input_size` is height and width in pixels; `paper` is None where the paper has no such net.
    """

    name: str
    params: int
    macs: int
    input_size: int
    num_classes: int
    paper: PaperResult | None


class _Entry(NamedTuple):
    module: Callable[..., nn.Module]
    fields: Mapping[str, Any]
    input_size: int
    num_classes: int
    paper: PaperResult | None


_ENTRIES: dict[str, _Entry] = {}


def register(
    name: str,
    *,
    module: type[nn.Module],
    input_size: int = 224,
    num_classes: int = 1000,
    paper: PaperResult | None = None,
    **fields,
) -> None:
    """Gives `module(**fields)` a name; ValueError if the name is taken."""
    if name in _ENTRIES:
        raise ValueError(f'model {name!r} is registered already')
    _ENTRIES[name] = _Entry(module, fields, input_size, num_classes, paper)


def list_models(pattern: str = '*') -> list[str]:
    """Returns the names that match a shell pattern, in the order of registration.

    >>> list_models('se_resnet1*_cifar')
    ['se_resnet110_cifar']
    """
    return [name for name in _ENTRIES if fnmatch.fnmatchcase(name, pattern)]


def create_model(name: str, num_classes: int | None = None, **fields) -> nn.Module:
    """Returns the Linen module of a registered name.

    Every network is called as `model.apply(variables, images, train=False)` with `[B, H, W, 3]`
    normalised float images and returns `[B, num_classes]` logits in float32 or wider.

    Args:
        name: one of `list_models()`.
        num_classes: width of the head; None keeps the registered one (1000, or 10 for CIFAR).
        **fields: of the network's class, in place of the registered ones. `se` may be a mapping of
            `SqueezeExcite`'s fields, and None takes the SE blocks out.

    Raises:
        UserError: for an unknown name or field, with the nearest known ones.

    >>> model = create_model('se_resnet50', num_classes=10, se={'reduction': 8})
    >>> model.num_classes, model.se.keywords
    (10, {'reduction': 8})
    """
    check_known('model', name, _ENTRIES)
    entry = _ENTRIES[name]
    for field in fields:
        check_known(f'field of {name}', field, _field_names(entry.module))
    if isinstance(se := fields.get('se'), Mapping):
        for field in se:
            check_known('field of SqueezeExcite', field, _field_names(SqueezeExcite))
        registered = getattr(entry.fields.get('se'), 'keywords', {})
        fields['se'] = partial(SqueezeExcite, **{**registered, **se})
    num_classes = entry.num_classes if num_classes is None else num_classes
    return entry.module(**{**entry.fields, 'num_classes': num_classes, **fields})


def model_info(name: str) -> ModelInfo:
    """Returns what is known of a registered network.

    At once for the networks that come with the library: their counts are kept in a table.

    >>> info = model_info('se_resnet50')
    >>> info.params, info.paper.top1_error
    (28088024, 23.29)
    """
    check_known('model', name, _ENTRIES)
    entry = _ENTRIES[name]
    counts = _counts().get(name) or count(create_model(name), entry.input_size)
    return ModelInfo(name, *counts, entry.input_size, entry.num_classes, entry.paper)


@cache
def _counts() -> dict[str, Counts]:
    # Made by complexity.py and held against it by tests/models/complexity_test.py.
    text = importlib.resources.files('se_flax.models').joinpath('counts.csv').read_text()
    return {
        r['name']: Counts(int(r['params']), int(r['macs'])) for r in csv.DictReader(text.split())
    }


def _field_names(module: type[nn.Module]) -> list[str]:
    return [f.name for f in dataclasses.fields(module) if f.name not in ('parent', 'name')]
