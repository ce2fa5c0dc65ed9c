"""What belongs to weights besides their numbers."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from se_flax.errors import UserError

MAX_SIZE = 1 << 24  # of a number that counts something


class Preprocessing(NamedTuple):
    """From an image of 0 to 255 to what a network was trained on; three channels are RGB.

    The shorter edge is resized to `resize` pixels (0 leaves it), the centre of `image_size` pixels
    is cut out, and each channel becomes `(x - mean) / std`. `interpolation` is one of
    `se_flax.data.transforms.INTERPOLATIONS`; the `_antialias` ones are Pillow's, which the PyTorch
    code bases use. With `exif_orientation` an image is first turned as its EXIF data say.
    """

    image_size: int
    resize: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    exif_orientation: bool = False


class WeightsInfo(NamedTuple):
    """Which network weights are of, where they come from, and what they expect.

    Attributes:
        model: registered name.
        num_classes: width of the head; 0 is none.
        lineage: code base they come from: 'caffe', 'cadene', 'timm', 'torchvision', 'pytorchcv' or
            one's own name for it.
        preprocessing: of the images, in evaluation.
        fields: of the network's class, beyond those of the registered name.
        class_names: in the order of the head; empty where nobody said.
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


def parse_preprocessing(entry: Mapping[str, Any], channels: int = 3) -> Preprocessing:
    """Makes a Preprocessing of what a file says; UserError for values that none can have."""
    view = Preprocessing(**entry)
    view = view._replace(mean=without_lists(view.mean), std=without_lists(view.std))
    check_entry('image_size', view.image_size, is_size(view.image_size))
    check_entry('resize', view.resize, view.resize == 0 or is_size(view.resize))
    check_entry('exif_orientation', view.exif_orientation, type(view.exif_orientation) is bool)
    check_entry('interpolation', view.interpolation, isinstance(view.interpolation, str))
    for name, of in (('mean', view.mean), ('std', view.std)):
        real = len(of) == channels and all(type(v) in (int, float) and math.isfinite(v) for v in of)
        check_entry(name, of, real and (name == 'mean' or min(of) > 0))
    return view


def check_entry(name: str, value: Any, right: bool) -> None:
    """Raises UserError unless a value of the metadata is right."""
    if not right:
        raise UserError(f'{name} in the metadata cannot be {repr(value)[:100]}')


def without_lists(value: Any) -> Any:
    """Turns lists into tuples, at every depth: JSON has lists, and modules must be hashable.

    >>> without_lists({'se': {'reduction': 8}, 'stage_sizes': [3, 4]})
    {'se': {'reduction': 8}, 'stage_sizes': (3, 4)}
    """
    if isinstance(value, Mapping):
        return {key: without_lists(inner) for key, inner in value.items()}
    return tuple(map(without_lists, value)) if isinstance(value, (list, tuple)) else value


def is_size(value: Any) -> bool:
    """Tells whether a value of the metadata counts pixels, classes or the like."""
    return type(value) is int and 0 < value <= MAX_SIZE
