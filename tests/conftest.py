"""Shared by all tests: eight CPU devices, strict ranks, golden files.

A tolerance has to hold on any processor (`.ci/processors`). An identity is compared in float64, to
1e-8 or closer: rounding of 1e-16 may grow a millionfold. Beside each other tolerance stands why.
"""

import os
import pathlib

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
GOLDEN = pathlib.Path(__file__).parent / 'golden'


def pytest_addoption(parser):
    parser.addoption('--update-golden', action='store_true', help='rewrite tests/golden')


@pytest.fixture(scope='session')
def shared_folder(tmp_path_factory, worker_id, testrun_uid):
    """A folder that all xdist workers of this session have."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder if worker_id == 'master' else folder.parent / testrun_uid
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope='session')
def environ():
    """Processes have the eight devices of the tests themselves, so their results are equal."""
    jax_variables = {
        'JAX_PLATFORMS': 'cpu',
        'JAX_NUM_CPU_DEVICES': '8',
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    return os.environ | jax_variables


@pytest.fixture
def own_cache():
    """A run in this process may say where XLA keeps what it compiles; afterwards nobody has."""
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    compilation_cache.reset_cache()  # else a compilation before this one has settled that none is
    yield
    jax.config.update('jax_compilation_cache_dir', None)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)
    compilation_cache.reset_cache()


@pytest.fixture
def clock(monkeypatch):
    """`clock[0]` is the time of `time.monotonic`, in seconds."""
    clock = [1000.0]
    monkeypatch.setattr('time.monotonic', lambda: clock[0])
    return clock


@pytest.fixture
def golden(request):
    """`golden(path, text)` compares text with a reviewed file, or rewrites it on demand."""
    hint = f'if that is meant: pytest {request.node.nodeid} --update-golden, then review git diff'

    def compare(path, text):
        path = GOLDEN / path
        if request.config.getoption('--update-golden'):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.exists(), f'no golden file {path}; {hint}'
        assert text == path.read_text(), f'{path.name} differs; {hint}'

    return compare
