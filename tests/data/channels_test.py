"""Images of one channel, and of more than three, from the file to the batch."""

import io

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from se_flax.data import EvalTransform, TrainTransform
from se_flax.data.decode import DecodeError, decode
from se_flax.data.folder import open_folder
from se_flax.data.pipeline import eval_batches, train_batches
from se_flax.data.transforms import INTERPOLATIONS, Squash

pytestmark = pytest.mark.quick

PHOTO = cv2.resize(np.random.default_rng(0).integers(256, size=(6, 8, 3), dtype=np.uint8), (40, 30))
BANDS = np.random.default_rng(1).integers(256, size=(30, 40, 6), dtype=np.uint8)


def encoded(pixels, kind, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def tiff(pixels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric='minisblack', **options)
    return file.getvalue()


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'TIFF'])
def test_gray_files_are_decoded_as_they_are(kind):
    data = encoded(PHOTO[..., 0], kind)
    want = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode(data, 1), want[..., None])
    assert decode(data, 3).shape == (30, 40, 3)


@pytest.mark.parametrize('data', [encoded(PHOTO, 'JPEG'), encoded(PHOTO, 'PNG'), PHOTO])
def test_colours_become_gray(data):
    pixels = data if isinstance(data, np.ndarray) else np.asarray(Image.open(io.BytesIO(data)))
    got = decode(data, 1)
    want = pixels @ [0.299, 0.587, 0.114]  # ITU-R BT.601
    assert got.shape == (30, 40, 1)
    assert np.abs(got[..., 0] - want).max() <= 2  # a JPEG's luma has been rounded already


def test_four_channels_of_a_png_are_rgba():
    pixels = BANDS[..., :4].copy()
    np.testing.assert_array_equal(decode(encoded(pixels, 'PNG'), 4), pixels)
    np.testing.assert_array_equal(decode(encoded(pixels, 'PNG'), 3).shape, (30, 40, 3))


@pytest.mark.parametrize('options', [{}, {'compression': 'zlib'}, {'bigtiff': True}])
@pytest.mark.parametrize('channels', [2, 4, 6])
def test_bands_of_a_tiff_are_the_channels(channels, options):
    bands = BANDS[..., :channels]
    for data in (
        tiff(bands, planarconfig='contig', **options),
        tiff(np.moveaxis(bands, -1, 0), planarconfig='separate', **options),
    ):
        np.testing.assert_array_equal(decode(data, channels), bands)
    wide = tiff(bands.astype(np.uint16) * 257, planarconfig='contig', **options)
    np.testing.assert_array_equal(decode(wide, channels), bands)


@pytest.mark.parametrize(
    ('data', 'channels', 'message'),
    [
        (encoded(PHOTO, 'JPEG'), 4, 'it has 3 channels, not 4'),
        (encoded(PHOTO, 'PNG'), 5, 'it has 3 channels, not 5'),
        (BANDS, 3, 'it has 6 channels, not 3'),
        (tiff(BANDS, planarconfig='contig'), 5, 'it has 6 channels, not 5'),
        (tiff(BANDS, planarconfig='contig')[:3000], 6, 'not a TIFF that tifffile can read'),
        (tiff(BANDS.astype(np.float32), planarconfig='contig'), 6, 'it holds float32'),
    ],
)
def test_other_files_are_refused(data, channels, message):
    with pytest.raises(DecodeError, match=message):
        decode(data, channels)


@pytest.mark.parametrize('interpolation', INTERPOLATIONS)
@pytest.mark.parametrize('crop', ['inception', 'pad', 'none'])
def test_each_channel_is_seen_as_a_gray_image_is(crop, interpolation):
    """Crop, flip, rotation and cutout are the same for all channels."""
    fields = {
        'crop': crop,
        'pad': 3,
        'rotation': 20,
        'cutout': 5,
        'interpolation': interpolation,
    }
    out = np.empty((16, 16, 6), np.uint8)
    colour = tuple(range(10, 70, 10))
    TrainTransform(16, **fields, fill=colour, channels=6)(BANDS, np.random.default_rng(3), out)
    for channel in range(6):
        alone = np.empty((16, 16, 1), np.uint8)
        gray = TrainTransform(16, **fields, fill=colour[channel : channel + 1], channels=1)
        gray(BANDS[..., channel : channel + 1], np.random.default_rng(3), alone)
        np.testing.assert_array_equal(out[..., channel], alone[..., 0])
    rgb = np.empty((16, 16, 3), np.uint8)
    TrainTransform(16, **fields, fill=colour[:3])(
        np.ascontiguousarray(BANDS[..., :3]), np.random.default_rng(3), rgb
    )
    # OpenCV's vector code may round three channels at once differently from one.
    assert np.abs(out[..., :3].astype(int) - rgb).max() <= 1


@pytest.mark.parametrize('channels', [1, 4, 6])
def test_jitter_and_evaluation(channels):
    image = np.full((20, 24, channels), 100, np.uint8)
    out = np.empty((16, 16, channels), np.uint8)
    view = TrainTransform(16, fill=(0,) * channels, jitter=50, flip=False, channels=channels)
    view(image, np.random.default_rng(0), out)
    assert len(np.unique(out)) == channels  # each has its own number
    for view in (EvalTransform(16, 18, channels=channels), Squash(16, channels=channels)):
        view(image, None, out)
        assert (out == 100).all()


def test_batches_of_bands_from_a_folder(image_folder):
    for path in image_folder.glob('*/*/*'):  # what a file is does not depend on its name
        path.write_bytes(tiff(BANDS[..., :5], planarconfig='contig'))
    train, val = (open_folder('folder:x', split, str(image_folder)) for split in ('train', 'eval'))
    view = TrainTransform(16, fill=(0,) * 5, channels=5)
    batches = train_batches(train, view, batch_size=4, seed=0, start_step=0, num_steps=2)
    assert [batch['image'].shape for batch in batches] == [(4, 16, 16, 5)] * 2
    [batch] = eval_batches(val, EvalTransform(16, channels=5), batch_size=6)
    assert batch['image'].shape == (6, 16, 16, 5)
    assert batch['mask'].all()
