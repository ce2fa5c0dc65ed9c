"""From pixels to what the network is given: crop, resize, flip, rotation, all on uint8.

A transform is a pure function `(image, rng, out)`: it reads an image `[H, W, C]`, draws from the
generator alone, and writes `out`, `[S, S, C]`. Both are uint8; three channels are RGB.
"""

import dataclasses
import math

import cv2
import numpy as np
from PIL import Image

from se_flax.data.decode import MAX_PIXELS, decode
from se_flax.errors import UserError, check_known

# OpenCV samples without antialias: it reads 2x2 or 4x4 pixels also where it shrinks ('area'
# averages). Pillow's filters widen as the image shrinks; public weights were trained with them.
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
# Longer edge / shorter edge beyond which an image is first cropped to that: a line of 1 x 16000
# pixels with its shorter edge resized to 256 has 3 GiB.
EXTREME = 8


@dataclasses.dataclass(frozen=True)
class View:
    """What each transform has: how large its output is, and how an image file is read before.

    Attributes:
        image_size: side S of the output, in pixels.
        channels: C.
        exif_orientation, max_pixels: see `se_flax.data.decode.decode`.
    """

    image_size: int
    _: dataclasses.KW_ONLY
    channels: int = 3
    exif_orientation: bool = False
    max_pixels: int = MAX_PIXELS

    def decode(self, image: bytes | np.ndarray) -> np.ndarray:
        """Returns the pixels of an image file; raises as `se_flax.data.decode.decode` does."""
        return decode(
            image,
            self.channels,
            exif_orientation=self.exif_orientation,
            max_pixels=self.max_pixels,
        )


@dataclasses.dataclass(frozen=True)
class TrainTransform(View):
    """Random crop, then flip, rotation, jitter and cutout, which draw nothing where they are off.

    `rotation=10, jitter=20` are those of the paper's released networks
    (https://github.com/hujie-frank/SENet, README). No more than these ranges is published: that the
    crop is rotated (fb.resnet.torch, which its author names, lists rotation after crop and flip),
    that one number is added to a whole channel, and both distributions are our reading.

    Raises UserError for an unknown `crop` or `interpolation` and ranges that hold nothing.

    Attributes:
        crop: 'inception' resizes a random box to S x S (arXiv 1409.4842, section 6);
            'pad' moves the image by up to `pad` pixels each way (arXiv 1512.03385, section 4.2);
            'none' takes the centre. The last two first bring another size to S x S: shorter edge
            resized to S, up or down, then the centre.
        crop_area: least and greatest share of the image in an 'inception' crop.
        crop_aspect: least and greatest width / height of it, drawn evenly in the logarithm.
        pad: pixels of 'pad'; what comes in from outside has the colour `fill`.
        flip: mirror left to right, half of the time.
        rotation: greatest angle either way, in degrees to 180, drawn evenly; around the centre of
            the crop, bilinear, the corners that come in have the colour `fill`.
        jitter: greatest number either way, to 255, that is added to a channel; drawn evenly for
            each of them, sums are rounded and stay in 0 to 255.
        cutout: side of a square of colour `fill` whose centre is any pixel (arXiv 1708.04552);
            0 for none.
        fill: a number a channel, 0 to 255.
        interpolation: one of INTERPOLATIONS.
    """

    crop: str = 'inception'
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    pad: int = 0
    flip: bool = True
    rotation: float = 0
    jitter: float = 0
    cutout: int = 0
    fill: tuple[int, ...] = (0, 0, 0)
    interpolation: str = 'bilinear'

    def __post_init__(self):
        check_known('crop', self.crop, CROPS)
        check_known('interpolation', self.interpolation, INTERPOLATIONS)
        check_size('image_size', self.image_size, at_least=1)
        check_size('pad', self.pad)
        check_size('cutout', self.cutout)
        check_greatest('rotation', self.rotation, 180)
        check_greatest('jitter', self.jitter, 255)
        check_range('crop_area', self.crop_area, at_most=1.0)
        check_range('crop_aspect', self.crop_aspect)

    def __call__(self, image: np.ndarray, rng: np.random.Generator, out: np.ndarray) -> None:
        """Writes one random view of `image` into `out`."""
        if self.crop == 'inception':
            height, width = image.shape[:2]
            box = inception_crop(height, width, rng, self.crop_area, self.crop_aspect)
            top, left, height, width = box
            view = image[top : top + height, left : left + width]
            out[:] = resize(view, self.image_size, self.image_size, self.interpolation)
        else:
            image = fit(image, self.image_size, self.image_size, self.interpolation)
            if self.crop == 'pad':
                shift(image, rng.integers(-self.pad, self.pad, 2, endpoint=True), self.fill, out)
            else:
                out[:] = image
        if self.flip and rng.random() < 0.5:
            cv2.flip(out, 1, dst=out)
        if self.rotation:
            out[:] = rotate(out, rng.uniform(-self.rotation, self.rotation), self.fill)
        if self.jitter:
            out[:] = jittered(out, rng.uniform(-self.jitter, self.jitter, self.channels))
        if self.cutout:
            cut(out, rng.integers(self.image_size, size=2), self.cutout, self.fill)


@dataclasses.dataclass(frozen=True)
class EvalTransform(View):
    """The centre of the resized image; draws nothing.

    Raises UserError for an unknown `interpolation` and a `resize` below `image_size`.

    Attributes:
        resize: length the shorter edge is resized to, at least S; 0 keeps an image's size, except
            that one smaller than S is enlarged to S.
        interpolation: one of INTERPOLATIONS.
    """

    resize: int = 0
    interpolation: str = 'bilinear'

    def __post_init__(self):
        check_known('interpolation', self.interpolation, INTERPOLATIONS)
        check_size('image_size', self.image_size, at_least=1)
        if self.resize and self.resize < self.image_size:
            raise UserError(
                f'resize={self.resize} is below image_size={self.image_size}; '
                f'take 0 or at least {self.image_size}'
            )

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None, out: np.ndarray) -> None:
        """Writes the centre of `image` into `out`; `rng` is not used."""
        shorter = self.resize or max(self.image_size, min(image.shape[:2]))
        out[:] = fit(image, shorter, self.image_size, self.interpolation)


def inception_crop(
    height: int,
    width: int,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Draws `(top, left, height, width)` of a box inside the image.

    Its share of the area is uniform, its width / height log-uniform, both to the rounding of the
    sides; ten tries, then the greatest central box whose aspect is allowed (as in torchvision).
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
    """Resizes `[H, W, C]` to `[height, width, C]`; the same size is returned as it is."""
    if image.shape[:2] == (height, width):
        return image

    def resized(pixels):
        if interpolation in OPENCV:
            return cv2.resize(pixels, (width, height), interpolation=OPENCV[interpolation])
        pixels = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(pixels.resize((width, height), PILLOW[interpolation]))

    return _by_channel(resized, image)


def _by_channel(f, image: np.ndarray, *values) -> np.ndarray:
    """Returns f(image, *values), of RGB at once; OpenCV takes four channels, Pillow knows alpha."""
    if image.shape[2] == 3:
        return f(image, *values)
    planes = map(np.ascontiguousarray, np.moveaxis(image, -1, 0))
    return np.stack(list(map(f, planes, *values)), -1)


def fit(image: np.ndarray, shorter: int, size: int, interpolation: str) -> np.ndarray:
    """Resizes the shorter edge to `shorter`, keeps the aspect, takes the central `size` square."""
    least = min(image.shape[:2])
    image = _centre(image, EXTREME * least)
    height, width = image.shape[:2]
    image = resize(image, height * shorter // least, width * shorter // least, interpolation)
    return _centre(image, size)


def _centre(image: np.ndarray, size: int) -> np.ndarray:
    """Returns the centre of so many pixels, or as many as there are, each way."""
    top, left = (max(0, round((edge - size) / 2)) for edge in image.shape[:2])  # as torchvision
    return image[top : top + size, left : left + size]


def shift(image: np.ndarray, by: np.ndarray, fill: tuple[int, ...], out: np.ndarray) -> None:
    """Writes `image` moved `by` (down, right) pixels into `out`; what comes in is `fill`."""
    (to_y, from_y), (to_x, from_x) = map(_overlap, by.tolist())  # Python's ints are quicker
    out[:] = fill
    out[to_y, to_x] = image[from_y, from_x]


def _overlap(by: int) -> tuple[slice, slice]:
    into, out_of = slice(max(by, 0), min(by, 0) or None), slice(max(-by, 0), min(-by, 0) or None)
    return into, out_of


def rotate(image: np.ndarray, degrees: float, fill: tuple[int, ...]) -> np.ndarray:
    """Turns an image counter-clockwise around its centre; what comes in is `fill`."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)

    def rotated(pixels, fill):
        return cv2.warpAffine(pixels, matrix, (width, height), borderValue=fill)

    return _by_channel(rotated, image, fill)


def jittered(image: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Adds a number to each channel; sums are rounded and stay in 0 to 255."""

    def added(pixels, by):
        return cv2.add(pixels, (*np.atleast_1d(by), 0.0))

    return _by_channel(added, image, by)


def cut(image: np.ndarray, centre: np.ndarray, side: int, fill: tuple[int, ...]) -> None:
    """Sets the `side` square around a pixel to `fill`, in place, clipped at the border."""
    y, x = (slice(max(c - side // 2, 0), max(c - side // 2 + side, 0)) for c in centre)
    image[y, x] = fill


def check_size(what: str, value: int, at_least: int = 0) -> None:
    """Raises UserError for a size below `at_least`."""
    if value < at_least:
        raise UserError(f'{what}={value} is too small; take at least {at_least}')


def check_greatest(what: str, value: float, most: float) -> None:
    """Raises UserError unless 0 <= `value` <= `most`."""
    if not 0 <= value <= most:
        raise UserError(f'{what}={value} must be 0 to {most}')


def check_range(what: str, value: tuple[float, float], at_most: float = math.inf) -> None:
    """Raises UserError unless `value` is two numbers, 0 < least <= greatest <= `at_most`."""
    if len(value) != 2 or not 0 < value[0] <= value[1] <= at_most:
        bound = '' if at_most == math.inf else f' <= {at_most}'
        raise UserError(f'{what}={tuple(value)} must be two numbers, 0 < least <= greatest{bound}')
