import io
import re

import numpy as np
import pytest
import simplejpeg
import tifffile
from PIL import Image, ImageOps

from se_flax.data.decode import MAX_PIXELS, DecodeError, decode

from ..image_corpus import (
    DAMAGED_JPEGS,
    JPEG,
    ODD_JPEGS,
    PHOTO,
    PNG,
    READABLE,
    SOS,
    UNREADABLE,
    encoded,
    exif,
    patched,
)

pytestmark = pytest.mark.quick


@pytest.mark.parametrize('name', READABLE)
def test_pixels_are_those_of_pillow(name):
    want = np.asarray(Image.open(io.BytesIO(READABLE[name])).convert('RGB'))
    got = decode(READABLE[name])
    assert (got.dtype, got.shape) == (np.uint8, want.shape)
    # Versions of libjpeg differ, and so does how CMYK becomes RGB.
    assert np.abs(got.astype(int) - want).max() <= (2 if 'JPEG' in name or name == 'MPO' else 0)
    assert decode(READABLE[name], 1).shape == (*want.shape[:2], 1)


@pytest.mark.parametrize('name', UNREADABLE)
def test_damaged_files_are_refused_without_a_warning(name, recwarn):
    with pytest.raises(DecodeError, match='.'):
        decode(UNREADABLE[name])
    assert not [w for w in recwarn if 'bomb' not in str(w.message)]


@pytest.mark.parametrize('message', DAMAGED_JPEGS)
def test_damage_is_reported_with_libjpegs_message(message):
    with pytest.raises(DecodeError, match=message):
        decode(DAMAGED_JPEGS[message])


@pytest.mark.parametrize('message', ODD_JPEGS)
def test_an_odd_header_is_no_damage(message, capfd):
    with pytest.raises(ValueError, match=re.escape(message)):
        simplejpeg.decode_jpeg(ODD_JPEGS[message])
    pixels = decode(ODD_JPEGS[message])
    assert capfd.readouterr() == ('', '')
    if len(pixels) == PHOTO.height:  # bitwise the same as without the oddity
        np.testing.assert_array_equal(pixels, decode(JPEG))


def test_an_odd_header_does_not_hide_that_a_file_is_cut_short():
    for data in ODD_JPEGS.values():
        with pytest.raises(DecodeError):
            decode(data[:-40])


def test_a_plain_jpeg_is_one_call(monkeypatch):
    want = decode(JPEG)
    monkeypatch.setattr(Image, 'open', None)
    np.testing.assert_array_equal(decode(JPEG), want)


def test_sixteen_bits_become_eight():
    wide = np.asarray(PHOTO).astype(np.uint16)[..., 0] * 257
    for kind in ('PNG', 'TIFF', 'PPM', 'JPEG2000'):
        got = decode(encoded(Image.fromarray(wide), kind))
        np.testing.assert_array_equal(got[..., 1], wide >> 8)


@pytest.mark.parametrize('dtype', ['int16', 'int32', 'uint32'])
@pytest.mark.parametrize('channels', [1, 3])
def test_signed_and_wider_integers_are_refused(dtype, channels):
    file = io.BytesIO()
    tifffile.imwrite(file, np.full((8, 9), 200, dtype))  # its upper 8 of 16 bits are black
    with pytest.raises(DecodeError, match='it holds signed or 32-bit integers, not 8 or 16'):
        decode(file.getvalue(), channels)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
@pytest.mark.parametrize('turn', range(10))  # 1 to 8 are known
def test_exif_orientation(kind, turn):
    data = encoded(PHOTO, kind, exif=exif(turn))
    plain = decode(encoded(PHOTO, kind))
    np.testing.assert_array_equal(decode(data), plain)
    turned = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert('RGB'))
    got = decode(data, exif_orientation=True)
    assert got.shape == turned.shape
    assert np.abs(got.astype(int) - turned).max() <= 2  # versions of libjpeg differ


def test_broken_exif_data_turn_nothing():
    data = patched(encoded(PHOTO, 'JPEG', exif=exif(6)), b'Exif\0\0', 6, *b'nonsense')
    np.testing.assert_array_equal(decode(data, exif_orientation=True), decode(data))


def test_the_limit_of_pixels_is_asked_of_the_header():
    pixels = PHOTO.width * PHOTO.height
    for kind in ('JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'TIFF', 'AVIF', 'JPEG2000', 'PPM'):
        data = encoded(PHOTO, kind)
        assert decode(data, max_pixels=pixels).shape == (PHOTO.height, PHOTO.width, 3)
        with pytest.raises(DecodeError, match='it has 64 x 48 pixels, more than max_pixels=3,071'):
            decode(data, max_pixels=pixels - 1)
    start = JPEG.index(SOS) + 20  # no pixel data
    with pytest.raises(DecodeError, match='more than max_pixels'):
        decode(JPEG[:start], max_pixels=pixels - 1)
    with pytest.raises(DecodeError, match='more than max_pixels'):
        decode(PNG[:60], max_pixels=pixels - 1)


@pytest.mark.parametrize('kind', ['JPEG', 'WEBP'])
def test_the_limit_of_pixels_may_be_above_pillows(kind, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)  # Pillow refuses twice as many
    data = encoded(PHOTO, kind, exif=exif(6))
    got = decode(data, exif_orientation=True, max_pixels=MAX_PIXELS + 1)
    assert got.shape == (PHOTO.width, PHOTO.height, 3)


def test_too_little_memory_is_an_unreadable_image(monkeypatch):
    def decode_jpeg(*_):
        raise MemoryError

    monkeypatch.setattr(simplejpeg, 'decode_jpeg', decode_jpeg)
    with pytest.raises(DecodeError, match='not enough memory'):
        decode(JPEG)


def test_array_passes_through():
    pixels = np.asarray(PHOTO)
    assert decode(pixels) is pixels


def test_text_is_refused():
    with pytest.raises(DecodeError, match='not an image'):
        decode(b'<html>404</html>')
