import dataclasses
import inspect

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from se_flax.data.transforms import (
    INTERPOLATIONS,
    EvalTransform,
    Squash,
    TrainTransform,
    View,
    fit,
    inception_crop,
    resize,
    rotate,
)
from se_flax.errors import UserError

pytestmark = pytest.mark.quick

sides = st.integers(1, 600)


def photo(height, width, seed=0):
    """Random pixels."""
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def apply(transform, image, seed=0):
    out = np.full((transform.image_size, transform.image_size, 3), 77, np.uint8)
    transform(image, np.random.default_rng(seed), out)
    return out


@given(height=sides, width=sides, seed=st.integers(0, 1000))
@example(height=1, width=600, seed=0)  # no aspect in range fits: the central fallback
@example(height=600, width=1, seed=0)
@settings(deadline=None)
def test_inception_crop_is_inside_and_in_range(height, width, seed):
    top, left, h, w = inception_crop(height, width, np.random.default_rng(seed))
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h >= 1
    assert w >= 1
    # The sides are rounded, so the limits are those of sides half a pixel off.
    assert (w - 0.5) / (h + 0.5) <= 4 / 3
    assert (w + 0.5) / (h - 0.5) >= 3 / 4
    if 3 / 4 <= width / height <= 4 / 3:
        assert (h + 0.5) * (w + 0.5) >= 0.08 * height * width


def test_inception_crop_is_uniform_in_area_and_log_uniform_in_aspect():
    rng = np.random.default_rng(0)
    # In a large square nearly each first try fits while area <= 3/4 and aspect is mild.
    boxes = np.array([inception_crop(4000, 4000, rng, (0.1, 0.5)) for _ in range(4000)])
    top, left, h, w = boxes.T
    area = h * w / 4000**2
    aspect = np.log(w / h) / np.log(4 / 3)
    for values, low, high in ((area, 0.1, 0.5), (aspect, -1, 1)):
        # Five standard errors of the median of 4000 draws.
        quantiles = np.quantile((values - low) / (high - low), [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(quantiles, [0, 0.25, 0.5, 0.75, 1], atol=0.04)
    for offset, side in ((top, h), (left, w)):
        share = np.quantile(offset / (4000 - side), [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(share, [0, 0.25, 0.5, 0.75, 1], atol=0.04)


def test_inception_crop_reaches_each_place():
    boxes = {inception_crop(3, 4, np.random.default_rng(s), (0.1, 0.1), (1, 1)) for s in range(300)}
    assert boxes == {(top, left, 1, 1) for top in range(3) for left in range(4)}


def test_inception_crop_of_the_whole_image():
    assert inception_crop(30, 40, np.random.default_rng(0), (1, 1), (4 / 3, 4 / 3)) == (
        0,
        0,
        30,
        40,
    )


@given(
    size=st.integers(1, 12),
    pad=st.integers(0, 14),
    seed=st.integers(0, 100),
    fill=st.tuples(*[st.integers(0, 255)] * 3),
)
@settings(deadline=None)
def test_pad_crop_is_a_window_of_the_padded_image(size, pad, seed, fill):
    image = photo(size, size)
    out = apply(TrainTransform(size, 'pad', pad=pad, flip=False, fill=fill), image, seed)
    padded = np.empty((size + 2 * pad, size + 2 * pad, 3), np.uint8)
    padded[:] = fill
    padded[pad : pad + size, pad : pad + size] = image
    windows = np.lib.stride_tricks.sliding_window_view(padded, out.shape)
    assert (windows == out).all((-3, -2, -1)).any()


def test_pad_crop_reaches_each_offset():
    image = np.zeros((5, 5, 3), np.uint8)
    image[2, 2] = 255
    transform = TrainTransform(5, 'pad', pad=2, flip=False)
    places = {tuple(np.argwhere(apply(transform, image, s)[..., 0])[0]) for s in range(300)}
    assert places == {(y, x) for y in range(5) for x in range(5)}


def test_flip_mirrors_half_of_the_time():
    image = photo(9, 9)
    views = [apply(TrainTransform(9, 'none'), image, seed) for seed in range(400)]
    mirrored = [np.array_equal(view, image[:, ::-1]) for view in views]
    plain = [np.array_equal(view, image) for view in views]
    assert sum(mirrored) + sum(plain) == 400
    assert 160 < sum(mirrored) < 240


@given(size=st.integers(1, 12), side=st.integers(1, 15), seed=st.integers(0, 200))
@settings(deadline=None)
def test_cutout_is_one_clipped_square(size, side, seed):
    image = np.full((size, size, 3), 9, np.uint8)
    transform = TrainTransform(size, 'none', flip=False, cutout=side, fill=(1, 2, 3))
    out = apply(transform, image, seed)
    hole = (out == (1, 2, 3)).all(-1)
    assert (out[~hole] == 9).all()
    ys, xs = hole.any(1).nonzero()[0], hole.any(0).nonzero()[0]
    assert hole.sum() == len(ys) * len(xs)
    centers = {(y, x) for y in range(size) for x in range(size)}
    assert any(square(size, side, *center) == (set(ys), set(xs)) for center in centers)


def square(size, side, y, x):
    inside = range(size)
    return tuple({c - side // 2 + i for i in range(side)} & set(inside) for c in (y, x))


def test_cutout_center_is_any_pixel():
    transform = TrainTransform(4, 'none', flip=False, cutout=1, fill=(255, 0, 0))
    image = np.zeros((4, 4, 3), np.uint8)
    holes = {tuple(np.argwhere(apply(transform, image, s)[..., 0])[0]) for s in range(200)}
    assert len(holes) == 16


@pytest.mark.parametrize('size', [32, 33])
def test_rotation_turns_around_the_center(size):
    """Compares with the formula, on colors that are affine in x and y."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    image = np.stack([100 + 3 * x, 100 + 2 * y, 0 * x + 60], -1).round().astype(np.uint8)
    out = rotate(image, 10, (0, 0, 9))
    cos, sin = np.cos(np.pi / 18), np.sin(np.pi / 18)
    from_x, from_y = cos * x - sin * y, sin * x + cos * y
    inside = np.maximum(abs(from_x), abs(from_y)) <= (size - 1) / 2
    want = np.stack([100 + 3 * from_x, 100 + 2 * from_y, 0 * x + 60], -1)
    # Both images are rounded, and OpenCV looks up in 32nds of a pixel, of up to 3 levels each.
    np.testing.assert_allclose(out[inside], want[inside], atol=1.2)
    outside = np.maximum(abs(from_x), abs(from_y)) >= (size + 1) / 2
    assert outside.any()
    assert (out[outside] == (0, 0, 9)).all()


def test_rotation_is_uniform_both_ways():
    y, x = np.mgrid[:65, :65] - 32.0
    image = np.stack([128 + 2 * x, 128 + 2 * y, 0 * x], -1).round().astype(np.uint8)
    transform = TrainTransform(65, 'none', flip=False, rotation=10)
    views = [apply(transform, image, seed).astype(int) for seed in range(1000)]
    slopes = [(view[52, 32, 0] - view[12, 32, 0]) / 80 for view in views]  # -sin of the angle
    angles = np.rad2deg(np.arcsin(slopes))
    quantiles = np.quantile(angles, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quantiles, [-10, -5, 0, 5, 10], atol=1)  # a level is 0.7 degrees


def test_jitter_adds_one_number_to_a_channel():
    image = photo(20, 20)
    transform = TrainTransform(20, 'none', flip=False, jitter=20)
    added = []
    for seed in range(500):
        by = apply(transform, image, seed).astype(int) - image
        free = (image >= 20) & (image <= 235)  # no sum is clipped
        assert all(len(set(by[..., c][free[..., c]])) == 1 for c in range(3))
        added.append([by[..., c][free[..., c]][0] for c in range(3)])
        whole = np.clip(image + np.array(added[-1]), 0, 255)
        np.testing.assert_array_equal(by + image, whole)
    for channel in np.transpose(added):
        quantiles = np.quantile(channel, [0, 0.25, 0.5, 0.75, 1])
        # Three standard errors of the median of 500 draws.
        np.testing.assert_allclose(quantiles, [-20, -10, 0, 10, 20], atol=3)
    assert np.abs(np.corrcoef(np.transpose(added))[np.triu_indices(3, 1)]).max() < 0.15


def test_what_is_off_draws_nothing():
    """Runs from before these fields existed stay the same: the cutout draws the same numbers."""
    image = photo(20, 20)
    plain = TrainTransform(20, 'none', cutout=4)
    rng, out = np.random.default_rng(3), np.empty((20, 20, 3), np.uint8)
    plain(image, rng, out)
    after = np.random.default_rng(3)
    after.random()
    after.integers(20, size=2)
    assert rng.random() == after.random()


@given(height=st.integers(1, 40), width=st.integers(1, 40), size=st.integers(1, 24))
@settings(deadline=None)
def test_any_image_fills_the_output(height, width, size):
    image = np.full((height, width, 3), 200, np.uint8)
    for crop in ('inception', 'none'):
        assert (apply(TrainTransform(size, crop), image) == 200).all()
    assert (apply(EvalTransform(size), image) == 200).all()
    assert (apply(EvalTransform(size, resize=size + 3), image) == 200).all()


def test_eval_takes_the_center():
    image = photo(11, 8)
    np.testing.assert_array_equal(apply(EvalTransform(6), image), image[2:8, 1:7])


@pytest.mark.parametrize('interpolation', ['bilinear_antialias', 'bicubic_antialias'])
def test_eval_equals_pillow(interpolation):
    """As torchvision evaluates: shorter edge, then center, with Pillow's antialias."""
    image = photo(50, 75)
    method = Image.Resampling[interpolation.split('_')[0].upper()]
    want = Image.fromarray(image).resize((48, 32), method).crop((12, 4, 36, 28))
    out = apply(EvalTransform(24, resize=32, interpolation=interpolation), image)
    np.testing.assert_array_equal(out, np.asarray(want))


def test_squash_resizes_the_shorter_edge_and_then_the_longer():
    image = photo(30, 50)
    want = cv2.resize(cv2.resize(image, (35, 21)), (21, 21))
    np.testing.assert_array_equal(apply(Squash(21), image), want)
    np.testing.assert_array_equal(apply(Squash(21), image[:21, :21]), image[:21, :21])


def test_bilinear_equals_its_formula():
    image = photo(7, 10)
    got = resize(image, 5, 16, 'bilinear')
    # Rounded, with weights of 11 bits.
    np.testing.assert_allclose(got, bilinear(image.astype(float), 5, 16), atol=1)


def bilinear(image, height, width):
    """Half-pixel centers, two neighbors per axis, no antialias."""
    for axis, size in ((0, height), (1, width)):
        old = image.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
        low = np.minimum(at.astype(int), max(old - 2, 0))
        share = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        image = image.take(low, axis) * (1 - share) + image.take(low + 1, axis) * share
    return image


@pytest.mark.parametrize('interpolation', INTERPOLATIONS)
def test_same_size_changes_nothing(interpolation):
    image = photo(8, 8)
    np.testing.assert_array_equal(fit(image, 8, 8, interpolation), image)


def test_area_averages():
    image = photo(6, 6)
    want = image.reshape(3, 2, 3, 2, 3).mean((1, 3))
    np.testing.assert_allclose(resize(image, 3, 3, 'area'), want, atol=0.51)  # rounded


@pytest.mark.parametrize('crop', ['inception', 'pad', 'none'])
def test_the_generator_alone_decides(crop):
    more = {'ra_operations': 3, 'color_jitter': (0.4, 0.4, 0.4), 'erasing': 0.5}
    transform = TrainTransform(16, crop, pad=2, rotation=9, jitter=9, cutout=4, **more)
    image = photo(30, 20)
    before = image.copy()
    np.testing.assert_array_equal(apply(transform, image, 5), apply(transform, image, 5))
    assert any((apply(transform, image, 5) != apply(transform, image, s)).any() for s in range(6))
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: TrainTransform(8, 'inceptoin'), "unknown crop 'inceptoin': did you mean incep"),
        (lambda: TrainTransform(8, interpolation='lanczos'), "unknown interpolation 'lanczos'"),
        (lambda: TrainTransform(0), 'image_size=0 must be at least 1'),
        (lambda: TrainTransform(8, pad=-1), 'pad=-1 must be at least 0'),
        (lambda: TrainTransform(8, rotation=181), 'rotation=181 must be 0 to 180'),
        (lambda: TrainTransform(8, rotation=-10), 'rotation=-10 must be 0 to 180'),
        (lambda: TrainTransform(8, jitter=float('nan')), 'jitter=nan must be 0 to 255'),
        (lambda: TrainTransform(8, fill=(0, 0, 256)), r'fill=\(0, 0, 256\) must be numbers from 0'),
        (lambda: TrainTransform(8, channels=1), r'one per channel \(channels=1\)'),
        (lambda: TrainTransform(8, ra_operations=-1), 'ra_operations=-1 must be at least 0'),
        (lambda: TrainTransform(8, ra_magnitude=11), 'ra_magnitude=11 must be 0 to 10'),
        (lambda: TrainTransform(8, ra_std=-1), 'ra_std=-1 must be at least 0'),
        (lambda: TrainTransform(8, color_jitter=(1, 2)), r'color_jitter=\(1, 2\) must be three'),
        (lambda: TrainTransform(8, color_jitter=(1, float('nan'), 1)), 'must be three numbers'),
        (lambda: TrainTransform(8, erasing=1.5), 'erasing=1.5 must be 0 to 1'),
        (lambda: TrainTransform(8, erasing_mode='pixels'), 'did you mean pixel'),
        (
            lambda: TrainTransform(8, color_jitter=(1, 0, 0), channels=4),
            r'color_jitter=\(1, 0, 0\) is for in_channels=3, not 4',
        ),
        (lambda: TrainTransform(8, crop_area=(0.5, 1.1)), r'0 < least <= greatest <= 1\.0'),
        (lambda: TrainTransform(8, crop_aspect=(2, 1)), r'crop_aspect=\(2, 1\) must be'),
        (lambda: EvalTransform(8, resize=7), 'resize=7 is below image_size=8; use 0 or at least'),
        (
            lambda: Squash(21, interpolation='bilinar'),
            "unknown interpolation 'bilinar': did you mean bilinear",
        ),
        (lambda: Squash(0), 'image_size=0 must be at least 1'),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_attributes_are_the_fields():
    for cls in (TrainTransform, EvalTransform, View):
        listed = inspect.getdoc(cls).split('Attributes:')[1]
        lines = [line.split(':')[0].strip() for line in listed.splitlines() if line[4:5].isalpha()]
        own = [field.name for field in dataclasses.fields(cls) if field.name in cls.__annotations__]
        assert [name for line in lines for name in line.split(', ')] == own
