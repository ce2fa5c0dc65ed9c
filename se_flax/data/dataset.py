"""The interface of every data set: labelled images by position."""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from se_flax.data.decode import DecodeError, decode
from se_flax.errors import UserError

logger = logging.getLogger(__name__)
T = TypeVar('T')
SPAN = 1024  # most examples a task: ImageNet has too many for a task each


def cores() -> int:
    """Returns the number of cores that this process may use."""
    linux = hasattr(os, 'sched_getaffinity')
    return len(os.sched_getaffinity(0)) if linux else os.cpu_count() or 1


def end_with_parent() -> None:
    """Makes a worker process end when its parent does, however that ends."""

    def wait():
        parent = multiprocessing.parent_process()
        if parent:
            parent.join()
            os._exit(1)  # otherwise it waits for its parent forever

    threading.Thread(target=wait, daemon=True).start()


def map_examples(f: Callable[[int], T], count: int, threads: int | None = None) -> Iterator[T]:
    """Yields f(0) to f(count - 1), computed by threads (default: one per core)."""
    span = min(SPAN, 1 + count // 100)

    def of_span(start):
        return list(map(f, range(start, min(start + span, count))))

    with concurrent.futures.ThreadPoolExecutor(threads or cores()) as pool:
        yield from itertools.chain.from_iterable(pool.map(of_span, range(0, count, span)))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A split, 'train' or 'eval', of a data set; its length is the number of examples."""

    name: str
    split: str
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """The number of labels."""
        return len(self.class_names)

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, i: int) -> tuple[bytes | np.ndarray, int]:
        """Reads an image file or uint8 pixels `[H, W, C]`, and the label; may raise DecodeError."""
        raise NotImplementedError

    def key(self, i: int) -> str:
        """Returns the name of example `i` for messages."""
        return f'{self.name}/{self.split}/{i}'

    def fingerprint(self) -> str:
        """Returns a short hash of names and sizes in order; it does not depend on the location."""
        return digest([self.name, self.split, str(len(self)), *self.class_names])

    def labels(self) -> np.ndarray:
        """Reads every record for its label, int32 `[N]`; -1, with a warning, if unreadable."""

        def label(i):
            try:
                return self.read(i)[1]
            except DecodeError as error:
                logger.warning('%s: %s; it has no label', self.key(i), error)
                return -1

        return np.fromiter(map_examples(label, len(self)), np.int32, len(self))


def digest(names: Iterable[str]) -> str:
    """Returns 16 hexadecimal digits of SHA-256 of the names in order."""
    text = '\0'.join(names)
    return hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Subset(Dataset):
    """Some examples of a data set, in an order of their own."""

    original: Dataset
    positions: np.ndarray = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, i: int) -> tuple[bytes | np.ndarray, int]:
        return self.original.read(self.positions[i])

    def key(self, i: int) -> str:
        return self.original.key(self.positions[i])

    def fingerprint(self) -> str:
        return digest([self.original.fingerprint(), *map(str, self.positions)])


def draw(dataset: Dataset, count: int, seed: int) -> Dataset:
    """Returns `count` random examples; with one seed, a smaller draw is part of a larger one.

    Raises UserError if there are fewer.
    """
    if count > len(dataset):
        raise UserError(f'train_examples={count}, but {dataset.name} has {len(dataset):,}')
    positions = np.random.default_rng(seed).permutation(len(dataset))[:count]
    names = dataset.name, dataset.split, dataset.class_names
    return Subset(*names, dataset, positions)


@dataclasses.dataclass(frozen=True)
class DecodedDataset(Dataset):
    """A data set with its pixels in memory; None is an example that could not be decoded."""

    original: Dataset
    examples: list[tuple[np.ndarray, int] | None] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.examples)

    def read(self, i: int) -> tuple[bytes | np.ndarray, int]:
        return self.examples[i] or self.original.read(i)

    def key(self, i: int) -> str:
        return self.original.key(i)

    def fingerprint(self) -> str:
        return self.original.fingerprint()


def decode_all(dataset: Dataset, decode: Callable[[Any], np.ndarray] = decode) -> Dataset:
    """Decodes every image once into memory; those that `decode` refuses stay encoded."""

    def decoded(i):
        try:
            image, label = dataset.read(i)
            return decode(image), label
        except DecodeError:
            return None

    examples = list(map_examples(decoded, len(dataset)))
    return DecodedDataset(dataset.name, dataset.split, dataset.class_names, dataset, examples)
