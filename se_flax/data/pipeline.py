"""Batches addressed by number: batch k is a pure function of the seed and k.

Position i of a run is an example by (seed, i) (`se_flax.data.sampling`), seen through random
numbers keyed `(seed, i)`. Global batch k holds positions `[k B, (k + 1) B)`, and process p of P
makes the p-th contiguous P-th of it. So to resume is to start at k, and neither the number of
processes nor of threads or workers changes a pixel.

One task makes a chunk of a batch, up to 128 images, in one array. Memory does not grow with the
run: up to `buffer = max(2 num_threads, chunks of 2 batches)` chunks are held, `buffer * 128 *
channels * image_size**2` bytes, 19 MB a chunk at 224; where a batch is several chunks, one more
batch while they are joined; the image that each thread is at; and the orders of four epochs and a
fifth while it is drawn, `40 N` bytes, 51 MB for ImageNet. With workers each has so much
(benchmarks/results/input.md).
"""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cv2
import grain
import numpy as np
from absl import flags

from se_flax.data.dataset import Dataset
from se_flax.data.decode import NO_MEMORY, DecodeError
from se_flax.data.sampling import ClassAware, Shuffle, make_sampler
from se_flax.data.transforms import EvalTransform, TrainTransform, View
from se_flax.data.views import Squash
from se_flax.errors import UserError, check_multiple

logger = logging.getLogger(__name__)
CHUNK = 128  # images; beyond it a chunk only takes memory
Batch = dict[str, np.ndarray]


def train_batches(
    dataset: Dataset,
    transform: TrainTransform,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    sampling: str = 'shuffle',
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int | None = None,
    num_workers: int = 0,
    max_corrupt: float = 0.01,
) -> Iterator[Batch]:
    """Makes this process's part of batches `start_step` to `num_steps - 1`.

    A batch is `{'image': uint8 [b, S, S, C], 'label': int32 [b]}`, where `b` is the global
    `batch_size / process_count`. Epochs follow each other without a gap, so a batch may hold the
    end of one and the start of the next. `sampling` is 'shuffle', each example once an epoch, or
    'class_aware', each class equally often (`se_flax.data.sampling`), for which each process reads
    the label of every example first.

    Threads (by default one a core) decode; `num_workers` processes, with so many threads each,
    do it instead where one process's Python is the limit.

    A record that cannot be decoded is logged once and replaced by the next one in the data set
    that can. More than `max_corrupt` of the data set's records, though always one, stop the run.
    Each process, and each start, counts those it has met.

    Raises UserError where `process_count` does not divide `batch_size`, for an unknown `sampling`,
    and, on the way, with the records' names, for too many of them that cannot be decoded.
    """
    layout = _Layout.of(batch_size, process_index, process_count)
    allowed = _allowed(dataset, max_corrupt)
    sampler = make_sampler(sampling, dataset, seed)
    task = _TrainChunk(dataset, transform, layout, sampler, seed, allowed)
    chunks = _run(task, layout, start_step, num_steps, num_threads, num_workers)
    batches = _account(chunks, dataset, allowed, 'replaced by the next one')
    return ({'image': chunk.image, 'label': chunk.label} for chunk in batches)


def eval_batches(
    dataset: Dataset,
    transform: EvalTransform | Squash,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int | None = None,
    max_corrupt: float | None = 0.01,
) -> Iterator[Batch]:
    """Makes this process's part of the batches that hold each example once, in order.

    A batch is that of `train_batches` with a `'mask': bool [b]`, False for padding and for a
    record that cannot be decoded. Each process makes `ceil(N / batch_size)` batches of one shape.
    Without `max_corrupt` any number of them may be.

    Raises as `train_batches` does.
    """
    layout = _Layout.of(batch_size, process_index, process_count)
    allowed = len(dataset) if max_corrupt is None else _allowed(dataset, max_corrupt)
    num_steps = -(-len(dataset) // batch_size)
    chunks = _run(_EvalChunk(dataset, transform, layout), layout, 0, num_steps, num_threads)
    batches = _account(chunks, dataset, allowed, 'left out')
    return ({'image': chunk.image, 'label': chunk.label, 'mask': chunk.mask} for chunk in batches)


class _Chunk(NamedTuple):
    """Consecutive rows of a batch; `corrupt` has the reason by the example's position."""

    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray
    corrupt: dict[int, str]

    @classmethod
    def empty(cls, rows: int, view: View) -> '_Chunk':
        image = np.zeros((rows, view.image_size, view.image_size, view.channels), np.uint8)
        return cls(image, np.zeros(rows, np.int32), np.zeros(rows, bool), {})


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Which positions of the run make a chunk of this process."""

    batch_size: int
    first: int  # row of the global batch
    rows: int  # of each batch
    chunks: int  # of each batch

    @classmethod
    def of(cls, batch_size: int, process_index: int, process_count: int) -> '_Layout':
        check_multiple('batch_size', batch_size, 'process_count', process_count)
        rows = batch_size // process_count
        return cls(batch_size, process_index * rows, rows, -(-rows // CHUNK))

    def positions(self, number: int) -> range:
        step, part = divmod(number, self.chunks)
        start = step * self.batch_size + self.first
        edges = [start + self.rows * p // self.chunks for p in (part, part + 1)]
        return range(*edges)


@dataclasses.dataclass(frozen=True)
class _TrainChunk:
    dataset: Dataset
    transform: TrainTransform
    layout: _Layout
    sampler: Shuffle | ClassAware
    seed: int
    allowed: int

    def __call__(self, number: int) -> _Chunk:
        positions = self.layout.positions(number)
        chunk = _Chunk.empty(len(positions), self.transform)
        bits = np.random.Philox(key=(self.seed, 0))
        rng, start = np.random.Generator(bits), bits.state
        for row, position in enumerate(positions):
            index = self.sampler(position)
            # The same numbers as from a new Philox of this key, at a tenth of the time.
            start['state']['key'][1] = position
            bits.state = start
            # Past `allowed` the run is about to stop: no more need to look for a whole image.
            while len(chunk.corrupt) <= self.allowed and not _load(self, chunk, row, index, rng):
                index = (index + 1) % len(self.dataset)
        return chunk


@dataclasses.dataclass(frozen=True)
class _EvalChunk:
    dataset: Dataset
    transform: EvalTransform | Squash
    layout: _Layout

    def __call__(self, number: int) -> _Chunk:
        positions = self.layout.positions(number)
        chunk = _Chunk.empty(len(positions), self.transform)
        for row, index in enumerate(positions):
            if index < len(self.dataset):
                _load(self, chunk, row, index, None)
        return chunk


def _load(
    task: _TrainChunk | _EvalChunk,
    chunk: _Chunk,
    row: int,
    index: int,
    rng: Any,  # a Generator, but None in evaluation
) -> bool:
    """Fills a row with an example; False, and noted in `corrupt`, where it cannot be decoded."""
    try:
        image, chunk.label[row] = task.dataset.read(index)
        task.transform(task.transform.decode(image), rng, chunk.image[row])
    except (DecodeError, cv2.error, MemoryError) as error:  # the last two in resizing
        chunk.corrupt[index] = str(error) or NO_MEMORY
        return False
    chunk.mask[row] = True
    return True


def _run(
    task: Callable[[int], _Chunk],
    layout: _Layout,
    start_step: int,
    num_steps: int,
    num_threads: int | None,
    num_workers: int = 0,
) -> Iterator[_Chunk]:
    """Runs the tasks of a range of steps ahead of the consumer; yields whole batches in order."""
    if num_steps <= start_step:
        return iter(())
    num_threads = num_threads or len(os.sched_getaffinity(0))
    ahead = grain.ReadOptions(num_threads, max(2 * num_threads, 2 * layout.chunks))
    numbers = grain.MapDataset.range(start_step * layout.chunks, num_steps * layout.chunks)
    chunks = numbers.map(task).to_iter_dataset(ahead)
    if num_workers:
        if not flags.FLAGS.is_parsed():  # Grain reads its flags, also outside of absl's app.run
            flags.FLAGS.mark_as_parsed()
        chunks = chunks.mp_prefetch(grain.MultiprocessingOptions(num_workers))
    return iter(chunks.batch(layout.chunks, batch_fn=_join))


def _join(chunks: list[_Chunk]) -> _Chunk:
    if len(chunks) == 1:
        return chunks[0]
    images, labels, masks, corrupt = zip(*chunks, strict=True)
    return _Chunk(
        np.concatenate(images),
        np.concatenate(labels),
        np.concatenate(masks),
        functools.reduce(dict.__or__, corrupt),
    )


def _allowed(dataset: Dataset, max_corrupt: float) -> int:
    """Counts the records that may be corrupt: a share, but at least one and never all."""
    return min(max(int(max_corrupt * len(dataset)), 1), len(dataset) - 1)


def _account(
    batches: Iterator[_Chunk], dataset: Dataset, allowed: int, deed: str
) -> Iterator[_Chunk]:
    """Logs each corrupt record once and stops where there are more than `allowed`."""
    met = []
    for batch in batches:
        for index, reason in batch.corrupt.items():
            if index not in met:
                met.append(index)
                logger.warning('%s: %s; it is %s', dataset.key(index), reason, deed)
        if len(met) > allowed:
            keys = ', '.join(map(dataset.key, met[:20])) + (', ...' if len(met) > 20 else '')
            raise UserError(
                f'{len(met)} of {len(dataset)} records cannot be decoded, '
                f'max_corrupt allows {allowed}: {keys}'
            )
        yield batch
