"""Too little memory, found before the first step or told in a line."""

import types

import jax
import jax.numpy as jnp
import pytest

from se_flax import cli
from se_flax.errors import UserError
from se_flax.training import memory

pytestmark = pytest.mark.quick


@pytest.fixture(scope='module')
def refused():
    """An error of XLA's: no processor addresses so much."""
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jax.device_put(jnp.zeros((1 << 50,), jnp.uint8)).block_until_ready()
    return error.value


def test_an_error_of_xlas_is_a_line(refused):
    line = memory.explain(refused, 'less takes X')
    assert line.startswith('out of memory: 1,125,899.9 GB needed, a device has ')
    assert line.endswith(' GB; less takes X')
    assert '\n' not in line
    assert memory.explain(ValueError('RESOURCE_EXHAUSTED'), '') is None
    assert memory.explain(jax.errors.JaxRuntimeError('INTERNAL: no'), '') is None


@pytest.mark.parametrize(
    ('text', 'told'),
    [
        ('Out of memory while trying to allocate 2147483648 bytes.', ': 2.1 GB needed'),
        ('Out of memory while trying to allocate 1.50GiB.', ': 1.6 GB needed'),
        ('Attempting to allocate 9.5G. That was not possible.', ': 10.2 GB needed'),
        ('Ran out of memory in memory space hbm. Used 25.2G of 15.5G hbm.', ': 27.1 GB needed'),
        ('Failed to allocate request for 512.0MiB (536870912B) on device', ': 0.5 GB needed'),
        ('no room', ''),
    ],
)
def test_what_was_asked_for_is_read_from_the_text(text, told):
    error = jax.errors.JaxRuntimeError(f'RESOURCE_EXHAUSTED: {text}')
    assert memory.explain(error, '').startswith(f'out of memory{told}, a device has ')


def compiled(**sizes):
    names = 'argument', 'output', 'alias', 'temp'
    stats = {f'{name}_size_in_bytes': sizes.get(name, 0) for name in names}
    return types.SimpleNamespace(memory_analysis=lambda: types.SimpleNamespace(**stats))


def test_a_step_that_does_not_fit_is_refused(monkeypatch):
    step = compiled(argument=5e9, output=5e9, alias=4e9, temp=3e9)
    monkeypatch.setattr(memory, 'available', lambda: 8e9)
    with pytest.raises(UserError, match=r'^out of memory: 9.0 GB needed, a device has 8.0 GB; x'):
        memory.check_step(step, 'x')
    for limit in (9e9, None):
        monkeypatch.setattr(memory, 'available', lambda limit=limit: limit)
        memory.check_step(step, 'x')
    memory.check_step(types.SimpleNamespace(memory_analysis=lambda: None), 'x')


def test_the_compiler_says_what_a_step_takes(monkeypatch):
    def step(x):
        y = jnp.sin(x)
        return x + jnp.flip(jnp.cumsum(y)) * y.sum()

    size = 1 << 20
    x = jax.ShapeDtypeStruct((size,), jnp.float32)
    step = jax.jit(step, donate_argnums=0).lower(x).compile()
    monkeypatch.setattr(memory, 'available', lambda: 4 * size * 1.5)
    with pytest.raises(UserError, match='out of memory'):
        memory.check_step(step, '')
    monkeypatch.setattr(memory, 'available', lambda: 4 * size * 10)
    memory.check_step(step, '')


def test_the_trainer_says_so_before_it_takes_the_workdir(tmp_path, train_main, capfd, monkeypatch):
    monkeypatch.setattr(memory, 'available', lambda: 1e6)
    assert train_main(tmp_path / 'run', '--config.num_steps=1') == 2
    told = capfd.readouterr().err
    assert told.startswith('error: out of memory: ')
    assert told.count('\n') == 1
    assert 'batch_size' in told
    assert not (tmp_path / 'run').exists()


def test_both_programs_tell_it_in_a_line(refused, tmp_path, train_main, capfd, monkeypatch):
    def refuse(*args, **kwargs):
        raise refused

    monkeypatch.setattr('se_flax.commands.models.list_models', refuse)
    assert cli.main(['models']) == 2
    assert capfd.readouterr().err.endswith('; to use less, lower --batch-size\n')
    monkeypatch.setattr('se_flax.training.run.train', refuse)
    assert train_main(tmp_path / 'run', '--config.num_steps=1') == 2
    told = capfd.readouterr().err
    assert told.startswith('error: out of memory: 1,125,899.9 GB needed')
    assert told.count('\n') == 1
