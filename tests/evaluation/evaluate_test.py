"""Evaluation: every example once, and sums that equal NumPy's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import Mesh

from se_flax.data import Dataset, EvalTransform, eval_batches
from se_flax.evaluation import evaluate, in_top, make_eval_step, normalize
from se_flax.parallel import DATA

PIXELS = {'mean': (123.7, 110.3, 99.1), 'std': (58.4, 57.1, 43.3)}  # no short binary fractions
CLASSES = 7


@dataclasses.dataclass(frozen=True)
class Colours(Dataset):
    """So many images of one random colour each."""

    size: int

    def __len__(self):
        return self.size

    def read(self, i):
        rng = np.random.default_rng(i)
        return np.full((4, 4, 3), rng.integers(256, size=3), np.uint8), int(rng.integers(CLASSES))


class Linear(nn.Module):
    """The logits are a linear function of the mean colour."""

    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x, *, train=False):
        assert not train
        return nn.Dense(CLASSES, name='head')(x.mean((1, 2)))


@functools.cache
def eval_step_on(num_devices):
    mesh = Mesh(jax.devices()[:num_devices], (DATA,))
    return make_eval_step(Linear(), mesh, **PIXELS), mesh


@functools.cache
def variables():
    return jax.device_get(Linear().init(jax.random.key(0), jnp.zeros((1, 4, 4, 3))))


@given(
    size=st.integers(1, 40),
    num_devices=st.sampled_from([1, 2, 4, 8]),
    per_device=st.integers(1, 3),
)
@settings(max_examples=25, deadline=None)
def test_every_example_counts_once_as_in_numpy(size, num_devices, per_device):
    data = Colours('colours', 'eval', tuple('abcdefg'), size)
    step, mesh = eval_step_on(num_devices)
    batches = eval_batches(data, EvalTransform(4), batch_size=num_devices * per_device)
    got = evaluate(step, variables(), batches, mesh)

    examples = [data.read(i) for i in range(size)]
    colours = np.array([image[0, 0] for image, _ in examples], float)
    labels = np.array([label for _, label in examples])
    head = variables()['params']['head']
    logits = (colours - PIXELS['mean']) / PIXELS['std'] @ head['kernel'] + head['bias']
    loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(size), labels]
    ranked = np.argsort(-logits, axis=1)
    assert got['examples'] == size
    # In float32 a loss of order 1 has rounding of 1e-7.
    assert got['loss'] == pytest.approx(loss.mean(), rel=1e-5)
    assert got['top1'] == pytest.approx((ranked[:, 0] == labels).mean(), abs=1e-12)
    assert got['top5'] == pytest.approx((ranked[:, :5] == labels[:, None]).any(1).mean(), abs=1e-12)


def test_what_is_masked_counts_nothing_even_if_it_is_not_finite():
    """An example without a finite loss, behind the mask, leaves the sums as they are."""
    step, _ = eval_step_on(1)
    head = {'kernel': np.zeros((3, CLASSES), np.float32), 'bias': np.zeros(CLASSES, np.float32)}
    head['bias'][3] = np.inf  # log_softmax of it is not a number
    batch = {'image': np.zeros((2, 4, 4, 3), np.uint8), 'label': np.zeros(2, np.int32)}
    for mask, finite in ((False, True), (True, False)):
        sums = step({'params': {'head': head}}, batch | {'mask': np.full(2, mask)})
        assert bool(np.isfinite(sums['loss'])) is finite
        assert sums['examples'] == 2 * mask


@given(
    logits=hnp.arrays(np.float32, (4, CLASSES), elements=st.integers(-2, 2)),
    labels=hnp.arrays(np.int32, 4, elements=st.integers(0, CLASSES - 1)),
    k=st.integers(1, CLASSES + 1),
)
@settings(deadline=None)
def test_in_top_equals_a_stable_argsort(logits, labels, k):
    """With many ties, which go to the lower class number."""
    ranked = np.argsort(-logits, axis=1, kind='stable')[:, :k]
    want = (ranked == labels[:, None]).any(1)
    np.testing.assert_array_equal(in_top(k, jnp.asarray(logits), jnp.asarray(labels)), want)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32, jnp.float64])
def test_normalize_rounds_once(dtype):
    """Against float64: computed in float32 or wider, whatever the result's dtype."""
    images = np.arange(256 * 3).reshape(16, 16, 1, 3).astype(np.uint8)
    want = (images - np.array(PIXELS['mean'])) / PIXELS['std']
    with jax.enable_x64(True):
        got = normalize(images, dtype=dtype, **PIXELS)
    assert got.dtype == dtype
    wide = jnp.finfo(jnp.promote_types(dtype, jnp.float32)).eps
    # Rounding to the dtype is half an eps; before that a difference of up to 5 and its quotient,
    # three roundings of half an eps of 5 each.
    tolerance = {'rtol': jnp.finfo(dtype).eps, 'atol': 8 * wide}
    np.testing.assert_allclose(np.asarray(got, np.float64), want, **tolerance)
