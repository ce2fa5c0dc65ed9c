import logging
import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from se_flax.data import (
    EvalTransform,
    TrainTransform,
    decode_all,
    eval_batches,
    open_dataset,
    train_batches,
)
from se_flax.data.dataset import Dataset
from se_flax.data.decode import DecodeError
from se_flax.errors import UserError

pytestmark = pytest.mark.quick

AUGMENT = TrainTransform(12, crop_area=(0.2, 1.0), cutout=3)
PLAIN = TrainTransform(1, 'none', flip=False)


class Numbered(Dataset):
    """Example i is one pixel that holds i, with label i; those in `bad` cannot be read."""

    def __init__(self, size, bad=()):
        super().__init__('numbered', 'train', tuple(map(str, range(size))))
        object.__setattr__(self, 'bad', frozenset(bad))

    def __len__(self):
        return self.num_classes

    def read(self, i):
        if i in self.bad:
            raise DecodeError('bit rot')
        return np.array([[[i % 256, i // 256, 7]]], np.uint8), i


def train(dataset, transform=PLAIN, batch_size=8, start=0, steps=6, seed=3, **options):
    return list(
        train_batches(
            dataset,
            transform,
            batch_size=batch_size,
            seed=seed,
            start_step=start,
            num_steps=steps,
            **options,
        )
    )


def evaluate(dataset, batch_size=8, **options):
    return list(eval_batches(dataset, EvalTransform(1), batch_size=batch_size, **options))


def labels(batches):
    return np.concatenate([batch['label'] for batch in batches]).tolist()


def assert_equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])


@pytest.fixture(scope='module')
def photos():
    return open_dataset('synthetic', 'train')


@pytest.fixture(scope='module')
def large(photos):
    """Batches of three chunks each."""
    return train(photos, AUGMENT, 260, steps=3, num_threads=1)


def test_shapes_and_dtypes(photos):
    (batch,) = train(photos, AUGMENT, batch_size=6, steps=1)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        'image': ((6, 12, 12, 3), np.uint8),
        'label': ((6,), np.int32),
    }


@given(size=st.integers(1, 400), batch_size=st.integers(1, 300), seed=st.integers(0, 2**63))
@settings(max_examples=30, deadline=None)
@example(size=1, batch_size=300, seed=0)
def test_each_epoch_is_a_permutation(size, batch_size, seed):
    steps = -(-3 * size // batch_size)
    order = labels(train(Numbered(size), batch_size=batch_size, steps=steps, seed=seed))
    epochs = [order[e * size : (e + 1) * size] for e in range(3)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    if size > 20:
        assert epochs[0] != epochs[1] != epochs[2]
        assert epochs[0] != list(range(size))


def test_images_go_with_their_labels():
    for batch in train(Numbered(700), batch_size=300, steps=3):
        pixels = batch['image'][:, 0, 0].astype(int)
        np.testing.assert_array_equal(pixels[:, 0] + 256 * pixels[:, 1], batch['label'])


@pytest.mark.parametrize('start', [1, 4, 6, 9])
def test_a_start_at_k_is_the_rest_of_the_run(photos, start):
    assert_equal(train(photos, AUGMENT, start=start), train(photos, AUGMENT)[start:])


def test_a_late_start_is_cheap(photos):
    assert len(train(photos, AUGMENT, start=10**9, steps=10**9 + 2)) == 2


@pytest.mark.parametrize('count', [2, 4])
def test_processes_slice_the_batch(photos, large, count):
    """The chunks depend on the number of processes."""
    parts = [
        train(photos, AUGMENT, 260, steps=3, process_index=p, process_count=count)
        for p in range(count)
    ]
    joined = [
        {key: np.concatenate([b[key] for b in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_equal(joined, large)


def test_threads_change_nothing(photos, large):
    assert_equal(train(photos, AUGMENT, 260, steps=3, num_threads=4), large)


def test_workers_change_nothing(photos, large):
    workers = {'num_threads': 1, 'num_workers': 2}
    assert_equal(train(photos, AUGMENT, 260, start=1, steps=3, **workers), large[1:])


@pytest.mark.faults
def test_workers_leave_signals_to_the_run(photos):
    """Terminals and SLURM signal all processes; a run reads on to the step at which it stops."""
    options = {'batch_size': 4, 'seed': 0, 'start_step': 0, 'num_steps': 100}
    batches = train_batches(photos, AUGMENT, **options, num_threads=1, num_workers=1)
    next(batches)
    [worker] = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(worker.pid, number)
    assert len(list(batches)) == 99


KILLED = """
import os, signal
from se_flax.data import TrainTransform, open_dataset, train_batches
options = {'batch_size': 4, 'seed': 0, 'start_step': 0, 'num_steps': 10**6, 'num_workers': 1}
next(train_batches(open_dataset('synthetic', 'train'), TrainTransform(8), **options))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.faults
def test_workers_end_with_a_run_that_is_killed():
    # The worker has the pipe, too, so to read it to its end waits for both.
    killed = subprocess.run([sys.executable, '-c', KILLED], stdout=subprocess.PIPE, timeout=60)
    assert killed.returncode == -signal.SIGKILL


def test_a_decoded_set_gives_the_same_batches(image_folder):
    dataset = open_dataset(f'folder:{image_folder}', 'train')
    assert_equal(train(decode_all(dataset), AUGMENT), train(dataset, AUGMENT))


def test_seed_and_position_change_the_view(photos):
    a, b = train(photos, AUGMENT, seed=1), train(photos, AUGMENT, seed=2)
    assert labels(a) != labels(b)
    one = Numbered(1)
    views = train(one, TrainTransform(9, 'none', flip=False, cutout=1), batch_size=40, steps=1)
    assert len({view.tobytes() for view in views[0]['image']}) > 20


@given(
    size=st.integers(1, 300),
    rows=st.integers(1, 150),
    count=st.integers(1, 4),
)
@example(size=300, rows=150, count=2)
@settings(max_examples=40, deadline=None)
def test_eval_covers_each_example_once(size, rows, count):
    parts = [
        evaluate(Numbered(size), rows * count, process_index=p, process_count=count)
        for p in range(count)
    ]
    assert {len(part) for part in parts} == {-(-size // (rows * count))}
    assert all(b['image'].shape == (rows, 1, 1, 3) for part in parts for b in part)
    steps = [batch for step in zip(*parts, strict=True) for batch in step]
    seen = np.concatenate([batch['label'][batch['mask']] for batch in steps])
    assert seen.tolist() == list(range(size))
    assert all((batch['image'][~batch['mask']] == 0).all() for batch in steps)


def test_corrupt_record_is_replaced_by_the_next(caplog):
    whole = labels(train(Numbered(300), batch_size=50, steps=12))
    with caplog.at_level(logging.WARNING):
        got = labels(train(Numbered(300, bad=[5, 299]), batch_size=50, steps=12))
    assert got == [{5: 6, 299: 0}.get(i, i) for i in whole]
    messages = sorted(record.getMessage() for record in caplog.records)
    assert messages == [
        'numbered/train/299: bit rot; replaced by the next image',
        'numbered/train/5: bit rot; replaced by the next image',
    ]


def test_corrupt_records_are_masked_in_eval_and_named(caplog):
    """A batch of 302 is three chunks."""
    (batch,) = evaluate(Numbered(300, bad=[0, 150, 299]), 302)
    assert np.flatnonzero(~batch['mask']).tolist() == [0, 150, 299, 300, 301]
    assert [record.getMessage() for record in caplog.records] == [
        f'numbered/train/{i}: bit rot; skipped' for i in (0, 150, 299)
    ]


@pytest.mark.parametrize('threads', [1, 4])
def test_too_many_corrupt_records_stop(threads):
    bad = range(100, 104)
    assert len(train(Numbered(400, bad), steps=50, num_threads=threads)) == 50
    with pytest.raises(UserError, match='5 of 400 records .* max_corrupt allows 4: numbered/tr'):
        train(Numbered(400, range(99, 104)), steps=50, num_threads=threads)
    with pytest.raises(UserError, match='allows 4: numbered/train/99, numbered/train/100, numb'):
        evaluate(Numbered(400, range(99, 104)), num_threads=threads)
    assert len(train(Numbered(400, range(99, 104)), steps=50, max_corrupt=0.02)) == 50


def test_where_it_stops_does_not_depend_on_threads():
    def stop(num_threads):
        options = {'batch_size': 16, 'seed': 0, 'start_step': 0, 'num_steps': 40}
        dataset, steps = Numbered(300, range(0, 300, 30)), []
        batches = train_batches(dataset, PLAIN, **options, num_threads=num_threads)
        with pytest.raises(UserError) as error:
            steps.extend(batches)
        return len(steps), str(error.value)

    assert stop(1) == stop(4)
    assert stop(1)[0] > 0


@pytest.mark.parametrize('size', [1, 2, 3, 200])
def test_nothing_but_corrupt_records_stops(size):
    with pytest.raises(UserError, match='cannot be decoded'):
        train(Numbered(size, range(size)), max_corrupt=1.0)


def test_one_corrupt_record_is_always_allowed():
    assert 1 not in labels(train(Numbered(3, bad=[1])))


def test_corrupt_file_is_named(image_folder, caplog):
    path = image_folder / 'train' / 'dog' / '0.JPEG'
    path.write_bytes(path.read_bytes()[:-20])
    train(open_dataset(f'folder:{image_folder}', 'train'), AUGMENT)
    assert str(path) in caplog.text


def test_batch_must_divide():
    with pytest.raises(UserError, match='batch_size=10 is not a multiple of process_count=4; use'):
        train(Numbered(9), batch_size=10, process_count=4)
    with pytest.raises(UserError, match=r'batch_size=-9 is not .*; use 4$'):
        train(Numbered(9), batch_size=-9, process_count=4)
    with pytest.raises(UserError, match='use 8 or 12'):
        evaluate(Numbered(9), 10, process_count=4)
