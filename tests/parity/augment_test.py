"""Augmentation against timm and torchvision: the same draws do the same, and are as likely."""

import collections
import random

import jax.numpy as jnp
import matplotlib.cbook
import numpy as np
import pytest
import timm.data.mixup
import torch
from PIL import Image
from timm.data import auto_augment, distributed_sampler
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import ColorJitter
from torchvision.transforms import functional as F

from se_flax.data import TrainTransform
from se_flax.data.augment import OPERATIONS, Strength, color_jitter, rand_augment
from se_flax.data.sampling import repeated
from se_flax.training.mixing import Mixture, cut_edges, mix

FILL = (124, 116, 104)
BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
INCREASING = ('Posterize', 'Solarize', 'Color', 'Contrast', 'Brightness', 'Sharpness')


@pytest.fixture(scope='module')
def photos():
    """A photograph, and parts of it that are dark, flat or not square."""
    with matplotlib.cbook.get_sample_data('grace_hopper.jpg') as file:
        photo = Image.open(file).convert('RGB').resize((160, 190))
    return [photo, photo.crop((0, 0, 40, 97)), photo.point(lambda value: value // 4 + 20)]


def timm_name(name, increasing):
    if name.startswith('Translate'):
        return f'{name}Rel'
    return f'{name}Increasing' if increasing and name in INCREASING else name


@pytest.mark.parametrize('increasing', [False, True])
@pytest.mark.parametrize('name', OPERATIONS)
def test_an_operation_equals_timms(name, increasing, photos, monkeypatch):
    look = {'img_mean': FILL, 'interpolation': BICUBIC}
    for magnitude in (0, 0.5, 3.3, 7, 9.9, 10):
        for sign, drawn in ((1, 0.2), (-1, 0.8)):
            if timm_name(name, increasing).startswith('Posterize') and magnitude in (0, 0.5, 10):
                continue  # to 0 bits, which Pillow refuses; the next test has it
            monkeypatch.setattr(random, 'random', lambda drawn=drawn: drawn)
            theirs = auto_augment.AugmentOp(timm_name(name, increasing), 1.0, magnitude, look)
            ours = Strength(magnitude / 10, sign, increasing, FILL, BICUBIC)
            for photo in photos:
                got = np.asarray(OPERATIONS[name](photo, ours))
                np.testing.assert_array_equal(got, np.asarray(theirs(photo)))


@pytest.mark.parametrize(('increasing', 'level'), [(True, 1.0), (False, 0.0)])
def test_posterizing_to_no_bits_is_black(increasing, level, photos):
    how = Strength(level, 1, increasing, FILL, BICUBIC)
    assert OPERATIONS['Posterize'](photos[0], how).getextrema() == ((0, 0),) * 3


def test_the_operations_are_timms():
    for increasing in (False, True):
        ours = [timm_name(name, increasing) for name in OPERATIONS]
        assert ours == auto_augment.rand_augment_choices('', increasing=increasing)


@pytest.mark.parametrize(('magnitude', 'std'), [(7, 0.5), (9.5, 1.5)])
def test_operations_and_magnitudes_are_drawn_as_by_timm(magnitude, std, monkeypatch):
    ours, theirs = [], []
    for name in list(OPERATIONS):
        monkeypatch.setitem(OPERATIONS, name, lambda image, how: ours.append(how) or image)
    rng, image = np.random.default_rng(0), np.zeros((2, 2, 3), np.uint8)
    options = {'operations': 2, 'magnitude': magnitude, 'std': std, 'increasing': True}
    for _ in range(4000):
        rand_augment(image, rng, **options, fill=FILL, interpolation='bicubic')

    policy = auto_augment.rand_augment_transform(f'rand-m7-mstd{std}-inc1', {'img_mean': FILL})
    for operation in policy.ops:
        operation.magnitude, operation.level_fn = magnitude, lambda m, _: theirs.append(m) or ()
        operation.aug_fn = lambda image, **_: image
    random.seed(0)
    np.random.seed(0)
    for _ in range(4000):
        policy(None)
    # 8000 are drawn and half of them applied: five standard errors of that and of each quantile.
    assert len(ours) == pytest.approx(4000, abs=220)
    assert len(theirs) == pytest.approx(4000, abs=220)
    at = [0.1, 0.25, 0.5, 0.75]
    levels = [10 * how.level for how in ours]
    np.testing.assert_allclose(np.quantile(levels, at), np.quantile(theirs, at), atol=0.15 * std)
    assert np.mean(np.equal(levels, 10)) == pytest.approx(np.mean(np.equal(theirs, 10)), abs=0.06)
    assert np.mean([how.sign for how in ours]) == pytest.approx(0, abs=0.08)
    assert {how.resample for how in ours} == {BICUBIC}


def test_each_operation_is_as_likely(monkeypatch):
    met = collections.Counter()
    for name in list(OPERATIONS):
        seen = lambda image, how, name=name: met.update([name]) or image  # noqa: E731
        monkeypatch.setitem(OPERATIONS, name, seen)
    options = {'operations': 3, 'magnitude': 5, 'std': 0, 'increasing': True}
    rng, image = np.random.default_rng(0), np.zeros((2, 2, 3), np.uint8)
    for _ in range(5000):
        rand_augment(image, rng, **options, fill=FILL, interpolation='bilinear')
    assert met.keys() == OPERATIONS.keys()
    assert all(390 < count < 610 for count in met.values())  # five standard errors around 500


def test_color_jitter_equals_torchvision(photos):
    adjust = F.adjust_brightness, F.adjust_contrast, F.adjust_saturation
    greatest = (0.4, 0.0, 1.5)
    for seed in range(8):
        rng, want = np.random.default_rng(seed), photos[0]
        for i in rng.permutation(3):
            if greatest[i]:
                want = adjust[i](want, rng.uniform(max(0, 1 - greatest[i]), 1 + greatest[i]))
        got = color_jitter(np.asarray(photos[0]), np.random.default_rng(seed), greatest)
        np.testing.assert_array_equal(got, np.asarray(want))


def test_color_jitter_is_drawn_as_by_torchvision():
    """Of a gray image brightness alone changes it, contrast and saturation nothing."""
    gray = np.full((4, 4, 3), 100, np.uint8)
    rng, theirs = np.random.default_rng(0), ColorJitter(0.4, 0.4, 0.4)
    ours = [color_jitter(gray, rng, (0.4, 0.4, 0.4))[0, 0, 0] for _ in range(2000)]
    torch.manual_seed(0)
    theirs = [np.asarray(theirs(Image.fromarray(gray)))[0, 0, 0] for _ in range(2000)]
    at = [0, 0.25, 0.5, 0.75, 1]
    # Five standard errors of the difference of two medians of 2000 draws from 60 to 140.
    np.testing.assert_allclose(np.quantile(ours, at), np.quantile(theirs, at), atol=6.5)


def test_boxes_are_erased_as_by_timm():
    def box(hole):
        ys, xs = hole.any(1).nonzero()[0], hole.any(0).nonzero()[0]
        assert hole.sum() == len(ys) * len(xs)
        return [len(ys) * len(xs) / 4096, np.log(len(ys) / len(xs)), ys[0], xs[0]]

    view = TrainTransform(64, 'none', flip=False, erasing=0.5, fill=FILL)
    out, image, ours = np.empty((64, 64, 3), np.uint8), np.full((64, 64, 3), 9, np.uint8), []
    for seed in range(4000):
        view(image, np.random.default_rng(seed), out)
        if (hole := (out == FILL).all(-1)).any():
            ours.append(box(hole))
    random.seed(0)
    theirs, erase = [], RandomErasing(0.5, device='cpu')
    for _ in range(4000):
        if (hole := erase(torch.ones(3, 64, 64))[0] == 0).any():
            theirs.append(box(hole.numpy()))
    assert len(ours) == pytest.approx(2000, abs=160)  # five standard errors
    assert len(theirs) == pytest.approx(2000, abs=160)
    widths = 0.32, 2.4, 64, 64
    for mine, other, width in zip(*map(np.transpose, (ours, theirs)), widths, strict=True):
        at = [0.1, 0.25, 0.5, 0.75, 0.9]
        # Five standard errors of the difference of two quantiles of a uniform distribution.
        np.testing.assert_allclose(np.quantile(mine, at), np.quantile(other, at), atol=0.08 * width)


def test_noise_is_normal_with_the_mean_and_deviation_of_the_data():
    """As timm's, which is normal after normalization, but for clipping at 0 and 255."""
    pixels = {'mean': (124.0, 116.0, 104.0), 'std': (30.0, 20.0, 10.0)}
    view = TrainTransform(64, 'none', flip=False, erasing=1, erasing_mode='pixel', **pixels)
    out, drawn = np.empty((64, 64, 3), np.uint8), []
    for seed in range(20):
        view(np.zeros((64, 64, 3), np.uint8), np.random.default_rng(seed), out)
        drawn += [*out[out.any(-1)]]
    # Five standard errors of a few thousand draws.
    assert len(drawn) > 4000
    np.testing.assert_allclose(np.mean(drawn, 0), pixels['mean'], atol=2.5)
    np.testing.assert_allclose(np.std(drawn, 0), pixels['std'], rtol=0.06)


@pytest.mark.parametrize('size', [(32, 32), (17, 40)])
def test_the_box_of_cutmix_is_timms(size, monkeypatch):
    rng = np.random.default_rng(0)
    for weight in rng.beta(1, 1, 200).astype(np.float32):
        centers = [int(rng.integers(length)) for length in size]
        drawn = iter(centers)
        monkeypatch.setattr(np.random, 'randint', lambda *_, drawn=drawn, **__: next(drawn))
        want = timm.data.mixup.rand_bbox((3, *size), weight)
        got = [
            int(edge)
            for center, length in zip(centers, size, strict=True)
            for edge in cut_edges(jnp.asarray(center), jnp.asarray(weight), length)
        ]
        assert got == list(map(int, want))


@pytest.mark.parametrize('cutmix', [False, True])
def test_mixtures_equal_timms(cutmix, monkeypatch):
    """Images, and soft labels with smoothing."""
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(6, 20, 24, 3), dtype=np.uint8)
    labels = rng.integers(5, size=6)
    theirs = timm.data.mixup.Mixup(0.2, 1.0, label_smoothing=0.1, num_classes=5)
    box = (3, 15, 10, 24)
    monkeypatch.setattr(theirs, '_params_per_batch', lambda: (0.3, cutmix))
    monkeypatch.setattr(timm.data.mixup, 'rand_bbox', lambda *_, **__: box)
    pixels = torch.tensor(images).permute(0, 3, 1, 2).float()
    want, want_targets = theirs(pixels, torch.tensor(labels))

    weight, box = (1.0, box) if cutmix else (0.3, (0, 0, 0, 0))
    drawn = Mixture(jnp.array([weight]), jnp.array([box]))
    got, others, share = map(np.asarray, mix(jnp.asarray(images), jnp.asarray(labels), drawn))
    want = want.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-5)  # a sum of two products in float32
    eye, share = np.eye(5), share[:, None]
    targets = 0.9 * (share * eye[labels] + (1 - share) * eye[others]) + 0.1 / 5
    np.testing.assert_allclose(targets, want_targets, rtol=1e-5)


def test_an_epoch_of_repeats_has_as_many_images_as_timms():
    class Thousand:
        def __len__(self):
            return 3072

    epoch = []
    for rank in range(4):
        sampler = distributed_sampler.RepeatAugSampler(Thousand(), 4, rank)
        epoch += list(sampler)
    ours = list(map(repeated(lambda i: i, 3, batch_size=256), range(3072)))
    assert len(ours) == len(epoch) == 3072
    counts = [collections.Counter(collections.Counter(of).values()) for of in (ours, epoch)]
    for count in counts:  # one batch of 256 is not a multiple of 3
        assert count[3] == pytest.approx(1024, abs=90)
        assert count[3] * 3 == pytest.approx(3072, abs=270)
