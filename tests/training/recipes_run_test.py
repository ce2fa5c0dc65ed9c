"""Recipes whose optimizers, losses and augmentations are not the paper's, as short runs."""

import pathlib
import runpy
import shutil

import pytest

from se_flax import cli

from .run_test import unfinished

pytestmark = pytest.mark.slow  # several compilations each

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
    *('image_size=32', 'eval_resize=36', 'batch_size=16', 'bn_group_size=2', 'eval_batch_size=16'),
    *('dtype=float32', 'num_steps=30', 'checkpoint_every_steps=15', 'log_every_steps=5'),
    *('eval_every_steps=30', 'learning_rate=0.001'),  # the recipes' rates are for large batches
)


@pytest.fixture(scope='module')
def tiny_imagenet(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tiny')
    make = runpy.run_path(str(ROOT / 'scripts' / 'make_tiny_imagenet.py'))['main']
    make([str(folder), '--train-per-class=1'])
    options = ['--from', str(folder), '--data-dir', str(folder), '--allow-other-counts']
    assert cli.main(['data', 'prepare', 'imagenet2012', *options]) == 0
    return folder


@pytest.mark.parametrize(
    ('recipe', 'stage_sizes'),
    [
        *((recipe, (1, 1, 1, 1)) for recipe in ('rsb:a1', 'rsb:a2', 'rsb:a3', 'resnet_rs')),
        *(('regnet', (1, 1, 1, 1)), ('efficientnet', (1,) * 7), ('mobilenet_v3', (1,) * 6)),
    ],
)
def test_a_recipe_is_resumed_bit_by_bit(recipe, stage_sizes, tiny_imagenet, tmp_path, kill_run):
    fields = f'data_dir={tiny_imagenet}', f'model_fields.stage_sizes={stage_sizes}', *SMALL
    fields = [f'--config.{field}' for field in fields]

    def train(name):
        return cli.main(['train', f'--config={recipe}', f'--workdir={tmp_path / name}', *fields])

    assert train('whole') == 0
    cut = unfinished(tmp_path / 'whole', tmp_path / 'cut')
    shutil.rmtree(cut / 'checkpoints' / '30')
    assert train('cut') == 0
    assert kill_run['differences'](tmp_path / 'whole', cut) == []
