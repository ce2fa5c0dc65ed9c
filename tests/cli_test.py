"""How a program ends: each exception is a line and an exit code, or a bug."""

import re
import subprocess
import sys

import jax
import pytest

from se_flax import cli
from se_flax.errors import MissingError, UserError
from se_flax.training.loop import Preempted
from se_flax.training.run import NonFiniteError

pytestmark = pytest.mark.quick

OUT_OF_MEMORY = jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: allocating 2147483648 bytes')


@pytest.mark.parametrize(
    ('error', 'trains', 'code', 'out', 'err'),
    [
        (UserError('no'), False, 2, '', 'error: no'),
        (MissingError('no'), True, 2, '', 'error: no'),
        (OSError(28, 'No space left on device'), True, 2, '', 'error: .* No space left on device'),
        (ModuleNotFoundError(name='torch'), False, 2, '', 'error: this needs torch; .*torch.*'),
        (OUT_OF_MEMORY, False, 2, '', 'error: out of memory: 2.1 GB .* --batch-size'),
        (OUT_OF_MEMORY, True, 2, '', 'error: out of memory: 2.1 GB .* --config.batch_size .*'),
        (KeyboardInterrupt(), False, 130, '', 'interrupted'),
        (KeyboardInterrupt(), True, 130, 'interrupted, .* are lost; to resume: .*', ''),
        (Preempted(7), True, 143, 'stopped after step 7, nothing is lost; to resume: .*', ''),
        (NonFiniteError('step 7'), True, 1, '', 'error: step 7 .*'),
    ],
)
def test_what_a_user_can_mend_is_a_line(error, trains, code, out, err, capfd):
    def run():
        raise error

    assert cli.exit_code(run, trains=trains) == code
    told = capfd.readouterr()
    assert re.fullmatch(out and f'{out}\n', told.out)
    assert re.fullmatch(err and f'{err}\n', told.err)


@pytest.mark.parametrize('trains', [False, True])
@pytest.mark.parametrize(
    'error',
    [
        ValueError(),
        RuntimeError(),
        ImportError(name='se_flax.x'),
        jax.errors.JaxRuntimeError('INTERNAL'),
    ],
)
def test_a_bug_is_raised(error, trains):
    def run():
        raise error

    with pytest.raises(type(error)):
        cli.exit_code(run, trains=trains)


def test_arguments_that_no_command_has(capsys):
    for words in (['models', '--papers'], ['info', 'vgg16', '--config.seed=1'], ['data', 'chek']):
        with pytest.raises(SystemExit, match='2'):
            cli.main(words)
        assert words[-1] in capsys.readouterr().err


def test_networks_are_listed_without_any_extra():
    blocked = ('optax', 'orbax', 'grain', 'clu', 'ml_collections', 'matplotlib', 'safetensors')
    code = f'import sys; sys.modules.update(dict.fromkeys({blocked}))\nfrom se_flax import cli\n'
    for words in (['models', 'se_*'], ['info', 'vgg16'], ['ablate']):
        code += f'assert cli.main({words}) == 0\n'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
