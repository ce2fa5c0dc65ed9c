"""What a weights file says besides its numbers: which network, from where, for which images."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from se_flax.errors import UserError
from se_flax.models import check_model
from se_flax.storage import without_lists

VERSION = 1  # of the metadata
MAX_SIZE = 1 << 24  # of a number in the metadata
MAX_UNITS = 1024  # more than any network has: tracing what a hostile file asks for takes hours


class Preprocessing(NamedTuple):
    """From an image of 0 to 255 to what a network was trained on; three channels are RGB.

    The shorter edge is resized to `resize` pixels (0 leaves it), the center of `image_size` pixels
    is cut out, and each channel becomes `(x - mean) / std`. `interpolation` is one of
    `se_flax.data.transforms.INTERPOLATIONS`; the `_antialias` ones are Pillow's, which the PyTorch
    code bases use. `exif_orientation` rotates an image first as its EXIF data say.
    """

    image_size: int
    resize: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    exif_orientation: bool = False


class WeightsInfo(NamedTuple):
    """Which network weights belong to, where they come from, and what they expect.

    Attributes:
        model: registered name.
        num_classes: width of the head; 0 without a head.
        lineage: code base: 'caffe', 'cadene', 'timm', 'torchvision', 'pytorchcv' or any other name.
        preprocessing: of the images, in evaluation.
        fields: of the network's class, where they differ from those of the registered name.
        class_names: in the order of the head; empty if unknown.
    """

    model: str
    num_classes: int
    lineage: str
    preprocessing: Preprocessing
    fields: Mapping[str, Any] = {}
    class_names: tuple[str, ...] = ()


IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CAFFE = Preprocessing(224, 256, 'bilinear', (123.0, 117.0, 104.0), (1.0, 1.0, 1.0))
BILINEAR = Preprocessing(224, 256, 'bilinear_antialias', IMAGENET_MEAN, IMAGENET_STD)
BICUBIC = BILINEAR._replace(interpolation='bicubic_antialias')
# 333 = 299 / 0.8975, rounded down as timm does.
INCEPTION = Preprocessing(299, 333, 'bicubic_antialias', (127.5,) * 3, (127.5,) * 3)
CIFAR = Preprocessing(
    32, 0, 'bilinear_antialias', (125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255)
)


def for_channels(view: Preprocessing, channels: int) -> Preprocessing:
    """Averages `mean` and `std` for one channel; repeats them in order for more."""

    def spread(values):
        if channels == 1:
            return (sum(values) / len(values),)
        return tuple(values[i % len(values)] for i in range(channels))

    return view._replace(mean=spread(view.mean), std=spread(view.std))


def to_json(info: WeightsInfo) -> str:
    """Returns the metadata; raises UserError for fields that are not plain JSON."""
    entry = info._asdict() | {'preprocessing': info.preprocessing._asdict()}
    try:
        return json.dumps({'version': VERSION, **entry}, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f'this cannot be stored in a weights file: {error}') from None


def from_json(text: str) -> WeightsInfo:
    """Returns what `to_json` was given; raises UserError for anything that it never writes."""
    try:
        entry = json.loads(text)
    except ValueError as error:
        raise UserError(f'the metadata is not JSON: {error}') from None
    version = entry.pop('version', None) if isinstance(entry, dict) else None
    if version != VERSION:
        raise UserError(f'unknown format version {version!r}; this release supports {VERSION}')
    try:
        fields = entry['fields']
        channels = fields.get('in_channels', 3) if isinstance(fields, dict) else 3
        view = parse_preprocessing(entry['preprocessing'], channels)
        names = tuple(entry['class_names'])
        info = WeightsInfo(**entry | {'preprocessing': view, 'class_names': names})
    except (TypeError, KeyError, OverflowError) as error:
        raise UserError(f'the metadata is damaged: {error}') from None
    named = all(isinstance(name, str) for name in names)
    _check_entries(
        info,
        model=isinstance(info.model, str) and len(info.model) < 100,
        num_classes=info.num_classes == 0 or _is_size(info.num_classes),
        lineage=isinstance(info.lineage, str),
        fields=isinstance(fields, dict) and _is_harmless(fields),
        class_names=named and len(names) in (0, info.num_classes),
    )
    check_model(info.model)
    return info._replace(fields=without_lists(fields))


def parse_preprocessing(entry: Mapping[str, Any], channels: int = 3) -> Preprocessing:
    """Returns the preprocessing that a file describes; UserError for impossible values."""

    def are_numbers(values):
        numbers = [v for v in values if type(v) in (int, float) and math.isfinite(v)]
        return len(values) == len(numbers) == channels

    view = Preprocessing(**without_lists(entry))
    _check_entries(
        view,
        image_size=_is_size(view.image_size),
        resize=view.resize == 0 or _is_size(view.resize),
        exif_orientation=type(view.exif_orientation) is bool,
        interpolation=isinstance(view.interpolation, str),
        mean=are_numbers(view.mean),
        std=are_numbers(view.std) and min(view.std, default=0) > 0,
    )
    return view


def _check_entries(entries: NamedTuple, **right: bool) -> None:
    for name, is_right in right.items():
        if not is_right:
            value = repr(getattr(entries, name))[:100]
            raise UserError(f'invalid {name} in the metadata: {value}')


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_SIZE


def _is_harmless(value: Any, most: int = MAX_SIZE) -> bool:
    if isinstance(value, dict):
        units = {'stage_sizes': MAX_UNITS}
        return all(_is_harmless(v, units.get(key, MAX_SIZE)) for key, v in value.items())
    if isinstance(value, list):
        return all(type(v) is int and v >= 0 for v in value) and sum(value) <= most
    if type(value) in (int, float):
        return abs(value) <= MAX_SIZE  # False for NaN
    return value is None or isinstance(value, (bool, str))
