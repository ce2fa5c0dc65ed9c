"""Weights of a classifier for another head, and for images with other channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from se_flax.errors import UserError
from se_flax.models import create_model
from se_flax.weights import (
    Preprocessing,
    convert,
    from_torch,
    load_weights,
    read_info,
    save_weights,
)

NAME, FIELDS = 'resnet8_cifar', {'width': 4}
VIEW = Preprocessing(32, 36, 'bilinear', (120.0, 121.0, 125.0), (60.0, 61.0, 65.0))
GRAY = np.random.default_rng(0).normal(size=(2, 16, 16, 1)).astype('f')


@pytest.fixture
def path(weights, tmp_path):
    path = tmp_path / 'w.safetensors'
    save_weights(path, NAME, weights.variables, VIEW, fields=FIELDS, class_names='abcdefghij')
    return path


def test_a_headless_network_takes_the_weights_of_a_classifier(weights, path):
    model = create_model(NAME, 0, **FIELDS)
    x = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype('f')
    _, variables = load_weights(path, head='drop')
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    assert jax.tree.structure(shapes) == jax.tree.structure(variables)
    for dropped in (variables, from_torch(NAME, weights.state, head='drop', **FIELDS)):
        features = jax.jit(model.apply)(dropped, x)
        head = weights.variables['params']['head']
        logits = jax.jit(create_model(NAME, **FIELDS).apply)(weights.variables, x)
        want = features @ head['kernel'] + head['bias'].reshape(1, -1)
        np.testing.assert_allclose(logits, want, rtol=0, atol=1e-4 * np.abs(want).max())


def test_another_number_of_classes_is_taken_when_asked_alone(weights):
    with pytest.raises(UserError, match="have 10 classes, not 7; use head='drop' to drop"):
        from_torch(NAME, weights.state, 7, **FIELDS)
    with pytest.raises(UserError, match="not 0; use head='drop'"):
        from_torch(NAME, weights.state, num_classes=0, **FIELDS)
    for num_classes in (None, 10):
        assert 'head' in from_torch(NAME, weights.state, num_classes, **FIELDS)['params']
    loaded = from_torch(NAME, weights.state, num_classes=7, head='drop', **FIELDS)
    model = create_model(NAME, 7, **FIELDS)
    drawn = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    variables = {**loaded, 'params': drawn['params'] | loaded['params']}
    shapes, drawn = (jax.tree.map(lambda leaf: leaf.shape, of) for of in (variables, drawn))
    assert shapes == drawn
    assert variables['params']['conv_stem'] is loaded['params']['conv_stem']


def test_a_gray_image_says_what_it_said_as_rgb(weights, path):
    rgb, gray = (create_model(NAME, in_channels=n, **FIELDS) for n in (3, 1))
    want = jax.jit(rgb.apply)(weights.variables, np.repeat(GRAY, 3, -1))
    for variables in (
        load_weights(path, in_channels=1)[1],
        from_torch(NAME, weights.state, in_channels=1, **FIELDS),
    ):
        got = jax.jit(gray.apply)(variables, GRAY)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize('channels', [2, 3, 4, 6, 7])
def test_the_response_keeps_its_size(weights, path, channels):
    kernel = load_weights(path, in_channels=channels)[1]['params']['conv_stem']['kernel']
    own = weights.variables['params']['conv_stem']['kernel']
    assert kernel.shape == (3, 3, channels, 4)
    for i in range(channels):
        np.testing.assert_allclose(kernel[:, :, i], own[:, :, i % 3] * 3 / channels, rtol=1e-6)
    if channels % 3 == 0:
        np.testing.assert_allclose(kernel.sum(2), own.sum(2), rtol=0, atol=1e-5)


def test_nothing_is_adapted_in_place(weights):
    before = jax.tree.map(np.copy, weights.variables)
    from_torch(NAME, weights.state, in_channels=1, head='drop', **FIELDS)
    jax.tree.map(np.testing.assert_array_equal, weights.variables, before)


def test_a_file_knows_what_it_was_adapted_to(weights, path, tmp_path):
    source, out = tmp_path / 'public.pth', tmp_path / 'gray.safetensors'
    torch = pytest.importorskip('torch')
    torch.save({k: torch.from_numpy(np.array(v)) for k, v in weights.state.items()}, source)
    convert(str(source), NAME, out, head='drop', in_channels=1, **FIELDS)
    info = read_info(out)
    assert info.num_classes == 0
    assert info.fields == FIELDS | {'in_channels': 1}
    assert info.preprocessing.mean == pytest.approx((np.mean([125.307, 122.961, 113.8575]),))
    name, variables = load_weights(out)
    model = create_model(name, info.num_classes, **info.fields)
    assert jax.jit(model.apply)(variables, GRAY).shape == (2, 16)


def test_a_file_of_other_channels_has_their_mean(weights, tmp_path):
    fields = FIELDS | {'in_channels': 2}
    variables = unflatten_dict(weights.flat_variables(NAME, **fields), sep='/')
    with pytest.raises(UserError, match='invalid mean in the metadata'):
        save_weights(tmp_path / 'w.safetensors', NAME, variables, VIEW, fields=fields)
    view = VIEW._replace(mean=(1.0, 2.0), std=(3.0, 4.0))
    save_weights(tmp_path / 'w.safetensors', NAME, variables, view, fields=fields)
    assert read_info(tmp_path / 'w.safetensors').preprocessing == view
    _, loaded = load_weights(tmp_path / 'w.safetensors')
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_mistakes_are_told(weights, path):
    with pytest.raises(UserError, match="unknown head 'none': one of keep, drop"):
        load_weights(path, head='none')
    with pytest.raises(UserError, match='in_channels=0 must be at least 1'):
        from_torch(NAME, weights.state, in_channels=0, **FIELDS)
    headless = {**weights.flat}
    for leaf in ('kernel', 'bias'):
        del headless[f'params/head/{leaf}']
    variables = unflatten_dict(headless, sep='/')
    save_weights(path, NAME, variables, VIEW, fields=FIELDS)  # num_classes=0
    assert read_info(path).num_classes == 0
