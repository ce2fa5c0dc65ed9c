"""Damage is done to real files, kills are real kills; what must come back is told by the step."""

import concurrent.futures
import contextlib
import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from se_flax import storage
from se_flax.errors import MissingError, UnreachableError, UserError
from se_flax.training import checkpoint
from se_flax.training.checkpoint import Checkpointer, CheckpointError, load
from se_flax.training.state import TrainState


def on_devices(count, *axes):
    mesh = Mesh(np.array(jax.devices()[:count]), ('data',), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec(*axes))


def make_state(step, *, classes=3, sharding=None):
    """A small TrainState; every number in it is told by the step."""
    rng = np.random.default_rng(step)
    params = {
        'conv': {'kernel': jnp.asarray(rng.normal(size=(3, 3, 2, 4)), jnp.float32)},
        'head': {'kernel': jnp.asarray(rng.normal(size=(4, classes)), jnp.bfloat16)},
    }
    trace = jax.tree.map(lambda p: p * 2, params)
    state = TrainState(
        step=jnp.int32(step),
        params=params,
        batch_stats={'mean': jnp.full(8, step, jnp.float32)},
        opt_state=(optax.TraceState(trace), optax.EmptyState()),
    )
    return jax.device_put(state, sharding or on_devices(1))


def zeros_like(state):
    return jax.tree.map(jnp.zeros_like, state)  # different from the saved one


def assert_bitwise(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp('saved')
    for step in (10, 20):
        Checkpointer(folder).save(step, make_state(step), {'best': step / 3})
    return folder


@pytest.fixture
def two_steps(original, tmp_path):
    """A folder with the good steps 10 and 20."""
    return shutil.copytree(original, tmp_path / 'checkpoints')


def files_of(folder):
    return sorted(path for path in folder.rglob('*') if path.is_file())


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def assert_loads(directory, step):
    state, progress = load(directory, zeros_like(make_state(0)))
    assert_bitwise(state, make_state(step))
    assert progress == {'best': step / 3}


def restored_step(directory):
    """Restores as a trainer does; the whole content must be that of the step it names."""
    restored = Checkpointer(directory).restore(zeros_like(make_state(0)))
    if restored is None:
        return None
    step = int(restored[0].step)
    assert_bitwise(restored[0], make_state(step))
    return step


# What is saved comes back


BITS = hnp.arrays(np.uint32, hnp.array_shapes(max_dims=3, max_side=4))


@given(drawn=st.tuples(BITS, BITS, BITS, BITS))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_float_comes_back_bit_for_bit(tmp_path_factory, drawn):
    """NaN with payload, -0.0, subnormals: hypothesis draws the bits, not the values."""
    checkpoints = Checkpointer(tmp_path_factory.mktemp('bits'))
    special = np.array([0x7FC00123, 0x80000000, 1, 0xFF800000], np.uint32)
    floats = [jnp.asarray(bits.view(np.float32)) for bits in (special, *drawn)]
    saved = {'floats': floats, 'flag': jnp.array([True, False]), 'minus': -jnp.zeros((4, 4))}
    checkpoints.save(0, saved, {})
    assert_bitwise(checkpoints.restore(zeros_like(saved))[0], saved)
    checkpoints.verify(saved)


@pytest.mark.parametrize(('before', 'after'), [(1, 8), (8, 1), (2, 4)])
@pytest.mark.parametrize('abstract', [True, False])
def test_restores_on_another_number_of_devices(tmp_path, before, after, abstract):
    saved = make_state(5, sharding=on_devices(before))
    Checkpointer(tmp_path).save(5, saved, {'best': 0.25})
    target = jax.device_put(zeros_like(saved), on_devices(after))
    # One leaf split over the devices, as a sharded optimiser state is.
    split = jax.device_put(target.batch_stats, on_devices(after, 'data'))
    target = target.replace(batch_stats=split)
    if abstract:
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), target
        )
    state, progress = Checkpointer(tmp_path).restore(target)
    assert_bitwise(state, saved)
    assert progress == {'best': 0.25}
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, target)


def test_target_without_sharding_goes_to_one_device(tmp_path):
    saved = make_state(5, sharding=on_devices(8))
    Checkpointer(tmp_path).save(5, saved, {})
    state, _ = load(tmp_path, jax.eval_shape(lambda: saved))
    assert_bitwise(state, saved)
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(state)} == {1}


def test_orbax_alone_reads_the_folder(two_steps):
    """The layout is the one of Orbax's CheckpointManager, so the files are not locked in."""
    with ocp.CheckpointManager(two_steps) as manager:
        assert sorted(manager.all_steps()) == [10, 20]
        args = ocp.args.Composite(state=ocp.args.StandardRestore(zeros_like(make_state(0))))
        assert_bitwise(manager.restore(20, args=args).state, make_state(20))


def test_keeps_the_newest_in_the_order_of_numbers(tmp_path):
    checkpoints = Checkpointer(tmp_path, keep=3)
    for step in (0, 9, 10, 90, 100):
        checkpoints.save(step, make_state(step), {})
    assert checkpoints.steps() == [10, 90, 100]
    assert names(tmp_path) == ['10', '100', '90']
    assert restored_step(tmp_path) == 100


# Damage


def test_one_flipped_byte_of_any_file_is_named(two_steps, caplog):
    rng = random.Random(0)
    files = files_of(two_steps / '20')
    assert len(files) > 8
    for path in files:
        whole = path.read_bytes()
        offsets = {0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(3))}
        if path.name == checkpoint.MANIFEST:
            offsets |= set(rng.sample(range(len(whole)), 100))
        for offset in offsets:
            flipped = bytearray(whole)
            flipped[offset] ^= rng.randrange(1, 256)
            path.write_bytes(flipped)
            newest, [refused] = checkpoint._newest_good(epath.Path(two_steps))
            assert (newest, refused.kind) == (10, 'damaged')
            assert path.relative_to(two_steps / '20').as_posix() in str(refused)
        caplog.clear()
        assert_loads(two_steps, 10)
        assert f'{refused}\n' in caplog.text
        assert 'using the older step 10' in caplog.text
        path.write_bytes(whole)
    caplog.clear()
    assert_loads(two_steps, 20)
    assert not caplog.text


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b'')


def remove(path):
    path.unlink()


def grow(path):
    path.write_bytes(path.read_bytes() + b'\0')


@pytest.mark.parametrize('damage', [truncate, empty, remove, grow])
def test_a_truncated_missing_or_longer_file_is_named(two_steps, damage):
    for path in files_of(two_steps / '20'):
        whole = path.read_bytes()
        damage(path)
        newest, [refused] = checkpoint._newest_good(epath.Path(two_steps))
        assert newest == 10
        assert path.name in str(refused)
        if damage is not remove and path.name != checkpoint.MANIFEST:
            assert f'bytes instead of {len(whole)}' in str(refused)
        path.write_bytes(whole)
    assert_loads(two_steps, 20)


def test_an_extra_file_is_named(two_steps, caplog):
    (two_steps / '20' / 'state' / 'd' / 'stray').write_bytes(b'')
    assert_loads(two_steps, 10)
    assert 'state/d/stray was added after the save' in caplog.text


@pytest.mark.parametrize('name', ['.DS_Store', 'state/.DS_Store', 'state/._manifest.ocdbt'])
def test_what_a_file_manager_leaves_damages_nothing(two_steps, name):
    (two_steps / '20' / name).write_bytes(b'left')
    assert_loads(two_steps, 20)


def test_a_step_under_another_number_is_damaged(two_steps):
    shutil.copytree(two_steps / '10', two_steps / '30')
    assert_loads(two_steps, 20)


def test_restore_sets_damage_aside_and_frees_its_number(two_steps, caplog):
    for n in range(2):
        truncate(two_steps / '20' / 'commit_success.txt')
        assert restored_step(two_steps) == 10
        assert f'to damaged-20-{n}' in caplog.text
        assert names(two_steps) == ['10', *(f'damaged-20-{i}' for i in range(n + 1))]
        Checkpointer(two_steps, keep=3).save(20, make_state(20), {'best': 20 / 3})
        assert_loads(two_steps, 20)


def test_with_nothing_but_damage_it_fails_each_time(two_steps):
    truncate(two_steps / '10' / 'commit_success.txt')
    remove(two_steps / '20' / 'state' / '_METADATA')
    for _ in range(2):  # the second start must not take the emptied folder for a new run
        with pytest.raises(UserError, match='no good checkpoint left') as error:
            restored_step(two_steps)
        assert 'state/_METADATA is missing' in str(error.value)
        assert 'commit_success.txt has' in str(error.value)
        assert f'move {two_steps} away to start from scratch' in str(error.value)
        assert names(two_steps) == ['10', '20']


def test_damage_beside_an_incomplete_step_is_not_a_fresh_start(two_steps):
    remove(two_steps / '20' / checkpoint.MANIFEST)
    truncate(two_steps / '10' / 'commit_success.txt')
    with pytest.raises(UserError, match='20 is incomplete.*10 is damaged'):
        restored_step(two_steps)


def test_incomplete_steps_alone_are_a_fresh_start(two_steps, caplog):
    for step in ('10', '20'):
        remove(two_steps / step / checkpoint.MANIFEST)
    with pytest.raises(MissingError, match='no finished checkpoint'):
        load(two_steps, make_state(0))
    assert names(two_steps) == ['10', '20']  # load only reads
    assert restored_step(two_steps) is None
    assert 'starting from scratch' in caplog.text
    assert names(two_steps) == ['incomplete-10-0', 'incomplete-20-0']
    Checkpointer(two_steps).save(10, make_state(10), {})
    assert restored_step(two_steps) == 10


def test_an_empty_folder_is_a_fresh_start(tmp_path, caplog):
    assert restored_step(tmp_path / 'new') is None
    assert not caplog.text
    with pytest.raises(MissingError, match='elsewhere; train first'):
        load(tmp_path / 'elsewhere', make_state(0))


# A save that does not finish


class Killed(BaseException):
    """Passes every `except Exception`, so the disk stays as a kill would leave it."""


# A name, and which sync: in the data, its folders, the manifest before and after its rename.
PLACES = [('_METADATA', 1), ('new', 1), ('folder', 1), ('.manifest.json', 1), ('new', 2)]


@contextlib.contextmanager
def sync_fails(place, new, error):
    """Raises `error` at one of PLACES in a save to the step folder `new`."""
    name, number = place
    at = {'new': new, 'folder': new.parent}.get(name)
    sync, seen = storage.sync, []

    def failing_sync(path):
        if path == at or path.name.startswith(name):
            seen.append(path)
            if len(seen) == number:
                raise error
        sync(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, 'sync', failing_sync)
        yield


@pytest.mark.parametrize('place', PLACES)
def test_killed_between_writes_it_has_the_old_step_or_all_of_the_new(two_steps, place, caplog):
    with sync_fails(place, two_steps / '30', Killed()), pytest.raises(Killed):
        Checkpointer(two_steps).save(30, make_state(30), {})
    renamed = place == ('new', 2)
    assert restored_step(two_steps) == (30 if renamed else 20)
    assert ('30 is incomplete: it has no manifest.json' in caplog.text) != renamed
    assert 'damaged' not in caplog.text
    Checkpointer(two_steps).save(40, make_state(40), {})
    assert restored_step(two_steps) == 40


def test_killed_while_an_old_step_is_removed(two_steps, monkeypatch):
    """A half-removed step would look damaged if its manifest were still there."""
    monkeypatch.setattr(shutil, 'rmtree', lambda folder: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        Checkpointer(two_steps).save(30, make_state(30), {'best': 30 / 3})
    monkeypatch.undo()
    assert_loads(two_steps, 30)
    assert not (two_steps / '10' / checkpoint.MANIFEST).exists()
    Checkpointer(two_steps).save(40, make_state(40), {})
    assert names(two_steps) == ['30', '40']


@pytest.mark.parametrize('place', PLACES)
def test_a_disk_error_at_any_write_loses_nothing_older(two_steps, place):
    checkpoints = Checkpointer(two_steps)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    message = r'could not save step 30 .*No space left on device.*untouched: \[10, 20\]'
    with (
        sync_fails(place, two_steps / '30', full),
        pytest.raises(CheckpointError, match=message),
    ):
        checkpoints.save(30, make_state(30), {})
    assert names(two_steps) == ['10', '20']
    assert_loads(two_steps, 20)
    checkpoints.save(30, make_state(30), {})
    assert restored_step(two_steps) == 30


# Orbax's worker threads outlive its event loop when a write fails.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('limit', [0, 30, 400, 3000, 20_000])
def test_a_file_size_limit_loses_nothing_older(two_steps, limit):
    checkpoints = Checkpointer(two_steps)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    noise = np.random.default_rng(0).normal(size=30_000)  # does not compress
    big = make_state(30).replace(batch_stats={'mean': jnp.asarray(noise, jnp.float32)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(CheckpointError, match=r'could not save step 30 .*File too large'):
            checkpoints.save(30, big, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert checkpoints.steps() == [10, 20]
    assert_loads(two_steps, 20)
    checkpoints.save(30, big, {})  # with room again, the same object goes on
    checkpoints.verify(big)


def test_a_writer_that_outlives_a_failed_save_leaves_nothing(two_steps, monkeypatch):
    """What Orbax does now and then, here each time: the folder is back after its removal."""
    folder = two_steps / f'30{ocp.utils.TMP_DIR_SUFFIX}'
    writer = threading.Timer(0.1, folder.mkdir, kwargs={'exist_ok': True})

    def save(*args, **kwargs):
        folder.mkdir()
        writer.start()
        raise ValueError('it said no')

    monkeypatch.setattr(ocp.AsyncCheckpointer, 'save', save)
    with pytest.raises(CheckpointError, match=r'step 30 .*\(it said no\)'):
        Checkpointer(two_steps).save(30, make_state(30), {})
    writer.join()
    assert names(two_steps) == ['10', '20']


def test_a_bucket_lost_in_a_save_is_told_in_a_line(tmp_path, monkeypatch):
    def unlink(path, missing_ok=False):
        raise Exception('Cannot connect\nto host')  # s3fs has exceptions of its own

    checkpoints = Checkpointer(tmp_path)
    checkpoints.directory = epath.Path('gs://bucket/run')
    monkeypatch.setattr(type(checkpoints.directory), 'unlink', unlink)
    with pytest.raises(UnreachableError, match='^cannot reach gs://bucket/run: Cannot connect to'):
        checkpoints._failed(30, OSError('Cannot connect'))


def test_leftovers_of_a_crashed_save_go_at_the_next_start(two_steps):
    leftover = two_steps / f'30{ocp.utils.TMP_DIR_SUFFIX}' / 'state'
    leftover.mkdir(parents=True)
    assert_loads(two_steps, 20)
    assert leftover.exists()  # load only reads: a trainer may be writing there
    assert Checkpointer(two_steps).steps() == [10, 20]
    assert names(two_steps) == ['10', '20']


TRAINER = """
import sys
import jax.numpy as jnp
from se_flax.training.checkpoint import Checkpointer

def make(step):
    return {'step': jnp.int32(step), 'w': jnp.arange(200_000.0) * step, 'b': jnp.full(5, step)}

checkpoints = Checkpointer(sys.argv[1])
restored = checkpoints.restore(make(0))
step = 0
if restored:
    state, progress = restored
    step = int(state['step'])
    assert all((state[k] == v).all() for k, v in make(step).items()), step
    assert progress == {'step': step}
print(step, flush=True)
while True:
    step += 1
    checkpoints.save(step, make(step), {'step': step})
    print(step, flush=True)
"""


@pytest.mark.faults
def test_killed_at_random_moments_it_goes_on_from_a_good_step(tmp_path):
    rng = random.Random(0)
    reached = 0
    for _ in range(4):
        trainer = subprocess.Popen(
            [sys.executable, '-c', TRAINER, tmp_path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            started, *saved = (trainer.stdout.readline() for _ in range(1 + rng.randint(1, 3)))
            time.sleep(rng.uniform(0, 0.2))  # of the next save or the one after
        finally:
            trainer.send_signal(signal.SIGKILL)
            _, errors = trainer.communicate()
        assert all(saved), errors
        assert int(started) == reached  # whatever an earlier process had finished, and no less
        whole = [p for p in tmp_path.glob(f'*/{checkpoint.MANIFEST}') if p.parent.name.isdecimal()]
        reached = max(int(path.parent.name) for path in whole)
        assert reached >= int(saved[-1])


# In the background


@contextlib.contextmanager
def held_at(place):
    """Stops a save in the background at the sync of `place`; yields the event that frees it."""
    sync, reached, free = storage.sync, threading.Event(), threading.Event()

    def waiting_sync(path):
        if path.name == place:
            reached.set()
            assert free.wait(60)
        sync(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, 'sync', waiting_sync)
        yield reached, free


@pytest.mark.parametrize('count', [1, 8])
def test_training_continues_on_the_memory_that_is_being_saved(two_steps, count):
    double = jax.jit(lambda state: jax.tree.map(lambda x: x + x, state), donate_argnums=0)
    state = make_state(30, sharding=on_devices(count))
    with held_at('_METADATA') as (reached, free):
        with Checkpointer(two_steps, background=True) as checkpoints:
            checkpoints.save(30, state, {'best': 30 / 3})
            for _ in range(3):
                state = jax.block_until_ready(double(state))
            assert reached.wait(60)
            assert_loads(two_steps, 20)  # incomplete until its manifest is there
            assert names(two_steps) == ['10', '20', '30']  # and until then the oldest is kept
            free.set()
        assert_loads(two_steps, 30)
        assert names(two_steps) == ['20', '30']


PRIORITIES = """
import contextlib, os, pathlib, sys
import jax.numpy as jnp
from se_flax.training.checkpoint import Checkpointer

def priorities():
    found = {}
    for task in pathlib.Path('/proc/self/task').iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            found[task.name] = os.getpriority(os.PRIO_PROCESS, int(task.name))
    return found

state = {f'w{i}': jnp.ones((300, 3000)) for i in range(100)}
before = priorities()
with Checkpointer(sys.argv[1], background=True) as checkpoints:
    checkpoints.save(1, state, {})
    during = priorities()
print(*(during[task] for task in during.keys() - before))
print(*(during[task] for task in during.keys() & before))
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux has a priority for each thread')
def test_writers_in_the_background_give_way(tmp_path, environ):
    command = [sys.executable, '-c', PRIORITIES, tmp_path]
    done = subprocess.run(command, env=environ, text=True, capture_output=True, check=True)
    writers, others = ({int(each) for each in line.split()} for line in done.stdout.splitlines())
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    assert (writers, others) == ({min(ours + 10, 19)}, {ours})


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('by', ['save', 'exit'])
def test_a_failed_save_in_the_background_is_raised_with_its_step(two_steps, place, by):
    checkpoints = Checkpointer(two_steps, background=True)
    save = partial(checkpoints.save, 40, make_state(40), {})
    then = {'save': save, 'exit': partial(checkpoints.__exit__, None, None, None)}[by]
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    message = r'could not save step 30 .*No space left on device.*untouched: \[10, 20\]'
    with sync_fails(place, two_steps / '30', full):
        checkpoints.save(30, make_state(30), {})
        with pytest.raises(CheckpointError, match=message):
            then()
    assert names(two_steps) == ['10', '20']
    assert_loads(two_steps, 20)


def test_a_save_that_fails_while_the_processes_ask_is_raised(two_steps, monkeypatch):
    checkpoints, writing = Checkpointer(two_steps), concurrent.futures.Future()
    writing.set_exception(CheckpointError('it said no'))
    answers = iter([False])  # it fails just after the first question
    monkeypatch.setattr(writing, 'done', lambda: next(answers, True))
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(checkpoint, 'all_gather', lambda number: [number, 1])
    checkpoints._saving = 30, writing
    with pytest.raises(CheckpointError, match='it said no'):
        checkpoints.wait()


# Refusals


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            {'head': (4, 5)},
            r'params/head/kernel is bfloat16\[4, 3\] there, bfloat16\[4, 5\] here',
        ),
        ({'extra': 2}, r'params/extra is absent there, float32\[2\] here \(1 of 7 leaves'),
        ({'conv': None}, r'params/conv/kernel is float32\[3, 3, 2, 4\] there, absent here'),
    ],
)
def test_the_state_of_another_model_is_refused(two_steps, change, message):
    target = make_state(0)
    params = dict(target.params)
    for name, shape in change.items():
        if shape is None:
            del params[name]
        elif name in params:
            params[name] = {'kernel': jnp.zeros(shape, jnp.bfloat16)}
        else:
            params[name] = jnp.zeros(shape)
    with pytest.raises(UserError, match=message):
        Checkpointer(two_steps).restore(target.replace(params=params))
    assert names(two_steps) == ['10', '20']


def test_another_dtype_is_refused_not_cast(two_steps):
    target = jax.tree.map(lambda x: x.astype(jnp.float32), make_state(0))
    with pytest.raises(UserError, match=r'step is int32\[\] there, float32\[\] here'):
        load(two_steps, target)


@pytest.mark.parametrize(
    ('leaf', 'kind'),
    [
        (np.float32(1), 'float32'),
        (np.zeros(2), 'ndarray'),
        (1.5, 'float'),
        (jax.random.key(0), r'key<fry>'),
    ],
)
def test_only_arrays_of_numbers_are_saved(two_steps, leaf, kind):
    with pytest.raises(UserError, match=f'state leaf a/rate is a {kind}; only a jax.Array'):
        Checkpointer(two_steps).save(30, {'a': {'rate': leaf}}, {})
    assert names(two_steps) == ['10', '20']


def test_progress_that_is_not_json_is_refused(two_steps):
    with pytest.raises(UserError, match='cannot be written as JSON: .*float32'):
        Checkpointer(two_steps).save(30, make_state(30), {'best': np.float32(1)})
    assert names(two_steps) == ['10', '20']


@pytest.mark.parametrize('step', [-1, 15, 20])
def test_a_step_must_be_above_the_newest(two_steps, step):
    with pytest.raises(CheckpointError, match=f'step {step} must be above 20'):
        Checkpointer(two_steps).save(step, make_state(0), {})
    assert_loads(two_steps, 20)


def test_one_checkpoint_is_too_few(tmp_path):
    with pytest.raises(UserError, match='keep=1 .* keep 2'):
        Checkpointer(tmp_path, keep=1)


# After the last save


def test_verify_reads_the_newest_step_anew(two_steps):
    checkpoints = Checkpointer(two_steps)
    checkpoints.verify(make_state(20))
    with pytest.raises(CheckpointError, match='differs from the state in memory at step'):
        checkpoints.verify(make_state(10))
    minus = make_state(20)
    minus = minus.replace(batch_stats={'mean': minus.batch_stats['mean'].at[3].add(2e-6)})
    with pytest.raises(CheckpointError, match='at batch_stats/mean'):
        checkpoints.verify(minus)
    truncate(two_steps / '20' / 'commit_success.txt')
    with pytest.raises(CheckpointError, match=r'20 is damaged: commit_success.txt has'):
        checkpoints.verify(make_state(20))


def test_verify_without_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match='no checkpoint in'):
        Checkpointer(tmp_path).verify(make_state(0))


# Around it


def test_is_quiet(tmp_path):
    """Nothing of Orbax at level INFO, no warning, in a process that logs everything."""
    script = """
        import logging, sys
        logging.basicConfig(level=logging.INFO)
        import jax.numpy as jnp
        from absl import logging as absl_logging
        from se_flax.training.checkpoint import Checkpointer
        checkpoints = Checkpointer(sys.argv[1])
        state = {'w': jnp.ones(3)}
        checkpoints.save(1, state, {})
        checkpoints.restore(state)
        checkpoints.verify(state)
        absl_logging.info('of somebody else')
    """
    run = [sys.executable, '-c', textwrap.dedent(script), tmp_path]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if 'jax._src' not in line]
    assert lines == ['INFO:absl:of somebody else']


def test_the_manifest_is_readable(two_steps):
    manifest = json.loads((two_steps / '20' / checkpoint.MANIFEST).read_text())
    assert manifest['step'] == 20
    assert manifest['progress'] == {'best': 20 / 3}
    assert manifest['leaves']['params/conv/kernel'] == 'float32[3, 3, 2, 4]'
    assert manifest['files'].keys() == {
        path.relative_to(two_steps / '20').as_posix()
        for path in files_of(two_steps / '20')
        if path.name != checkpoint.MANIFEST
    }
