"""Builds the data set that ships with the package, `se_flax/data/fashion_mnist_mini/`.

    apt-get install dataset-fashion-mnist
    python scripts/build_fashion_mnist_mini.py [DATA_DIR]

Without DATA_DIR it writes into the package, from which the old data set must be deleted first. The
choice of images is fixed: every run gives the same images and labels in the same order.
"""

import pathlib
import sys
import tempfile
import types

import numpy as np
import tensorflow_datasets as tfds

from se_flax.data.fashion_mnist import FashionMnist

PACKAGE = pathlib.Path(__file__).parents[1] / 'se_flax' / 'data'


class FashionMnistMini(FashionMnist, skip_registration=True):
    """The 10,000 training and 2,000 test images that ship with the install."""

    name = 'fashion_mnist_mini'
    VERSION = tfds.core.Version('1.0.0')
    per_class = types.MappingProxyType({'train': 1000, 'test': 200})

    def choose(self, split, labels):
        """Draws images of each class."""
        return draw_balanced(labels, self.per_class[split]).tolist()


def draw_balanced(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Draws `per_class` positions of each class by a fixed seed; sorted int64 [classes * n]."""
    rng = np.random.default_rng(0)
    drawn = [
        rng.choice(np.flatnonzero(labels == label), per_class, replace=False)
        for label in np.unique(labels)
    ]
    return np.sort(np.concatenate(drawn))


def main(data_dir=PACKAGE):
    """Writes `data_dir/fashion_mnist_mini/<version>/`."""
    builder = FashionMnistMini(data_dir)
    if builder.is_prepared():
        sys.exit(f'{builder.data_dir} exists; delete it first')
    with tempfile.TemporaryDirectory() as downloads:  # otherwise an empty folder is left behind
        builder.download_and_prepare(download_dir=downloads)
    print(builder.data_dir)


if __name__ == '__main__':
    main(*sys.argv[1:])
