"""Runs that start from a weights file: what it knows, what is refused, what becomes of its head."""

import functools
import json
import re
import shutil

import cv2
import jax
import numpy as np
import pytest

from se_flax import cli
from se_flax.errors import MissingError, Problems, UserError
from se_flax.models import create_model
from se_flax.parallel import data_mesh, replicated
from se_flax.training.config import OF_WEIGHTS, base_config, load_config
from se_flax.training.fine_tune import (
    check_weights,
    fill_from_weights,
    keeps_head,
    other_view,
    start_from,
)
from se_flax.training.optimizer import make_optimizer
from se_flax.training.run import run
from se_flax.training.state import make_init
from se_flax.weights import Preprocessing, save_weights

from .step_test import draw

MEAN, STD = (10.0, 20.0, 30.0), (40.0, 50.0, 60.0)
NAMES = tuple('abcdefghij')


@pytest.fixture
def weights(tmp_path):
    """A file of ten classes, and what is in it: no number of a fresh state."""
    variables = jax.tree.map(lambda leaf: 1 + np.asarray(leaf), fresh(10).variables)
    path = tmp_path / 'ten.safetensors'
    save(path, variables)
    return path, variables


def save(path, variables, names=NAMES):
    view = Preprocessing(28, 32, 'bicubic', MEAN, STD)
    fields = {'width': 16}
    save_weights(path, 'se_resnet8_cifar', variables, view, fields=fields, class_names=names)


def config_for(path, **fields):
    c = base_config()
    c.update({'model': 'se_resnet8_cifar', 'init_from': str(path), 'mean': MEAN, 'std': STD})
    c.model_fields.width = 16
    c.update(fields)
    return c


def recipe(path, **fields):
    c = load_config('fine_tune')
    c.update({'init_from': str(path), **fields})
    return c


def check(config):
    problems = Problems()
    check_weights(config, problems)
    problems.raise_all()


@functools.cache
def fresh(num_classes, **fields):
    model = create_model('se_resnet8_cifar', num_classes, **{'width': 16, **fields})
    tx = make_optimizer(lambda step: 0.1, momentum=0.9, nesterov=False, weight_decay=0.0)
    shapes = jax.eval_shape(make_init(model, tx, 32, data_mesh()), jax.random.key(0))
    return jax.device_put(draw(shapes), replicated(data_mesh()))


def equal(tree, other):
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), tree, other))


def test_the_same_classes_take_the_whole_file(weights):
    path, variables = weights
    drawn = fresh(10)
    state = start_from(config_for(path), drawn, NAMES)
    assert equal(state.variables, variables)
    assert equal(state.opt_state, drawn.opt_state)
    assert int(state.step) == 0
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))


def test_other_classes_keep_a_new_head(weights):
    path, variables = weights
    drawn = fresh(3)
    state = start_from(config_for(path), drawn, NAMES[:3])
    assert equal(state.params['head'], drawn.params['head'])
    assert equal(state.params | {'head': 0}, variables['params'] | {'head': 0})
    assert equal(state.batch_stats, variables['batch_stats'])


def test_a_file_without_a_head_takes_a_new_one(weights):
    path, variables = weights
    del variables['params']['head']
    save(path, variables, names=())
    drawn = fresh(10)
    state = start_from(config_for(path), drawn, NAMES)
    assert equal(state.params, variables['params'] | {'head': drawn.params['head']})


def test_other_channels_are_adapted_when_asked_alone(weights):
    path, variables = weights
    gray = {'in_channels': 1, 'mean': (15.0,), 'std': (50.0,)}
    with pytest.raises(UserError, match=r'3 channels, but in_channels=1; .*adapt_channels=True'):
        check(config_for(path, **gray))
    config = config_for(path, **gray, adapt_channels=True)
    check(config)
    state = start_from(config, fresh(10, in_channels=1), NAMES)
    kernel = variables['params']['conv_stem']['kernel']
    np.testing.assert_allclose(
        state.params['conv_stem']['kernel'], kernel.sum(2, keepdims=True), rtol=1e-6, atol=1e-7
    )
    assert equal(state.params['head'], variables['params']['head'])


def test_the_head_is_kept_by_the_names_of_its_classes_or_on_request(weights):
    path, variables = weights
    others = NAMES[::-1]
    assert keeps_head(config_for(path), NAMES)
    assert not keeps_head(config_for(path), others)
    assert keeps_head(config_for(path, keep_head=True), others)
    with pytest.raises(UserError, match=r'keep_head=True needs as many .* 10; the data have 3'):
        keeps_head(config_for(path, keep_head=True), NAMES[:3])
    drawn = fresh(10)
    state = start_from(config_for(path), drawn, others)
    assert equal(state.params['head'], drawn.params['head'])
    state = start_from(config_for(path, keep_head=True), fresh(10), others)
    assert equal(state.params['head'], variables['params']['head'])
    save(path, variables, names=())
    assert not keeps_head(config_for(path), NAMES)


def test_weights_that_do_not_fit_are_refused_all_at_once(weights, tmp_path):
    path, _ = weights
    check(config_for(path))
    check(config_for(path, model_fields={'width': 16, 'dropout': 0.5}))  # nothing of evaluation
    with pytest.raises(UserError, match=r'not of resnet8_cifar; use --config.model=se_resnet8_'):
        check(config_for(path, model='resnet8_cifar'))
    with pytest.raises(MissingError, match='nine.safetensors'):
        check(config_for(tmp_path / 'nine.safetensors'))
    wrong = {'std': (1.0, 1.0, 1.0), 'mean': (1.0, 2.0, 3.0)}
    with pytest.raises(UserError) as error:
        check(config_for(path, model_fields={'width': 32, 'se': {'squeeze': 'max'}}, **wrong))
    told = str(error.value).splitlines()
    assert told[0] == '4 mistakes:'
    for line, text in zip(
        told[1:],
        (
            "model_fields.se is .*max.*, but the network's default with",
            'model_fields.width is 32, but 16 with the weights of ',
            r'mean=\(1.0, 2.0, 3.0\), but .* --config.mean=10,20,30',
            'std=.* --config.std=40,50,60',
        ),
        strict=True,
    ):
        assert re.search(text, line)
    with pytest.raises(UserError, match='do not fit model_fields.*norm_stem/mean'):
        start_from(config_for(path), fresh(10, width=32), NAMES)


def test_a_recipe_has_from_the_weights_what_it_leaves_open(weights, tmp_path, monkeypatch):
    path, _ = weights
    known = {
        'model': 'se_resnet8_cifar',
        'model_fields': {'width': 16},
        'in_channels': 3,
        'image_size': 28,
        'eval_resize': 32,
        'interpolation': 'bicubic',
        'mean': MEAN,
        'std': STD,
        'fill': (10, 20, 30),
    }
    assert known.keys() == set(OF_WEIGHTS)
    told = recipe(path)
    filled = fill_from_weights(told)
    assert {name: filled.to_dict()[name] for name in known} == known
    assert told.model is None
    assert other_view(filled) == []

    filled = fill_from_weights(recipe(path, image_size=56, interpolation='bilinear'))
    assert (filled.image_size, filled.eval_resize) == (56, 64)
    assert [line.partition(',')[0] for line in other_view(filled)] == [
        'image_size=56', 'eval_resize=64', 'interpolation=bilinear',
    ]  # fmt: skip
    more = recipe(path)
    more.model_fields = {'dropout': 0.2}
    assert fill_from_weights(more).model_fields.to_dict() == {'width': 16, 'dropout': 0.2}
    gray = fill_from_weights(recipe(path, in_channels=1, adapt_channels=True))
    assert (gray.mean, gray.std, gray.fill) == ((20.0,), (50.0,), (20,))

    monkeypatch.setenv('HOME', str(tmp_path))
    assert fill_from_weights(recipe('~/ten.safetensors')).model == 'se_resnet8_cifar'
    own = config_for(path)
    assert fill_from_weights(own) is own


TINY = {
    **{'num_steps': 1, 'batch_size': 8, 'eval_batch_size': 8},
    **{'compilation_cache': '', 'eval_every_epochs': None, 'checkpoint_every_epochs': None},
}


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in NAMES:
            folder = tmp_path / 'photos' / split / name
            folder.mkdir(parents=True)
            image = rng.integers(256, size=(32, 40, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / '0.png'), image)
    return f'folder:{tmp_path}/photos'


def test_one_flag_starts_a_run_from_python_and_from_a_study(
    weights, photos, tmp_path, capsys, caplog
):
    path, _ = weights
    run(recipe(path, data=photos, **TINY), tmp_path / 'run')
    told = capsys.readouterr().out
    assert f'Weights: {path} (se_resnet8_cifar, from se_flax); head kept.' in told
    config = json.loads((tmp_path / 'run' / 'config.json').read_text())
    assert config['model_fields'] == {'width': 16}
    assert (config['image_size'], config['mean'], config['fill']) == (28, [*MEAN], [10, 20, 30])

    shutil.rmtree(tmp_path / 'photos' / 'train' / 'j')
    shutil.rmtree(tmp_path / 'photos' / 'val' / 'j')
    fields = [f'--config.{name}={value}' for name, value in TINY.items()]
    fields += [f'--config.init_from={path}', f'--config.data={photos}', '--config.image_size=20']
    command = ['ablate', 'grid', '--vary=label_smoothing=0.1', '--seeds=1', *fields]
    out = tmp_path / 'study'
    assert cli.main([*command, '--config=fine_tune', f'--out={out}']) == 0
    [log] = out.glob('runs/se_resnet8_cifar*/seed0.log')
    assert 'new head: 10 -> 9 classes' in log.read_text()
    assert f'image_size=20, but the weights of {path} expect 28' in caplog.text


def test_what_is_wrong_is_told_before_the_data_are_opened(tmp_path, weights, capsys):
    fields = [f'--config.init_from={weights[0]}', '--config.data=folder:nowhere']
    command = ['ablate', 'reduction', '--config=fine_tune', '--out', str(tmp_path / 'out')]
    assert cli.main([*command, *fields]) == 2
    told = capsys.readouterr().err
    assert 'no folder nowhere' in told
    assert cli.main([*command, fields[1]]) == 2
    assert 'None needs a weights file, --config.init_from=FILE' in capsys.readouterr().err
    with pytest.raises(UserError, match=r'no .*nine.safetensors[^$]*no folder nowhere'):
        run(recipe(tmp_path / 'nine.safetensors', data='folder:nowhere', **TINY), tmp_path / 'run')
