"""From the bytes of an image file to its pixels."""

import io

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image

# The pipeline's threads are the parallelism; OpenCV's own would compete with them.
cv2.setNumThreads(0)
Image.init()  # else it finds only its most common formats when it is told which

JPEG = b'\xff\xd8'
PNG = b'\x89PNG\r\n\x1a\n'
TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')  # the last two are BigTIFF
# Not all that Pillow knows: it would run Ghostscript on a PostScript file.
PILLOW = ('AVIF', 'BMP', 'DIB', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')
NO_MEMORY = 'there is not enough memory for it'
MAX_PIXELS = 2 * 89_478_485  # 179 million, where Pillow refuses by default

# libjpeg's warnings of damaged pixels (its jerror.h). Its others are of oddities in the header or
# between segments, and leave the pixels whole.
DAMAGE = (
    *('Premature end of JPEG file', 'premature end of data segment', 'bad Huffman code'),
    *('bad arithmetic code', 'instead of RST'),
)
# EXIF's orientation: whether to transpose, then the steps along the rows and the columns.
ORIENTATIONS = {
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}


class DecodeError(ValueError):
    """A record that holds no readable image."""


def decode(
    image: bytes | np.ndarray,
    channels: int = 3,
    *,
    exif_orientation: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decodes an image file to uint8, `[H, W, channels]`: gray, RGB, or the file's own channels.

    JPEG is decoded exactly (no fast DCT), by libjpeg-turbo; PNG, WebP and BMP by OpenCV; what these
    cannot read, GIF, AVIF, JPEG 2000, TIFF and PNM by Pillow; TIFF of other than 1 or 3 channels by
    tifffile. The first bytes tell the format, not the name. Of several pictures in a file it is the
    first. For one channel colours become gray; for three, gray and CMYK become RGB, and alpha is
    dropped; a file of any other number must have it. 16 bits become 8.

    Args:
        image: the file's bytes; an array is a decoded image.
        channels: of the result.
        exif_orientation: turn the image as its EXIF data say. Training sets are used without. (That
            of a TIFF of 1 or 3 channels is a part of its format, and always followed.)
        max_pixels: largest height x width, compared with the file's header before anything is
            decoded.

    Raises:
        DecodeError: for a file that is cut short, damaged or too large, or has other channels.
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
            pixels = _oriented(pixels, image)
    if pixels.shape[2] == 3 and channels == 1:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
    if pixels.shape[2] != channels:
        raise DecodeError(f'it has {pixels.shape[2]} channels, not {channels}')
    return pixels


def _decode(image: bytes, channels: int, max_pixels: int) -> np.ndarray:
    if channels not in (1, 3):
        if image[:4] in TIFF:
            return _decode_tiff(image, max_pixels)
        _check_size(*_pillow(image).size, max_pixels)
        return _decode_by_opencv(image, cv2.IMREAD_UNCHANGED)
    if image[:2] == JPEG:
        return _decode_jpeg(image, 'RGB' if channels == 3 else 'GRAY', max_pixels)
    if image[:8] == PNG:  # its header, without the time that Pillow takes
        width, height = np.frombuffer(image[16:24].ljust(8, b'\0'), '>u4').tolist()
        _check_size(width, height, max_pixels)
    elif image[:2] == b'BM' or image[8:12] == b'WEBP':
        _check_size(*_pillow(image).size, max_pixels)
    else:
        return _decode_by_pillow(image, max_pixels)
    try:
        return _decode_by_opencv(
            image, cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
        )
    except DecodeError:
        return _decode_by_pillow(image, max_pixels)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DecodeError(f'it is {width} x {height}, more than max_pixels={max_pixels:,} pixels')


def _decode_jpeg(image: bytes, space: str, max_pixels: int) -> np.ndarray:
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(image)
        _check_size(width, height, max_pixels)
        return simplejpeg.decode_jpeg(image, space)
    except DecodeError:
        raise
    except ValueError as error:
        if any(damage in str(error) for damage in DAMAGE):
            raise DecodeError(str(error)) from error
        reason = error
    try:
        # It sees a file that is cut short, too, but no other damage behind an odd header.
        return _decode_by_pillow(image, max_pixels)
    except DecodeError as error:
        raise DecodeError(
            f'{str(reason).removeprefix("tjDecompressHeader3(): ")}; {error}'
        ) from error


def _decode_by_opencv(image: bytes, kind: int) -> np.ndarray:
    try:
        flags = kind | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), flags)
    except cv2.error as error:
        raise DecodeError(str(error)) from error
    if pixels is None:
        raise DecodeError('not an image that OpenCV can read')
    pixels = _eight_bits(np.atleast_3d(pixels))
    # Only what is read unchanged comes as BGRA.
    return pixels[..., [2, 1, 0, 3]] if pixels.shape[2] == 4 else pixels


def _pillow(image: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(image), formats=PILLOW)
    except Exception as error:  # whatever it meets in a damaged file
        known = not isinstance(error, Image.UnidentifiedImageError)
        raise DecodeError(str(error) if known else 'not an image that Pillow can read') from error


def _decode_by_pillow(image: bytes, max_pixels: int) -> np.ndarray:
    file = _pillow(image)
    _check_size(*file.size, max_pixels)
    try:
        file.load()
        if file.mode == 'F':
            raise DecodeError('it holds float32, not 8 or 16 bits')
        if file.mode.startswith('I'):  # Pillow would cut off what is above 255
            return _eight_bits(np.asarray(file).astype(np.uint16)[..., None]).repeat(3, 2)
        return np.asarray(file.convert('RGB'))
    except MemoryError:
        raise
    except Exception as error:
        raise DecodeError(str(error)) from error


def _decode_tiff(image: bytes, max_pixels: int) -> np.ndarray:
    import tifffile  # for rare files, and it takes a moment

    try:
        with tifffile.TiffFile(io.BytesIO(image)) as file:
            page = file.pages.first
            _check_size(page.imagewidth, page.imagelength, max_pixels)
            pixels = np.atleast_3d(page.asarray())
            if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
                pixels = np.moveaxis(pixels, 0, -1)
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(f'not a TIFF that tifffile can read: {error}') from error
    return _eight_bits(np.ascontiguousarray(pixels))


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint16:
        return (pixels >> 8).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise DecodeError(f'it holds {pixels.dtype}, not 8 or 16 bits')
    return pixels


def _oriented(pixels: np.ndarray, image: bytes) -> np.ndarray:
    try:
        file = _pillow(image)
        turn = file.format != 'TIFF' and file.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # of EXIF data that make no sense
        return pixels
    if turn not in ORIENTATIONS:
        return pixels
    transpose, rows, columns = ORIENTATIONS[turn]
    pixels = pixels.swapaxes(0, 1) if transpose else pixels
    return np.ascontiguousarray(pixels[::rows, ::columns])
