"""Evaluation of networks and views: each example once, with the numbers of NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from se_flax.data import Dataset, DecodeError, EvalTransform
from se_flax.evaluation.evaluator import Evaluation, Evaluator, Network, judge, make_scores
from se_flax.evaluation.protocols import AVERAGES, OWN_VIEW, Protocol
from se_flax.parallel import DATA

pytestmark = pytest.mark.quick

CLASSES, SIDE, SIZE = 7, 10, 6
MEAN, STD = (123.7, 110.3, 99.1), (58.4, 57.1, 43.3)
DAMAGED = 3
FLOAT32 = 1e-4  # logits of order 1 are sums of 27 float32 products: rounding of 1e-6


@dataclasses.dataclass(frozen=True)
class Noise(Dataset):
    """So many random images, of which one may be damaged."""

    size: int
    damaged: bool = False

    def __len__(self):
        return self.size

    def read(self, i):
        if self.damaged and i == DAMAGED:
            raise DecodeError('cut short')
        rng = np.random.default_rng(i)
        image = rng.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)
        return image, int(rng.integers(CLASSES))


class Linear(nn.Module):
    """The logits are a linear function of a view's top left quarter."""

    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x, *, train=False):
        assert not train
        half = x.shape[1] // 2
        return nn.Dense(CLASSES, name='head')(x[:, :half, :half].reshape(len(x), -1))


class MeanColour(nn.Module):
    """The logits are a linear function of the mean colour."""

    classes: int
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(self.classes, name='head')(x.mean((1, 2)))


@functools.cache
def network(seed=0):
    variables = Linear().init(jax.random.key(seed), jnp.zeros((1, SIZE, SIZE, 3)))
    return Network(Linear(), jax.device_get(variables), EvalTransform(SIZE, SIDE), MEAN, STD)


def mesh_of(num_devices):
    return Mesh(jax.devices()[:num_devices], (DATA,))


def noise(size, **fields):
    return Noise('noise', 'eval', tuple('abcdefg'), size, **fields)


def evaluator(networks, dataset, protocol=OWN_VIEW, num_devices=1, batch_size=8):
    mesh = mesh_of(num_devices)
    return Evaluator(networks, dataset, mesh, protocol, batch_size=batch_size, num_threads=2)


def judged(*args, **kwargs):
    return [results for _, results in evaluator(*args, **kwargs).batches()]


def joined(results):
    return {k: np.concatenate([r[k] for r in results]) for k in results[0] if k != 'loss'}


def summary(results):
    evaluation = Evaluation(noise(0))
    for r in results:
        evaluation.add(r)
    return evaluation.summary()


def probabilities(net, image, crops, average):
    """In float64, of one image as big as its canvas."""
    corners = [image[y:, x:][:SIZE, :SIZE] for y, x in ((2, 2), (0, 0), (0, 4), (4, 0), (4, 4))]
    views = np.stack({1: corners[:1], 10: corners + [c[:, ::-1] for c in corners]}[crops])
    x = ((views - np.array(MEAN)) / STD)[:, : SIZE // 2, : SIZE // 2].reshape(len(views), -1)
    head = net.variables['params']['head']
    logits = x @ head['kernel'].astype(float) + head['bias']
    p = np.exp(logits if average == 'probabilities' else logits.mean(0, keepdims=True))
    return (p / p.sum(1, keepdims=True)).mean(0)


@given(
    size=st.integers(1, 40),
    num_devices=st.sampled_from([1, 2, 4, 8]),
    per_device=st.integers(1, 3),
    crops=st.sampled_from([1, 10]),
    average=st.sampled_from(list(AVERAGES)),
)
@example(size=16, num_devices=8, per_device=1, crops=1, average='probabilities')
@example(size=13, num_devices=1, per_device=8, crops=10, average='logits')
@settings(max_examples=12, deadline=None)
def test_every_example_once_as_in_numpy(size, num_devices, per_device, crops, average):
    data, protocol = noise(size), Protocol((), (), crops, average)
    results = judged([network()], data, protocol, num_devices, num_devices * per_device)
    got, examples = joined(results), [data.read(i) for i in range(size)]
    p = np.array([probabilities(network(), image, crops, average) for image, _ in examples])
    labels = np.array([label for _, label in examples])
    order = np.argsort(-p, axis=1)

    assert got['mask'].sum() == size
    rank = (order == labels[:, None]).argmax(1)
    np.testing.assert_array_equal(got['rank'][:size], rank)
    np.testing.assert_array_equal(got['top'][:size], order[:, :5])
    best = np.take_along_axis(p, order, 1)[:, :5]
    np.testing.assert_allclose(got['probability'][:size], best, rtol=FLOAT32)
    want = {'top1': (rank < 1).mean(), 'top5': (rank < 5).mean(), 'examples': size}
    want['loss'] = -np.log(p[np.arange(size), labels]).mean()
    assert summary(results) == pytest.approx(want, rel=FLOAT32)


def test_other_variables_at_a_call_compile_nothing(caplog):
    """As in training, where each evaluation has the new ones."""
    of_all = evaluator([network()._replace(variables=None)], noise(21))
    seen = []
    for seed in (0, 1):
        with jax.log_compiles(seed == 1):
            got = of_all.run([network(seed).variables], seen=lambda *counts: seen.append(counts))
        assert got.summary() == evaluator([network(seed)], noise(21)).run().summary()
    assert seen == [(8, 21), (16, 21), (21, 21)] * 2
    assert 'ompil' not in caplog.text


def test_what_is_masked_counts_nothing_even_if_it_is_not_finite():
    """An example without a finite loss, behind the mask, leaves the sums as they are."""
    of_batch = jax.jit(functools.partial(judge, AVERAGES['logits']))
    scores = [np.full((2, CLASSES), np.nan, np.float32)]
    for mask, finite in ((False, True), (True, False)):
        got = Evaluation(noise(2))
        got.add(jax.device_get(of_batch(scores, np.zeros(2, np.int32), np.full(2, mask))))
        assert bool(np.isfinite(got._loss)) is finite
        assert got.counts.tolist()[0] == [2 * mask, 0, 0]


def test_a_network_twice_is_the_network():
    once, twice = (joined(judged([network()] * n, noise(21))) for n in (1, 2))
    for name in ('label', 'mask', 'rank', 'top'):
        np.testing.assert_array_equal(once[name], twice[name])
    np.testing.assert_allclose(once['probability'], twice['probability'], rtol=FLOAT32)


@pytest.mark.parametrize('average', ['probabilities', 'logits'])
def test_networks_and_scales_are_averaged(average):
    """All of the same weight, against the single ones; logits are known up to a constant."""
    five = MeanColour(5)  # classes, as many as the results tell of
    some = jnp.zeros((1, SIZE, SIZE, 3))
    nets = [
        network()._replace(model=five, variables=jax.jit(five.init)(jax.random.key(seed), some))
        for seed in (1, 2)
    ]
    scales = ((4, 8), (6, 10))

    def log_probs(networks, sizes, resizes):
        protocol = Protocol(sizes, resizes, average=average)
        got = joined(judged(networks, noise(8), protocol))
        order = np.argsort(got['top'], axis=1)
        return np.take_along_axis(np.log(got['probability']), order, axis=1)

    single = np.stack([log_probs([n], (s,), (r,)) for n in nets for s, r in scales])
    if average == 'probabilities':
        want = np.log(np.exp(single).mean(0))
    else:
        want = jax.nn.log_softmax(single.mean(0))
    together = log_probs(nets, *zip(*scales, strict=True))
    np.testing.assert_allclose(together, want, rtol=0, atol=FLOAT32)


def test_what_cannot_be_decoded_is_left_out(caplog):
    results = judged([network()], noise(21, damaged=True), Protocol(crops=10), num_devices=8)
    got = joined(results)
    np.testing.assert_array_equal(np.flatnonzero(~got['mask']), [DAMAGED, 21, 22, 23])
    assert summary(results)['examples'] == 20
    assert 'noise/eval/3: cut short; skipped' in caplog.text


def test_many_crops_need_the_memory_of_one_and_no_collectives():
    def compiled(crops):
        protocol = Protocol(crops=crops)
        (scale,) = protocol.scales(network().view)
        scores = make_scores(network(), mesh_of(8), protocol, scale)
        side = scale.canvas.image_size
        canvases = jax.ShapeDtypeStruct((256, side, side, 3), np.uint8)
        return scores.lower(network().variables, canvases).compile()

    one, ten = compiled(1), compiled(10)
    bytes_of_a_view = 256 // 8 * SIZE * SIZE * 3 * 4
    more = ten.memory_analysis().temp_size_in_bytes - one.memory_analysis().temp_size_in_bytes
    assert more < 2 * bytes_of_a_view
    text = ten.as_text()
    assert not any(name in text for name in ('all-reduce(', 'all-gather(', 'all-to-all('))


def test_counts_are_by_class():
    evaluation = Evaluation(Dataset('set', 'eval', ('a', 'b', 'c')))
    for _ in range(2):
        evaluation.add(
            {
                'loss': np.float32(6.0),
                'label': np.array([0, 0, 2, 2, 1]),
                'mask': np.array([True, True, True, True, False]),
                'rank': np.array([0, 4, 5, 0, 0]),
            }
        )
    np.testing.assert_array_equal(evaluation.counts, [[4, 2, 4], [0, 0, 0], [4, 2, 2]])
    assert evaluation.summary() == {'loss': 1.5, 'top1': 0.5, 'top5': 0.75, 'examples': 8}
