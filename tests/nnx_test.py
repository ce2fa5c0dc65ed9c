"""The NNX modules against the Linen networks they are made of."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx
from flax.traverse_util import flatten_dict, unflatten_dict

import se_flax
from se_flax import SqueezeExcite, fold_batch_norm, list_models, model_info
from se_flax.errors import UserError
from se_flax.models.variables import variable_shapes
from se_flax.nnx import create_model, linen_variables
from se_flax.weights import Preprocessing, load_weights, save_weights

NAME = 'se_resnet8_cifar'
IMAGES = jax.random.normal(jax.random.key(1), (8, 16, 16, 3))
LABELS = jnp.arange(8) % 4
SMALL = {'stage_sizes': (1,), 'width': 8, 'se': {'reduction': 4}}
RANDOM = {
    'dropout': partial(create_model, NAME, dropout=0.5, **SMALL),
    'shake': partial(create_model, 'se_shake_shake26_2x96d', **SMALL),
}


def arrays(tree):
    """Each leaf as NumPy, random keys as their data."""
    leaves = jax.tree.leaves(tree)
    is_key = [jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in leaves]
    data = [jax.random.key_data(x) if k else x for x, k in zip(leaves, is_key, strict=True)]
    return list(map(np.asarray, data))


def state_of(model):
    return arrays(nnx.state(model))


def assert_equal(got, want, **tolerance):
    compare = partial(np.testing.assert_allclose, **tolerance)
    jax.tree.map(compare if tolerance else np.testing.assert_array_equal, got, want)


@nnx.jit(static_argnames='train')
def logits_of(model, images, train=False):
    return model(images, train=train)


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


def step(model, optimizer):
    loss, grads = nnx.value_and_grad(lambda model: cross_entropy(model(IMAGES, train=True)))(model)
    optimizer.update(model, grads)
    return loss


@pytest.fixture
def model():
    return create_model(NAME, rngs=nnx.Rngs(0))


def test_only_training_changes_the_running_statistics(model):
    before, params = state_of(model), arrays(nnx.state(model, nnx.Param))
    stats = arrays(nnx.state(model, nnx.BatchStat))
    logits_of(model, IMAGES)
    model(IMAGES)
    assert_equal(state_of(model), before)
    variable = model.norm_stem['mean']
    logits_of(model, IMAGES, train=True)
    assert model.norm_stem['mean'] is variable
    assert_equal(arrays(nnx.state(model, nnx.Param)), params)
    for old, new in zip(stats, arrays(nnx.state(model, nnx.BatchStat)), strict=True):
        assert not np.allclose(old, new)


def smallest_of_each_family():
    with_se = [name for name in list_models() if se_flax.create_model(name).se]
    names = sorted(with_se, key=lambda name: -model_info(name).params)
    return {type(se_flax.create_model(name)): name for name in names}.values()


@pytest.mark.parametrize('name', smallest_of_each_family())
def test_every_family_has_the_variables_of_linen_and_no_others(name):
    """With one unit a stage, where a network has such a field."""
    sizes = getattr(se_flax.create_model(name), 'stage_sizes', None)
    fields = {'stage_sizes': (1,) * len(sizes)} if sizes else {}

    def traced():
        model = create_model(name, rngs=nnx.Rngs(0), **fields)
        model(jnp.zeros((2, 96, 96, 3)), train=True)
        return model

    variables = linen_variables(nnx.eval_shape(traced))
    got = {path: leaf.shape for path, leaf in flatten_dict(variables, sep='/').items()}
    assert got == variable_shapes(se_flax.create_model(name, **fields))


def test_a_new_model_computes_no_image():
    seen = []

    def note(run, args, kwargs, context):
        seen.extend(args)
        return run(*args, **kwargs)

    with linen.intercept_methods(note):
        create_model(NAME, rngs=nnx.Rngs(0))
    found = [leaf for leaf in jax.tree.leaves(seen) if getattr(leaf, 'ndim', 0) == 4]
    maps = [array for array in found if array.shape[1] > 1]
    assert maps[0].shape == (1, 32, 32, 3)
    assert all(isinstance(leaf, jax.core.Tracer) for leaf in maps)


@pytest.mark.parametrize('create', RANDOM.values(), ids=RANDOM)
def test_each_training_call_draws_anew_and_a_seed_repeats_it(create):
    first, second = (create(rngs=nnx.Rngs(0)) for _ in range(2))
    draws = [logits_of(first, IMAGES, train=True) for _ in range(2)]
    assert not np.allclose(*draws)
    assert_equal([logits_of(second, IMAGES, train=True) for _ in range(2)], draws)


@pytest.mark.parametrize('stream', RANDOM)
def test_streams_are_seeded_on_their_own(stream):
    seeds = {'params': 0, 'dropout': 1, 'shake': 2}
    model, same, other = (
        RANDOM[stream](rngs=nnx.Rngs(**seeds | changed))
        for changed in ({}, {'params': 0}, {stream: 3})
    )
    assert_equal(linen_variables(other), linen_variables(model))
    drawn = logits_of(model, IMAGES, train=True)
    assert_equal(logits_of(same, IMAGES, train=True), drawn)
    assert not np.allclose(logits_of(other, IMAGES, train=True), drawn)


@pytest.mark.parametrize('create', RANDOM.values(), ids=RANDOM)
def test_evaluation_draws_nothing_so_that_jax_may_close_over_a_model(create):
    model = create(rngs=nnx.Rngs(0))
    before = state_of(model)
    predict = jax.jit(lambda images: model(images))
    assert_equal(predict(IMAGES), predict(IMAGES))
    assert_equal(state_of(model), before)


def trained_variables():
    """Linen's, with statistics that are not the initial ones, as NumPy arrays."""
    module = se_flax.create_model(NAME)
    variables = module.init(jax.random.key(2), IMAGES)
    _, updates = module.apply(variables, 3 + IMAGES, train=True, mutable=['batch_stats'])
    return jax.tree.map(np.asarray, variables | updates)


def test_pretrained_variables_give_the_logits_of_linen():
    variables = trained_variables()
    model = create_model(NAME, rngs=nnx.Rngs(0), variables=variables)
    want = jax.jit(se_flax.create_model(NAME).apply)(variables, IMAGES)
    assert_equal(logits_of(model, IMAGES), want)
    assert not np.allclose(want, logits_of(create_model(NAME, rngs=nnx.Rngs(0)), IMAGES))


def test_variables_go_to_a_file_and_back(tmp_path):
    model = create_model(NAME, rngs=nnx.Rngs(0), variables=trained_variables())
    logits_of(model, IMAGES, train=True)
    variables = linen_variables(model)
    view = Preprocessing(16, 16, 'bilinear', (0.5,) * 3, (0.5,) * 3)
    save_weights(tmp_path / 'net.safetensors', NAME, variables, view)
    name, loaded = load_weights(tmp_path / 'net.safetensors')
    assert_equal(loaded, variables)
    again = create_model(name, rngs=nnx.Rngs(1), variables=loaded)
    want = logits_of(model, IMAGES)
    assert_equal(logits_of(again, IMAGES), want)
    folded, variables = fold_batch_norm(se_flax.create_model(NAME), variables)
    small = create_model(NAME, rngs=nnx.Rngs(0), variables=variables, folded=True)
    assert not nnx.state(small, nnx.BatchStat)
    # What fold_batch_norm promises.
    assert_equal(logits_of(small, IMAGES), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('path', 'array', 'message'),
    [
        ('params/head/bias', None, r'1 missing \(params/head/bias\)'),
        ('params/tail/bias', np.ones(3), r'1 unexpected \(params/tail/bias\)'),
        (
            'params/head/bias',
            np.ones(3),
            r'1 with the wrong shape \(params/head/bias is \[3\], params/head/bias needs \[10\]\)',
        ),
    ],
)
def test_variables_of_another_network_are_named(path, array, message):
    flat = flatten_dict(trained_variables(), sep='/') | {path: array}
    variables = unflatten_dict({k: v for k, v in flat.items() if v is not None}, sep='/')
    with pytest.raises(UserError, match=f'the variables do not fit {NAME}: {message}'):
        create_model(NAME, rngs=nnx.Rngs(0), variables=variables)


def test_mistakes_are_reported():
    with pytest.raises(UserError, match='is timm_seresnet50 here'):
        create_model('seresnet50', rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match='unknown field of se_resnet50'):
        create_model('se_resnet50', rngs=nnx.Rngs(0), stage_size=(1, 1))
    with pytest.raises(TypeError, match="missing .* 'rngs'"):
        create_model(NAME)
    with pytest.raises(
        UserError, match=r'rngs must be an nnx.Rngs, such as nnx.Rngs\(0\), not int'
    ):
        create_model(NAME, rngs=0)
    with pytest.raises(UserError, match='to a float dtype first'):
        create_model(NAME, rngs=nnx.Rngs(0))(jnp.zeros((1, 32, 32, 3), jnp.uint8))


def test_training_takes_the_steps_of_linen(model):
    tx = optax.sgd(0.05, momentum=0.9)
    module, variables = se_flax.create_model(NAME), linen_variables(model)
    opt_state = tx.init(variables['params'])

    def loss(params, batch_stats):
        args = {'params': params, 'batch_stats': batch_stats}, IMAGES
        logits, updates = module.apply(*args, train=True, mutable=['batch_stats'])
        return cross_entropy(logits), updates

    @jax.jit
    def linen_step(variables, opt_state):
        params, stats = variables['params'], variables['batch_stats']
        (value, updates), grads = jax.value_and_grad(loss, has_aux=True)(params, stats)
        changes, opt_state = tx.update(grads, opt_state)
        return {'params': optax.apply_updates(params, changes)} | updates, opt_state, value

    optimizer, losses = nnx.Optimizer(model, tx, wrt=nnx.Param), []
    nnx_step = nnx.jit(step)
    for _ in range(3):
        variables, opt_state, want = linen_step(variables, opt_state)
        losses.append(nnx_step(model, optimizer))
        np.testing.assert_allclose(losses[-1], want, rtol=1e-4)
    # The same operations, but two programs: XLA may sum in another order, and steps amplify it.
    assert_equal(linen_variables(model), variables, rtol=1e-3, atol=1e-4)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize('options', [{}, {'graph_updates': False}], ids=['default', 'fixed_graph'])
def test_a_loop_learns_its_batch_with_one_compilation(model, options):
    optimizer = nnx.Optimizer(model, optax.sgd(0.05, momentum=0.9), wrt=nnx.Param)
    traces = []

    @nnx.jit(**options)
    def counted(model, optimizer):
        traces.append(1)
        return step(model, optimizer)

    stats = arrays(nnx.state(model, nnx.BatchStat))
    losses = [counted(model, optimizer) for _ in range(8)]
    assert losses[-1] < 0.5 * losses[0]
    assert len(traces) == 1
    for old, new in zip(stats, arrays(nnx.state(model, nnx.BatchStat)), strict=True):
        assert not np.allclose(old, new)


def test_state_is_split_merged_saved_and_restored(model, tmp_path):
    logits_of(model, IMAGES, train=True)
    want, (graphdef, state) = logits_of(model, IMAGES), nnx.split(model)
    assert_equal(logits_of(nnx.merge(graphdef, state), IMAGES), want)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / 'state', state)
        checkpointer.wait_until_finished()
        shapes = nnx.state(nnx.eval_shape(lambda: create_model(NAME, rngs=nnx.Rngs(0))))
        restored = create_model(NAME, rngs=nnx.Rngs(1))
        assert not np.allclose(logits_of(restored, IMAGES), want)
        nnx.update(restored, checkpointer.restore(tmp_path / 'state', shapes))
    assert_equal(state_of(restored), state_of(model))
    assert_equal(logits_of(restored, IMAGES), want)


def test_the_block_works_in_nnx():
    """The block of docs/guides/nnx.md, against Linen with the same parameters."""
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, 32))
    block = nnx.bridge.ToNNX(SqueezeExcite()).lazy_init(x, rngs=nnx.Rngs(0))
    want = SqueezeExcite().apply(linen_variables(block), x)
    np.testing.assert_allclose(block(x), want, rtol=1e-6)
    assert not np.allclose(want, x)
    assert not jax.tree.leaves(nnx.state(block, nnx.Not(nnx.Param)))


def test_features_are_those_of_linen():
    fields = {'num_classes': 0, 'in_channels': 1}
    model, images = create_model(NAME, rngs=nnx.Rngs(0), **fields), IMAGES[..., :1]
    want = se_flax.create_model(NAME, **fields).apply(
        linen_variables(model), images, method='features'
    )
    assert_equal(model.features(images), want, rtol=1e-5, atol=1e-5)  # run twice, in float32
    assert model(images).shape == (8, want['C2'].shape[-1])
