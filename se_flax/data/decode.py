"""From the bytes of an image file to its pixels."""

import io

import cv2
import numpy as np
import simplejpeg

# The pipeline's threads are the parallelism; OpenCV's own would compete with them.
cv2.setNumThreads(0)


TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')  # its first bytes, and BigTIFF's


class DecodeError(ValueError):
    """A record that holds no readable image."""


def decode(image: bytes | np.ndarray, channels: int = 3) -> np.ndarray:
    """Decodes an image file to uint8, `[H, W, channels]`: gray, RGB, or the file's own channels.

    JPEG is decoded exactly (no fast DCT), by libjpeg-turbo; TIFF of other than 1 or 3 channels by
    tifffile; PNG, WebP, BMP and whatever else is told from its first bytes, by OpenCV. For one
    channel colours become gray; for three, gray and CMYK become RGB, and alpha is dropped; a file
    of any other number must have it. 16 bits become 8, and an EXIF rotation is ignored, as all
    training sets are used. An array is a decoded image.

    Raises DecodeError for a file that is cut short or damaged, or has other channels.
    """
    if isinstance(image, np.ndarray):
        pixels = image
    elif not image:
        raise DecodeError('the file is empty')
    elif image[:2] == b'\xff\xd8' and channels in (1, 3):
        pixels = _decode_jpeg(image, 'RGB' if channels == 3 else 'GRAY')
    elif image[:4] in TIFF and channels not in (1, 3):
        pixels = _decode_tiff(image)
    else:
        pixels = _decode_by_opencv(image, channels)
    if pixels.shape[2] == 3 and channels == 1:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
    if pixels.shape[2] != channels:
        raise DecodeError(f'it has {pixels.shape[2]} channels, not {channels}')
    return pixels


def _decode_by_opencv(image: bytes, channels: int) -> np.ndarray:
    kind = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_RGB}.get(channels, cv2.IMREAD_UNCHANGED)
    try:
        flags = kind | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), flags)
    except cv2.error as error:  # absurd sizes
        raise DecodeError(str(error)) from error
    if pixels is None:
        raise DecodeError('not an image that OpenCV can read')
    pixels = _eight_bits(np.atleast_3d(pixels))
    # Only what is read unchanged comes as BGRA.
    return pixels[..., [2, 1, 0, 3]] if pixels.shape[2] == 4 else pixels


def _decode_tiff(image: bytes) -> np.ndarray:
    import tifffile  # for rare files, and it takes a moment

    try:
        with tifffile.TiffFile(io.BytesIO(image)) as file:
            page = file.pages.first
            pixels = np.atleast_3d(page.asarray())
            if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
                pixels = np.moveaxis(pixels, 0, -1)
    except Exception as error:  # whatever it meets in a damaged file
        raise DecodeError(f'not a TIFF that tifffile can read: {error}') from error
    return _eight_bits(np.ascontiguousarray(pixels))


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint16:
        return (pixels >> 8).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise DecodeError(f'it holds {pixels.dtype}, not 8 or 16 bits')
    return pixels


def _decode_jpeg(image: bytes, space: str) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(image, space)
    except ValueError as error:
        # Pixels are whole where bytes stand between two segments; ImageNet has such files.
        if 'extraneous bytes before marker' not in str(error):
            raise DecodeError(str(error)) from error
    return simplejpeg.decode_jpeg(image, space, strict=False)
