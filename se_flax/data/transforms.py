"""Image transforms on uint8: crop, resize, flip, RandAugment, jitter, rotation, cutout, erasing.

A transform is a pure function `(image, rng, out)`: it reads an image `[H, W, C]`, draws only from
the generator, and writes `out`, `[S, S, C]`. Both are uint8; three channels are RGB.
"""

import dataclasses
import math
from typing import Any

import cv2
import numpy as np
from PIL import Image

from se_flax.data.augment import GREATEST, color_jitter, rand_augment
from se_flax.data.decode import MAX_PIXELS, decode
from se_flax.errors import UserError, check_at_least, check_known

# OpenCV does not antialias: it reads 2x2 or 4x4 pixels even to shrink an image ('area' averages).
# Pillow's filters widen as the image shrinks; public weights were trained with them.
OPENCV = {
    'nearest': cv2.INTER_NEAREST_EXACT,
    'bilinear': cv2.INTER_LINEAR,
    'bicubic': cv2.INTER_CUBIC,
    'area': cv2.INTER_AREA,
}
PILLOW = {
    'bilinear_antialias': Image.Resampling.BILINEAR,
    'bicubic_antialias': Image.Resampling.BICUBIC,
}
INTERPOLATIONS = (*OPENCV, *PILLOW)
CROPS = ('inception', 'pad', 'none')
ERASED = {'area': (0.02, 1 / 3), 'aspect': (0.3, 1 / 0.3)}  # ranges of erased boxes, as in timm
ERASINGS = ('const', 'pixel')
# Images with a greater ratio of longer to shorter edge are first cropped to it: a line of 1 x 16000
# pixels takes 3 GiB when its shorter edge is resized to 256.
MAX_RATIO = 8


@dataclasses.dataclass(frozen=True)
class View:
    """The base of the transforms: the size of the output, and how an image file is decoded.

    Attributes:
        image_size: side S of the output, in pixels.
        channels: C.
        exif_orientation, max_pixels: see `se_flax.data.decode`.
        interpolation: one of INTERPOLATIONS.
    """

    image_size: int
    _: dataclasses.KW_ONLY
    channels: int = 3
    exif_orientation: bool = False
    max_pixels: int = MAX_PIXELS
    interpolation: str = 'bilinear'

    def __post_init__(self):
        check_at_least('image_size', self.image_size, 1)
        check_known('interpolation', self.interpolation, INTERPOLATIONS)

    def decode(self, image: bytes | np.ndarray) -> np.ndarray:
        """Returns the pixels of an image file, see `se_flax.data.decode`."""
        orient, most = self.exif_orientation, self.max_pixels
        return decode(image, self.channels, exif_orientation=orient, max_pixels=most)


@dataclasses.dataclass(frozen=True)
class TrainTransform(View):
    """Random crop, then changes in the order of the fields; what is off draws no numbers.

    The paper's released networks publish only the ranges `rotation=10, jitter=20`
    (https://github.com/hujie-frank/SENet, README). Our reading is that the crop is rotated (as in
    fb.resnet.torch), that one number is added to a whole channel, and that both are uniform.

    Attributes:
        crop: 'inception' resizes a random box to S x S (arXiv 1409.4842, section 6);
            'pad' shifts the image by up to `pad` pixels each way (arXiv 1512.03385, section 4.2);
            'none' takes the center. The last two resize an image of another size like EvalTransform
            with `resize=S`.
        crop_area: range of the crop's share of the image.
        crop_aspect: range of the crop's width / height, log-uniform.
        pad: pixels.
        flip: mirrors left to right with probability 0.5.
        ra_operations: number of RandAugment's operations, see `se_flax.data.augment`; 0 for none.
        ra_magnitude: their mean magnitude, 0 to 10.
        ra_std: the standard deviation of magnitudes.
        ra_increasing: whether each operation does more at a higher magnitude (timm's `inc1`).
        color_jitter: greatest changes of the factors of brightness, contrast and saturation.
        rotation: greatest angle either way, 0 to 180 degrees, around the center; bilinear.
        jitter: greatest change of a channel either way, 0 to 255; sums are rounded and clipped.
        cutout: side of a square of `fill` centered at any pixel (arXiv 1708.04552); 0 for none.
        erasing: probability that a box is erased (arXiv 1708.04896).
        erasing_mode: 'const' erases to `fill`, 'pixel' to normal noise of `mean` and `std`, rounded
            and clipped; timm, with the same ranges, has neither rounded nor clipped noise.
        fill: a number per channel, 0 to 255, for pixels from outside of the image.
        mean, std: a number per channel, of pixels from 0 to 255.
    """

    crop: str = 'inception'
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    pad: int = 0
    flip: bool = True
    ra_operations: int = 0
    ra_magnitude: float = 9.0
    ra_std: float = 0.5
    ra_increasing: bool = True
    color_jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotation: float = 0
    jitter: float = 0
    cutout: int = 0
    erasing: float = 0.0
    erasing_mode: str = 'const'
    fill: tuple[int, ...] = (0, 0, 0)
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self):
        check_known('crop', self.crop, CROPS)
        super().__post_init__()
        for name in ('pad', 'cutout', 'ra_operations'):
            check_at_least(name, getattr(self, name), 0)
        check_known('erasing_mode', self.erasing_mode, ERASINGS)
        limits = ('rotation', 180), ('jitter', 255), ('ra_magnitude', GREATEST), ('erasing', 1)
        for name, most in limits:
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f'{name}={getattr(self, name)} must be 0 to {most}')
        for name, most in (('crop_area', 1.0), ('crop_aspect', math.inf)):
            value = getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1] <= most:
                bound = '' if most == math.inf else f' <= {most}'
                raise UserError(
                    f'{name}={tuple(value)} must be two numbers, 0 < least <= greatest{bound}'
                )
        check_at_least('ra_std', self.ra_std, 0, whole=False)
        if len(self.color_jitter) != 3 or not all(by >= 0 for by in self.color_jitter):
            raise UserError(f'color_jitter={self.color_jitter} must be three numbers of at least 0')
        if self.channels != 3 and (self.ra_operations or any(self.color_jitter)):
            name = 'ra_operations' if self.ra_operations else 'color_jitter'
            raise UserError(
                f'{name}={getattr(self, name)} is for in_channels=3, not {self.channels}; turn it '
                'off, or use rotation and jitter, which take any number of channels'
            )
        if len(self.fill) != self.channels or not all(0 <= value <= 255 for value in self.fill):
            raise UserError(
                f'fill={tuple(self.fill)} must be numbers from 0 to 255, one per channel '
                f'(channels={self.channels})'
            )

    def __call__(self, image: np.ndarray, rng: np.random.Generator, out: np.ndarray) -> None:
        if self.crop == 'inception':
            height, width = image.shape[:2]
            top, left, h, w = inception_crop(height, width, rng, self.crop_area, self.crop_aspect)
            view = image[top : top + h, left : left + w]
            out[:] = resize(view, self.image_size, self.image_size, self.interpolation)
        else:
            image = fit(image, self.image_size, self.image_size, self.interpolation)
            if self.crop == 'pad':
                shift(image, rng.integers(-self.pad, self.pad, 2, endpoint=True), self.fill, out)
            else:
                out[:] = image
        if self.flip and rng.random() < 0.5:
            cv2.flip(out, 1, dst=out)
        if self.ra_operations:
            out[:] = rand_augment(
                out,
                rng,
                operations=self.ra_operations,
                magnitude=self.ra_magnitude,
                std=self.ra_std,
                increasing=self.ra_increasing,
                fill=tuple(map(round, self.fill)),
                interpolation=self.interpolation,
            )
        if any(self.color_jitter):
            out[:] = color_jitter(out, rng, self.color_jitter)
        if self.rotation:
            out[:] = rotate(out, rng.uniform(-self.rotation, self.rotation), self.fill)
        if self.jitter:
            by = rng.uniform(-self.jitter, self.jitter, self.channels)
            out[:] = _by_channel(_add, out, by)
        if self.cutout:
            start = rng.integers(self.image_size, size=2) - self.cutout // 2
            y, x = (slice(max(edge, 0), max(edge + self.cutout, 0)) for edge in start)
            out[y, x] = self.fill
        if self.erasing and rng.random() < self.erasing:
            top, left, h, w = inception_crop(self.image_size, self.image_size, rng, **ERASED)
            box = out[top : top + h, left : left + w]
            if self.erasing_mode == 'const':
                box[:] = self.fill
            else:
                box[:] = rng.normal(self.mean, self.std, box.shape).round().clip(0, 255)


@dataclasses.dataclass(frozen=True)
class EvalTransform(View):
    """The center of the resized image; draws nothing.

    Attributes:
        resize: length of the shorter edge after resizing, at least S; 0 keeps an image's size, but
            enlarges one smaller than S to S.
    """

    resize: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.resize and self.resize < self.image_size:
            raise UserError(
                f'resize={self.resize} is below image_size={self.image_size}; '
                f'use 0 or at least {self.image_size}'
            )

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None, out: np.ndarray) -> None:
        shorter = self.resize or max(self.image_size, min(image.shape[:2]))
        out[:] = fit(image, shorter, self.image_size, self.interpolation)


@dataclasses.dataclass(frozen=True)
class Squash(View):
    """The whole image resized to a square, from which a protocol takes its crops.

    First the shorter edge is resized and then the longer one, as in the source of the twelve
    crops (`se_flax.evaluation.protocols`).
    """

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None, out: np.ndarray) -> None:
        size, least = self.image_size, min(image.shape[:2])
        height, width = (min(edge * size // least, MAX_RATIO * size) for edge in image.shape[:2])
        image = resize(image, height, width, self.interpolation)
        out[:] = resize(image, size, size, self.interpolation)


def inception_crop(
    height: int,
    width: int,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Draws `(top, left, height, width)` of a box inside the image.

    The share of the area is uniform, width / height log-uniform, up to rounding. After ten tries,
    the greatest central box of allowed aspect is taken (as in torchvision).
    """
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(10):
        u_area, u_aspect, u_top, u_left = rng.random(4)
        pixels = height * width * (area[0] + u_area * (area[1] - area[0]))
        ratio = math.exp(low + u_aspect * (high - low))
        h, w = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(u_top * (height - h + 1)), int(u_left * (width - w + 1)), h, w
    h = min(height, max(1, round(width / aspect[0])))
    w = min(width, max(1, round(height * aspect[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def resize(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Resizes `[H, W, C]` to `[height, width, C]`; returns an image of that size unchanged."""
    if image.shape[:2] == (height, width):
        return image

    def resized(pixels):
        if interpolation in OPENCV:
            return cv2.resize(pixels, (width, height), interpolation=OPENCV[interpolation])
        pixels = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(pixels.resize((width, height), PILLOW[interpolation]))

    return _by_channel(resized, image)


def _by_channel(f, image: np.ndarray, *values: Any) -> np.ndarray:
    """Returns f(image, *values); by channel if not RGB, as Pillow and OpenCV take few others."""
    if image.shape[2] == 3:
        return f(image, *values)
    planes = map(np.ascontiguousarray, np.moveaxis(image, -1, 0))
    return np.stack(list(map(f, planes, *values)), -1)


def fit(image: np.ndarray, shorter: int, size: int, interpolation: str) -> np.ndarray:
    """Resizes the shorter edge to `shorter`, keeps the aspect, takes the central `size` square."""
    least = min(image.shape[:2])
    image = _center(image, MAX_RATIO * least)
    height, width = image.shape[:2]
    image = resize(image, height * shorter // least, width * shorter // least, interpolation)
    return _center(image, size)


def _center(image: np.ndarray, size: int) -> np.ndarray:
    """Returns the central `size` pixels each way, or all if there are fewer."""
    top, left = (max(0, round((edge - size) / 2)) for edge in image.shape[:2])  # as torchvision
    return image[top : top + size, left : left + size]


def shift(image: np.ndarray, by: np.ndarray, fill: tuple[int, ...], out: np.ndarray) -> None:
    """Writes `image` moved `by` (down, right) pixels into `out`; pixels from outside are `fill`."""
    by = by.tolist()  # Python's ints are faster
    target = tuple(slice(max(step, 0), min(step, 0) or None) for step in by)
    source = tuple(slice(max(-step, 0), min(-step, 0) or None) for step in by)
    out[:] = fill
    out[target] = image[source]


def rotate(image: np.ndarray, degrees: float, fill: tuple[int, ...]) -> np.ndarray:
    """Rotates an image counter-clockwise around its center; pixels from outside are `fill`."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)

    def rotated(pixels, fill):
        return cv2.warpAffine(pixels, matrix, (width, height), borderValue=fill)

    return _by_channel(rotated, image, fill)


def _add(pixels, by):
    return cv2.add(pixels, (*np.atleast_1d(by), 0.0))  # rounds and clips
