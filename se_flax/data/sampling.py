"""Which example is at which position of a run: a pure function of the seed and the position."""

import functools
from collections.abc import Callable

import numpy as np

from se_flax.data.dataset import Dataset
from se_flax.errors import UserError, check_known


def make_sampler(sampling: str, dataset: Dataset, seed: int) -> Callable[[int], int]:
    """Returns the function from a position to an example; `sampling` is a key of SAMPLINGS."""
    check_known('sampling', sampling, SAMPLINGS)
    return SAMPLINGS[sampling](dataset, seed)


def repeated(sampler: Callable[[int], int], repeats: int, batch_size: int) -> Callable[[int], int]:
    """Returns the sampler that visits each example `repeats` times, in about the same batch.

    That is repeated augmentation (arXiv 1901.09335), as every position has a view of its own. The
    positions of an example are `ceil(batch_size / repeats)` apart, so that no BatchNorm group of up
    to that many images has one twice. An epoch visits one example in `repeats`, and `repeats`
    epochs visit all.
    """
    if repeats == 1:
        return sampler
    return functools.partial(_repeated, sampler, repeats, -(-batch_size // repeats))


def shuffle(dataset: Dataset, seed: int) -> Callable[[int], int]:
    """Takes each example once per epoch, in an order drawn for each epoch."""
    return functools.partial(_shuffled, seed, len(dataset))


def class_aware(dataset: Dataset, seed: int) -> Callable[[int], int]:
    """Takes each class once per pass over the classes, and the images of a class in turn.

    Class-aware sampling (Shen, Lin and Huang, "Relay Backpropagation", ECCV 2016). Reads every
    label first and leaves out unreadable examples; UserError if all are unreadable.
    """
    labels = dataset.labels()
    readable = np.flatnonzero(labels >= 0)
    if not len(readable):
        raise UserError(f'no record of {dataset.name!r} can be read')
    _, counts = np.unique(labels[readable], return_counts=True)
    by_class = readable[np.argsort(labels[readable], kind='stable')].astype(np.int32)
    return functools.partial(_by_class, seed, by_class, [0, *np.cumsum(counts).tolist()])


SAMPLINGS = {'shuffle': shuffle, 'class_aware': class_aware}


def _repeated(sampler: Callable[[int], int], repeats: int, distance: int, position: int) -> int:
    turn, i = divmod(position, repeats * distance)
    return sampler(turn * distance + i % distance)


def _shuffled(seed: int, size: int, position: int) -> int:
    epoch, i = divmod(position, size)
    return int(epoch_order(seed, epoch, size)[i])


def _by_class(seed: int, by_class: np.ndarray, edges: list[int], position: int) -> int:
    """`by_class` has the examples class by class, and `edges` where each class starts."""
    num_classes = len(edges) - 1
    visit, i = divmod(position, num_classes)
    label = int(epoch_order(seed, visit, num_classes)[i])
    start, end = edges[label : label + 2]
    turn, i = divmod(visit, end - start)
    return int(by_class[start + class_order(seed, label, turn, end - start)[i]])


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """Draws an epoch's permutation of `range(size)`; int64, 21 ms for ImageNet, then cached."""
    return np.random.default_rng((seed, epoch)).permutation(size)


@functools.lru_cache(maxsize=2048)
def class_order(seed: int, label: int, turn: int, size: int) -> np.ndarray:
    """Draws a class's permutation of `range(size)`; cached for two turns of ImageNet's classes."""
    # The last word is not 0, because to NumPy (seed, epoch) equals (seed, epoch, 0).
    return np.random.default_rng((seed, turn, 1 + label)).permutation(size)
