"""A run of seconds, started as a user starts it, and its undisturbed result."""

import fcntl
import pathlib
import runpy
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Each save takes longer than the steps around it, so that a kill or signal finds the run at work.
FIELDS = (
    *('num_steps=24', 'log_every_steps=1', 'checkpoint_every_steps=2', 'eval_every_steps=8'),
    *('batch_size=16', 'bn_group_size=2', 'eval_batch_size=304'),  # 2,000 = 6 * 304 + 176
    *('model_fields.width=16', 'cache=false'),
    # The rate changes on step 12, upwards, so that the best evaluation is not the last one; and
    # `num_steps` is no constant of what is compiled.
    *('schedule=step', 'drop_epochs=0.02', 'drop_factor=20', 'warmup=0'),
)


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
    main = runpy.run_path(str(ROOT / 'train_main.py'))['main']
    return lambda workdir, *arguments: main([f'--workdir={workdir}', *fields, *arguments])


@pytest.fixture(scope='session')
def kill_run():
    """The functions of scripts/kill_run.py."""
    return runpy.run_path(str(ROOT / 'scripts' / 'kill_run.py'))
