"""Every module and network under every transformation of JAX, on every platform's lowering."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax import lax
from jax.sharding import PartitionSpec

from se_flax import nn
from se_flax.models import bn_inception, create_model, list_models, mobilenet, vgg
from se_flax.nn import conv, pool
from se_flax.nn.squeeze_excite import SQUEEZE
from se_flax.parallel import data_mesh

BATCH = 8  # an image for each device


def conv_of(channels, features, kernel_size=3, **fields):
    return (5, channels), nn.Conv(features, kernel_size, dtype=jnp.float64, **fields)


class Gated(linen.Module):
    """BatchNorm whose map SE scales before it is computed."""

    @linen.compact
    def __call__(self, x):
        return nn.SqueezeExcite(reduction=2)(norm(group_size=1).affine(x)).map()


def blocks(w, x):
    """The form for a thousand channels, of a few."""
    kernel = jnp.cos(jnp.arange(3.0 * 3 * 2 * 8)).reshape(3, 3, 2, 8)
    return conv._blocks(x, w * kernel, 2, [(1, 1)] * 2, groups=4)


def pools(w, x):
    return nn.max_pool(w * x) + nn.avg_pool(w * x, 3, 2) + nn.adaptive_avg_pool(w * x, 2)


def shaken(w, x, backward):
    return nn.shake(w * x, jnp.sin(x), jax.random.key(0), backward)


norm = partial(nn.BatchNorm, use_running_average=False, dtype=jnp.float64)
# Side and channels of the maps, and what takes them: a module, or a function of a factor and them.
CASES = {
    'dense': conv_of(3, 64),
    'dense, strides': conv_of(4, 64, strides=2),
    'pointwise': conv_of(4, 6, 1, strides=2),
    'depthwise': conv_of(4, 8, groups=4),
    'depthwise, strides': conv_of(4, 4, groups=4, strides=2, use_bias=True),
    'pieces': conv_of(8, 8, groups=2),
    'blocks': ((5, 8), blocks),
    'BatchNorm': ((3, 3), norm(group_size=1)),  # so that an image alone is a batch
    'BatchNorm, choice': ((3, 3), norm(use_running_average=jnp.asarray(False), group_size=1)),
    'FoldedNorm': ((3, 3), nn.FoldedNorm(dtype=jnp.float64)),
    'SE': ((3, 4), nn.SqueezeExcite(reduction=2)),
    'SE, max, tanh': ((3, 4), nn.SqueezeExcite(reduction=2, squeeze='max', excite='tanh')),
    'SE, no squeeze': ((3, 4), nn.SqueezeExcite(reduction=2, squeeze=None)),
    'SE of an Affine': ((3, 4), Gated()),
    'pools': ((5, 3), pools),
    'relu_of_sum': ((3, 3), lambda w, x: nn.relu_of_sum(w * x + x[::-1])),
    'silu': ((3, 3), lambda w, x: nn.silu(w * x)),
    'shake': ((3, 3), partial(shaken, backward='shake')),
    'shake, even': ((3, 3), partial(shaken, backward='even')),
}
TAKEN = {
    *('Conv', 'BatchNorm', 'FoldedNorm', 'Affine', 'SqueezeExcite'),
    *('max_pool', 'avg_pool', 'adaptive_avg_pool', 'relu_of_sum', 'silu'),
    *('shake', 'stock_operations'),
}


def test_the_table_has_every_public_name():
    assert {name for name in vars(nn) if name[0] != '_' and callable(vars(nn)[name])} == TAKEN


def functional(module, x):
    """Returns (w, x) -> maps, and a w; the statistics of BatchNorm are constants."""
    if not hasattr(module, 'init'):
        return module, jnp.asarray(1.3)
    rng = np.random.default_rng(0)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda v: jnp.asarray(1 + rng.normal(size=v.shape) / 3), variables)
    params, rest = variables.pop('params'), variables

    def apply(w, x):
        return module.apply({'params': w, **rest}, x, mutable=['batch_stats'])[0]

    return apply, params


def along(w):
    """A direction."""
    return jax.tree.map(lambda v: jnp.cos(jnp.arange(v.size, dtype=v.dtype)).reshape(v.shape), w)


def transforms(f):
    """Returns the transformations of (w, x) -> maps or logits, each a function of w and x."""

    def each(w, x):  # a number an image
        return jnp.sin(f(w, x)).reshape(len(x), -1).mean(1)

    def loss(w, x):
        return jnp.sum(each(w, x) ** 2)

    def moved(w, t):
        return jax.tree.map(lambda a, b: a + t[0] * b + t[1] * b**2, w, along(w))

    def norm_of_gradient(w, x):
        return sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(loss)(w, x)))

    def steps(w, x):  # of MAML
        def step(w, _):
            return jax.tree.map(lambda w, g: w - 0.1 * g, w, jax.grad(loss)(w, x)), None

        return loss(lax.scan(jax.checkpoint(step), w, None, length=2)[0], x)

    def per_example(w, x):
        return jax.vmap(jax.grad(loss), (None, 0))(w, x[:, None])

    grad, spec = jax.grad(loss, (0, 1)), PartitionSpec('data')
    shards = {'mesh': data_mesh(), 'in_specs': (PartitionSpec(), spec), 'out_specs': spec}
    return {
        'grad': grad,
        'vmap of grad': per_example,
        'jacrev': lambda w, x: jax.jacrev(each)(w, x[:2]),
        'hessian': lambda w, x: jax.hessian(lambda t: loss(moved(w, t), x))(jnp.ones(2, x.dtype)),
        'forward over reverse': lambda w, x: jax.jvp(grad, (w, x), (along(w), along(x))),
        'reverse over reverse': jax.grad(norm_of_gradient, (0, 1)),
        'linearize': lambda w, x: jax.linearize(loss, w, x)[1](along(w), along(x)),
        'checkpoint, scan': jax.grad(steps, (0, 1)),
        'shard_map': jax.shard_map(per_example, **shards),
    }


def use_stock_operations(monkeypatch):
    """Replaces operations with custom derivatives by those of XLA."""
    monkeypatch.setattr(conv, '_cpu_form', lambda kernel, groups: conv._stock)
    monkeypatch.setattr(conv, '_blocks', conv._stock)
    monkeypatch.setattr(pool, '_max_pool', pool._stock)
    monkeypatch.setitem(SQUEEZE, 'max', lambda x: x.max((-3, -2), keepdims=True))
    monkeypatch.setattr(nn, 'relu_of_sum', jax.nn.relu)
    monkeypatch.setattr(nn, 'silu', jax.nn.silu)
    monkeypatch.setattr(nn.batch_norm, '_of_groups', nn.batch_norm._of_groups.fun)
    monkeypatch.setattr(nn.batch_norm, '_of_images', nn.batch_norm._of_images.fun)


# Of 'BatchNorm, choice' they are those of 'BatchNorm'.
NO_OWN_DERIVATIVES = ('FoldedNorm', 'SE', 'SE, no squeeze', 'shake', 'shake, even')
NO_OWN_DERIVATIVES += ('pointwise', 'pieces', 'BatchNorm, choice')


@pytest.mark.parametrize('name', [name for name in CASES if name not in NO_OWN_DERIVATIVES])
def test_derivatives_of_every_kind_are_the_stock_operations(name, monkeypatch):
    (size, channels), module = CASES[name]
    x = np.random.default_rng(1).normal(size=(BATCH, size, size, channels))
    with jax.enable_x64():
        f, w = functional(module, x)

        def derivatives():
            table = transforms(f)
            sharded = table.pop('shard_map')  # alone, or its sharding would spread to the others
            compiled = partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
            every = compiled(lambda w, x: {what: of(w, x) for what, of in table.items()})
            return every(w, x) | {'shard_map': compiled(sharded)(w, x)}

        got = derivatives()
        use_stock_operations(monkeypatch)
        want = derivatives()
    for what in want:
        for a, b in zip(*map(jax.tree.leaves, (got[what], want[what])), strict=True):
            # Float64: sums of some thousand terms, at most two derivatives deep.
            tolerance = 1e-12 * max(1, np.abs(b).max())
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=what)


def lower(f, w, x):
    """Lowers a function for each platform, in one module, with all forms that a layer has."""
    traced = jax.jit(f).trace(w, x)
    return traced.lower(lowering_platforms=('cpu', 'cuda', 'tpu')).as_text()


@pytest.mark.parametrize('name', CASES)
def test_gradients_leak_nothing_and_lower_on_every_platform(name):
    (size, channels), module = CASES[name]
    x = np.ones((BATCH, size, size, channels))
    with jax.enable_x64():
        f, w = functional(module, x)
        table = transforms(f)
        with jax.checking_leaks():
            jax.make_jaxpr(table['grad'])(w, x)
        for what in ('vmap of grad', 'forward over reverse'):
            assert 'stablehlo' in lower(table[what], w, x)


ONE_EACH = {'stage_sizes': (1, 1, 1)}
NETWORKS = {  # a small one of each family, and the side of its images
    'se_resnext50_32x4d': (32, {'stage_sizes': (1, 1, 1, 1)}),
    'se_vgg16': (32, {}),
    'se_bn_inception': (32, {}),
    'se_inception_resnet_v2': (75, ONE_EACH),
    'regnet_y_200mf': (32, {'stage_sizes': (1, 1)}),
    'se_mobilenet': (32, {}),
    'se_shufflenet': (32, ONE_EACH),
    'se_preact_resnet164': (8, ONE_EACH),
    'se_shake_shake26_2x96d': (8, ONE_EACH | {'width': 32}),
    'mobilenet_v3_small': (32, {'stage_sizes': (1, 1, 1, 1, 1)}),
    'efficientnet_v2_s': (32, {'stage_sizes': (1, 1, 1, 1, 1, 1)}),
}
# Of the same layers as another one.
ALIKE = ('se_bn_inception', 'se_inception_resnet_v2', 'regnet_y_200mf', 'mobilenet_v3_small')
ALIKE += ('se_vgg16', 'se_mobilenet', 'se_preact_resnet164')


def test_the_table_has_every_family():
    every = {type(create_model(name)) for name in list_models()}
    assert {type(create_model(name)) for name in NETWORKS} == every


@pytest.fixture
def shallow(monkeypatch):
    """Networks without `stage_sizes` have some of their units, one of each kind."""
    modules = {name: bn_inception.MODULES[name] for name in ('3a', '3c', '5b')}
    monkeypatch.setattr(bn_inception, 'MODULES', modules)
    monkeypatch.setattr(mobilenet, 'PAIRS', mobilenet.PAIRS[:2])
    monkeypatch.setattr(vgg, 'STAGES', vgg.STAGES[:2])


@pytest.mark.usefixtures('shallow')
@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=pytest.mark.slow if n in ALIKE else ()) for n in NETWORKS]
)
def test_networks_lower_on_every_platform(name):
    """In training; what each operation's derivatives are is tested above."""
    size, fields = NETWORKS[name]
    model = create_model(name, 3, **fields)
    x = jax.ShapeDtypeStruct((BATCH, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def logits(variables, x):
        rngs = {'shake': jax.random.key(0), 'dropout': jax.random.key(1)}
        return model.apply(variables, x, train=True, rngs=rngs, mutable=['batch_stats'])[0]

    # Reverse mode, forward mode over it, and a batch of both: a rule of each kind.
    of_each = jax.vmap(transforms(logits)['forward over reverse'], (None, 0))
    assert 'stablehlo' in lower(lambda w, x: of_each(w, x[:, None]), variables, x)
