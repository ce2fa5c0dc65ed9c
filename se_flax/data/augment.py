"""RandAugment (arXiv 1909.13719) as in timm, and color jitter as in torchvision, by Pillow."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

PROBABILITY = 0.5  # that a drawn operation is applied, as in timm; the paper always applies it
GREATEST = 10  # magnitude
JITTERED = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color


class Strength(NamedTuple):
    """How an operation is applied.

    Attributes:
        level: magnitude / GREATEST, 0 to 1.
        sign: 1 or -1, for operations that have two directions.
        increasing: whether every operation does more at a higher level.
        fill, resample: color of pixels from outside of the image, and Pillow's filter.
    """

    level: float
    sign: int
    increasing: bool
    fill: tuple[int, ...]
    resample: Image.Resampling


Operation = Callable[[Image.Image, Strength], Image.Image]


def _rotate(image, how):
    return image.rotate(how.sign * how.level * 30, how.resample, fillcolor=how.fill)


def _moved(matrix):
    def move(image, how):
        rows = matrix(how.sign * how.level, *image.size)
        affine = Image.Transform.AFFINE
        return image.transform(image.size, affine, rows, how.resample, fillcolor=how.fill)

    return move


def _enhanced(enhancer):
    def enhance(image, how):
        away = how.sign * (how.level * 0.9)
        factor = max(0.1, 1 + away) if how.increasing else how.level * 1.8 + 0.1
        return enhancer(image).enhance(factor)

    return enhance


def _posterize(image, how):
    bits = 4 - int(how.level * 4) if how.increasing else int(how.level * 4)
    return image.point(lambda value: value & (256 - 2 ** (8 - bits)))


def _solarize(image, how):
    start = 256 - int(how.level * 256) if how.increasing else int(how.level * 256)
    return image.point(lambda value: value if value < start else 255 - value)


def _solarize_add(image, how):
    more = int(how.level * 110)
    return image.point(lambda value: min(255, value + more) if value < 128 else value)


OPERATIONS: dict[str, Operation] = {
    'AutoContrast': lambda image, how: ImageOps.autocontrast(image),
    'Equalize': lambda image, how: ImageOps.equalize(image),
    'Invert': lambda image, how: ImageOps.invert(image),
    'Rotate': _rotate,
    'Posterize': _posterize,
    'Solarize': _solarize,
    'SolarizeAdd': _solarize_add,
    'Color': _enhanced(ImageEnhance.Color),
    'Contrast': _enhanced(ImageEnhance.Contrast),
    'Brightness': _enhanced(ImageEnhance.Brightness),
    'Sharpness': _enhanced(ImageEnhance.Sharpness),
    'ShearX': _moved(lambda by, width, height: (1, 0.3 * by, 0, 0, 1, 0)),
    'ShearY': _moved(lambda by, width, height: (1, 0, 0, 0.3 * by, 1, 0)),
    'TranslateX': _moved(lambda by, width, height: (1, 0, 0.45 * by * width, 0, 1, 0)),
    'TranslateY': _moved(lambda by, width, height: (1, 0, 0, 0, 1, 0.45 * by * height)),
}


def rand_augment(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    operations: int,
    magnitude: float,
    std: float,
    increasing: bool,
    fill: tuple[int, ...],
    interpolation: str,
) -> np.ndarray:
    """Applies some of OPERATIONS, drawn with replacement, to an image `[H, W, 3]`.

    Each has a magnitude of its own from a normal distribution, cut to 0 to GREATEST. Geometric
    ones are bicubic where `interpolation` is, else bilinear.
    """
    pixels = Image.fromarray(image)
    filters = Image.Resampling
    resample = filters.BICUBIC if interpolation.startswith('bicubic') else filters.BILINEAR
    table = list(OPERATIONS.values())
    for i in rng.integers(len(table), size=operations):
        if rng.random() < PROBABILITY:
            level = np.clip(rng.normal(magnitude, std), 0, GREATEST) / GREATEST
            sign = 1 if rng.random() < 0.5 else -1
            pixels = table[i](pixels, Strength(float(level), sign, increasing, fill, resample))
    return np.asarray(pixels)


def color_jitter(
    image: np.ndarray, rng: np.random.Generator, greatest: Sequence[float]
) -> np.ndarray:
    """Changes brightness, contrast and saturation of `[H, W, 3]`, in random order.

    The factors are uniform around 1, up to `greatest` either way, but not below 0.
    """
    pixels = Image.fromarray(image)
    for i in rng.permutation(len(JITTERED)):
        if greatest[i]:
            factor = rng.uniform(max(0, 1 - greatest[i]), 1 + greatest[i])
            pixels = JITTERED[i](pixels).enhance(factor)
    return np.asarray(pixels)
