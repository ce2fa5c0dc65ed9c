"""Mixup and CutMix: the same on any number of devices, and the distributions of the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from se_flax.errors import UserError
from se_flax.parallel import replicated
from se_flax.training.mixing import Mixing, Mixture, cut_edges, mix

from .step_test import (
    PIXELS,
    Softmax,
    Tiny,
    Trainer,
    assert_same_steps,
    collectives,
    draw,
    random_batch,
)

BOTH = Mixing(mixup=0.4, cutmix=1.0, group_size=8)


def mixtures(count=4000, height=32, width=48, **fields):
    mixing = Mixing(**fields, group_size=2)
    drawn = mixing.draw(jax.random.key(0), (2 * count, height, width, 3))
    return np.asarray(drawn.weight), np.asarray(drawn.box)


def test_mixup_draws_weights_of_its_beta_distribution():
    weight, box = mixtures(mixup=0.4)
    assert not box.any()
    # Var = 1 / (4 (2 alpha + 1)); five standard errors of the mean and the median of 4000 draws.
    assert weight.mean() == pytest.approx(0.5, abs=0.03)
    assert weight.var() == pytest.approx(1 / (4 * 1.8), abs=0.008)
    want = np.quantile(np.random.default_rng(0).beta(0.4, 0.4, 10**6), [0.1, 0.25, 0.75, 0.9])
    np.testing.assert_allclose(np.quantile(weight, [0.1, 0.25, 0.75, 0.9]), want, atol=0.05)


def test_cutmix_draws_boxes_of_the_papers_formula():
    """`(W sqrt(1 - weight), H sqrt(1 - weight))` around any pixel, cut at the edges."""
    weight, box = mixtures(cutmix=1.0)
    assert (weight == 1).all()
    top, bottom, left, right = box.T
    assert (top >= 0).all()
    assert (bottom <= 32).all()
    assert (left >= 0).all()
    assert (right <= 48).all()
    inside = (top > 0) & (bottom < 32) & (left > 0) & (right < 48)
    # Where nothing is cut off, both sides are the same share; rounded down to whole pixels.
    np.testing.assert_allclose(
        (bottom - top)[inside] / 32, (right - left)[inside] / 48, atol=1 / 32
    )
    rng = np.random.default_rng(0)
    side = np.sqrt(1 - rng.beta(1, 1, 10**5))
    y, x = rng.integers(32, size=10**5), rng.integers(48, size=10**5)
    want = 1.0
    for at, length in ((y, 32), (x, 48)):
        half = length * side / 2
        want = want * (np.minimum(at + half, length) - np.maximum(at - half, 0)) / length
    area = (bottom - top) * (right - left) / (32 * 48)
    # Rounding down makes a box up to a pixel of 32 narrower.
    np.testing.assert_allclose(
        np.quantile(area, [0.25, 0.5, 0.75]), np.quantile(want, [0.25, 0.5, 0.75]), atol=0.04
    )


@pytest.mark.parametrize('weight', [0.0, 0.3, 0.75, 1.0])
def test_a_box_is_cut_at_the_edges(weight):
    side = int(40 * np.sqrt(1 - weight))
    for middle in range(40):
        first, last = cut_edges(jnp.array([middle]), jnp.array([weight], jnp.float32), 40)
        want = [i for i in range(middle - side // 2, middle - side // 2 + side) if 0 <= i < 40]
        assert list(range(int(first[0]), int(last[0]))) == want


def test_cutmix_is_as_frequent_as_asked():
    weight, box = mixtures(mixup=1.0, cutmix=1.0, switch_prob=0.2)
    assert (weight == 1).mean() == pytest.approx(0.2, abs=0.03)  # five standard errors
    assert not box[weight < 1].any()


def test_every_step_draws_anew():
    draws = [Mixing(mixup=1.0).draw(jax.random.key(i), (4, 8, 8, 3)).weight[0] for i in range(9)]
    assert len(set(map(float, draws))) == 9


@pytest.mark.parametrize('size', [1, 5, 6])
def test_an_image_is_mixed_with_its_mirror_in_the_group(size):
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(2 * size, 6, 7, 3), dtype=np.uint8)
    labels = np.arange(2 * size)
    mixture = Mixture(jnp.array([0.25, 1.0]), jnp.array([[0, 0, 0, 0], [1, 4, 2, 7]]))
    mixed, others, share = mix(jnp.asarray(images), jnp.asarray(labels), mixture)
    for i in range(2 * size):
        j = size - 1 - i if i < size else 3 * size - 1 - i
        assert others[i] == j
        if i < size:
            want, own = 0.25 * images[i] + 0.75 * images[j], 0.25
        else:
            want, own = images[i].copy(), 1 - 15 / 42
            want[1:4, 2:7] = images[j, 1:4, 2:7]
        np.testing.assert_array_equal(mixed[i], want)  # quarters of small integers are exact
        assert share[i] == pytest.approx(own, rel=1e-6)  # a mean in float32


def test_groups_divide_the_batch():
    with pytest.raises(UserError, match='batch=12 is not a multiple of group_size=8; use 8 or 16'):
        BOTH.draw(jax.random.key(0), (12, 8, 8, 3))


@pytest.mark.parametrize(('group_size', 'accumulate'), [(None, 1), (8, 2)])
def test_steps_do_not_depend_on_devices_or_microbatches(group_size, accumulate):
    def two_steps(**devices):
        options = {'mixing': BOTH._replace(group_size=group_size), 'smoothing': 0.1}
        model = Tiny(dtype=jnp.float64, bn_group_size=group_size)
        return Trainer(model, draw, rate=0.1, **devices, **options).steps(2)

    with jax.enable_x64(True):
        assert_same_steps(two_steps(num_devices=4, accumulate=accumulate), two_steps())


def test_a_resumed_step_mixes_as_the_undisturbed_one():
    def trainer():
        return Trainer(Softmax(dtype=jnp.float32), mixing=BOTH, seed=3)

    whole, resumed = trainer(), trainer()
    whole.train(random_batch(0))
    state = jax.device_get(whole.state)
    want = [whole.train(random_batch(i)) for i in (1, 2)]
    resumed.state = jax.device_put(state, replicated(resumed.mesh))
    assert [resumed.train(random_batch(i)) for i in (1, 2)] == want
    assert want[0] != resumed.train(random_batch(1))  # another step, another mixture


def test_groups_on_one_device_do_not_communicate():
    trainer = Trainer(Tiny(), draw, num_devices=4, mixing=BOTH)
    assert collectives(trainer) == ['all-reduce']  # the gradients, as without mixtures


def test_the_loss_is_that_of_soft_labels():
    """Against NumPy, from what the step draws; top-1 counts the label with the larger share."""
    mixing = Mixing(mixup=1.0, cutmix=1.0, group_size=16)
    with jax.enable_x64(True):
        trainer = Trainer(Softmax(), rate=0.01, mixing=mixing, smoothing=0.1, seed=5)
        for i in range(3):
            params = jax.device_get(trainer.state.params)['head']
            batch = random_batch(i)
            got = trainer.train(batch)
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), i), 2**31)
            drawn = mixing.draw(key, batch['image'].shape)
            images, others, share = map(np.asarray, mix(*map(jnp.asarray, batch.values()), drawn))
            x = (images - np.array(PIXELS['mean'])) / PIXELS['std']
            logits = x.reshape(len(x), -1) @ params['kernel'] + params['bias']
            log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            eye, share = np.eye(10), share[:, None]
            targets = share * eye[batch['label']] + (1 - share) * eye[others]
            targets = 0.9 * targets + 0.01
            larger = np.where(share[:, 0] < 0.5, others, batch['label'])
            assert got['loss'] == pytest.approx(-(targets * log_p).sum(1).mean(), rel=1e-6)
            assert got['top1'] == (logits.argmax(1) == larger).mean()
