"""Which example is at which position of a run: a pure function of the seed and the position."""

import dataclasses
import functools

import numpy as np

from se_flax.data.dataset import Dataset
from se_flax.errors import UserError, check_known

SAMPLINGS = ('shuffle', 'class_aware')


def make_sampler(sampling: str, dataset: Dataset, seed: int) -> 'Shuffle | ClassAware':
    """Returns the function from a position to an example; `sampling` is one of SAMPLINGS.

    'class_aware' first reads the label of every example (`Dataset.labels`), and leaves out those
    that cannot be read. Raises UserError for an unknown `sampling`.
    """
    check_known('sampling', sampling, SAMPLINGS)
    if sampling == 'shuffle':
        return Shuffle(seed, len(dataset))
    labels = dataset.labels()
    readable = np.flatnonzero(labels >= 0)
    if not len(readable):
        raise UserError(f'no record of {dataset.name!r} can be read')
    _, counts = np.unique(labels[readable], return_counts=True)
    by_class = readable[np.argsort(labels[readable], kind='stable')].astype(np.int32)
    return ClassAware(seed, by_class, [0, *np.cumsum(counts).tolist()])


@dataclasses.dataclass(frozen=True)
class Shuffle:
    """Each example once an epoch, in an order drawn for each epoch."""

    seed: int
    size: int

    def __call__(self, position: int) -> int:
        epoch, i = divmod(position, self.size)
        return int(epoch_order(self.seed, epoch, self.size)[i])


@dataclasses.dataclass(frozen=True)
class ClassAware:
    """Each class once in as many positions as there are classes, its images in turn.

    Class-aware sampling (Shen, Lin and Huang, "Relay Backpropagation", ECCV 2016) takes the next of
    a list of classes, then the next of that class's list of images, and shuffles a list anew when
    it is exhausted. So pass p of the classes is each class's visit p, and visits
    `[r n, (r + 1) n)` of a class of n images hold each of them once.

    Attributes:
        seed: of every list.
        by_class: int32, the examples of the first class, then of the second, and so on.
        edges: where each class starts in it, and the end.
    """

    seed: int
    by_class: np.ndarray = dataclasses.field(repr=False)
    edges: list[int] = dataclasses.field(repr=False)

    def __call__(self, position: int) -> int:
        num_classes = len(self.edges) - 1
        visit, i = divmod(position, num_classes)
        label = int(epoch_order(self.seed, visit, num_classes)[i])
        start, end = self.edges[label : label + 2]
        turn, i = divmod(visit, end - start)
        return int(self.by_class[start + class_order(self.seed, label, turn, end - start)[i]])


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """Draws an epoch's permutation of `range(size)`; int64, 21 ms for ImageNet, then kept."""
    return np.random.default_rng((seed, epoch)).permutation(size)


@functools.lru_cache(maxsize=2048)
def class_order(seed: int, label: int, turn: int, size: int) -> np.ndarray:
    """Draws a permutation of a class's `range(size)`; kept for two turns of ImageNet's classes."""
    # Its last word is not 0: to NumPy (seed, epoch) is (seed, epoch, 0).
    return np.random.default_rng((seed, turn, 1 + label)).permutation(size)
