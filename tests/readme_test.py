"""What README shows is what happens."""

import pathlib
import re
import shlex

import jax.numpy as jnp
import pytest

from se_flax import cli
from se_flax.training.config import parse_args

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))


def blocks(language):
    return re.findall(rf'```{language}\n(.*?)```', README, re.DOTALL)


def test_python_blocks_run_from_top_to_bottom():
    names = {}
    for block in blocks('python'):
        exec(block, names)
    assert names['logits'].shape == (1, 10)
    y = names['Block']().init_with_output(names['jax'].random.key(0), jnp.ones((2, 8, 8, 32)))[0]
    assert y.shape == (2, 8, 8, 32)
    rngs, images = names['nnx'].Rngs(0), jnp.ones((4, 16, 16, 3))
    assert names['NNXBlock'](32, rngs=rngs)(jnp.ones((2, 8, 8, 32))).shape == (2, 8, 8, 32)
    step = names['nnx_model'], names['optimizer'], images, jnp.zeros(4, int)
    losses = [names['train_step'](*step) for _ in range(3)]
    assert losses[-1] < losses[0]


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
    assert config.model
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
