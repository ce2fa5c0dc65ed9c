import io

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from se_flax.data.decode import DecodeError, decode

PHOTO = cv2.resize(np.random.default_rng(0).integers(256, size=(6, 8, 3), dtype=np.uint8), (80, 60))


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_jpeg_equals_pillow(mode):
    data = encoded(Image.fromarray(PHOTO).convert(mode), 'JPEG')
    want = np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))
    assert np.abs(decode(data).astype(int) - want).max() <= 2  # versions of libjpeg differ


@pytest.mark.parametrize('mode', ['RGB', 'L', 'RGBA', 'P', 'LA'])
def test_png_equals_pillow(mode):
    image = Image.fromarray(PHOTO).convert(mode)
    np.testing.assert_array_equal(decode(encoded(image, 'PNG')), np.asarray(image.convert('RGB')))


def test_sixteen_bits_become_eight():
    wide = PHOTO.astype(np.uint16) * 257
    data = cv2.imencode('.png', wide[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(decode(data), PHOTO)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_exif_rotation_is_ignored(kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert decode(encoded(Image.fromarray(PHOTO), kind, exif=exif)).shape == (60, 80, 3)


def test_array_passes_through():
    assert decode(PHOTO) is PHOTO


def test_bytes_between_segments_do_no_harm():
    data = simplejpeg.encode_jpeg(PHOTO, quality=90)
    patched = data[:-2] + bytes(16) + data[-2:]
    with pytest.raises(ValueError, match='extraneous'):
        simplejpeg.decode_jpeg(patched)
    np.testing.assert_array_equal(decode(patched), decode(data))


@pytest.mark.parametrize('share', [0, 0.01, 0.3, 0.9])
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'BMP'])
def test_file_cut_short_is_refused(kind, share):
    data = encoded(Image.fromarray(PHOTO), kind)
    with pytest.raises(DecodeError):
        decode(data[: int(len(data) * share)])


def test_text_is_refused():
    with pytest.raises(DecodeError, match='not an image'):
        decode(b'<html>404</html>')
