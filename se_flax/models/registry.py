"""The networks by name: register, list, create, describe."""

import csv
import dataclasses
import fnmatch
import importlib.resources
from collections.abc import Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import jax

from se_flax.errors import UserError, check_known
from se_flax.models.complexity import count
from se_flax.models.network import Layer, Network
from se_flax.nn import SqueezeExcite

_REGNETS = (
    *(('002', '200mf'), ('006', '600mf'), ('016', '1_6gf'), ('032', '3_2gf'), ('040', '4gf')),
    *(('064', '6_4gf'), ('120', '12gf'), ('160', '16gf'), ('320', '32gf')),
)
# timm's architectures that are the same network under a name other than `timm_` and timm's.
_OTHER_IN_TIMM = {
    'legacy_senet154': 'senet154',
    'legacy_seresnet50': 'se_resnet50',
    'legacy_seresnet101': 'se_resnet101',
    'legacy_seresnet152': 'se_resnet152',
    'legacy_seresnext50_32x4d': 'se_resnext50_32x4d',
    'legacy_seresnext101_32x4d': 'se_resnext101_32x4d',
    **{f'regnet{k}_{theirs}': f'regnet_{k}_{ours}' for k in 'xy' for theirs, ours in _REGNETS},
    **{'regnetx_004_tv': 'regnet_x_400mf', 'regnety_004': 'regnet_y_400mf'},
    **{'regnetx_008': 'regnet_x_800mf', 'regnety_008_tv': 'regnet_y_800mf'},
    **{'regnetx_080': 'regnet_x_8gf', 'regnety_080_tv': 'regnet_y_8gf'},
    'regnety_1280': 'regnet_y_128gf',
    'vgg16_bn': 'vgg16',
    'inception_resnet_v2': 'inception_resnet_v2',
    **{(name := f'efficientnet_b{size}'): name for size in range(5)},
}


class PaperResult(NamedTuple):
    """Results in arXiv 1709.01507v4: errors in percent, single center crop, and multiply-adds."""

    top1_error: float
    top5_error: float | None
    table: str
    macs: float | None = None


class Feature(NamedTuple):
    """A map of `Network.features`, by its key there."""

    stage: str
    stride: int
    channels: int


class ModelInfo(NamedTuple):
    """What is known about a network before it is built."""

    name: str
    family: str  # name of its class
    params: int  # trainable
    macs: int  # multiply-adds of evaluating one image
    features: tuple[Feature, ...]
    input_size: int  # height and width in pixels
    num_classes: int
    paper: PaperResult | None  # None if the paper has no such network


_ENTRIES: dict[str, tuple[partial[Network], int]] = {}  # what makes a network, its input size
_TWINS: dict[str, tuple[str, str]] = {}  # names without and with SE, by either


def register(name: str, *, module: type[Network], input_size: int = 224, **fields: Any) -> None:
    """Gives `module(**fields)` a name; ValueError if the name is taken."""
    if name in _ENTRIES:
        raise ValueError(f'model {name!r} is already registered')
    _ENTRIES[name] = partial(module, **fields), input_size


def register_pair(
    plain: str, with_se: str = '', *, se: Layer = SqueezeExcite, **fields: Any
) -> None:
    """Registers a network without and with SE blocks; the latter is `se_{plain}` by default."""
    with_se = with_se or f'se_{plain}'
    register(plain, se=None, **fields)
    register(with_se, se=se, **fields)
    _TWINS[plain] = _TWINS[with_se] = plain, with_se


def list_models(pattern: str = '*') -> list[str]:
    """Returns the names that match a shell pattern, in order of registration.

    >>> list_models('se_resnet11*_cifar')
    ['se_resnet110_cifar']
    """
    return [name for name in _ENTRIES if fnmatch.fnmatchcase(name, pattern)]


def twins(name: str) -> tuple[str, str]:
    """Returns the names of a network without and with SE; UserError if it is not one of a pair.

    >>> twins('resnet50'), twins('efficientnet_b0')
    (('resnet50', 'se_resnet50'), ('efficientnet_b0_no_se', 'efficientnet_b0'))
    """
    check_model(name)
    if name not in _TWINS:
        raise UserError(
            f'{name} is not one of a pair; compare it with and without SE by '
            'se-flax ablate grid --vary "model_fields.se={},None"'
        )
    return _TWINS[name]


def timm_architectures() -> dict[str, str]:
    """Returns the architectures of timm that are registered here, with their name here."""
    return {name.removeprefix('timm_'): name for name in list_models('timm_*')} | _OTHER_IN_TIMM


def check_model(name: str) -> None:
    """Raises UserError for an unknown name, with the nearest ones or the name of timm's network.

    >>> check_model('seresnet50')
    Traceback (most recent call last):
    se_flax.errors.UserError: unknown model 'seresnet50': timm's seresnet50 is timm_seresnet50 here
    """
    if name in _ENTRIES:
        return
    architecture = str(name).removeprefix('timm/').partition('.')[0]  # also of a hub id
    if here := timm_architectures().get(architecture):
        raise UserError(f"unknown model {name!r}: timm's {architecture} is {here} here")
    check_known('model', name, _ENTRIES)


def create_model(name: str, num_classes: int | None = None, **fields: Any) -> Network:
    """Returns the Linen module of a registered name.

    Every network is called as `model.apply(variables, images, train=False)` with normalized
    `[B, H, W, in_channels]` float images and returns `[B, num_classes]` logits in float32 or wider.
    With `method='features'` it returns a map of each stride, see `Network.features`.

    Args:
        name: one of `list_models()`.
        num_classes: width of the head. None keeps the registered one (1000, or 10 or 100 for
            CIFAR); 0 is no head: the network returns its pooled features `[B, C]`.
        **fields: override those of the network's class. `se` may be a mapping of `SqueezeExcite`'s
            fields; None removes the SE blocks.

    Raises UserError for an unknown name or field, and for impossible values.

    >>> model = create_model('se_resnet50', num_classes=10, se={'reduction': 8})
    >>> model.num_classes, model.se.keywords
    (10, {'reduction': 8})
    """
    check_model(name)
    make, _ = _ENTRIES[name]
    for field in fields:
        check_known(f'field of {name}', field, _field_names(make.func))
    if isinstance(se := fields.get('se'), Mapping):
        for field in se:
            check_known('field of SqueezeExcite', field, _field_names(SqueezeExcite))
        registered = getattr(make.keywords.get('se'), 'keywords', {})
        fields['se'] = partial(SqueezeExcite, **{**registered, **se})
    if num_classes is not None:
        fields['num_classes'] = num_classes
    return make(**fields)


def model_info(name: str) -> ModelInfo:
    """Returns what is known about a registered network; of the library's own, from its tables.

    >>> info = model_info('se_resnet50')
    >>> info.params, info.paper.top1_error
    (28088024, 23.29)
    >>> info.features[1]
    Feature(stage='C2', stride=4, channels=256)
    """
    check_model(name)
    make, size = _ENTRIES[name]
    row = _rows('counts.csv').get(name) or table_row(name)
    stages = [part.split(':') for part in row['features'].split('/')]
    features = [Feature(stage, 1 << int(stage[1:]), int(channels)) for stage, channels in stages]
    counts = int(row['params']), int(row['macs']), tuple(features)
    num_classes = make.keywords.get('num_classes', Network.num_classes)
    return ModelInfo(name, make.func.__name__, *counts, size, num_classes, _paper(name))


def _paper(name: str) -> PaperResult | None:
    row = _rows('paper.csv').get(name)
    if not row:
        return None
    top5, macs = (float(row[key]) if row[key] else None for key in ('top5_error', 'macs'))
    return PaperResult(float(row['top1_error']), top5, row['table'], macs)


def table_row(name: str) -> dict[str, str]:
    """Traces a network and returns its row of counts.csv."""
    (_, size), model = _ENTRIES[name], create_model(name)
    image = jax.ShapeDtypeStruct((1, size, size, model.in_channels), model.dtype)
    init = partial(model.init_with_output, method='features')
    maps, _ = jax.eval_shape(init, jax.random.key(0), image)
    counts = {what: str(number) for what, number in count(model, size)._asdict().items()}
    features = '/'.join(f'{stage}:{x.shape[-1]}' for stage, x in maps.items())
    return {'name': name, **counts, 'features': features}


@cache
def _rows(file: str) -> dict[str, dict[str, str]]:
    # counts.csv has table_row's of each network, which tests/models/complexity_test.py compares;
    # paper.csv the paper's results (Shake-Even's without Cutout; with it the plain one has 15.20).
    text = importlib.resources.files('se_flax.models').joinpath(file).read_text()
    return {row['name']: row for row in csv.DictReader(text.splitlines())}


def _field_names(module: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(module) if f.name not in ('parent', 'name')]
