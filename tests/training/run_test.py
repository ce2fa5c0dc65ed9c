"""Runs are killed, stopped, damaged and starved; what comes out must be the undisturbed result."""

import contextlib
import json
import os
import pathlib
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from se_flax import cli
from se_flax.errors import UserError
from se_flax.training import run as run_module
from se_flax.training import workdir as workdirs
from se_flax.training.metrics_log import read_rows
from se_flax.training.workdir import finished

ROOT = pathlib.Path(__file__).parents[2]


def newest(workdir):
    return max(int(path.parent.name) for path in workdir.glob('checkpoints/[0-9]*/manifest.json'))


def unfinished(reference, workdir):
    """Makes a workdir whose run was stopped after its last checkpoint."""
    shutil.copytree(reference, workdir)
    (workdir / 'DONE').unlink()
    return workdir


def flip_a_byte(folder):
    rng = random.Random(0)
    path = rng.choice(sorted(p for p in folder.rglob('d/*') if p.is_file()))
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def test_a_run_from_before_a_field_was_there_is_resumed(reference, tmp_path, train_main, capsys):
    workdir = unfinished(reference, tmp_path / 'run')
    fields = json.loads((workdir / 'config.json').read_text())
    old = {name: value for name, value in fields.items() if name not in workdirs.ADDED}
    (workdir / 'config.json').write_text(json.dumps(old))
    (workdir / 'data.json').unlink()
    assert train_main(workdir) == 0
    out = capsys.readouterr().out
    assert 'resuming from step 24' in out
    assert 'arrays, see parameters.txt' in out
    assert 'stage2_block1' not in out
    assert 'stage2_block1/conv1/kernel' in (workdir / 'parameters.txt').read_text()
    assert (workdir / 'data.json').read_bytes() == (reference / 'data.json').read_bytes()
    assert train_main(workdir) == 0
    assert 'is finished, see DONE' in capsys.readouterr().out
    del old['momentum']
    (workdir / 'config.json').write_text(json.dumps(old))
    assert train_main(workdir) == 2
    assert 'momentum was None, now 0.9' in capsys.readouterr().err


# Killed


@pytest.mark.faults
def test_two_kills_change_nothing(shared_folder, reference, fields, environ):
    script = [sys.executable, ROOT / 'scripts' / 'kill_run.py', '--kills=2', '--seed=3']
    command = [*script, f'--workdir={shared_folder}', *fields]
    done = subprocess.run(command, env=environ, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(
        r'^2 kills, \d runs?: bitwise equal to the undisturbed run$', done.stdout, re.M
    )
    assert len(re.findall(r'^ +\d  .* equal$', done.stdout, re.M)) == 2


def test_every_augmentation_is_resumed_bit_by_bit(tmp_path, train_main, kill_run):
    fields = (
        *('ra_operations=2', 'color_jitter=0.4,0.4,0.4', 'erasing=0.5', 'erasing_mode=pixel'),
        *('repeats=3', 'mixup=0.2', 'cutmix=1', 'label_smoothing=0.1', 'eval_every_steps=24'),
    )
    fields = [f'--config.{field}' for field in fields]
    assert train_main(tmp_path / 'whole', *fields) == 0
    cut = unfinished(tmp_path / 'whole', tmp_path / 'cut')
    shutil.rmtree(cut / 'checkpoints' / '24')
    assert train_main(cut, *fields) == 0
    assert kill_run['differences'](tmp_path / 'whole', cut) == []


def test_the_kill_script_sees_one_digit_and_one_bit(reference, tmp_path, kill_run):
    differences = kill_run['differences']
    copy = tmp_path / 'copy'
    shutil.copytree(reference, copy)
    assert differences(reference, copy) == []

    rows = read_rows(copy / 'metrics.jsonl')
    rows[5]['seconds'] = rows[5]['time'] = 0.0  # a time
    text = '\n'.join(map(json.dumps, rows)) + '\n'
    (copy / 'metrics.jsonl').write_text(text)
    assert differences(reference, copy) == []

    rows[5]['loss'] = np.nextafter(rows[5]['loss'], 9).item()
    (copy / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, rows[:-1])) + '\n')
    (copy / 'DONE').write_text('{}')
    [row, count, done] = differences(reference, copy)
    assert str(rows[5]['loss']) in row
    assert f'{len(rows) - 1} rows, not {len(rows)}' in count
    assert 'DONE' in done

    shutil.rmtree(copy / 'checkpoints' / '24')
    assert any('state differs at' in line for line in differences(reference, copy))


# Stopped


def wait_until(reached, process):
    while not reached():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)


@pytest.mark.faults
def test_stopped_twice_it_goes_on_by_the_command_it_names(
    reference, tmp_path, start_train_main, environ, kill_run
):
    workdir = tmp_path / 'a folder'  # the command must quote it
    rows = workdir / 'metrics.jsonl'
    process = start_train_main(workdir)
    for number, step in ((signal.SIGTERM, 3), (signal.SIGINT, 11)):
        wait_until(lambda step=step: any(r['step'] == step for r in read_rows(rows)), process)
        process.send_signal(number)
        text = process.communicate()[0]
        assert process.returncode == 143, text
        assert 'Traceback' not in text
        last = text.splitlines()[-1]
        stopped, command = re.fullmatch(
            r'stopped after step (\d+), .*; to resume: (.*)', last
        ).groups()
        assert step <= int(stopped) < 24
        assert newest(workdir) == int(stopped) == read_rows(rows)[-1]['step']
        assert not (workdir / 'DONE').exists()
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT}
        process = subprocess.Popen(shlex.split(command), env=environ, text=True, **pipes)
    text = process.communicate()[0]
    assert process.returncode == 0, text
    assert f'resuming from step {stopped}' in text
    assert kill_run['differences'](reference, workdir) == []


@pytest.mark.faults
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_stopped_while_python_imports(number, tmp_path, start_train_main):
    process = start_train_main(tmp_path / 'run')
    time.sleep(0.5)
    process.send_signal(number)
    assert process.communicate()[0] == ''
    assert process.returncode == -number


@pytest.mark.faults
def test_stopped_before_the_first_step(tmp_path, start_train_main):
    process = start_train_main(tmp_path)
    wait_until((tmp_path / 'config.json').exists, process)
    process.send_signal(signal.SIGTERM)
    text = process.communicate()[0]
    assert process.returncode == 143, text
    assert 'Traceback' not in text
    assert 'stopped after step 0, nothing is lost; to resume: ' in text.splitlines()[-1]


def test_a_finished_run_is_left_as_it_is(reference, train_main, capfd):
    def content():
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(reference.rglob('*'))}

    before = content()
    assert train_main(reference) == 0
    assert content() == before
    assert f'run in {reference} is finished' in capfd.readouterr().out


def test_killed_while_it_claims_its_folder(tmp_path):
    (tmp_path / '.config.json.node7-41.new').write_text('{"half')
    workdirs.check(tmp_path, {'seed': 3})
    workdirs.claim(tmp_path, {'seed': 3, 'class_names': []}, {})
    assert workdirs.read_config(tmp_path)[0].seed == 3


def test_a_workdir_that_the_first_process_did_not_claim(tmp_path, clock, monkeypatch):
    monkeypatch.setattr('time.sleep', lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    with pytest.raises(UserError, match='is not the folder of process 0'):
        workdirs.check_shared(tmp_path)
    workdirs.claim(tmp_path, {}, {})
    workdirs.check_shared(tmp_path)


def test_rows_are_on_the_disk_before_the_checkpoint_that_counts_on_them(
    tmp_path, train_main, monkeypatch
):
    """A kill loses nothing of what the operating system has; a power cut would."""
    calls = []
    for cls, name in ((run_module.MetricsWriter, 'flush'), (run_module.Checkpointer, 'save')):
        method = getattr(cls, name)

        def noting(*args, name=name, method=method):
            calls.append(name)
            return method(*args)

        monkeypatch.setattr(cls, name, noting)
    assert train_main(tmp_path, '--config.num_steps=2') == 0
    assert calls[:2] == ['flush', 'save']


# Damaged


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    reference, tmp_path, train_main, kill_run, capfd, caplog
):
    workdir = unfinished(reference, tmp_path / 'run')
    flip_a_byte(workdir / 'checkpoints' / '24')
    assert train_main(workdir) == 0
    assert f'checkpoint {workdir}/checkpoints/24 is damaged: ' in caplog.text
    assert 'resuming from step 22' in capfd.readouterr().out
    assert kill_run['differences'](reference, workdir) == []
    done = json.loads((workdir / 'DONE').read_text())
    goodput = done['goodput']
    assert goodput['lost'] > 0  # steps 23 and 24, of the first process
    assert sum(goodput.values()) - goodput['seconds'] == pytest.approx(1, abs=1e-3)  # rounded
    assert goodput['seconds'] > finished(reference)['goodput']['seconds']
    assert done['best']['step'] < 22, (
        'the best evaluation must come from the checkpoint for this to test it'
    )


def test_without_a_good_checkpoint_it_stops(reference, tmp_path, train_main, capfd):
    workdir = unfinished(reference, tmp_path / 'run')
    for step in ('22', '24'):
        flip_a_byte(workdir / 'checkpoints' / step)
    rows = (workdir / 'metrics.jsonl').read_bytes()
    assert train_main(workdir) == 2
    error = capfd.readouterr().err
    assert re.search(r'^error: no good checkpoint left: .*/24 .*/22 .*Restore a copy', error, re.M)
    assert (workdir / 'metrics.jsonl').read_bytes() == rows


@pytest.fixture
def pictures(tmp_path):
    """An image folder of ten classes, 2 training images and one eval image each."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 2), ('val', 1)):
        for label in range(10):
            folder = tmp_path / 'pictures' / split / f'class {label}'
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(256, size=(28, 28, 3), dtype=np.uint8)
                cv2.imwrite(str(folder / f'{i}.png'), image)
    return tmp_path / 'pictures'


@pytest.fixture
def train_damaged(pictures, tmp_path, train_main, capfd, caplog):
    """`train_damaged(*paths)` truncates them: exit code, warnings, and what it printed."""

    def started(*paths):
        for path in paths:
            path.write_bytes(path.read_bytes()[:100])
        fields = (f'--config.data=folder:{pictures}', '--config.max_corrupt=0.05')  # one of 20
        code = train_main(tmp_path / 'run', *fields)
        warnings = [r.getMessage() for r in caplog.records if r.name == 'se_flax.data.pipeline']
        return code, warnings, capfd.readouterr().err

    return started


def test_corrupt_images_are_named_and_replaced_or_skipped(pictures, tmp_path, train_damaged):
    bad, bad_eval = (pictures / name / 'class 3' / '0.png' for name in ('train', 'val'))
    code, warnings, _ = train_damaged(bad, bad_eval)
    assert code == 0
    of_eval = [line for line in warnings if line.startswith(f'{bad_eval}: ')]
    assert of_eval
    assert all(line.endswith('; skipped') for line in of_eval)
    # Met in each of many epochs, told in the first.
    [warning] = [line for line in warnings if line not in of_eval]
    assert warning.startswith(f'{bad}: ')
    assert warning.endswith('; replaced by the next image')
    assert json.loads((tmp_path / 'run/DONE').read_text())['examples'] == 9


def test_too_many_corrupt_images_stop_the_run(pictures, tmp_path, train_damaged):
    bad = [pictures / 'train' / 'class 3' / f'{i}.png' for i in range(2)]
    code, _, errors = train_damaged(*bad)
    assert code == 2
    assert 'Traceback' not in errors
    # Not the last line: threads that load ahead have OpenCV say what it thinks of the files.
    [told] = [line for line in errors.splitlines() if line.startswith('error: ')]
    beginning = 'error: 2 of 20 records cannot be decoded; max_corrupt allows 1: '
    assert told.startswith(beginning)
    assert set(told.removeprefix(beginning).split(', ')) == set(map(str, bad))
    assert not (tmp_path / 'run/DONE').exists()


def test_a_workdir_of_another_config_is_left_alone(reference, train_main, capfd):
    config = (reference / 'config.json').read_bytes()
    assert train_main(reference, '--config.seed=7', '--config.weight_decay=0.25') == 2
    assert capfd.readouterr().err == (
        f'error: {reference} holds a run with another config: seed was 0, now 7; '
        'weight_decay was 0.0005, now 0.25. '
        'Use another --workdir, or move that folder away\n'
    )
    assert (reference / 'config.json').read_bytes() == config
    # Not what, only how fast, and how many damaged images it bears.
    assert train_main(reference, '--config.num_threads=3', '--config.max_corrupt=0.5') == 0


def test_a_name_that_no_checkpoint_can_have_is_refused(tmp_path):
    for name in ('caf\udce9', 'a*'):
        with pytest.raises(UserError, match='; use another --workdir'):
            workdirs.check(tmp_path / name, {'seed': 3})
    workdirs.check(tmp_path / 'café', {'seed': 3})


def test_of_many_classes_those_that_differ_are_told(tmp_path):
    names = [f'class {i}' for i in range(1000)]
    known = json.loads(json.dumps(workdirs.ADDED))
    workdirs.claim(tmp_path, {'class_names': names}, {})
    for changed, told in (
        ([*names[1:], 'zebra'], 'config: class_names: 1 gone (class 0) and 1 new (zebra). Use'),
        (names[:-4], 'class_names: 4 gone (class 996, class 997, class 998, ...). Use another'),
    ):
        with pytest.raises(UserError, match=re.escape(told)):
            workdirs.check(tmp_path, known | {'class_names': changed})


def test_changed_data_are_told_and_taken_on_request(tmp_path, train_main, pictures, capfd, caplog):
    workdir = tmp_path / 'run'
    # The rate changes on step 12, as in the other runs: the same program, compiled already.
    fields = ('num_steps=3', 'drop_epochs=9.6', 'checkpoint_every_steps=1')
    arguments = [f'--config.{field}' for field in (f'data=folder:{pictures}', *fields)]
    assert train_main(workdir, *arguments) == 0
    known = (workdir / 'data.json').read_bytes()
    (workdir / 'DONE').unlink()
    folder = pictures / 'train' / 'class 3'
    shutil.copy(folder / '0.png', folder / '7.png')
    assert train_main(workdir, *arguments) == 2
    told = capfd.readouterr().err
    assert f'error: the data of {workdir} have changed: training had 20 examples, now 21' in told
    assert '--config.allow_changed_data=true' in told
    assert 'evaluation' not in told
    assert (workdir / 'data.json').read_bytes() == known
    assert train_main(workdir, *arguments, '--config.allow_changed_data=true') == 0
    assert '20 examples, now 21' in caplog.text
    # The new ones are known now.
    assert json.loads((workdir / 'data.json').read_text())['training']['examples'] == 21


def test_fewer_images_may_end_a_run_which_is_then_evaluated(tmp_path, train_main, pictures):
    workdir = tmp_path / 'run'
    fields = (f'data=folder:{pictures}', 'num_steps=None', 'num_epochs=3.0', 'schedule=constant')
    arguments = [f'--config.{field}' for field in (*fields, 'allow_changed_data=true')]
    assert train_main(workdir, *arguments) == 0  # 4 steps
    (workdir / 'DONE').unlink()
    rows = (workdir / 'metrics.jsonl').read_bytes().splitlines(keepends=True)
    (workdir / 'metrics.jsonl').write_bytes(b''.join(row for row in rows if b'"eval"' not in row))
    for path in pictures.glob('train/*/1.png'):
        path.unlink()
    assert train_main(workdir, *arguments) == 0  # of 2 steps
    assert finished(workdir)['step'] == 4
    assert [row['step'] for row in read_rows(workdir / 'metrics.jsonl') if row['split'] == 'eval']


def test_a_longer_run_is_told_how_to_start(reference, tmp_path, train_main, capfd):
    longer = '--config.num_steps=26'
    assert train_main(reference, longer) == 2
    told = capfd.readouterr().err
    assert 'num_steps was 24, now 26. The learning rate depends on the length' in told
    [convert] = re.findall(r'se-flax (convert .*), then', told)
    file = tmp_path / 'FILE.safetensors'
    assert cli.main([str(file) if w == file.name else w for w in shlex.split(convert)]) == 0
    [start] = re.findall(r'this command with (.*) --workdir=NEW\n', told)
    start = start.replace(file.name, str(file)).split()
    assert train_main(tmp_path / 'NEW', longer, *start) == 0
    assert f'Weights: {file} (se_resnet8_cifar, from se_flax); head kept.' in capfd.readouterr().out
    assert train_main(reference, longer, '--config.seed=1') == 2
    assert 'Use another --workdir' in capfd.readouterr().err


# Not finite


def test_a_step_that_is_not_finite_never_becomes_a_checkpoint(
    tmp_path, train_main, kill_run, capfd
):
    huge = ('--config.learning_rate=1e25', '--config.checkpoint_every_steps=1')
    assert train_main(tmp_path, *huge, '--config.profile_steps=1,24') == 1
    error = capfd.readouterr().err
    step = int(re.search(r'^error: step (\d+), with the loss .*, is not finite', error, re.M)[1])
    assert 'use a lower learning_rate or a longer warmup, and another --workdir' in error
    assert newest(tmp_path) == step - 1 == read_rows(tmp_path / 'metrics.jsonl')[-1]['step']
    assert not (tmp_path / 'DONE').exists()
    for folder in (tmp_path / 'checkpoints').iterdir():
        state = kill_run['read_state'](folder)
        assert all(np.isfinite(leaf).all() for leaf in state.values())
    # The trace ends with the run.
    assert list(tmp_path.glob('profile/process0/plugins/profile/*/*.xplane.pb'))


# Starved


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own: its folder, and the function that gives it a size in bytes."""
    folder = tmp_path / 'disk'
    folder.mkdir()

    def mount(option, size):
        command = ['mount', '-t', 'tmpfs', '-o', f'{option}size={size}', 'tmpfs', folder]
        return subprocess.run(command, capture_output=True).returncode

    if os.geteuid() or mount('', 10 << 20):
        pytest.skip('this user, or this machine, cannot mount a small file system')
    yield folder, lambda size: mount('remount,', size)
    subprocess.run(['umount', folder], check=True)


def test_a_full_disk_loses_nothing(small_disk, reference, train_main, kill_run, capfd):
    folder, resize = small_disk
    workdir = unfinished(reference, folder / 'run')
    shutil.rmtree(workdir / 'checkpoints' / '24')
    resize(shutil.disk_usage(folder).used + 300_000)  # a checkpoint has 700 kB
    assert train_main(workdir) == 2
    told = r'error: could not save step 24 to .*No space left on device.*untouched: \[22\]\n'
    assert re.fullmatch(told, capfd.readouterr().err)
    assert newest(workdir) == 22

    with contextlib.suppress(OSError), (folder / 'other').open('wb', buffering=0) as other:
        while True:
            other.write(bytes(512))
    assert train_main(workdir) == 2  # not even a row of metrics has room
    assert re.fullmatch('error: .*No space left on device.*\n', capfd.readouterr().err)
    assert newest(workdir) == 22
    assert not (workdir / 'lock.json').exists()  # a torn one would keep the next start waiting

    resize(10 << 20)
    assert train_main(workdir) == 0
    assert 'resuming from step 22' in capfd.readouterr().out
    assert kill_run['differences'](reference, workdir) == []


# Fast


def test_step_and_evaluation_are_compiled_once(tmp_path, train_main):
    compiled = []

    def listen(event, seconds, fun_name='', **_):
        if event == '/jax/core/compile/backend_compile_duration':
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        assert train_main(tmp_path, '--config.num_steps=9') == 0  # 2 evaluations of 7 batches
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled.count('jit(train_step)') == 1
    assert compiled.count('jit(scores)') == 1


def test_the_host_waits_for_no_step_before_the_next_is_on_its_way(
    tmp_path, train_main, monkeypatch
):
    """Each fetch of a device value is noted, by whatever way it is asked for."""
    events = []
    Array = type(jnp.zeros(()))
    fetch = Array._value.fget

    def value(array):
        events.append('fetch')
        return fetch(array)

    call = jax.stages.Compiled.__call__

    def step(compiled, *args):
        events.append('step')
        return call(compiled, *args)

    monkeypatch.setattr(Array, '_value', property(value))
    monkeypatch.setattr(jax.stages.Compiled, '__call__', step)  # what is compiled ahead
    at_the_end = ('--config.checkpoint_every_steps=9', '--config.eval_every_steps=9')
    assert train_main(tmp_path, '--config.num_steps=6', *at_the_end) == 0
    steps = ' '.join(events[events.index('step') :])
    metrics = ' '.join(['fetch'] * 5)  # loss, top1, top5, learning_rate, finite
    assert steps.startswith(
        f'step step {metrics} step {metrics} step {metrics} step {metrics} step'
    )
    assert 'step' not in steps.removeprefix(f'step{f" step {metrics}" * 5}')


def test_the_transfer_guard_is_on(tmp_path, train_main, monkeypatch):
    monkeypatch.setattr(run_module, 'shard_batch', lambda mesh, batch: batch)
    with pytest.raises(Exception, match='Disallowed host-to-device transfer'):
        train_main(tmp_path)


def test_a_damaged_result_and_damaged_data_are_told_in_a_line(tmp_path):
    for name in ('DONE', 'data.json'):
        (tmp_path / name).write_text('{"half')
    with pytest.raises(UserError, match='DONE is damaged'):
        finished(tmp_path)
    with pytest.raises(UserError, match=r'data\.json is damaged'):
        workdirs.check_data(tmp_path, {})
