"""Image files of every unusual kind in practice, generated; each takes less than 100 kB."""

import base64
import io

import cv2
import numpy as np
import tifffile
from PIL import Image

HEIGHT, WIDTH = 48, 64
RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(RNG.integers(256, size=(6, 8, 3), dtype=np.uint8))
PHOTO = PHOTO.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
GRAY = PHOTO.convert('L')
ALPHA = GRAY.rotate(180)
PALETTE = PHOTO.convert('P', palette=Image.Palette.ADAPTIVE, colors=16)
WIDE = np.asarray(PHOTO).astype(np.uint16) * 257  # 16 bits
FRAMES = {'save_all': True, 'append_images': [PHOTO.rotate(90 * i) for i in (1, 2)]}
# Written by libjpeg-turbo with options that no Python package has, 16 x 12 pixels: `arith_code`,
# and a luma three times as wide as the chroma.
ARITHMETIC = base64.b64decode(
    '/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAYEBQYFBAYGBQYHBwYIChAKCgkJChQODwwQFxQYGBcUFhYaHSUfGhsjHBYW'
    'ICwgIyYnKSopGR8tMC0oMCUoKSj/2wBDAQcHBwoIChMKChMoGhYaKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgo'
    'KCgoKCgoKCgoKCgoKCgoKCgoKCj/yQARCAAMABADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/ALve'
    'IxErz7MwAJzGzzffmI4XS+dDuoqkJDximpgF3rrXAqSmkI+k/9k='
)
THREE_TO_ONE = base64.b64decode(
    '/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywt'
    'QFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09P'
    'T09PT09PT09PT09PT09PT09PT0//wAARCAAMABADATEAAhEBAxEB/8QAFgABAQEAAAAAAAAAAAAAAAAABQAG/8QAGhAA'
    'AgIDAAAAAAAAAAAAAAAAAAQDIgUhMf/EABcBAAMBAAAAAAAAAAAAAAAAAAIEBQb/xAAdEQABBAIDAAAAAAAAAAAAAAAA'
    'AQIDBQQREyEj/9oADAMBAAIRAxEAPwDMJ4jlRxPEcqQUb+ixVZnmMKLRaqOJrRaqQrGq6M5VSu4z/9k='
)


def encoded(image, kind, **options):
    """An image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_alpha(image):
    """The image with an alpha channel that is nowhere constant."""
    image = image.copy()
    image.putalpha(ALPHA)
    return image


def exif(turn):
    """EXIF data with an orientation."""
    data = Image.Exif()
    data[0x0112] = turn
    return data


def patched(data, marker, at, *values):
    """A JPEG file with other bytes at a distance from a marker."""
    data, start = bytearray(data), data.index(marker) + at
    data[start : start + len(values)] = values
    return bytes(data)


def inserted(data, before, more):
    """A JPEG file with more bytes before the last occurrence of a marker."""
    at = data.rindex(before)
    return data[:at] + more + data[at:]


JPEG = encoded(PHOTO, 'JPEG')
RESTARTS = encoded(PHOTO, 'JPEG', restart_marker_blocks=1)
PNG = encoded(PHOTO, 'PNG')
SOF, SOS, DQT, EOI = b'\xff\xc0', b'\xff\xda', b'\xff\xdb', b'\xff\xd9'
ADOBE = b'\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x07'  # with an unknown colour transform

# A file for each of libjpeg's warnings, by message. These leave the pixels intact.
ODD_JPEGS = {
    '2 extraneous bytes before marker 0xdb': inserted(JPEG, DQT, b'\0\1'),
    'extraneous bytes before marker 0xd9': inserted(JPEG, EOI, bytes(16)),
    'Invalid SOS parameters for sequential JPEG': patched(JPEG, SOS, 12, 0),  # Samsung's phones
    'unknown JFIF revision number 2.01': patched(JPEG, b'JFIF\0', 5, 2),
    'Unknown Adobe color transform code 7': inserted(JPEG[:2] + JPEG[20:], JPEG[20:24], ADOBE),
    'Could not determine subsampling level': THREE_TO_ONE,
}
# Damaged pixels.
DAMAGED_JPEGS = {
    'Premature end of JPEG file': JPEG[:-100],
    'bad Huffman code': patched(JPEG, SOS, 20, *[0xFF, 0] * 6),  # longer than any code
    'premature end of data segment': patched(JPEG, SOS, 40, 0xFF, 0xD9),
    'instead of RST': patched(RESTARTS, b'\xff\xd1', 0, 0xFF, 0xD6),
    'bad arithmetic code': patched(ARITHMETIC, SOS, 16, 209),
}

# Pillow reads exactly the expected pixels; of JPEG, up to rounding.
READABLE = {
    **{f'JPEG, {mode}': encoded(PHOTO.convert(mode), 'JPEG') for mode in ('RGB', 'L', 'CMYK')},
    'JPEG, YCCK': inserted(
        encoded(PHOTO.convert('CMYK'), 'JPEG'), SOF, b'\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x02'
    ),
    'JPEG, progressive': encoded(PHOTO, 'JPEG', progressive=True),
    'JPEG, arithmetic': ARITHMETIC,
    'JPEG, trailing bytes': JPEG + bytes(99),
    'JPEG, EXIF-rotated': encoded(PHOTO, 'JPEG', exif=exif(6)),
    'MPO': encoded(PHOTO, 'MPO', **FRAMES),
    **{f'JPEG, {message}': data for message, data in ODD_JPEGS.items()},
    **{f'PNG, {image.mode}': encoded(image, 'PNG') for image in (PHOTO, GRAY, PALETTE)},
    'PNG, 1 bit': encoded(PHOTO.convert('1'), 'PNG'),
    'PNG, RGBA': encoded(with_alpha(PHOTO), 'PNG'),
    'PNG, gray and alpha': encoded(with_alpha(GRAY), 'PNG'),
    'PNG, transparent palette': encoded(PALETTE, 'PNG', transparency=3),
    'PNG, EXIF-rotated': encoded(PHOTO, 'PNG', exif=exif(8)),
    'PNG, 16 bits': cv2.imencode('.png', WIDE[..., ::-1])[1].tobytes(),
    'APNG': encoded(PHOTO, 'PNG', **FRAMES),
    'GIF': encoded(PALETTE, 'GIF', interlace=1),
    'GIF, transparent': encoded(with_alpha(PHOTO), 'GIF'),
    'GIF, animated': encoded(PHOTO, 'GIF', **FRAMES),
    'WebP': encoded(PHOTO, 'WEBP'),
    'WebP, lossless alpha': encoded(with_alpha(PHOTO), 'WEBP', lossless=True, exact=True),
    'WebP, animated': encoded(PHOTO, 'WEBP', **FRAMES),
    'AVIF': encoded(PHOTO, 'AVIF'),
    'AVIF, alpha': encoded(with_alpha(PHOTO), 'AVIF'),
    'JPEG 2000': encoded(PHOTO, 'JPEG2000'),
    **{f'TIFF, {mode}': encoded(PHOTO.convert(mode), 'TIFF') for mode in ('RGB', 'L', '1', 'CMYK')},
    'TIFF, RGBA': encoded(with_alpha(PHOTO), 'TIFF'),
    'TIFF, LZW': encoded(PHOTO, 'TIFF', compression='tiff_lzw'),
    'TIFF, 16 bits': (file := io.BytesIO(), tifffile.imwrite(file, WIDE), file.getvalue())[2],
    'BMP': encoded(PHOTO, 'BMP'),
    'BMP, palette': encoded(PALETTE, 'BMP'),
    'PPM': encoded(PHOTO, 'PPM'),
    **{f'{kind}, 1 x 300': encoded(PHOTO.resize((1, 300)), kind) for kind in ('JPEG', 'PNG')},
    **{f'{kind}, 300 x 1': encoded(PHOTO.resize((300, 1)), kind) for kind in ('JPEG', 'PNG')},
}
# Suffixes for the kinds in `READABLE`; the others are wrongly named `.png`.
SUFFIX = {'JPEG': 'jpg', 'MPO': 'MPO', 'APNG': 'png', 'WebP': 'webp', 'JPEG 2000': 'jp2'}

UNREADABLE = {
    **{f'JPEG, {message}': data for message, data in DAMAGED_JPEGS.items()},
    **{
        f'{kind}, cut at {tenths} tenths': data[: len(data) * tenths // 10]
        for kind in ('JPEG', 'PNG', 'GIF', 'WebP', 'AVIF', 'JPEG 2000', 'TIFF, RGB', 'BMP', 'PPM')
        for data in [READABLE.get(kind, READABLE.get(f'{kind}, RGB'))]
        for tenths in range(10)
    },
    'JPEG, 12 bits': patched(JPEG, SOF, 4, 12),
    'JPEG, 65500 x 65500': patched(JPEG, SOF, 5, 0xFF, 0xDC, 0xFF, 0xDC),
    'PNG, 65500 x 65500': PNG[:16] + b'\0\0\xff\xdc\0\0\xff\xdc' + PNG[24:],
    'GIF, 65500 x 65500': (g := encoded(PALETTE, 'GIF'))[:6] + b'\xdc\xff\xdc\xff' + g[10:],
    'TIFF, float32': (
        file := io.BytesIO(),
        tifffile.imwrite(file, WIDE[..., 0].astype('f4')),
        file.getvalue(),
    )[2],
    'empty': b'',
    'zeros': bytes(1000),
    'HTML': b'<!DOCTYPE html><html><body>404</body></html>',
    'PostScript': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n',
    'SVG': b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
}
