"""Batches addressed by number: batch k is a pure function of the seed and k.

Position i of a run is an example chosen by (seed, i) (`se_flax.data.sampling`), transformed with
random numbers keyed by (seed, i). Global batch k holds positions `[k B, (k + 1) B)`, and process p
of P makes the p-th contiguous P-th of it. To resume is therefore to start at k, and the numbers of
processes, threads and workers do not change a pixel.

One task makes a chunk of a batch, up to 128 images. Each worker keeps `max(2 num_threads, chunks of
2 batches)` chunks, 19 MB each at 224 pixels, and `40 N` bytes of epochs' orders, 51 MB for ImageNet
(benchmarks/results/input.md).
"""

import functools
import logging
import signal
from collections.abc import Iterator
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags

from se_flax.data.dataset import Dataset, cores, end_with_parent
from se_flax.data.decode import NO_MEMORY, DecodeError
from se_flax.data.sampling import make_sampler, repeated
from se_flax.data.transforms import EvalTransform, Squash, TrainTransform
from se_flax.errors import UserError, check_multiple

logger = logging.getLogger(__name__)
CHUNK = 128  # images; larger chunks only take memory
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
    repeats: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int | None = None,
    num_workers: int = 0,
    max_corrupt: float = 0.01,
) -> Iterator[Batch]:
    """Makes this process's part of batches `start_step` to `num_steps - 1`.

    A batch is `{'image': uint8 [b, S, S, C], 'label': int32 [b]}` with `b = batch_size /
    process_count`; it may hold the end of an epoch and the start of the next. With `repeats` above
    1 it has fewer images, each that many times, see `sampling.repeated`. `num_threads` (default:
    one per core) decode; `num_workers` processes with as many threads each do so instead.

    A corrupt record is logged once and replaced by the next readable one. Raises UserError if
    `process_count` does not divide `batch_size`, for a `sampling` that is not in SAMPLINGS, and,
    while iterating, for more corrupt records than the share `max_corrupt`; one is always allowed.
    """
    part = batch_size, process_index, process_count
    loader = _TrainLoader(sampling, repeats, seed, dataset, transform, part, max_corrupt)
    batches = loader.run(range(start_step, num_steps), num_threads, num_workers)
    return ({'image': batch['image'], 'label': batch['label']} for batch in batches)


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

    Like `train_batches`, but a batch also has a `'mask': bool [b]`, False for padding and corrupt
    records. Each process makes `ceil(N / batch_size)` batches of one shape. With `max_corrupt=None`
    any number of records may be corrupt.
    """
    part = batch_size, process_index, process_count
    loader = _Loader(dataset, transform, part, max_corrupt)
    return loader.run(range(-(-len(dataset) // batch_size)), num_threads)


Chunk = tuple[Batch, dict[int, str]]  # rows of a batch; why an example is corrupt, by position


class _Loader:
    """Makes this process's batches of the examples in order; a call makes one chunk."""

    consequence = 'skipped'  # for being corrupt

    def __init__(
        self, dataset: Dataset, transform: Any, part: tuple[int, ...], max_corrupt: float | None
    ):
        self.dataset, self.transform = dataset, transform
        self.batch_size, process_index, process_count = part
        check_multiple('batch_size', self.batch_size, 'process_count', process_count)
        self.rows = self.batch_size // process_count
        self.first = process_index * self.rows
        self.chunks = -(-self.rows // CHUNK)  # of a batch
        self.allowed = len(dataset)  # corrupt records
        if max_corrupt is not None:
            self.allowed = min(max(int(max_corrupt * len(dataset)), 1), len(dataset) - 1)

    def __call__(self, number: int) -> Chunk:
        step, part = divmod(number, self.chunks)
        start = step * self.batch_size + self.first
        edges = [start + self.rows * p // self.chunks for p in (part, part + 1)]
        rows, size = edges[1] - edges[0], self.transform.image_size
        batch = {
            'image': np.zeros((rows, size, size, self.transform.channels), np.uint8),
            'label': np.zeros(rows, np.int32),
            'mask': np.zeros(rows, bool),
        }
        chunk: Chunk = batch, {}
        self.fill(chunk, range(*edges))
        return chunk

    def fill(self, chunk: Chunk, positions: range) -> None:
        for row, index in enumerate(positions):
            if index < len(self.dataset):
                self.load(chunk, row, index, None)

    def load(self, chunk: Chunk, row: int, index: int, rng: np.random.Generator | None) -> bool:
        """Fills a row with an example; returns False, and notes why, if it is corrupt."""
        batch, corrupt = chunk
        try:
            image, batch['label'][row] = self.dataset.read(index)
            self.transform(self.transform.decode(image), rng, batch['image'][row])
        except (DecodeError, cv2.error, MemoryError) as error:  # the last two in resizing
            corrupt[index] = str(error) or NO_MEMORY
            return False
        batch['mask'][row] = True
        return True

    def run(self, steps: range, num_threads: int | None, num_workers: int = 0) -> Iterator[Batch]:
        """Yields batches made ahead; logs each corrupt record once, stops if there are too many."""
        if not steps:
            return
        num_threads = num_threads or cores()
        ahead = grain.ReadOptions(num_threads, max(2 * num_threads, 2 * self.chunks))
        numbers = grain.MapDataset.range(steps.start * self.chunks, steps.stop * self.chunks)
        chunks = numbers.map(self).to_iter_dataset(ahead)
        if num_workers:
            if not flags.FLAGS.is_parsed():  # Grain reads its flags, even without absl's app.run
                flags.FLAGS.mark_as_parsed()
            workers = grain.MultiprocessingOptions(num_workers)
            chunks = chunks.mp_prefetch(workers, worker_init_fn=_start_worker)
        met: list[int] = []
        for batch, corrupt in chunks.batch(self.chunks, batch_fn=_join):
            for index, reason in corrupt.items():
                if index not in met:
                    met.append(index)
                    key = self.dataset.key(index)
                    logger.warning('%s: %s; %s', key, reason, self.consequence)
            if len(met) > self.allowed:
                keys = ', '.join(map(self.dataset.key, met[:20]))
                raise UserError(
                    f'{len(met)} of {len(self.dataset)} records cannot be decoded; max_corrupt '
                    f'allows {self.allowed}: {keys}{", ..." if len(met) > 20 else ""}'
                )
            yield batch


class _TrainLoader(_Loader):
    """Makes batches of sampled examples, with random transforms."""

    consequence = 'replaced by the next image'

    def __init__(self, sampling: str, repeats: int, seed: int, dataset: Dataset, *args: Any):
        super().__init__(dataset, *args)
        sampler = make_sampler(sampling, dataset, seed)
        self.sampler, self.seed = repeated(sampler, repeats, self.batch_size), seed

    def fill(self, chunk: Chunk, positions: range) -> None:
        bits = np.random.Philox(key=(self.seed, 0))
        rng, start = np.random.Generator(bits), bits.state
        for row, position in enumerate(positions):
            index = self.sampler(position)
            # The same numbers as from a new Philox of this key, in a tenth of the time.
            start['state']['key'][1] = position
            bits.state = start
            # Beyond `allowed` the run is about to stop, so no further image is tried.
            while len(chunk[1]) <= self.allowed and not self.load(chunk, row, index, rng):
                index = (index + 1) % len(self.dataset)


def _start_worker(index: int, count: int) -> None:
    # Terminals and SLURM signal all processes of a run; the first stops at a step, with its data.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def _join(chunks: list[Chunk]) -> Chunk:
    if len(chunks) == 1:
        return chunks[0]
    batches, corrupt = zip(*chunks, strict=True)
    joined = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    return joined, functools.reduce(dict.__or__, corrupt)
