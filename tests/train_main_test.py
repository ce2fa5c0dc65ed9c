"""Mistakes at the command line: each ends with code 2 and a line, before anything is compiled."""

import pathlib
import re
import subprocess
import sys

import pytest

from se_flax import cli

pytestmark = pytest.mark.quick

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def fails(tmp_path, capfd):
    """`fails(*arguments)` returns what is printed about a mistake; '{tmp}' is a folder."""

    def fails(*arguments):
        arguments = [argument.format(tmp=tmp_path) for argument in arguments]
        words = [f'--workdir={tmp_path}/run', '--config.cache=false', *arguments]
        assert cli.main(['train', *words]) == 2
        out, err = capfd.readouterr()
        assert out == ''
        assert err.startswith('error: ')
        return err.removeprefix('error: ').removesuffix('\n')

    return fails


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            ['--config.model=seresnet8_cifar'],
            r"unknown model 'seresnet8_cifar': did you mean se_resnet8_cifar or .*\?",
        ),
        (['--config.model_fields.placment=pre'], r'.*placment.*did you mean placement.*'),
        (
            ['--config.batch_size=100', '--config.bn_group_size=0'],
            'batch_size=100 is not a multiple of the number of devices=8; use 96 or 104',
        ),
        (
            ['--config.data=cifar10', '--config.data_dir={tmp}'],
            r"data set 'cifar10' is not in {tmp}; run: se-flax data prepare cifar10 "
            r'--data-dir={tmp}',
        ),
        (['--workdir={tmp}/used'], r'{tmp}/used is not empty but has no config.json; .*'),
        (
            ['--workdir={tmp}/used/file'],
            r'{tmp}/used/file is a file, so .* cannot be the folder .*',
        ),
        (['--workdir={tmp}/lr[0.1]'], r'{tmp}/lr\[0.1\] has \*, \? or \[ in its name, .*'),
        (['--workdir={tmp}/used/file/run'], r'{tmp}/used/file is a file, so .*/run cannot be .*'),
    ],
)
def test_a_mistake_is_told_in_a_line(arguments, message, fails, tmp_path):
    (tmp_path / 'used').mkdir()
    (tmp_path / 'used' / 'file').write_text('of somebody')
    assert re.fullmatch(message.replace('{tmp}', re.escape(str(tmp_path))), fails(*arguments))
    assert not (tmp_path / 'run').exists()


def test_a_tilde_in_a_path_is_the_home(tmp_path, monkeypatch, fails):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    told = fails('--workdir=~/run', '--config.init_from=~/no.safetensors', '--config.seed=1')
    assert f'{tmp_path}/no.safetensors' in told
    told = fails('--config.data=cifar10', '--config.data_dir=~/sets')
    assert f'not in {tmp_path}/sets' in told
    assert not (tmp_path / '~').exists()


def test_a_mistake_prints_no_traceback():
    command = [sys.executable, ROOT / 'train_main.py', '--config.batchsize=64']
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 2
    assert done.stdout == ''
    assert re.fullmatch("error: unknown config field 'batchsize': .*\n", done.stderr)
