import jax
import numpy as np
import pytest

from se_flax.errors import MissingError, UserError
from se_flax.models import create_model
from se_flax.parallel import data_mesh
from se_flax.training.config import base_config
from se_flax.training.fine_tune import check_weights, start_from
from se_flax.training.optimizer import make_optimizer
from se_flax.training.state import make_init
from se_flax.weights import Preprocessing, save_weights

MEAN, STD = (10.0, 20.0, 30.0), (40.0, 50.0, 60.0)


@pytest.fixture
def weights(tmp_path):
    """A file of ten classes, and what is in it."""
    model = create_model('se_resnet8_cifar', 10, width=16)
    variables = jax.device_get(model.init(jax.random.key(7), np.zeros((1, 32, 32, 3), 'f')))
    path = tmp_path / 'ten.safetensors'
    view = Preprocessing(32, 0, 'bilinear', MEAN, STD)
    save_weights(path, 'se_resnet8_cifar', variables, view, fields={'width': 16})
    return path, variables


def config_for(path, **fields):
    c = base_config()
    c.update({'model': 'se_resnet8_cifar', 'init_from': str(path), 'mean': MEAN, 'std': STD})
    c.update(fields)
    return c


def fresh(num_classes, **fields):
    model = create_model('se_resnet8_cifar', num_classes, **{'width': 16, **fields})
    tx = make_optimizer(lambda step: 0.1, momentum=0.9, nesterov=False, weight_decay=0.0)
    return make_init(model, tx, 32, data_mesh())(jax.random.key(0))


def equal(tree, other):
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), tree, other))


def test_the_same_classes_take_the_whole_file(weights):
    path, variables = weights
    drawn = fresh(10)
    state = start_from(config_for(path), drawn)
    assert equal(state.variables, variables)
    assert equal(state.opt_state, drawn.opt_state)
    assert int(state.step) == 0
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))


def test_other_classes_keep_a_new_head(weights):
    path, variables = weights
    drawn = fresh(3)
    state = start_from(config_for(path), drawn)
    assert equal(state.params['head'], drawn.params['head'])
    assert equal(state.params | {'head': 0}, variables['params'] | {'head': 0})
    assert equal(state.batch_stats, variables['batch_stats'])


def test_a_file_without_a_head_takes_a_new_one(weights):
    path, variables = weights
    del variables['params']['head']
    view = Preprocessing(32, 0, 'bilinear', MEAN, STD)
    save_weights(path, 'se_resnet8_cifar', variables, view, fields={'width': 16})
    drawn = fresh(10)
    state = start_from(config_for(path), drawn)
    assert equal(state.params, variables['params'] | {'head': drawn.params['head']})


def test_other_channels_are_adapted_when_asked_alone(weights):
    path, variables = weights
    gray = {'in_channels': 1, 'mean': (15.0,), 'std': (50.0,)}
    with pytest.raises(UserError, match=r'3 channels, and in_channels=1; .*adapt_channels=True'):
        check_weights(config_for(path, **gray))
    config = config_for(path, **gray, adapt_channels=True)
    check_weights(config)
    state = start_from(config, fresh(10, in_channels=1))
    kernel = variables['params']['conv_stem']['kernel']
    np.testing.assert_allclose(
        state.params['conv_stem']['kernel'], kernel.sum(2, keepdims=True), rtol=1e-6, atol=1e-7
    )
    assert equal(state.params['head'], variables['params']['head'])


def test_weights_that_do_not_fit_are_refused(weights, tmp_path):
    path, _ = weights
    check_weights(config_for(path))
    with pytest.raises(UserError, match=r'not of resnet8_cifar; take --config.model=se_resnet8_'):
        check_weights(config_for(path, model='resnet8_cifar'))
    with pytest.raises(UserError, match=r'expect --config.std=40,50,60'):
        check_weights(config_for(path, std=(1.0, 1.0, 1.0)))
    with pytest.raises(MissingError, match='ten.safetensors'):
        check_weights(config_for(tmp_path / 'nine.safetensors'))
    with pytest.raises(UserError, match='do not fit model_fields.*norm_stem/mean'):
        start_from(config_for(path), fresh(10, width=32))
