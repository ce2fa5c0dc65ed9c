"""The gates: sums against a direct computation, scores of known answers, blocks by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from se_flax.analysis.excitation import (
    Sums,
    measure_gates,
    pick,
    remove_last_stage,
    se_blocks,
    shown,
)
from se_flax.data import EvalTransform, eval_batches, open_dataset
from se_flax.data.dataset import Subset
from se_flax.errors import UserError
from se_flax.evaluation import normalize
from se_flax.evaluation.evaluator import Evaluator, Network
from se_flax.models import create_model
from se_flax.parallel import data_mesh
from se_flax.progress import Progress

FIELDS = {'width': 16, 'stage_sizes': (1, 1), 'stem_strides': 2}
VIEW = EvalTransform(28, interpolation='bilinear')


def shapes(name, size):
    model = create_model(name)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return model, jax.eval_shape(model.init, jax.random.key(0), image)


@pytest.fixture(scope='module')
def network():
    model = create_model('se_resnet8_cifar', 10, **FIELDS)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 28, 28, 3)))
    return Network(model, variables, VIEW, (72.4,) * 3, (89.6,) * 3)


@pytest.fixture(scope='module')
def dataset():
    return open_dataset('fashion_mnist_mini', 'eval')


def test_the_figures_have_the_papers_six_panels_and_blocks_its_parameters():
    blocks = se_blocks(*shapes('se_resnet50', 224), 224)
    assert len(blocks) == 16
    names = ['stage2_block3', 'stage3_block4', 'stage4_block6']
    names += [f'stage5_block{i}' for i in (1, 2, 3)]
    assert [block.name for block in shown(blocks)] == names
    # The paper's 2 / r * C^2, and the biases.
    assert [block.params for block in blocks[-3:]] == [2 * 2048**2 // 16 + 2048 + 128] * 3


@pytest.mark.parametrize(
    ('name', 'size', 'stages'),
    [
        ('se_vgg16', 224, [2, 2, 3, 3, 3]),
        ('se_bn_inception', 224, [2, 5, 3]),  # 3c and 4e halve the map themselves
        ('se_mobilenet', 224, [1, 2, 2, 6, 2]),
        ('se_preact_resnet110', 32, [18, 18, 18]),
    ],
)
def test_stages_are_blocks_of_one_map_size(name, size, stages):
    blocks = se_blocks(*shapes(name, size), size)
    counts = [sum(block.stage == stage for block in blocks) for stage in range(1, 6)]
    assert [n for n in counts if n] == stages


def test_a_plain_network_has_no_gates():
    with pytest.raises(UserError, match='no SE block'):
        se_blocks(*shapes('resnet8_cifar', 28), 28)


def test_pick_takes_the_first_of_each_class():
    labels = np.array([1, 0, 1, 1, -1, 0, 0, 2])
    assert pick(labels, 2).tolist() == [0, 1, 2, 5, 7]
    assert pick(labels, 9).tolist() == [0, 1, 2, 3, 5, 6, 7]
    with pytest.raises(UserError, match='no record of the data set can be read'):
        pick(np.array([-1, -1]), 2)


def test_sums_are_what_numpy_says():
    rng = np.random.default_rng(0)
    gates, labels = rng.uniform(size=(300, 7)), rng.integers(4, size=300)
    sums = Sums(5)  # of which one class has no image
    for part in np.split(np.arange(300), 3):
        sums.add(gates[part], labels[part], rng.permutation(labels[part]))
    got = sums.gates('block')
    for i in range(4):
        np.testing.assert_allclose(got.mean[i], gates[labels == i].mean(0))
        np.testing.assert_allclose(got.std[i], gates[labels == i].std(0))
    assert np.isnan(got.mean[4]).all()
    np.testing.assert_allclose(got.overall_mean, gates.mean(0))
    within = sum(((gates[labels == i] - got.mean[i]) ** 2).sum() for i in range(4))
    total = ((gates - gates.mean(0)) ** 2).sum()
    assert got.specificity == pytest.approx(1 - within / total)
    assert got.opened == (gates > 0.95).mean()
    assert got.closed == (gates < 0.05).mean()


def test_specificity_is_one_of_the_class_alone_and_nothing_of_noise():
    labels = np.arange(1000) % 10
    shuffled = np.random.default_rng(0).permutation(labels)
    sums = Sums(10)
    sums.add(np.eye(10)[labels], labels, shuffled)
    assert sums.gates('a').specificity == pytest.approx(1)
    noise = Sums(10)
    noise.add(np.random.default_rng(1).normal(size=(1000, 64)), labels, shuffled)
    got = noise.gates('b')
    # (classes - 1) / (images - 1); of 64 channels' mean the standard error is 6 %.
    expected = 9 / 999
    assert got.specificity == pytest.approx(expected, rel=0.2)
    assert got.shuffled == pytest.approx(expected, rel=0.2)
    constant = Sums(10)
    constant.add(np.ones((1000, 3)), labels, shuffled)
    assert constant.gates('c').specificity == 0


def test_gates_are_those_of_the_equations(network, dataset, monkeypatch):
    """On all images at once, by the block's own two layers from its input."""
    blocks = se_blocks(network.model, network.variables, 28)
    seen = []
    monkeypatch.setattr(Progress, 'show', lambda self, *done: seen.append(done))
    found = measure_gates(network, blocks, dataset, 3, batch_size=15)  # on 8 devices
    assert seen == [(16, 30), (30, 30)]
    positions = pick(dataset.labels(), 3)
    labels = dataset.labels()[positions]
    batch = next(eval_batches(dataset, VIEW, batch_size=len(dataset)))
    images = normalize(batch['image'][positions], network.mean, network.std, jnp.float32)
    inputs = {}

    def note(call, args, kwargs, context):
        inputs[context.module.path] = args[0] if args else None
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        network.model.apply(network.variables, images, train=False)
    for block, gates in zip(blocks, found, strict=True):
        z = np.asarray(inputs[block.path].map()).mean((1, 2))
        layers = jax.device_get(network.variables['params'])
        for name in block.path:
            layers = layers[name]
        hidden = np.maximum(z @ layers['reduce']['kernel'] + layers['reduce']['bias'], 0)
        logits = hidden @ layers['expand']['kernel'] + layers['expand']['bias']
        want = 1 / (1 + np.exp(-logits))
        # Gates are float32, with rounding of 1e-7; a deviation is what is left of their squares.
        np.testing.assert_allclose(gates.overall_mean, want.mean(0), rtol=1e-4)
        for label in range(10):
            np.testing.assert_allclose(gates.mean[label], want[labels == label].mean(0), rtol=1e-4)
            np.testing.assert_allclose(
                gates.std[label], want[labels == label].std(0), atol=1e-5, rtol=1e-2
            )


def test_as_many_images_may_be_damaged_as_the_run_allows(network, dataset):
    class Damaged(Subset):
        def read(self, i):
            image, label = super().read(i)
            return (b'no image' if label < 2 else image), label

    every = np.arange(len(dataset))
    damaged = Damaged('damaged', 'eval', dataset.class_names, dataset, every)
    blocks = se_blocks(network.model, network.variables, 28)
    with pytest.raises(UserError, match='of 30 records cannot be decoded; max_corrupt allows 1'):
        measure_gates(network, blocks, damaged, 3, batch_size=16)
    gates, *_ = measure_gates(network, blocks, damaged, 3, batch_size=16, max_corrupt=0.5)
    assert np.isnan(gates.mean).all(1).tolist() == [True] * 2 + [False] * 8


def test_removing_the_last_stage_is_the_network_without_it(network, dataset):
    blocks = se_blocks(network.model, network.variables, 28)
    gates = measure_gates(network, blocks, dataset, 5, batch_size=80)
    got = remove_last_stage(network, gates, dataset, batch_size=400)
    assert got.blocks == ('stage3_block1',)

    def result(model):
        networks = [network._replace(model=model)]
        return Evaluator(networks, dataset, data_mesh(), batch_size=400).run().summary()

    # Losses are float32, with rounding of 1e-7.
    assert got.whole == pytest.approx(result(network.model), rel=1e-5)
    without = result(network.model.clone(se_stages=(2,)))
    assert got.without == pytest.approx(without, rel=1e-5)
    assert got.without['loss'] != pytest.approx(got.whole['loss'], rel=1e-3)
    # An untrained block's gates are near one half, so their mean is nearer than 1 is.
    near, far = (abs(of['loss'] - got.whole['loss']) for of in (got.constant, got.without))
    assert near < far
    assert got.params == 2 * 32 * 2 + 32 + 2
