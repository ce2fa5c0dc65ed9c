"""What README shows is what happens."""

import pathlib
import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from se_flax import cli, create_model
from se_flax.training.config import parse_args
from se_flax.weights import save_weights
from se_flax.weights.info import BICUBIC

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))


def blocks(language, text=README):
    return re.findall(rf'```{language}\n(.*?)```', text, re.DOTALL)


def test_python_blocks_run_from_top_to_bottom():
    names = {}
    for block in blocks('python'):
        exec(block, names)
    assert names['logits'].shape == (1, 10)
    assert names['features'].shape == (1, 2048)
    shapes = {stage: x.shape for stage, x in names['maps'].items()}
    assert shapes['C1'] == (1, 112, 112, 64)
    assert shapes['C5'] == (1, 7, 7, 2048)
    y = names['Block']().init_with_output(names['jax'].random.key(0), jnp.ones((2, 8, 8, 32)))[0]
    assert y.shape == (2, 8, 8, 32)
    rngs, images = names['nnx'].Rngs(0), jnp.ones((4, 16, 16, 3))
    assert names['NNXBlock'](32, rngs=rngs)(jnp.ones((2, 8, 8, 32))).shape == (2, 8, 8, 32)
    step = names['nnx_model'], names['optimizer'], images, jnp.zeros(4, int)
    losses = [names['train_step'](*step) for _ in range(3)]
    assert losses[-1] < losses[0]


def test_the_backbone_page_runs(tmp_path, monkeypatch):
    """With one unit a stage, and weights that are written here."""
    monkeypatch.chdir(tmp_path)
    name, one_each = 'timm_seresnet50', {'stage_sizes': (1, 1, 1, 1)}
    model = create_model(name, 10, **one_each)
    drawn = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 32, 32, 3)))
    drawn = jax.tree.map(lambda leaf: leaf + 0.01, drawn)  # no zero where gradients would end
    save_weights('seresnet50.safetensors', name, drawn, BICUBIC, fields=one_each)
    page = (ROOT / 'docs' / 'backbone.md').read_text()
    short = page.replace(f"('{name}', num", f"('{name}', stage_sizes=(1, 1, 1, 1), num")
    names = {}
    for block in blocks('python', short):
        exec(block, names)
    levels = jax.eval_shape(names['pyramid'].apply, names['variables'], names['images'])
    assert {k: v.shape for k, v in levels.items()} == {
        f'P{n}': (2, 128 >> n, 128 >> n, 256) for n in (2, 3, 4, 5)
    }
    before, after = names['variables']['params'], names['params']
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), before, after)
    assert jax.tree.all(
        same['backbone'] | {'stage3_block1': True, 'stage4_block1': True, 'stage5_block1': True}
    )
    assert not same['backbone']['stage5_block1']['conv1']['kernel']
    assert same['backbone']['stage5_block1']['norm1'] == {'bias': True, 'scale': True}
    assert not same['lateral_C2']['kernel']
    assert np.array_equal(
        before['backbone']['conv_stem']['kernel'], drawn['params']['conv_stem']['kernel']
    )
    assert all(map(np.any, jax.tree.leaves(names['grads']['head']['bias'])))


def test_info_is_what_the_command_prints(capsys):
    assert cli.main(['info', 'se_resnet50']) == 0
    assert capsys.readouterr().out in blocks('text')


def test_files_and_folders_it_names_exist():
    named = re.findall(r'\]\((?!http)([^)]+)\)', README)
    assert 'docs/quickstart.png' in named
    assert [path for path in named if not (ROOT / path).exists()] == []


def commands(text):
    return re.findall(r'python train_main\.py.*', text.replace('\\\n', ''))


@pytest.mark.parametrize('command', commands(README))
def test_training_commands_parse(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    argv = [word for word in shlex.split(command)[2:] if word.startswith('-')]
    config, workdir, _ = parse_args(argv, default='configs/quickstart.py')
    assert config.model or config.init_from  # the weights know theirs
    assert workdir.parts[0] in ('runs', '/')  # the root: what several hosts share


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_each_config_says_its_command(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    said = commands(path.read_text())
    assert said
    for command in said:
        argv = shlex.split(command)[2:]
        parse_args(argv, default='configs/quickstart.py')
        named = any(str(path.relative_to(ROOT)) in word for word in argv)
        assert named or path.stem == 'quickstart'


def test_table_of_networks_is_what_the_command_prints(capsys):
    assert cli.main(['models', '--paper', '--markdown']) == 0
    table = README.split('<!-- models -->\n')[1].split('<!-- /models -->')[0]
    assert capsys.readouterr().out == table
