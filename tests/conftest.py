"""Shared by all tests: eight CPU devices, strict ranks, golden files, a run of seconds.

A tolerance has to hold on any processor (`.ci/processors`). An identity is compared in float64, to
1e-8 or closer: rounding of 1e-16 may grow a millionfold. Beside each other tolerance stands why.
"""

import fcntl
import gc
import os
import pathlib
import runpy
import subprocess
import sys

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from se_flax import cli

from .emulator import emulated_bucket

# Compiling takes longer than running. JAX reads this when it first compiles, here and in children.
FLAGS = '--xla_backend_optimization_level=0'
if jax.__version_info__ < (0, 11):  # later versions lack XLA's older emitters, twice as fast
    FLAGS += ' --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
os.environ.setdefault('XLA_FLAGS', FLAGS)
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = ROOT / 'tests' / 'golden'
# Each save takes longer than the steps around it, so that a kill or signal finds the run at work.
FIELDS = (
    *('num_steps=24', 'log_every_steps=1', 'checkpoint_every_steps=2', 'eval_every_steps=8'),
    *('batch_size=16', 'bn_group_size=2', 'eval_batch_size=304'),  # 2,000 = 6 * 304 + 176
    *('model_fields.width=16', 'cache=false'),
    # The rate changes on step 12, upwards, so that the best evaluation is not the last one; and
    # `num_steps` is no constant of what is compiled.
    *('schedule=step', 'drop_epochs=0.02', 'drop_factor=20', 'warmup=0'),
    'model_fields.zero_init=true',  # learns slowly enough for that
)


def pytest_addoption(parser):
    parser.addoption('--update-golden', action='store_true', help='rewrite tests/golden')


def pytest_collection_finish():
    """Keeps the garbage collector from searching the imported modules while JAX traces."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope='session')
def shared_folder(tmp_path_factory, worker_id, testrun_uid):
    """A folder that all xdist workers of this session have, or those with one $SHARED_FOLDER."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder if worker_id == 'master' else folder.parent / testrun_uid
    folder = pathlib.Path(os.environ.get('SHARED_FOLDER', folder))
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


@pytest.fixture(scope='module', autouse=True)
def _programs(shared_folder):
    """All workers share what they compile; a module's tracing is of no use to the next one."""
    jax.config.update('jax_compilation_cache_dir', str(shared_folder / 'programs'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    yield
    jax.clear_caches()  # gigabytes


@pytest.fixture
def own_cache(shared_folder):
    """A run in this process may choose its own compilation cache, as it does for a user."""
    jax.config.update('jax_compilation_cache_dir', None)
    compilation_cache.reset_cache()  # else the first compilation would have settled it
    yield
    jax.config.update('jax_compilation_cache_dir', str(shared_folder / 'programs'))
    compilation_cache.reset_cache()


@pytest.fixture
def bucket(monkeypatch, environ):
    """What an emulator of `gs://` stores; this process and those with `environ` find it."""
    with emulated_bucket(monkeypatch, environ) as storage:
        yield storage


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


@pytest.fixture(scope='session')
def fields(shared_folder):
    """What makes the quick start tiny, as arguments; all starts share what they compile."""
    fields = (*FIELDS, f'compilation_cache={shared_folder / "cache"}')
    return [f'--config.{field}' for field in fields]


@pytest.fixture(scope='session')
def reference(shared_folder, fields, environ):
    """The workdir of a tiny run that nobody disturbed; not to be written to."""
    workdir = shared_folder / 'reference'
    with (shared_folder / 'lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (workdir / 'DONE').exists():
            command = [sys.executable, ROOT / 'train_main.py', f'--workdir={workdir}', *fields]
            subprocess.run(command, env=environ, check=True)
    return workdir


@pytest.fixture
def start_train_main(fields, environ):
    """`start_train_main(workdir, *arguments)` starts the tiny run in a process of its own."""

    def start(workdir, *arguments):
        command = [sys.executable, ROOT / 'train_main.py', f'--workdir={workdir}', *fields]
        command += arguments
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT}
        return subprocess.Popen(command, env=environ, text=True, **pipes)

    return start


@pytest.fixture
def train_main(fields, own_cache):
    """`train_main(workdir, *arguments)` runs the tiny run in this process, returns the code."""
    return lambda workdir, *arguments: cli.main(
        ['train', f'--workdir={workdir}', *fields, *arguments]
    )


@pytest.fixture(scope='session')
def kill_run():
    """The functions of scripts/kill_run.py."""
    return runpy.run_path(str(ROOT / 'scripts' / 'kill_run.py'))
