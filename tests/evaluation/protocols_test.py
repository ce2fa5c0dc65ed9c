"""The views of a protocol against slices written out, and averages against NumPy."""

from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from se_flax.data import EvalTransform
from se_flax.errors import UserError
from se_flax.evaluation.protocols import AVERAGES, Protocol, cut, lay_out, places

pytestmark = pytest.mark.quick

OWN = EvalTransform(24, 32)


@pytest.fixture
def image():
    """Its shorter edge of 32 makes the longer one 42."""
    return np.random.default_rng(0).integers(0, 256, (64, 85, 3), np.uint8)


def views(image, protocol, own=OWN):
    (scale,) = protocol.scales(own)
    side = scale.canvas.image_size
    canvas = np.empty((1, side, side, 3), np.uint8)
    scale.canvas(image, None, canvas[0])
    laid_out = lay_out(protocol.crops, jnp.asarray(canvas), scale.size)
    where = places(protocol.crops, side, scale.size)
    return np.stack([cut(laid_out, place, scale.size)[0] for place in where])


def corners_and_center(square):
    """Of 32 x 32 pixels, 24 x 24 each."""
    return [square[4:28, 4:28], square[:24, :24], square[:24, 8:], square[8:, :24], square[8:, 8:]]


def with_mirror_images(crops):
    return np.stack([*crops, *(crop[:, ::-1] for crop in crops)])


def test_one_and_two_crops(image):
    center = np.empty((24, 24, 3), np.uint8)
    OWN(image, None, center)
    np.testing.assert_array_equal(views(image, Protocol()), [center])
    both = views(image, Protocol(crops=2))
    np.testing.assert_array_equal(both, with_mirror_images([center]))


def test_ten_crops(image):
    square = cv2.resize(image, (42, 32))[:, 5:37]
    want = with_mirror_images(corners_and_center(square))
    np.testing.assert_array_equal(views(image, Protocol(crops=10)), want)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(views(image, Protocol(crops=10)), want)


def test_twelve_crops(image):
    square = cv2.resize(cv2.resize(image, (42, 32)), (32, 32))
    want = with_mirror_images([*corners_and_center(square), cv2.resize(square, (24, 24))])
    got = views(image, Protocol(crops=12))
    whole = [5, 11]
    np.testing.assert_array_equal(np.delete(got, whole, 0), np.delete(want, whole, 0))
    # OpenCV's weights have 11 bits.
    np.testing.assert_allclose(got[whole].astype(int), want[whole].astype(int), atol=1)


@pytest.mark.parametrize('crops', [2, 10])
def test_the_mirror_image_has_the_same_views(crops, image):
    square = image[:32, :32].copy()
    seen, mirrored = (
        sorted(view.tobytes() for view in views(pixels, Protocol(crops=crops)))
        for pixels in (square, square[:, ::-1].copy())
    )
    assert seen == mirrored
    assert len(set(seen)) == crops


def test_scales():
    def sides(protocol):
        return [(s.canvas.image_size, s.canvas.resize, s.size) for s in protocol.scales(OWN)]

    assert sides(Protocol()) == [(24, 32, 24)]
    assert sides(Protocol((32,), (32,))) == [(32, 32, 32)]
    assert sides(Protocol(resizes=(24, 28, 32))) == [(24, r, 24) for r in (24, 28, 32)]
    assert sides(Protocol((20, 28))) == [(20, 32, 20), (28, 32, 28)]
    assert sides(Protocol((20, 28), (25, 35), 10)) == [(25, 25, 20), (35, 35, 28)]


def test_describe():
    assert Protocol().describe(OWN) == 'center crop of 24 pixels (resize 32)'
    assert Protocol().describe(EvalTransform(28)) == 'center crop of 28 pixels (resize none)'
    several = Protocol((24,), (28, 32), 10).describe(OWN)
    assert several == 'ten crops of 24 pixels (resize 28), 24 pixels (resize 32)'


def test_averages_equal_numpy():
    logits = np.random.default_rng(0).normal(0, 4, (5, 3, 7)).astype(np.float32)
    p = np.exp(logits.astype(float))
    want = {
        'probabilities': np.log((p / p.sum(-1, keepdims=True)).mean(0)),
        'logits': np.log(np.exp(logits.mean(0)) / np.exp(logits.mean(0)).sum(-1, keepdims=True)),
    }
    assert np.abs(want['probabilities'] - want['logits']).max() > 0.1
    for name, (of_logits, mean, log_probs) in AVERAGES.items():
        close = partial(np.testing.assert_allclose, rtol=0, atol=1e-4)  # float32, up to 20
        scores = of_logits(jnp.asarray(logits))
        close(log_probs(mean(scores)), want[name])
        close(log_probs(mean(scores[:1])), jax.nn.log_softmax(logits[0]))
        # Two means of means, as of views and then of networks, are one mean.
        close(mean(jnp.stack([mean(scores[:2]), mean(scores[2:4])])), mean(scores[:4]))


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: Protocol(crops=11), 'unknown crops 11: did you mean '),
        (lambda: Protocol(average='logit'), "unknown average 'logit': did you mean logits?"),
        (lambda: Protocol((1, 2), (3, 4, 5)), '2 sizes and 3 resizes do not match; give as many'),
        (lambda: Protocol((40,)).scales(OWN), 'resize=32 is below image_size=40; use 0 or at'),
        (lambda: Protocol((0,)).scales(OWN), 'image_size=0 must be at least 1'),
        (
            lambda: Protocol(crops=10).scales(EvalTransform(28)),
            'crops=10 needs a resize, but resize=0; use at least 28',
        ),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value).startswith(message)
