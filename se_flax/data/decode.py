"""Decodes image files."""

import contextlib
import io

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image

# The pipeline's threads are the parallelism; OpenCV's own would compete with them.
cv2.setNumThreads(0)
Image.init()  # without it Pillow finds only its most common formats among `formats`

JPEG = b'\xff\xd8'
PNG = b'\x89PNG\r\n\x1a\n'
TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')  # the last two are BigTIFF
# Not all that Pillow knows: it would run Ghostscript on a PostScript file.
PILLOW = ('AVIF', 'BMP', 'DIB', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')
NO_MEMORY = 'there is not enough memory for it'
MAX_PIXELS = 2 * 89_478_485  # 179 million, Pillow's default limit
# libjpeg's warnings about damaged pixels (its jerror.h). Its other warnings are about oddities in
# the header or between segments, which leave the pixels intact.
DAMAGE = (
    *('Premature end of JPEG file', 'premature end of data segment', 'bad Huffman code'),
    *('bad arithmetic code', 'instead of RST'),
)


class DecodeError(ValueError):
    """A record that holds no readable image."""


def decode(
    image: bytes | np.ndarray,
    channels: int = 3,
    *,
    exif_orientation: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decodes an image file, the first picture of several, to uint8 `[H, W, channels]`.

    One channel is gray and three are RGB without alpha, whatever the file has; any other number
    must be the file's own. 16 bits become 8. JPEG is decoded without the fast, inexact DCT. With
    `exif_orientation` the image is rotated as its EXIF data specify; a TIFF of 1 or 3 channels
    always is. An array counts as decoded.

    Raises DecodeError for a damaged file, other channels, and, before decoding, more than
    `max_pixels`.
    """
    if isinstance(image, np.ndarray):
        pixels = image
    elif not image:
        raise DecodeError('the file is empty')
    else:
        try:
            pixels = _decode(image, channels, max_pixels)
        except MemoryError as error:
            raise DecodeError(NO_MEMORY) from error
        if exif_orientation:
            pixels = _oriented(pixels, image, max_pixels)
    if pixels.shape[2] == 3 and channels == 1:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
    if pixels.shape[2] != channels:
        raise DecodeError(f'it has {pixels.shape[2]} channels, not {channels}')
    return pixels


def _decode(image: bytes, channels: int, max_pixels: int) -> np.ndarray:
    if channels not in (1, 3):
        if image[:4] in TIFF:
            return _decode_tiff(image, max_pixels)
        _pillow(image, max_pixels)
        return _decode_by_opencv(image, cv2.IMREAD_UNCHANGED)
    if image[:2] == JPEG:
        return _decode_jpeg(image, 'RGB' if channels == 3 else 'GRAY', max_pixels)
    if image[:8] == PNG:  # faster than by Pillow
        width, height = np.frombuffer(image[16:24].ljust(8, b'\0'), '>u4').tolist()
        _check_size(width, height, max_pixels)
    elif image[:2] == b'BM' or image[8:12] == b'WEBP':
        _pillow(image, max_pixels)
    else:
        return _decode_by_pillow(image, max_pixels)
    try:
        kind = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
        return _decode_by_opencv(image, kind)
    except DecodeError:
        return _decode_by_pillow(image, max_pixels)


@contextlib.contextmanager
def _as_decode_error(prefix: str = ''):
    """Raises DecodeError for whatever a decoder raises for a damaged file."""
    try:
        yield
    except (DecodeError, MemoryError):
        raise
    except Exception as error:
        raise DecodeError(f'{prefix}{error}') from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DecodeError(f'it has {width} x {height} pixels, more than max_pixels={max_pixels:,}')


def _decode_jpeg(image: bytes, space: str, max_pixels: int) -> np.ndarray:
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(image)
        _check_size(width, height, max_pixels)
        return simplejpeg.decode_jpeg(image, space)
    except ValueError as error:
        if isinstance(error, DecodeError) or any(damage in str(error) for damage in DAMAGE):
            raise DecodeError(str(error)) from error
        reason = str(error).removeprefix('tjDecompressHeader3(): ')
    try:
        # Pillow detects a file that is cut short, too, but no other damage after an odd header.
        return _decode_by_pillow(image, max_pixels)
    except DecodeError as error:
        raise DecodeError(f'{reason}; {error}') from error


def _decode_by_opencv(image: bytes, kind: int) -> np.ndarray:
    with _as_decode_error():
        flags = kind | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), flags)
    if pixels is None:
        raise DecodeError('not an image that OpenCV can read')
    pixels = _eight_bits(np.atleast_3d(pixels))
    # Only IMREAD_UNCHANGED gives BGRA.
    return pixels[..., [2, 1, 0, 3]] if pixels.shape[2] == 4 else pixels


def _pillow(image: bytes, max_pixels: int) -> Image.Image:
    """Reads the header and checks the size."""
    if max_pixels > MAX_PIXELS:
        Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit, for the whole process
    with _as_decode_error():
        try:
            file = Image.open(io.BytesIO(image), formats=PILLOW)
        except Image.UnidentifiedImageError as error:
            raise DecodeError('not an image that Pillow can read') from error
        _check_size(*file.size, max_pixels)
        return file


def _decode_by_pillow(image: bytes, max_pixels: int) -> np.ndarray:
    file = _pillow(image, max_pixels)
    with _as_decode_error():
        file.load()
        if file.mode == 'F' or (file.mode == 'I' and file.format == 'TIFF'):
            kind = 'float32' if file.mode == 'F' else 'signed or 32-bit integers'
            raise DecodeError(f'it holds {kind}, not 8 or 16 bits')
        if file.mode.startswith('I'):  # `convert` would clip values above 255
            return _eight_bits(np.asarray(file).astype(np.uint16)[..., None]).repeat(3, 2)
        return np.asarray(file.convert('RGB'))


def _decode_tiff(image: bytes, max_pixels: int) -> np.ndarray:
    import tifffile  # slow to import, and rarely needed

    with (
        _as_decode_error('not a TIFF that tifffile can read: '),
        tifffile.TiffFile(io.BytesIO(image)) as file,
    ):
        page = file.pages.first
        _check_size(page.imagewidth, page.imagelength, max_pixels)
        pixels = np.atleast_3d(page.asarray())
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
            pixels = np.moveaxis(pixels, 0, -1)
    return _eight_bits(np.ascontiguousarray(pixels))


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint16:
        return (pixels >> 8).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise DecodeError(f'it holds {pixels.dtype}, not 8 or 16 bits')
    return pixels


def _oriented(pixels: np.ndarray, image: bytes, max_pixels: int) -> np.ndarray:
    try:
        file = _pillow(image, max_pixels)
        turn = file.format != 'TIFF' and file.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # invalid EXIF data
        return pixels
    pixels = pixels.swapaxes(0, 1) if turn in (5, 6, 7, 8) else pixels
    pixels = pixels[::-1] if turn in (3, 4, 7, 8) else pixels
    pixels = pixels[:, ::-1] if turn in (2, 3, 6, 7) else pixels
    return np.ascontiguousarray(pixels)
