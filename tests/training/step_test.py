"""The training step: the same on any number of devices, and each of its parts against NumPy."""

import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import Mesh

from se_flax.models import create_model
from se_flax.models.network import Network
from se_flax.parallel import DATA, replicated, shard_batch
from se_flax.training.optimizer import OPTIMIZERS, make_optimizer, make_schedule, observe
from se_flax.training.state import make_init
from se_flax.training.step import _is_product, jit_train_step, make_train_step

PIXELS = {'mean': (73.0, 70.0, 60.0), 'std': (90.0, 80.0, 100.0)}
COLLECTIVE = re.compile(r' (all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+)\(')


def random_batch(seed, size=64, image_size=16, classes=10):
    """Noise over a colour that depends on the class, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=size, dtype=np.int32)
    colour = np.random.default_rng(0).integers(128, size=(classes, 1, 1, 3))
    noise = rng.integers(128, size=(size, image_size, image_size, 3))
    return {'image': (colour[label] + noise).astype(np.uint8), 'label': label}


class Trainer:
    """A network, its state and its compiled step on a number of devices."""

    def __init__(
        self, model, draw=None, *, num_devices=1, rate=0.01, smoothing=0.0, seed=0, **options
    ):
        pixels = {k: options.pop(k, v) for k, v in PIXELS.items()}
        names = ('average', 'average_warmup', 'frozen_from', 'accumulate', 'remat', 'mixing')
        names += ('loss', 'bce_threshold')
        extras = {name: options.pop(name) for name in names if name in options}
        sgd = {'momentum': 0.9, 'nesterov': False, 'weight_decay': 5e-4} | options
        schedule = rate if callable(rate) else lambda step: rate
        tx = make_optimizer(schedule, **sgd)
        self.mesh = Mesh(jax.devices()[:num_devices], (DATA,))
        init = make_init(model, tx, 16, self.mesh, average='average' in extras)
        key = jax.random.key(0)
        state = draw(jax.eval_shape(init, key)) if draw else init(key)
        self.state = jax.device_put(state, replicated(self.mesh))
        extras |= pixels | {'mesh': self.mesh}
        step = make_train_step(model, tx, schedule, label_smoothing=smoothing, seed=seed, **extras)
        self.step, self.program = jit_train_step(step, self.mesh), None

    def train(self, batch):
        self.program = self.program or self.compiled(batch)  # refuses a state of another kind
        self.state, metrics = self.program(self.state, shard_batch(self.mesh, batch))
        return {name: value.item() for name, value in jax.device_get(metrics).items()}

    def steps(self, number):
        """Returns the metrics of each step and the leaves of the last state."""
        metrics = [self.train(random_batch(i)) for i in range(number)]
        return metrics, leaves(self.state)

    def compiled(self, batch):
        lowered = self.step.lower(self.state, shard_batch(self.mesh, batch))
        # At the tests' own level, 0, float64 takes ten times as long to run.
        return lowered.compile({'xla_backend_optimization_level': 1})


def leaves(tree):
    flat = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in flat}


def assert_same_steps(got, want, *, rel=1e-9, rtol=1e-9, atol=1e-12):
    """Compares what `Trainer.steps` returns."""
    for metrics, want_metrics in zip(got[0], want[0], strict=True):
        assert metrics == pytest.approx(want_metrics, rel=rel)
    for name, leaf in want[1].items():
        np.testing.assert_allclose(got[1][name], leaf, rtol=rtol, atol=atol, err_msg=name)


def small_resnet(dtype=jnp.float32, **fields):
    return create_model(
        'se_resnet8_cifar', stage_sizes=(1, 1), bn_group_size=8, dtype=dtype, **fields
    )


def draw(shapes):
    """A first state by NumPy: quick, and no golden hangs on jax's generators."""
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        center = 1.0 if path[-1].key in ('scale', 'var') else 0.0
        return rng.normal(center, 0.1, shape.shape).astype(shape.dtype)

    zeros = jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes)
    params, batch_stats = jax.tree.map_with_path(leaf, (shapes.params, shapes.batch_stats))
    return zeros.starting_from({'params': params, 'batch_stats': batch_stats})


@functools.cache
def trained(num_devices):
    """Returns the losses of 20 steps in float64 and the trainer after them."""
    rate = make_schedule('cosine', 0.1, 20, warmup_steps=4)
    with jax.enable_x64(True):
        trainer = Trainer(small_resnet(jnp.float64), draw, num_devices=num_devices, rate=rate)
        losses = [trainer.train(random_batch(i))['loss'] for i in range(20)]
    assert losses[-1] < 0.9 * losses[0]
    return losses, trainer


def test_losses_do_not_depend_on_the_number_of_devices():
    """Here with one BatchNorm group a device; `three_steps` has two."""
    np.testing.assert_allclose(trained(8)[0], trained(1)[0], rtol=1e-9)


def test_golden_run(golden):
    """In float64, so that six digits do not depend on the processor or the compiler."""
    losses, trainer = trained(1)
    lines = [f'loss {loss:.6g}' for loss in losses]
    lines += [f'{name} {np.linalg.norm(leaf):.6g}' for name, leaf in leaves(trainer.state).items()]
    golden('training/step.txt', '\n'.join(lines) + '\n')


def collectives(trainer):
    program = trainer.program or trainer.compiled(random_batch(0))
    return COLLECTIVE.findall(program.as_text())


def test_the_gradients_are_the_only_collective():
    trainer = Trainer(small_resnet(), draw, num_devices=8)  # whole groups, of 8 images, on each
    assert collectives(trainer) == ['all-reduce']  # XLA joins gradients and metrics to one tuple


@pytest.mark.parametrize('group_size', [16, None])
def test_groups_that_span_devices_cost_a_collective_a_layer(group_size):
    trainer = Trainer(Tiny(bn_group_size=group_size), draw, num_devices=8)
    assert len(collectives(trainer)) > 2  # there are 2 BatchNorms


def test_state_is_donated():
    _, trainer = trained(8)
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(trainer.state))
    assert trainer.program.memory_analysis().alias_size_in_bytes == state


class Softmax(nn.Module):
    """Regression on the pixels, whose gradients are one line; it counts the images it saw."""

    dtype: type = jnp.float64

    @nn.compact
    def __call__(self, x, *, train=False):
        seen = self.variable('batch_stats', 'seen', jnp.zeros, (), jnp.int32)
        if train:
            seen.value += len(x)
        head = nn.Dense(10, dtype=self.dtype, param_dtype=self.dtype, name='head')
        return head(x.reshape(len(x), -1))


@pytest.mark.parametrize('nesterov', [False, True])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_steps_equal_numpy(nesterov, smoothing):
    """Loss, weight decay and momentum as Caffe has them, with the decay inside the momentum."""
    rates, decay, momentum = np.array([0.03, 0.02, 0.01]), 0.05, 0.8
    with jax.enable_x64(True):
        trainer = Trainer(
            Softmax(),
            rate=lambda step: jnp.asarray(rates)[step],
            smoothing=smoothing,
            nesterov=nesterov,
            momentum=momentum,
            weight_decay=decay,
        )
        params = jax.device_get(trainer.state.params)['head']
        weight, bias = params['kernel'], params['bias']
        velocity = [np.zeros_like(weight), np.zeros_like(bias)]
        for i, rate in enumerate(rates):
            batch = random_batch(i)
            got = trainer.train(batch)

            x = (batch['image'] - np.array(PIXELS['mean'])) / PIXELS['std']
            x = x.reshape(len(x), -1)
            logits = x @ weight + bias
            probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            targets = np.eye(10)[batch['label']] * (1 - smoothing) + smoothing / 10
            order = np.argsort(-logits, axis=1)
            want = {
                'loss': -(targets * np.log(probabilities)).sum(1).mean(),
                'top1': (order[:, 0] == batch['label']).mean(),
                'top5': (order[:, :5] == batch['label'][:, None]).any(1).mean(),
                'learning_rate': rate,
                'finite': True,
            }
            # The rate is told in float32, within half an eps, 6e-8.
            assert got == pytest.approx(want, rel=1e-7)

            error = (probabilities - targets) / len(x)
            # Kernels decay, biases do not.
            gradients = [x.T @ error + decay * weight, error.sum(0)]
            velocity = [momentum * v + g for v, g in zip(velocity, gradients, strict=True)]
            ahead = [momentum * v + g for v, g in zip(velocity, gradients, strict=True)]
            updates = ahead if nesterov else velocity
            weight, bias = weight - rate * updates[0], bias - rate * updates[1]
            new = jax.device_get(trainer.state)
            np.testing.assert_allclose(new.params['head']['kernel'], weight, rtol=1e-10)
            np.testing.assert_allclose(new.params['head']['bias'], bias, rtol=1e-10)
            assert new.step == i + 1
            assert new.batch_stats['seen'] == 64 * (i + 1)


@pytest.mark.parametrize('threshold', [0.0, 0.2])
def test_a_step_with_binary_cross_entropy_equals_numpy(threshold):
    options = {'loss': 'bce', 'bce_threshold': threshold, 'momentum': 0.0, 'weight_decay': 0.0}
    with jax.enable_x64(True):
        trainer = Trainer(Softmax(), rate=0.3, smoothing=0.1, **options)
        params = jax.device_get(trainer.state.params)['head']
        batch = random_batch(0)
        got = trainer.train(batch)
        new = jax.device_get(trainer.state.params)['head']
    x = (batch['image'] - np.array(PIXELS['mean'])) / PIXELS['std']
    x = x.reshape(len(x), -1)
    logits = x @ params['kernel'] + params['bias']
    targets = np.eye(10)[batch['label']]
    targets = targets if threshold else 0.9 * targets + 0.01
    p = 1 / (1 + np.exp(-logits))
    want = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean()
    assert got['loss'] == pytest.approx(want, rel=1e-9)
    assert got['top1'] == (logits.argmax(1) == batch['label']).mean()
    slope = (p - targets) / p.size
    np.testing.assert_allclose(new['bias'], params['bias'] - 0.3 * slope.sum(0), rtol=1e-9)


class Infinite(nn.Module):
    """A loss of log 10 all the same, and something infinite in one `place`."""

    place: str
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x, *, train=False):
        running = self.variable('batch_stats', 'mean', jnp.zeros, ())
        kernel = self.param('kernel', nn.initializers.zeros, (10,))
        if train and self.place == 'running statistics':
            running.value = jnp.inf * jnp.ones(())
        if self.place == 'gradient':
            kernel = jnp.sqrt(kernel)  # 0, and its slope there is infinite
        return jnp.broadcast_to(kernel, (len(x), 10))


@pytest.mark.parametrize(
    ('place', 'rate', 'finite'),
    [
        ('nowhere', 0.01, True),
        ('gradient', 0.0, False),
        ('running statistics', 0.01, False),
        ('nowhere', np.inf, False),
    ],
)
def test_a_finite_loss_does_not_hide_what_is_not(place, rate, finite):
    metrics = Trainer(Infinite(place), rate=rate).train(random_batch(0))
    assert metrics['loss'] == pytest.approx(np.log(10), rel=1e-5)  # float32
    assert metrics['finite'] is finite


def test_a_poisoned_image_is_noticed():
    """On CPU a ReLU fused into a reduction may drop a NaN, so the loss need not show it."""
    batch = random_batch(0)
    batch['image'][5] = 0  # 0 / 0 is no number
    model = create_model('resnet8_cifar', stage_sizes=(1,), bn_group_size=8)
    trainer = Trainer(model, draw, mean=(0.0,) * 3, std=(0.0,) * 3)
    assert trainer.train(batch)['finite'] is False


def test_random_mixtures_do_not_depend_on_the_number_of_devices():
    sizes = {'stage_sizes': (1, 1), 'stem': 8, 'width': 8, 'bn_group_size': 8}
    with jax.enable_x64(True):
        model = create_model('shake_shake26_2x96d', dtype=jnp.float64, **sizes)
        one, four = (Trainer(model, draw, num_devices=n).steps(3) for n in (1, 4))
    assert_same_steps(four, one)


def test_steps_with_dropped_branches_do_not_depend_on_devices_or_remat():
    with jax.enable_x64(True):
        model = small_resnet(jnp.float64, drop_path=0.5)
        want = Trainer(model, draw).steps(2)
        assert_same_steps(Trainer(model, draw, num_devices=4).steps(2), want)
        assert_same_steps(Trainer(model, draw, remat=True).steps(2), want)
    [with_all_branches, *_], _ = trained(1)
    assert abs(want[0][0]['loss'] - with_all_branches) > 1e-4


class Tiny(Network):
    """Quick to compile."""

    bn_group_size: int | None = 8
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, *, train=False):
        layers = self.layers(train)
        for name in ('1', '2'):
            x = nn.relu(layers.conv_norm(name, x, 8, 3, 2))
        return self.classify(x, train)


@functools.cache
def three_steps(num_devices=1, **options):
    """In float64."""
    with jax.enable_x64(True):
        model = Tiny(dtype=jnp.float64)
        return Trainer(model, draw, num_devices=num_devices, rate=0.1, **options).steps(3)


@pytest.mark.parametrize(('num_devices', 'accumulate'), [(1, 8), (2, 2)])
def test_accumulated_steps_are_those_of_the_large_batch(num_devices, accumulate):
    """Losses, parameters, momentum and running statistics."""
    assert_same_steps(three_steps(num_devices, accumulate=accumulate), three_steps())


@pytest.mark.parametrize('optimizer', OPTIMIZERS[1:])
def test_every_optimizer_is_the_same_on_devices_and_microbatches(optimizer):
    # An epsilon as of RMSProp: divided by the root of what is only rounding, rounding would grow.
    options = {'optimizer': optimizer, 'clip_norm': 1.0, 'epsilon': 1e-3}
    got, want = three_steps(4, accumulate=2, **options), three_steps(**options)
    assert_same_steps(got, want, rel=1e-8, rtol=1e-7, atol=1e-10)


def test_accumulated_gradients_are_the_only_collective():
    trainer = Trainer(Tiny(), draw, num_devices=4, accumulate=2)
    assert collectives(trainer) == ['all-reduce']


def test_to_accumulate_takes_less_memory():
    def temporaries(**options):
        trainer = Trainer(Tiny(), draw, **options)
        return trainer.compiled(random_batch(0)).memory_analysis().temp_size_in_bytes

    assert temporaries(accumulate=4) < temporaries() / 3


def test_remat_keeps_products_alone():
    model = small_resnet()
    images = jax.ShapeDtypeStruct((8, 16, 16, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def kept(apply):
        def loss(params, images):
            return apply({**variables_, 'params': params}, images)[0].sum()

        variables_ = jax.tree.map(lambda v: jnp.zeros(v.shape), variables)
        _, backward = jax.eval_shape(partial(jax.vjp, loss), variables_['params'], images)
        maps = [leaf for leaf in jax.tree.leaves(backward) if leaf.ndim == 4 and leaf.shape[0] == 8]
        return sum(leaf.size for leaf in maps)

    apply = partial(model.apply, train=True, mutable=['batch_stats'])
    assert kept(jax.checkpoint(apply, policy=_is_product)) < 0.6 * kept(apply)


class Draws(nn.Module):
    """Keeps the first two moments of what it drew as its statistics."""

    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x, *, train=False):
        moments = [self.variable('batch_stats', name, jnp.zeros, ()) for name in ('one', 'two')]
        kernel = self.param('kernel', nn.initializers.zeros, (10,))
        if train:
            drawn = jax.random.uniform(self.make_rng('shake'))
            moments[0].value, moments[1].value = drawn, drawn**2
        return jnp.broadcast_to(kernel, (len(x), 10))


def test_each_device_and_microbatch_draws_for_itself():
    def mean_and_variance(num_devices, accumulate):
        trainer = Trainer(Draws(), num_devices=num_devices, accumulate=accumulate)
        trainer.train(random_batch(0))
        moments = jax.device_get(trainer.state.batch_stats)
        return moments['one'], moments['two'] - moments['one'] ** 2

    _, of_whole_batch = mean_and_variance(2, 1)
    on_one, of_microbatches = mean_and_variance(1, 2)
    on_two, _ = mean_and_variance(2, 2)
    # A variance of one draw is rounding, of 1e-7.
    assert of_whole_batch < 1e-5 < 1e-3 < of_microbatches
    assert abs(on_one - on_two) > 1e-3  # else both devices drew what the one did


def test_each_step_and_seed_draws_anew():
    def drawn(seed):
        trainer, seen = Trainer(Draws(), seed=seed), []
        for _ in range(2):
            trainer.train(random_batch(0))
            seen.append(trainer.state.batch_stats['one'].item())
        return seen

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert first == again
    assert len({*first, *other}) == 4


def test_the_average_follows_its_formula_and_is_what_is_evaluated():
    with jax.enable_x64(True):
        trainer = Trainer(Tiny(dtype=jnp.float64), draw, rate=0.1, average=0.7)
        want = leaves({'params': trainer.state.params, 'batch_stats': trainer.state.batch_stats})
        for i in range(3):
            trainer.train(random_batch(i))
            new = leaves({'params': trainer.state.params, 'batch_stats': trainer.state.batch_stats})
            want = {name: 0.7 * value + 0.3 * new[name] for name, value in want.items()}
            got = leaves(trainer.state.variables)
            for name, value in want.items():
                np.testing.assert_allclose(got[name], value, rtol=1e-12, atol=1e-15, err_msg=name)
    # Beside the training, which it does not touch.
    plain, state = three_steps()[1], leaves(trainer.state)
    assert {name for name in state if not name.startswith('average/')} == plain.keys()
    for name, value in plain.items():
        np.testing.assert_allclose(state[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


def test_the_decay_of_the_average_rises_to_its_field():
    decays = (1 / 10, 2 / 11, 0.2, 0.2)
    with jax.enable_x64(True):
        model = Tiny(dtype=jnp.float64)
        trainer = Trainer(model, draw, rate=0.1, average=0.2, average_warmup=True)
        want = leaves(trainer.state.params)
        for i, decay in enumerate(decays):
            trainer.train(random_batch(i))
            new, got = leaves(trainer.state.params), leaves(trainer.state.average['params'])
            for name in want:
                want[name] = decay * want[name] + (1 - decay) * new[name]
                # Of a decay in float32.
                np.testing.assert_allclose(got[name], want[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize('optimizer', ['sgd', 'lamb'])
def test_frozen_norms_keep_every_bit_while_the_rest_moves(optimizer):
    """In three microbatches, as a mean of three equal numbers is not always that number."""
    with jax.enable_x64(True):
        model = Tiny(dtype=jnp.float64)
        options = {'optimizer': optimizer, 'frozen_from': 1, 'accumulate': 3}
        trainer = Trainer(model, draw, rate=0.1, **options)
        states = [leaves(trainer.state)]
        for i in range(3):
            before = jax.device_get(trainer.state)
            batch = random_batch(i, size=24)
            loss = trainer.train(batch)['loss']
            states.append(leaves(trainer.state))
        x = (batch['image'] - np.array(PIXELS['mean'])) / PIXELS['std']
        logits = model.apply(before.variables, x, train=False)
        want = -jax.nn.log_softmax(logits)[np.arange(24), batch['label']].mean()
    assert loss == pytest.approx(float(want), rel=1e-9)  # normalised as in evaluation
    first, last = states[1], states[3]
    norms = [name for name in first if 'norm' in name and not name.startswith('opt_state')]
    assert len(norms) == 2 * 4
    for name in norms:
        assert not np.array_equal(first[name], states[0][name]), name
        assert last[name].tobytes() == first[name].tobytes(), name
    for name in first:
        if name.startswith('params') and name not in norms:
            assert not np.array_equal(last[name], first[name]), name


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_what_a_plateau_leaves_of_the_rate_is_what_a_step_takes(optimizer):
    with jax.enable_x64(True):
        dropped = Trainer(Softmax(), rate=0.03, plateau=True, optimizer=optimizer)
        lower = Trainer(Softmax(), rate=0.006, optimizer=optimizer)
        for _ in range(2):
            seen = observe(dropped.state.opt_state, 1.0, patience=1, factor=0.2, max_drops=1)
            dropped.state = dropped.state.replace(opt_state=seen)
        for i in range(3):
            got, want = dropped.train(random_batch(i)), lower.train(random_batch(i))
            assert got == pytest.approx(want, rel=1e-7)  # the rate is told in float32
        got, want = leaves(dropped.state.params), leaves(lower.state.params)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-12, err_msg=name)
