"""Two trainers on one workdir: living, dead, and on another machine."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types

import pytest
from etils import epath

from se_flax.errors import UnreachableError, UserError
from se_flax.storage import read_json
from se_flax.training import lock
from se_flax.training.lock import Lock
from se_flax.training.metrics_log import read_rows

HOLDER = """
import pathlib, sys, time
from se_flax.training.lock import Lock
with Lock(pathlib.Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(600)
"""
ELSEWHERE = {'host': 'node7', 'pid': 41, 'since': 'noon', 'machine': 'another', 'token': 'theirs'}


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(lock, 'PATIENCE', 1.0)
    monkeypatch.setattr(lock, 'RENEWAL', 0.05)


def write(workdir, holder):
    (workdir / lock.FILE).write_text(json.dumps(holder))


def test_a_living_holder_is_named_and_a_killed_one_replaced(tmp_path):
    command = [sys.executable, '-c', HOLDER, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == 'held\n'
            there = (tmp_path / lock.FILE).read_bytes()
            rule = f'in use: process {holder.pid} on .* since 20.*; stop that process, or use'
            with pytest.raises(UserError, match=rule):
                Lock(tmp_path).check_free()
            with pytest.raises(UserError, match=rule), Lock(tmp_path):
                pass
            assert (tmp_path / lock.FILE).read_bytes() == there
        finally:
            holder.send_signal(signal.SIGKILL)
        # Also while it is a zombie.
        while lock._started(holder.pid) is not None:
            time.sleep(0.01)
        with Lock(tmp_path) as held:
            held.check()
            assert json.loads((tmp_path / lock.FILE).read_text())['pid'] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_another_process_with_the_same_number_is_not_the_holder(tmp_path):
    own = Lock(tmp_path)._own
    write(tmp_path, own | {'started': '1', 'token': 'before'})
    with Lock(tmp_path) as held:
        held.check()


def test_a_silent_holder_elsewhere_is_replaced(tmp_path, impatient, caplog):
    write(tmp_path, ELSEWHERE)
    held = Lock(tmp_path)
    held.check_free()
    with held:  # without another wait
        held.check()
    [record] = caplog.records
    assert 'process 41 on node7 has been training in it since noon: waiting 1 s' in record.message


@pytest.mark.parametrize('left', ['', '{"host": "no'])
def test_an_unreadable_lock_is_replaced_if_nobody_renews_it(tmp_path, impatient, left):
    (tmp_path / lock.FILE).write_text(left)
    with Lock(tmp_path) as held:
        held.check()


def test_a_holder_elsewhere_that_renews_keeps_it(tmp_path, impatient):
    write(tmp_path, ELSEWHERE)
    renewal = threading.Timer(0.2, write, (tmp_path, ELSEWHERE | {'renewals': 1}))
    renewal.start()
    with pytest.raises(UserError, match='process 41 on node7'):
        Lock(tmp_path).check_free()
    renewal.join()


def test_it_renews_until_another_takes_it(tmp_path, impatient):
    with Lock(tmp_path) as held:
        for n in range(3):
            while json.loads((tmp_path / lock.FILE).read_text())['renewals'] <= n:
                time.sleep(0.01)
        held.check()
        write(tmp_path, ELSEWHERE)
        with pytest.raises(UserError, match='process 41 on node7 .*; this process stops'):
            held.check()
    assert json.loads((tmp_path / lock.FILE).read_text()) == ELSEWHERE


def test_a_renewal_that_fails_is_tried_again(tmp_path, impatient, monkeypatch, caplog):
    write, fails = lock.atomic_write, iter([True])

    def atomic_write(path, data):
        if next(fails, False):
            raise UnreachableError('cannot reach it')
        write(path, data)

    monkeypatch.setattr(lock, 'atomic_write', atomic_write)
    with Lock(tmp_path) as held:
        while json.loads((tmp_path / lock.FILE).read_text())['renewals'] < 2:
            time.sleep(0.01)
        held.check()
    [record] = caplog.records
    assert record.message == f'cannot renew {tmp_path / lock.FILE}: cannot reach it'


@pytest.mark.parametrize(
    ('read', 'file'),
    [
        (lambda workdir: Lock(workdir).check(), 'lock.json'),
        (lambda workdir: read_json(workdir / 'config.json'), 'config.json'),
    ],
)
def test_a_bucket_out_of_reach_is_told_in_a_line(read, file, monkeypatch):
    def read_bytes(path):
        raise Exception('Cannot connect\nto host')  # gcsfs has exceptions of its own

    workdir = epath.Path('gs://bucket/run')
    monkeypatch.setattr(type(workdir), 'read_bytes', read_bytes)
    with pytest.raises(UnreachableError, match=f'^cannot reach gs://bucket/run/{file}: Cannot '):
        read(workdir)


def test_a_removed_lock_is_lost(tmp_path):
    with Lock(tmp_path) as held:
        (tmp_path / lock.FILE).unlink()
        with pytest.raises(UserError, match='is gone'):
            held.check()


def test_of_many_that_find_a_dead_holder_one_gets_it(tmp_path, impatient):
    write(tmp_path, ELSEWHERE)
    winners, others, barrier = [], [], threading.Barrier(8)

    def start():
        held = Lock(tmp_path)
        barrier.wait()
        try:
            held._acquire()
            winners.append(held)
        except UserError as error:
            others.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(winners), len(others)) == (1, 7)
    winners[0].check()
    winners[0].__exit__()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faults
def test_the_second_trainer_touches_nothing(tmp_path, start_train_main):
    workdir = tmp_path / 'run'
    long = ('--config.num_steps=9000', '--config.checkpoint_every_steps=1')
    first = start_train_main(workdir, *long)
    try:
        while not (workdir / 'metrics.jsonl').exists():
            time.sleep(0.01)
            assert first.poll() is None
        second = start_train_main(workdir, *long)
        said, _ = second.communicate(timeout=100)
        assert second.returncode == 2
        assert re.fullmatch(f'error: .*in use: process {first.pid} on .*\n', said)
    finally:
        first.send_signal(signal.SIGTERM)
        said, _ = first.communicate(timeout=100)
    assert first.returncode == 143, said
    steps = [row['step'] for row in read_rows(workdir / 'metrics.jsonl') if row['split'] == 'train']
    assert steps == sorted(set(steps))
    assert not list(workdir.glob(f'{lock.FILE}*'))


@pytest.mark.parametrize(
    ('error', 'started'),
    [(None, 'unknown'), (ProcessLookupError, None), (PermissionError, 'unknown')],
)
def test_without_proc_a_process_that_may_not_be_signalled_is_alive(
    tmp_path, monkeypatch, error, started
):
    def kill(pid, number):
        assert number == 0
        if error:
            raise error

    absent = types.SimpleNamespace(Path=lambda path: tmp_path / path.lstrip('/'))
    monkeypatch.setattr(lock, 'pathlib', absent)
    monkeypatch.setattr(lock.os, 'kill', kill)
    assert lock._started(1) == started
