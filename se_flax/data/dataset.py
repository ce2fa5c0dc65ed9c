"""What every data set is to the pipeline: labelled images by position."""

import concurrent.futures
import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable, Iterable

import numpy as np

from se_flax.data.decode import DecodeError, decode

logger = logging.getLogger(__name__)
SPAN = 1024  # examples a task: ImageNet has too many to hold one for each


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of a data set; `len()` of it is the number of examples.

    Attributes:
        name: as `open_dataset` took it.
        split: 'train' or 'eval'.
        class_names: by label.
    """

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
        """Reads example `i`: an image file or uint8 pixels `[H, W, C]`, and its label.

        Raises DecodeError for a record that cannot be read.
        """
        raise NotImplementedError

    def key(self, i: int) -> str:
        """Names example `i` in messages."""
        return f'{self.name}/{self.split}/{i}'

    def fingerprint(self) -> str:
        """Returns a short hash that other examples, or another order of them, hardly share.

        Of names and sizes, without reading an example, so the same wherever the data lie.
        """
        return digest([self.name, self.split, str(len(self)), *self.class_names])

    def labels(self) -> np.ndarray:
        """Returns the label of each example, int32 `[N]`; -1, logged, where it cannot be read.

        It reads every record, though it decodes none: for ImageNet 147 GB, by all cores.
        """

        def of_span(start):
            return [self._label(i) for i in range(start, min(start + SPAN, len(self)))]

        with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            spans = pool.map(of_span, range(0, len(self), SPAN))
            return np.concatenate([np.zeros(0, np.int32), *spans], dtype=np.int32)

    def _label(self, i: int) -> int:
        try:
            return self.read(i)[1]
        except DecodeError as error:
            logger.warning('%s: %s; it has no label', self.key(i), error)
            return -1


def digest(names: Iterable[str]) -> str:
    """Returns 16 hexadecimal digits of SHA-256 over names in their order."""
    text = '\0'.join(names)
    return hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class DecodedDataset(Dataset):
    """A data set whose pixels are in memory; what could not be decoded is left as it was."""

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


def decode_all(
    dataset: Dataset, decode: Callable[[bytes | np.ndarray], np.ndarray] = decode
) -> Dataset:
    """Decodes every image once, by all cores; for sets whose pixels fit into memory.

    `decode` is such as `View.decode`. An image that it refuses stays encoded, so that a pipeline
    names it when it meets it.
    """

    def decoded(i):
        try:
            image, label = dataset.read(i)
            return decode(image), label
        except DecodeError:
            return None

    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        examples = list(pool.map(decoded, range(len(dataset))))
    return DecodedDataset(dataset.name, dataset.split, dataset.class_names, dataset, examples)
