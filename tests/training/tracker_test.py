"""Trackers get every row; one that fails, hangs or is missing ends no run."""

import json
import re
import threading
import time

import pytest

from se_flax.errors import UserError
from se_flax.training import tracker
from se_flax.training.metrics_log import read_rows
from se_flax.training.tracker import Tracker, find

from .metrics_log_test import untimed

ROWS = [{'step': step, 'split': 'train', 'loss': 1 / (step + 2)} for step in (1, 2, 3)]

MINE = """
import contextlib, json

@contextlib.contextmanager
def log(config, workdir):
    with open(f'{workdir}/mine.jsonl', 'w') as file:
        file.write(json.dumps(config) + '\\n')
        yield lambda row: file.write(json.dumps(row) + '\\n')

def breaks(config, workdir):
    raise OSError('no network')

number = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The file `mine_of_<test>.py` in the current folder; returns its name as a module."""
    monkeypatch.chdir(tmp_path)
    name = f'mine_of_{tmp_path.name}'
    (tmp_path / f'{name}.py').write_text(MINE)
    return name


def test_a_run_tells_every_row_and_its_config(mine, tmp_path, train_main):
    fields = f'--config.tracker={mine}:log', '--config.num_steps=2'
    assert train_main(tmp_path / 'run', *fields) == 0
    config, *told = map(json.loads, (tmp_path / 'run/mine.jsonl').read_text().splitlines())
    assert config.items() <= json.loads((tmp_path / 'run/config.json').read_text()).items()
    rows = read_rows(tmp_path / 'run/metrics.jsonl')
    assert len(rows) == 2 + 1
    assert untimed(told) == untimed(rows)


@pytest.mark.quick
def test_one_that_fails_is_a_warning(mine, tmp_path, caplog):
    with Tracker(f'{mine}:breaks', {}, tmp_path) as failing:
        for row in ROWS:
            failing.write(row)
    assert [r.getMessage() for r in caplog.records] == [
        f'tracker {mine}:breaks failed (OSError: no network); the run continues without it'
    ]


@pytest.mark.quick
def test_one_that_hangs_does_not_stop_a_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tracker, 'LONGEST_END', 0.2)
    monkeypatch.setattr(tracker, 'TRACKERS', {'json': lambda config, workdir: wait()})
    never = threading.Event()

    def wait():
        never.wait()

    begin = time.monotonic()
    with Tracker('json', {}, tmp_path) as hanging:
        for row in ROWS:
            hanging.write(row)
    never.set()
    assert time.monotonic() - begin < 60
    assert [r.getMessage() for r in caplog.records] == [
        'tracker json has not taken all rows; not waiting for it'
    ]


@pytest.mark.quick
@pytest.mark.parametrize(
    ('name', 'told'),
    [
        ('wandbb', r"unknown tracker 'wandbb': did you mean wandb\?"),
        ('nope:log', r"tracker=nope:log: ModuleNotFoundError: No module named 'nope'"),
        ('{mine}:logg', r"unknown function of {mine} 'logg': did you mean log\?"),
        ('{mine}:number', r"unknown function of {mine} 'number': one of log, breaks"),
        ('no_such_package', r'tracker=no_such_package needs .*; pip install no_such_package'),
    ],
)
def test_a_mistake_is_told_before_the_run(name, told, mine, monkeypatch):
    if name == 'no_such_package':
        monkeypatch.setitem(tracker.TRACKERS, name, None)
    with pytest.raises(UserError, match=told.replace('{mine}', mine)):
        find(name.replace('{mine}', mine))


def test_mlflow_has_one_run_of_a_workdir(tmp_path, monkeypatch):
    mlflow = pytest.importorskip('mlflow')
    monkeypatch.setenv('MLFLOW_TRACKING_URI', f'file:{tmp_path}/mlruns')
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    monkeypatch.chdir(tmp_path)
    for rows in (ROWS[:2], ROWS[1:]):  # as when a process is killed after step 2, saved at 1
        with Tracker('mlflow', {'model': 'se_resnet50', 'seed': 3}, tmp_path / 'run') as told:
            for row in rows:
                told.write(row)
    [run] = mlflow.search_runs(output_format='list')
    assert run.data.params == {'model': 'se_resnet50', 'seed': '3'}
    assert run.info.status == 'FINISHED'
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, 'train/loss')
    assert {m.step: m.value for m in history} == {row['step']: row['loss'] for row in ROWS}


def test_wandb_offline_has_one_id_of_a_workdir(tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    monkeypatch.chdir(tmp_path)
    for rows in (ROWS[:2], ROWS[2:]):
        with Tracker('wandb', {'model': 'se_resnet50', 'seed': 3}, tmp_path) as told:
            for row in rows:
                told.write(row)
    files = sorted(tmp_path.glob('wandb/offline-run-*/*.wandb'))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1  # run-<id>.wandb
    for file, rows in zip(files, (ROWS[:2], ROWS[2:]), strict=True):
        for row in rows:
            value = re.escape(str(row['loss'])).encode()
            written = re.compile(rb'train/loss.{0,9}' + value, re.DOTALL)
            for _ in range(600):  # wandb's own process writes
                if written.search(file.read_bytes()):
                    break
                time.sleep(0.05)
            assert written.search(file.read_bytes()), row
        assert b'se_resnet50' in file.read_bytes()
