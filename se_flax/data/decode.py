"""From the bytes of an image file to its pixels."""

import cv2
import numpy as np
import simplejpeg

# The pipeline's threads are the parallelism; OpenCV's own would compete with them.
cv2.setNumThreads(0)


class DecodeError(ValueError):
    """A record that holds no readable image."""


def decode(image: bytes | np.ndarray) -> np.ndarray:
    """Decodes an image file to uint8 RGB, `[H, W, 3]`; an array is returned as it is.

    JPEG is decoded exactly (no fast DCT), by libjpeg-turbo; PNG, WebP, BMP and whatever else is
    told from its first bytes, by OpenCV. Gray and CMYK become RGB, alpha is dropped, 16 bits
    become 8, and an EXIF rotation is ignored, as all training sets are used.

    Raises DecodeError for a file that is cut short or damaged.
    """
    if isinstance(image, np.ndarray):
        return image
    if image[:2] == b'\xff\xd8':
        return _decode_jpeg(image)
    if not image:
        raise DecodeError('the file is empty')
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), flags)
    except cv2.error as error:  # absurd sizes
        raise DecodeError(str(error)) from error
    if pixels is None:
        raise DecodeError('not an image that OpenCV can read')
    return pixels


def _decode_jpeg(image: bytes) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(image, 'RGB')
    except ValueError as error:
        # Pixels are whole where bytes stand between two segments; ImageNet has such files.
        if 'extraneous bytes before marker' not in str(error):
            raise DecodeError(str(error)) from error
    return simplejpeg.decode_jpeg(image, 'RGB', strict=False)
