"""Builds the data set that ships with the package, `se_flax/data/fashion_mnist_mini/`.

    apt-get install dataset-fashion-mnist
    python scripts/build_fashion_mnist_mini.py [DATA_DIR]

Without DATA_DIR it writes into the package, from which the old data set must be deleted first. The
choice of images is fixed: every run gives the same images and labels in the same order.
"""

import pathlib
import sys
import tempfile

from se_flax.data.fashion_mnist import FashionMnistMini

PACKAGE = pathlib.Path(__file__).parents[1] / 'se_flax' / 'data'


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
